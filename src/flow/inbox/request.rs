//! Reads an action: where its answer goes, and what it asks for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::amqp::{Delivery, Room};
use crate::flow::common::Common;
use crate::kazoo::action::{Execute, ExecuteError, ReplyTo};
use crate::kazoo::envelope::{Envelope, MessageError};
use crate::kazoo::time::Moment;
use crate::recording::carry::Seal;
use crate::recording::plan::{Circumstances, Plan, plan};
use crate::recording::settings::Correction;
use crate::system_config::SystemConfig;
use crate::telemetry::trace;

/// The name of the actions' queue in logs and metrics.
pub const QUEUE: &str = "actions";

/// How long an action that the broker delivers again waits for `system_config/media`, at a worker that has just started.
const SETTINGS: Duration = Duration::from_secs(3);

/// An action that was read.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub action: &'a Execute,
    pub delivery: &'a Delivery,
    /// The reply address, if the action has one.
    pub reply_to: Option<&'a ReplyTo>,
    /// The action may have been handled before, or its call may be over: the message was redelivered, will be, or is old.
    pub doubtful: bool,
    /// The broker delivered it before.
    pub repeated: bool,
    /// The action waited in a queue of ours, long enough for the journal to be moved into the ledger.
    pub waited: bool,
    /// When it was sent, by its sender's clock.
    pub at: Option<Moment>,
    /// When this worker read it from its queue, by this worker's clock.
    pub read: Moment,
}

/// What an action asks for. Its data, of any size, is dropped after it was read.
pub struct Asked {
    pub action: Execute,
    pub server_id: Option<String>,
    pub plan: Plan,
    pub corrections: Vec<Correction>,
}

/// The reply address of an action, and what it asks for. Either may be unusable.
pub type Read = (Result<ReplyTo, String>, Result<Asked, ExecuteError>);

/// Reads actions.
pub struct ActionReader {
    pub common: Arc<Common>,
    /// Seals the recording context that a start command carries.
    pub seal: Arc<Seal>,
    pub system_config: SystemConfig,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl ActionReader {
    /// Reads a delivery.
    ///
    /// # Errors
    /// When it is no message at all.
    pub async fn read(&self, delivery: &Delivery) -> Result<Read, MessageError> {
        if delivery.redelivered() {
            // The worker that had it before may have read the settings, and commanded a file of another format. That file must not get a
            // second one beside it.
            self.system_config.known_within(SETTINGS).await;
        }
        let _room = self.room.of(delivery).await;
        delivery.envelope().map(|envelope| self.ask(delivery, &envelope))
    }

    /// This must not wait, because it uses the memory limit for decoding.
    fn ask(&self, delivery: &Delivery, envelope: &Envelope) -> Read {
        let reply_to = ReplyTo::of(envelope);
        let mut action = match Execute::of(envelope) {
            Ok(action) => action,
            Err(refusal) => return (reply_to, Err(refusal)),
        };
        let defaults = self.system_config.defaults();
        let kazoo = &self.common.config.kazoo;
        let (mut plan, corrections) = plan(
            &action,
            &Circumstances {
                defaults: &defaults,
                seal: &self.seal,
                zone: &kazoo.zone,
                recordings: &kazoo.recordings,
                timestamp: delivery.timestamp(),
                now: self.common.now(),
            },
        );
        if let Plan::Start(order) = &mut plan {
            // The sender's own trace, so that a repeat has the same one. Else the trace that began here.
            let trace = delivery.trace().or_else(trace::current);
            order.trace = trace.map(|trace| trace.parent().to_owned());
        }
        action.data = Value::Null;
        let asked = Asked {
            action,
            server_id: envelope.server_id.clone(),
            plan,
            corrections,
        };
        (reply_to, Ok(asked))
    }
}
