//! Reads how many messages Kazoo's queues hold. A refused read closes its channel, so refused reads are seldom repeated.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::kazoo::names::{KAZOO_4_RECORDER_QUEUE, KAZOO_RECORDER_QUEUE};
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

/// How long a refusal to report on a recorder's queue counts. An operator may give the permission meanwhile.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Why the broker did not report how full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// The broker refuses to report on this queue.
    Refused,
    /// No connection, or no answer in time.
    Unanswered,
}

#[derive(Default)]
pub(super) struct Looks {
    state: Mutex<State>,
    refusals: std::sync::Mutex<Refusals>,
}

#[derive(Default)]
struct State {
    channel: Option<(u64, Channel)>,
    /// Queues that are exclusive to another connection.
    locked: HashSet<String>,
}

/// Whose queue it is. The permissions on each kind differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Worker,
    /// A queue of Kazoo's own recorder. It has a name that a permission can list.
    Recorder(&'static str),
    /// A queue whose name Kazoo makes. A permission covers all of them or none.
    Kazoo,
}

impl Owner {
    fn of(queue: &str) -> Self {
        let recorders = [KAZOO_RECORDER_QUEUE, KAZOO_4_RECORDER_QUEUE];
        match recorders.into_iter().find(|name| *name == queue) {
            Some(name) => Self::Recorder(name),
            None if queue.starts_with(OWN) => Self::Worker,
            None => Self::Kazoo,
        }
    }
}

/// What the broker refused to report on.
#[derive(Debug, Default)]
struct Refusals {
    /// Epoch of the connection on which the broker refused a read of a queue whose name Kazoo made.
    kazoos: Option<u64>,
    /// Epoch and time of the last refusal, by queue of Kazoo's own recorder.
    recorders: HashMap<&'static str, (u64, Instant)>,
}

impl Refusals {
    /// Whether a read on this connection can have another result than the last one.
    fn may_look(&self, epoch: u64, queue: &str, now: Instant) -> bool {
        match Owner::of(queue) {
            // The user has all permissions on these.
            Owner::Worker => true,
            Owner::Recorder(name) => self
                .recorders
                .get(name)
                .is_none_or(|(of, at)| *of != epoch || now.saturating_duration_since(*at) >= REFUSED_FOR),
            Owner::Kazoo => self.kazoos != Some(epoch),
        }
    }

    /// Notes a refusal. Whether it is the first of this connection.
    fn note(&mut self, epoch: u64, queue: &str, now: Instant) -> bool {
        match Owner::of(queue) {
            Owner::Worker => false,
            Owner::Recorder(name) => {
                let before = self.recorders.insert(name, (epoch, now));
                before.is_none_or(|(of, _)| of != epoch)
            }
            Owner::Kazoo => self.kazoos.replace(epoch) != Some(epoch),
        }
    }
}

impl Looks {
    /// Number of ready messages and of consumers of a queue. A missing queue counts as empty: the broker returns what is sent to it.
    pub(super) async fn load(&self, live: &Live, queue: ShortString) -> Result<Load, Unseen> {
        let name = queue.as_str().to_owned();
        if !self.may_look(live.epoch, &name) {
            return Err(Unseen::Refused);
        }
        let mut state = self.state.lock().await;
        // A concurrent read may have been refused while this one waited for the lock.
        if !self.may_look(live.epoch, &name) || state.locked.contains(&name) {
            return Err(Unseen::Refused);
        }
        // A refusal closes the channel, and so does a timed-out read. The channel is kept only after a successful read.
        let channel = match state.channel.take() {
            Some((epoch, channel)) if epoch == live.epoch && channel.status().connected() => channel,
            _ => within(LOOK, "opening a channel", live.connection.create_channel())
                .await
                .map_err(|_| Unseen::Unanswered)?,
        };
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looked = channel.queue_declare(queue, passive, FieldTable::default());
        let error = match within(LOOK, "looking at a queue", looked).await {
            Ok(found) => {
                state.channel = Some((live.epoch, channel));
                return Ok(Load {
                    messages: found.message_count(),
                    consumers: found.consumer_count(),
                });
            }
            Err(error) => error,
        };
        match error.reply() {
            Some((NOT_FOUND, _)) => Ok(Load::default()),
            Some((ACCESS_REFUSED, why)) => {
                self.refused(live.epoch, &name, &why);
                Err(Unseen::Refused)
            }
            Some((RESOURCE_LOCKED, why)) => {
                match Owner::of(&name) {
                    // Its name is not unique: another connection may declare the queue in another form later.
                    Owner::Recorder(_) => self.refused(live.epoch, &name, &why),
                    Owner::Worker | Owner::Kazoo => {
                        if state.locked.len() >= REMEMBERED {
                            state.locked.clear();
                        }
                        state.locked.insert(name);
                    }
                }
                Err(Unseen::Refused)
            }
            _ => Err(Unseen::Unanswered),
        }
    }

    fn may_look(&self, epoch: u64, queue: &str) -> bool {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.may_look(epoch, queue, Instant::now())
    }

    fn refused(&self, epoch: u64, queue: &str, why: &str) {
        let is_news = {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            refusals.note(epoch, queue, Instant::now())
        };
        if is_news {
            LooksRefused {
                queue,
                of_recorder: matches!(Owner::of(queue), Owner::Recorder(_)),
                why,
            }
            .emit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_CALLFLOW: &str = "callflow_remote_action-callflow@a";

    #[test]
    fn a_refused_look_at_a_callflow_server_hides_no_recorders_queue() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.note(1, OF_CALLFLOW, now));
        assert!(!refusals.may_look(1, OF_CALLFLOW, now) && !refusals.may_look(1, "another", now));
        for open in [KAZOO_RECORDER_QUEUE, KAZOO_4_RECORDER_QUEUE, "kz_record_call.journal"] {
            assert!(refusals.may_look(1, open, now), "{open}");
        }
        assert!(refusals.may_look(2, OF_CALLFLOW, now), "another connection");
    }

    #[test]
    fn a_refused_look_at_a_recorders_queue_counts_for_that_queue_alone() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.note(1, KAZOO_4_RECORDER_QUEUE, now));
        assert!(!refusals.may_look(1, KAZOO_4_RECORDER_QUEUE, now));
        for open in [KAZOO_RECORDER_QUEUE, OF_CALLFLOW] {
            assert!(refusals.may_look(1, open, now), "{open}");
        }
        assert!(refusals.may_look(2, KAZOO_4_RECORDER_QUEUE, now), "another connection");
    }

    #[test]
    fn a_permission_that_an_operator_gives_is_noticed_on_the_same_connection() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.note(1, KAZOO_RECORDER_QUEUE, now));
        assert!(!refusals.may_look(1, KAZOO_RECORDER_QUEUE, now + REFUSED_FOR / 2));
        assert!(refusals.may_look(1, KAZOO_RECORDER_QUEUE, now + REFUSED_FOR));
        let again = refusals.note(1, KAZOO_RECORDER_QUEUE, now + REFUSED_FOR);
        assert!(!again, "one log line for each connection");
    }
}
