//! Reads how many messages Kazoo's queues hold. A refused read closes its channel, so no refused read is repeated.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Mutex;

use crate::telemetry::events::LooksRefused;

use super::super::{Load, within};
use super::session::Live;

/// Time limit of one step of a read.
const LOOK: Duration = Duration::from_secs(1);

/// How many queues are remembered as exclusive to another connection.
const REMEMBERED: usize = 2_000;

/// Names of the worker's own queues begin with this.
const OWN: &str = "kz_record_call.";

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;

#[derive(Default)]
pub(super) struct Looks {
    state: Mutex<State>,
    /// Epoch of the connection on which the broker refused a read.
    refused: AtomicU64,
}

#[derive(Default)]
struct State {
    channel: Option<(u64, Channel)>,
    /// Queues that are exclusive to another connection.
    locked: HashSet<String>,
}

impl Looks {
    /// Number of ready messages and of consumers of a queue. A missing queue counts as empty: the broker returns what is sent to it.
    pub(super) async fn load(&self, live: &Live, queue: ShortString) -> Option<Load> {
        let is_refused = || self.refused.load(Ordering::Acquire) == live.epoch;
        // The rights on the worker's own queues are others than those on Kazoo's.
        let is_own = queue.as_str().starts_with(OWN);
        if !is_own && is_refused() {
            return None;
        }
        let name = queue.as_str().to_owned();
        let mut state = self.state.lock().await;
        // A concurrent read may have been refused while this one waited for the lock.
        if !is_own && is_refused() || state.locked.contains(&name) {
            return None;
        }
        // A refusal closes the channel, and so does a timed-out read. The channel is kept only after a successful read.
        let channel = match state.channel.take() {
            Some((epoch, channel)) if epoch == live.epoch && channel.status().connected() => channel,
            _ => within(LOOK, "opening a channel", live.connection.create_channel())
                .await
                .ok()?,
        };
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looked = channel.queue_declare(queue, passive, FieldTable::default());
        let error = match within(LOOK, "looking at a queue", looked).await {
            Ok(found) => {
                state.channel = Some((live.epoch, channel));
                return Some(Load {
                    messages: found.message_count(),
                    consumers: found.consumer_count(),
                });
            }
            Err(error) => error,
        };
        match error.reply() {
            Some((NOT_FOUND, _)) => return Some(Load::default()),
            Some((ACCESS_REFUSED, why)) if !is_own => {
                self.refused.store(live.epoch, Ordering::Release);
                LooksRefused {
                    queue: &name,
                    why: &why,
                }
                .emit();
            }
            Some((RESOURCE_LOCKED, _)) => {
                if state.locked.len() >= REMEMBERED {
                    state.locked.clear();
                }
                state.locked.insert(name);
            }
            _ => {}
        }
        None
    }
}
