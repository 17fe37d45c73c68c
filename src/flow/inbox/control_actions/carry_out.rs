//! Sends a stop, mask or unmask to the switch, writes it down, and follows it up.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use crate::entry::Entry;
use crate::entry::fact::{BEFORE_ANY_START, Fact, Route, What};
use crate::flow::common::Common;
use crate::flow::crash;
use crate::flow::drivers::Drivers;
use crate::flow::effects::calls::Calls;
use crate::flow::inbox::request::Request;
use crate::flow::journal::Journal;
use crate::flow::memory::{Open, OpenRecordings};
use crate::flow::peer_notices::PeerNotices;
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::ledger::{Ledger, address};
use crate::lifecycle::Input;
use crate::recording::controls::Why;

use super::at_once::AtOnce;
use super::find::Found;

/// Time limit for the ledger to load a recording's order.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Time limit for the note that a mask or unmask is about to be sent: the audio must not stay unmasked for it.
const INTENT: Duration = Duration::from_millis(500);

/// The part of that time that the ledger has. After it the note goes into the journal.
const OF_LEDGER: Duration = Duration::from_millis(200);

/// The time of a stop that is carried out later than this after it was sent is noted: the recording may have run on, or have ended by itself.
const DELAY: Duration = Duration::from_secs(2);

/// Carries controls out.
pub struct Carrier {
    pub common: Arc<Common>,
    pub calls: Arc<Calls>,
    pub at_once: AtOnce,
    pub memory: Arc<OpenRecordings>,
    pub ledger: Ledger,
    pub journal: Arc<Journal>,
    pub notices: Arc<PeerNotices>,
    pub drivers: Arc<Drivers>,
}

impl Carrier {
    /// Sends the command to the switch, and writes it down, while the action is answered. Returns the recording's id, and whether the action
    /// is answered and durable.
    pub(super) async fn carry_out(
        &self,
        request: &Request<'_>,
        found: Found,
        what: Control,
        answering: impl Future<Output = bool>,
    ) -> (String, bool) {
        let kind = match found {
            Found::Between(_) => Meant::Next,
            _ => Meant::Running,
        };
        let (open, has_moved) = match found {
            Found::Here(open) | Found::Between(open) => (open, false),
            Found::Moved(open) => (open, true),
            Found::Over(open) => {
                let why = Why::Unconfirmed;
                let (answered, written) = tokio::join!(answering, self.too_late(request, &open, what, why));
                return (open.media_id, answered && written);
            }
            Found::Done { media_id, unwritten } => {
                // A repeat must not reach a recording that began since, nor undo what was asked since.
                let answered = answering.await;
                let written = match unwritten {
                    Some((open, facts)) => self.write_down(request, &open, facts).await,
                    None => true,
                };
                return (media_id, answered && written);
            }
        };
        if kind == Meant::Running && what != Control::Stop {
            self.intend(request, &open, what).await;
        }
        let mut facts = crash::step(self.tell_switch(request, &open, what, kind)).await;
        if has_moved && what != Control::Stop {
            // A stop shows by itself whether it was obeyed. A mask never does.
            let action = request.action.msg_id.clone().unwrap_or_default();
            let why = match self.known(&open).may_have_met(&action) {
                true => Why::PerhapsMoved,
                false => Why::Moved,
            };
            let moved = What::NotObeyed { action, what, why };
            facts.extend(self.stamped(&[moved]));
        }
        let is_first = what == Control::Stop && !request.doubtful && !has_moved && kind == Meant::Running;
        let asked = facts.first().cloned();
        // Side by side: the answer waits for nothing, and a worker that dies before its answer is out has told the others.
        let (answered, mut durable) = tokio::join!(answering, self.write_down(request, &open, facts));
        let mut media_id = open.media_id.clone();
        if let Some(asked) = asked.filter(|_| is_first)
            && let Some(others) = self.at_once.the_one_before(request, &open, &asked).await
        {
            durable &= self
                .write_down(request, &others, self.tell_switch(request, &others, what, kind).await)
                .await;
            media_id = others.media_id;
        }
        (media_id, answered && durable)
    }

    /// Writes down that a mask or unmask is about to be sent. If this worker is killed before it notes the result, the worker that gets the
    /// action next knows for which recording it was, and that the switch may have obeyed. The command does not depend on this note: it is
    /// sent after a bounded time.
    async fn intend(&self, request: &Request<'_>, open: &Open, what: Control) {
        let Some(action) = request.action.msg_id.clone().filter(|id| !id.is_empty()) else {
            return;
        };
        let mut entry = self.known(open);
        let asked = asked_after(request, Some(&entry));
        let on = what == Control::Mask;
        entry.add(self.common.fact(What::Intended { action, on, asked }));
        let written = tokio::time::timeout(INTENT, self.journal.write_soon(&entry, OF_LEDGER)).await;
        if written != Ok(true) {
            debug!(
                event = "control_intent_not_noted",
                call_id = request.action.call_id,
                media_id = open.media_id,
                action = what.name(),
                "mask or unmask sent before a note of it"
            );
        }
    }

    /// What is known of a recording, at least which month of the ledger has the rest.
    fn known(&self, open: &Open) -> Entry {
        let mut entry = self
            .memory
            .entry(open.key)
            .unwrap_or_else(|| Entry::new(open.key, &open.call_id));
        if entry.order().is_none() {
            // Only the notice of another worker is known.
            entry.add(Fact {
                at: open.asked_at,
                by: self.common.policy.worker.clone(),
                what: What::HeardOf {
                    media_id: open.media_id.clone(),
                },
            });
        }
        entry
    }

    /// Writes down that an action came to nothing, or perhaps did: the recording that it was for has ended since. Operators are alerted, and the
    /// document tells it. `false` when that is not durable.
    pub(super) async fn too_late(&self, request: &Request<'_>, open: &Open, what: Control, why: Why) -> bool {
        let action = request.action.msg_id.clone().unwrap_or_default();
        let route = Some(Route {
            control: request.action.control.to_string(),
            call_id: request.action.call_id.clone(),
        });
        let asked = match what {
            Control::Stop => What::StopAsked {
                action: action.clone(),
                route,
            },
            Control::Mask | Control::Unmask => What::MaskAsked {
                action: action.clone(),
                on: what == Control::Mask,
                asked: request.at,
                route,
            },
        };
        if !action.is_empty() {
            self.memory.done(&action, open.key, &open.media_id);
        }
        let facts = self.stamped(&[asked, What::NotObeyed { action, what, why }]);
        self.write_down(request, open, facts).await
    }

    /// Sends the command. Returns the facts that must be written.
    async fn tell_switch(&self, request: &Request<'_>, open: &Open, what: Control, meant: Meant) -> Vec<Fact> {
        let action = request.action;
        let known = self.memory.entry(open.key);
        // Of the first look this is not asked: the clocks of two callflow nodes may differ.
        let late = request.at.filter(|_| request.doubtful);
        let overtaken =
            what != Control::Stop && late.is_some_and(|at| known.as_ref().is_some_and(|entry| entry.is_overtaken(at)));
        // The worker that gets the action next carries it out, and then perhaps the action that undoes it.
        let still = || !request.delivery.is_lost();
        let to = (&action.control, action.call_id.as_str());
        let sending = self
            .calls
            .send_control(to, &open.media_id, &open.file_name, what, &still);
        let sent = if overtaken {
            warn!(
                event = "control_overtaken",
                call_id = action.call_id,
                media_id = open.media_id,
                action = what.name(),
                "control overtaken by a later action, not sent"
            );
            None
        } else if meant == Meant::Running {
            Some(sending.await)
        } else {
            None
        };
        if what == Control::Stop {
            self.memory.stopping(open.key);
            self.notices.stopping(open);
        }
        // The action's id distinguishes its repeats from another action.
        let id = action.msg_id.clone().unwrap_or_default();
        if !id.is_empty() {
            self.memory.done(&id, open.key, &open.media_id);
        }
        let route = Some(Route {
            control: action.control.to_string(),
            call_id: action.call_id.clone(),
        });
        let on = what == Control::Mask;
        let asked = match what {
            Control::Stop => What::StopAsked {
                action: id.clone(),
                route,
            },
            Control::Mask | Control::Unmask => What::MaskAsked {
                action: id.clone(),
                on,
                asked: asked_after(request, known.as_ref()),
                route,
            },
        };
        let start = known.as_ref().and_then(Entry::newest_start);
        // A worker that knows the recording only by a notice knows of no start. Then the command is repeated rather than taken for obeyed.
        let known_start = Some(known.as_ref().and_then(Entry::newest_start).unwrap_or(BEFORE_ANY_START));
        let sent_at = sent.as_ref().and_then(|sent| sent.as_ref().ok()).copied();
        let result = match (sent, what) {
            (Some(Ok(_)), Control::Stop) => Some(What::StopSent { n: 1, start }),
            (Some(Ok(_)), Control::Mask | Control::Unmask) => Some(What::Masked {
                action: id.clone(),
                on,
                n: 0,
                start: known_start,
                sender: Some(self.common.policy.worker.clone()),
            }),
            (Some(Err(error)), Control::Mask | Control::Unmask) if error.is_unroutable() => {
                let action = id.clone();
                Some(What::Returned { what, action, n: 0 })
            }
            // The driver sends it, and notes what comes of that.
            (Some(Err(_)) | None, _) => None,
        };
        let now = sent_at.unwrap_or_else(|| self.common.now());
        let asked_at = request.at.filter(|at| what == Control::Stop && at.plus(DELAY) < now);
        let delayed = asked_at.map(|asked| What::StopDelayed { action: id, asked });
        // The action counts from when this worker got it, and its command from when it was sent: the switch may obey before the broker's
        // confirmation arrives.
        let at = |what: What, at: Moment| Fact {
            at,
            ..self.common.fact(what)
        };
        let (asked, delayed) = (at(asked, request.read), delayed.map(|what| at(what, request.read)));
        let result = result.map(|what| at(what, now));
        // At once: the end may be on its way already, and its handler starts from what is remembered.
        let stamped: Vec<Fact> = [asked].into_iter().chain(delayed).chain(result).collect();
        self.memory.hear(open.key, &open.call_id, &stamped);
        stamped
    }

    fn stamped(&self, facts: &[What]) -> Vec<Fact> {
        facts.iter().map(|what| self.common.fact(what.clone())).collect()
    }

    /// Writes down what was asked and sent, notifies the other workers, and follows it up.
    async fn write_down(&self, request: &Request<'_>, open: &Open, stamped: Vec<Fact>) -> bool {
        let action = request.action;
        let mut entry = self.known(open);
        // Operators are alerted of what the driver learns, so the driver must not know these facts before.
        let mut unheeded = Entry::new(open.key, &open.call_id);
        for fact in &stamped {
            unheeded.add(fact.clone());
            if !matches!(fact.what, What::NotObeyed { .. }) {
                entry.add(fact.clone());
            }
        }
        self.memory.remember(&entry);
        if entry.order().is_none()
            && self.ledger.is_up()
            && let Ok(Ok(Some(record))) = tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&entry))).await
        {
            entry = record.entry.merge(entry);
        }
        let is_known = entry.order().is_some();
        // The worker that writes the recording's document must know this. If this worker does not know the order, a worker that knows it
        // follows the action up.
        self.notices.controlled(&entry, &stamped, !is_known);
        let durable = self.journal.write(&entry.clone().merge(unheeded.clone())).await;
        if is_known {
            // The task that has the recording in flight gets the facts with their times. Without such a task the action is followed up from
            // here.
            self.drivers.go_on(entry, Input::Known(Box::new(unheeded)));
        } else {
            warn!(
                event = "control_of_unknown_order",
                call_id = action.call_id,
                media_id = open.media_id,
                durable,
                "order of the controlled recording unknown"
            );
        }
        durable
    }

    /// No recording of ours is known. The call names another recorder's recording, and Kazoo's own action would stop that one.
    pub(super) async fn stranger(&self, request: &Request<'_>, name: &str, what: Control) {
        let action = request.action;
        // The event of the command reports what came of it.
        let still = || !request.delivery.is_lost();
        let to = (&action.control, action.call_id.as_str());
        let _ = self.calls.send_control(to, "", name, what, &still).await;
    }
}

/// Which recording an action is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Running,
    /// The recording that the next bridge begins: no command is sent before.
    Next,
}

/// When a mask or unmask was sent, by its sender's clock. A fresh one is the newest, though the clock of its callflow node may be behind the
/// clock of the node that sent the one before.
fn asked_after(request: &Request<'_>, known: Option<&Entry>) -> Option<Moment> {
    let before = known.and_then(Entry::newest_mask_asked).filter(|_| !request.doubtful);
    match (request.at, before) {
        (Some(at), Some(before)) if before >= at => Some(before.plus(Duration::from_micros(1))),
        (at, _) => at,
    }
}
