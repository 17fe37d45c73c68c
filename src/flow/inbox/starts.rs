//! Actions that start a recording.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::amqp::Delivery;
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::flow::common::Common;
use crate::flow::crash;
use crate::flow::drivers::Drivers;
use crate::flow::effects::calls::Calls;
use crate::flow::journal::Journal;
use crate::flow::memory::{Open, OpenRecordings};
use crate::flow::peer_notices::PeerNotices;
use crate::kazoo::dialplan::Trigger;
use crate::ledger::{Lease, Ledger, address};
use crate::lifecycle::Input;
use crate::recording::order::Order;
use crate::telemetry::trace;

use super::answers::{ALARM_PATIENCE, Answers};
use super::request::Request;

/// Time limit for the ledger's answer to what it knows of a repeated action.
const KNOWLEDGE: Duration = Duration::from_secs(2);

/// Until then the task that drives the start has noted its own lease.
const AT_FIRST: Duration = Duration::from_secs(10);

/// Starts recordings.
pub struct Starts {
    pub common: Arc<Common>,
    pub calls: Arc<Calls>,
    pub answers: Arc<Answers>,
    pub memory: Arc<OpenRecordings>,
    pub ledger: Ledger,
    pub journal: Arc<Journal>,
    pub notices: Arc<PeerNotices>,
    pub drivers: Arc<Drivers>,
}

impl Starts {
    /// Starts a recording. `true` when it is answered, and durable. No command goes out once the broker has given the action to another
    /// worker: that recording may be over by then.
    pub async fn start(&self, request: &Request<'_>, order: &Order, delivery: &Delivery) -> bool {
        // What is known only by the switch's events lacks a part of the order.
        let is_whole = |entry: &Entry| entry.order().is_some_and(|order| order.command.is_some());
        if let Some(entry) = self.memory.entry(order.key).filter(is_whole) {
            // This worker has the recording already, and did not get to acknowledge the action.
            let answered = self.answers.at_once(request.reply_to).await;
            return self.journal.write(&entry).await && answered;
        }
        let mut entry = Entry::of_order(order.clone(), &self.common.policy.worker);
        if request.doubtful || self.memory.is_commanded(order.key) {
            let answered = self.answers.at_once(request.reply_to).await;
            return self.start_in_doubt(entry).await && answered;
        }
        let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
        if let Some(open) = Open::of(&entry) {
            self.memory.open(open);
        }
        // Before the command goes out, because its error may arrive before its confirmation.
        self.memory.remember(&entry);
        self.notices.opened(&entry);
        let begun = Instant::now();
        let mut first = self.answers.acceptance(request.reply_to);
        let still = || !delivery.is_lost();
        let sent = loop {
            let sending = self
                .calls
                .send_start(order, &request.action.call_id, trigger, first.take(), &still);
            match crash::step(sending).await {
                // The result waits for the end of the alarm too. It must not come first, because the call would continue before it is
                // recorded.
                Err(error)
                    if error.is_alarm() && begun.elapsed() < ALARM_PATIENCE && !self.common.stop().is_cancelled() => {}
                sent => break sent,
            }
        };
        let answered = self.answers.result_of_request(request.reply_to).await;
        match sent {
            Ok(()) => drop(entry.add(self.common.fact(What::Commanded))),
            Err(error) if error.is_unroutable() => {
                let why = error.to_string();
                entry.add(self.common.fact(What::CommandLost { why }));
            }
            // The entry stays uncommanded. The task that resumes it queries the call first.
            Err(_) => {}
        }
        self.memory.remember(&entry);
        let durable = crash::step(self.journal.write_leased(&entry, self.lease_of(&entry))).await;
        if !entry.is_commanded() {
            self.drivers.go_on(entry, Input::Due);
        } else if trigger != Trigger::Now {
            let (calls, order) = (Arc::clone(&self.calls), order.clone());
            let call_id = request.action.call_id.clone();
            let starting = async move { calls.start_if_so_already(&order, &call_id).await };
            let starting = trace::carried(starting);
            self.common.tasks.spawn("start_if_so_already", starting);
        }
        answered && durable
    }

    /// An action that may have been handled before, or whose call may be over. It is answered, and what is known of the recording decides
    /// what follows.
    async fn start_in_doubt(&self, mut entry: Entry) -> bool {
        let is_over = self.memory.was_closed(entry.key);
        if let Some(heard) = self.memory.entry(entry.key) {
            // For example another worker's stop of it.
            entry = entry.merge(heard);
        }
        let known = match self.ledger.is_up() {
            true => tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&entry))).await,
            false => Ok(Ok(None)),
        };
        if let Ok(Ok(Some(record))) = known {
            // The ledger may know the recording by events or by a stop alone. Then only this action has its whole order.
            let is_whole = record.entry.order().is_some_and(|order| order.command.is_some());
            let known = match is_whole {
                true => record.entry,
                false => record.entry.merge(entry),
            };
            let lease = self.lease_of(&known);
            if let Some(open) = Open::of(&known).filter(|_| known.is_open()) {
                self.memory.open(open);
            }
            self.memory.remember(&known);
            let durable = is_whole || self.journal.write_leased(&known, lease).await;
            if !known.is_commanded() {
                self.drivers.go_on(known, Input::Due);
            }
            return durable;
        }
        if is_over {
            // It ran, and its end was heard. The worker that carried it out has written that, or this write does so when the ledger is
            // back.
            return self.journal.write(&entry).await;
        }
        if let Some(open) = Open::of(&entry) {
            self.memory.open(open);
        }
        let durable = self.journal.write_leased(&entry, self.lease_of(&entry)).await;
        self.notices.opened(&entry);
        // The entry is uncommanded, so its call is queried first.
        self.drivers.go_on(entry, Input::Due);
        durable
    }

    /// A lease for a start that this worker is about to drive. The action may be old, and its recording due at once for every sweep: two commands
    /// with a stop between them would record twice.
    fn lease_of(&self, entry: &Entry) -> Option<Lease> {
        (!entry.is_commanded()).then(|| self.ledger.lease(AT_FIRST))
    }
}
