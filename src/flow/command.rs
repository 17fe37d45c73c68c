//! What is said to a call: start, stop, mask; and asked of it: does it live, is it answered.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::amqp::PublishError;
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::kazoo::address::Address;
use crate::kazoo::channel::{self, ChannelState, Status, StatusReply};
use crate::kazoo::dialplan::{self, Control, Trigger};
use crate::kazoo::outgoing::Outgoing;
use crate::recording::order::Order;
use crate::telemetry::events::CommandSent;
use crate::telemetry::trace::{self, Stage};

use super::next::Input;
use super::perform::Parts;

/// How long ecallmgrs have to answer for a channel: what Kazoo itself gives them.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(2);

impl Parts {
    /// Sends the start command of an order, for the call's id as it is now.
    ///
    /// # Errors
    /// As `Publisher::publish`; unroutable means that the call's control queue is gone.
    pub async fn send_start(&self, order: &Order, call_id: &str, trigger: Trigger) -> Result<(), PublishError> {
        let Some(message) = order.command(&self.sender, call_id, trigger) else {
            return Ok(());
        };
        let _pass = self.keep_pace(&message.routing_key).await;
        self.send(call_id, order.media_id.as_str(), "start", &message).await
    }

    /// Stops, masks or unmasks what is recorded into `file_name`.
    ///
    /// # Errors
    /// As `Publisher::publish`.
    pub async fn send_control(
        &self,
        to: &Address,
        call_id: &str,
        media_id: &str,
        file_name: &str,
        what: Control,
    ) -> Result<(), PublishError> {
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let message = dialplan::control(&self.sender, to, &msg_id, call_id, file_name, what);
        let _pass = self.keep_pace(to.queue()).await;
        self.send(call_id, media_id, what.name(), &message).await
    }

    async fn send(
        &self,
        call_id: &str,
        media_id: &str,
        command: &'static str,
        message: &Outgoing,
    ) -> Result<(), PublishError> {
        let publishing = self.publisher.publish(message);
        let sent = trace::within(Stage::Command, trace::current(), publishing).await;
        let unroutable = sent.as_ref().is_err_and(PublishError::is_unroutable);
        let why = sent.as_ref().err().map(ToString::to_string);
        CommandSent {
            call_id,
            media_id,
            command,
            result: why.as_deref().map_or(Ok(()), Err),
            unroutable,
        }
        .emit();
        sent
    }

    /// The start command of an entry that was left uncommanded.
    pub(super) async fn command(&self, entry: &Entry) -> Option<Input> {
        let order = entry.order()?;
        let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
        let call_id = self.replaced.current(&order.call_id);
        match self.send_start(order, &call_id, trigger).await {
            Ok(()) => Some(Input::Fact(What::Commanded)),
            Err(error) if error.is_unroutable() => Some(Input::Fact(What::CommandLost { why: error.to_string() })),
            Err(_) => {
                self.rest().await?;
                Some(Input::Due)
            }
        }
    }

    /// The n-th stop.
    pub(super) async fn control(&self, entry: &Entry, what: Control, n: u32) -> Option<Input> {
        let order = entry.order()?;
        let call_id = self
            .replaced
            .current(entry.started().map_or(&order.call_id, |told| &told.call_id));
        let Some(to) = order.control() else {
            return Some(Input::Fact(What::StopSent { n }));
        };
        match self
            .send_control(&to, &call_id, order.media_id.as_str(), &order.file_name, what)
            .await
        {
            // A control queue that is gone takes no stop, now or later; the count goes on to its alarm.
            Ok(()) => Some(Input::Fact(What::StopSent { n })),
            Err(error) if error.is_unroutable() => Some(Input::Fact(What::StopSent { n })),
            Err(_) => {
                self.rest().await?;
                Some(Input::Due)
            }
        }
    }

    /// Whether any of the recording's channels lives. Silence of every ecallmgr proves nothing.
    pub(super) async fn look_for_channel(&self, entry: &Entry, n: u32) -> Option<Input> {
        let mut legs: Vec<&str> = vec![&entry.call_id];
        if let Some(told) = entry.started() {
            legs.push(&told.call_id);
            legs.extend(told.other_leg_call_id.as_deref());
        }
        // A channel may be known by another id by now.
        let mut legs: Vec<String> = legs
            .into_iter()
            .flat_map(|leg| [leg.to_owned(), self.replaced.current(leg)])
            .collect();
        legs.sort_unstable();
        legs.dedup();
        for leg in legs {
            match self.is_alive(&leg).await {
                Some(true) | None => return Some(Input::Fact(What::ChannelSeen { n, alive: true })),
                Some(false) => {}
            }
        }
        Some(Input::Fact(What::ChannelSeen { n, alive: false }))
    }

    /// Whether a channel lives; `None` when nobody could tell.
    pub async fn is_alive(&self, call_id: &str) -> Option<bool> {
        let reply_to = self.consumers.reply_queue(CHANNEL_PATIENCE).await?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = channel::status_request(&self.sender, &msg_id, &reply_to, call_id)?;
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.ok()?;
        let end = Instant::now() + CHANNEL_PATIENCE;
        let mut gone = false;
        while let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
            match StatusReply::of(&reply) {
                Ok(StatusReply {
                    status: Status::Active, ..
                }) => return Some(true),
                Ok(StatusReply {
                    status: Status::Terminated,
                    ..
                }) => gone = true,
                Err(_) => {}
            }
        }
        gone.then_some(false)
    }

    /// What the ecallmgr that knows a channel says of it; `None` when none does.
    pub async fn channel_state(&self, call_id: &str) -> Option<ChannelState> {
        let reply_to = self.consumers.reply_queue(CHANNEL_PATIENCE).await?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = channel::answered_request(&self.sender, &msg_id, &reply_to, call_id);
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.ok()?;
        let end = Instant::now() + CHANNEL_PATIENCE;
        while let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
            if let Ok(Some(state)) = channel::channel_state(&reply, call_id) {
                return Some(state);
            }
        }
        None
    }
}
