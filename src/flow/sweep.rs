//! The sweep: resumes what is due and not in flight.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::entry::Entry;
use crate::faults::{Fault, is_back};
use crate::ledger::{Address, Ledger, Record};
use crate::telemetry::events::{SweepEnded, SweepFull, WorkerGone};

use super::common::Common;
use super::drivers::Drivers;
use super::in_flight::{InFlight, Mailbox};
use super::memory::{OpenRecordings, Peers};
use crate::lifecycle::Input;

/// The largest number of recordings that one sweep takes, and that a worker has in flight before it takes no more. Recordings that wait for
/// a slot of their switch do not count. One switch that uploads nothing must not stop the sweep for all other switches.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub take: usize,
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            take: 64,
            in_flight: 512,
        }
    }
}

/// Delay before the next sweep where the last one did not take all that was due.
const NEXT: Duration = Duration::from_millis(100);

/// The query for what is due takes at most one part in this many of the time, and the interval grows at most by this factor. A query
/// updates the view, which costs the database most while most is written.
const SHARE: u32 = 10;

/// The same while nothing is due that this worker wrote. Other workers query for what they wrote, as long as they live.
const SHARE_OF_OTHERS: u32 = 30;

/// Drives the recordings that a sweep takes.
pub trait Resume: Send + Sync + 'static {
    /// Drives a recording that is in flight now.
    fn begin(self: &Arc<Self>, entry: Entry, input: Input, mailbox: Mailbox);

    /// The ledger answers again.
    fn ledger_is_back(&self);
}

impl Resume for Drivers {
    fn begin(self: &Arc<Self>, entry: Entry, input: Input, mailbox: Mailbox) {
        Self::begin(self, entry, input, mailbox);
    }

    fn ledger_is_back(&self) {
        self.performer.deliveries.proof.home_is_back();
    }
}

/// Resumes what is due.
pub struct Sweep<D> {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub memory: Arc<OpenRecordings>,
    pub in_flight: InFlight,
    /// The other workers, according to their heartbeats.
    pub peers: Arc<Peers>,
    pub drivers: Arc<D>,
    pub limits: Limits,
}

impl<D: Resume> Sweep<D> {
    /// Sweeps until the worker goes down.
    pub async fn run(self: Arc<Self>) {
        // Events that came while the ledger was down wait in their queue, and are read only now.
        let mut behind_until: Option<Instant> = None;
        let (mut was_up, mut was_full, mut has_more) = (true, false, false);
        let (mut took, mut updated) = (Duration::ZERO, Instant::now());
        let mut asked: Option<Instant> = None;
        loop {
            let poll = self.common.config.ledger.poll;
            let longest = poll * SHARE;
            let pause = if has_more { poll.min(NEXT) } else { poll };
            // Jitter, so that the workers do not sweep at the same time.
            let pause = pause.mul_f64(0.75 + fastrand::f64() * 0.5);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.common.stop().cancelled() => return,
            }
            let had_more = std::mem::take(&mut has_more);
            let is_up = self.ledger.is_up();
            if is_up && !was_up {
                behind_until = Some(Instant::now() + self.common.config.flow.start_timeout);
                self.drivers.ledger_is_back();
            }
            was_up = is_up;
            let in_flight = self.in_flight.busy();
            let is_full = in_flight >= self.limits.in_flight;
            if is_full {
                let first = !was_full;
                SweepFull { in_flight, first }.emit();
            }
            was_full = is_full;
            if !is_up || is_full {
                continue;
            }
            let share = if self.ledger.has_due() { SHARE } else { SHARE_OF_OTHERS };
            let interval = (took * share).clamp(poll, poll * share);
            // A pause may be shorter than the interval by its jitter.
            let rests = |asked: Instant| asked.elapsed() + poll / 2 < interval;
            if !had_more && asked.is_some_and(rests) {
                self.take_over_some().await;
                continue;
            }
            let behind = behind_until.is_some_and(|until| Instant::now() < until);
            let begun = Instant::now();
            asked = Some(begun);
            if updated.elapsed() > longest {
                self.ledger.update_views().await;
                updated = Instant::now();
            }
            let due = self
                .ledger
                .due(&self.common.config.kazoo.zone, self.limits.take * 2)
                .await;
            took = begun.elapsed();
            match due {
                Ok(due) => {
                    let (count, room) = (due.len(), self.limits.take.min(self.limits.in_flight - in_flight));
                    let taken = self.take_some(due, room, behind).await;
                    has_more = count > room && taken > 0;
                    SweepEnded { due: count, taken }.emit();
                }
                Err(error) => debug!(event = "sweep_failed", %error, "due recordings not read"),
            }
            self.take_over_some().await;
        }
    }

    async fn take_over_some(self: &Arc<Self>) {
        let room = self
            .limits
            .take
            .min(self.limits.in_flight.saturating_sub(self.in_flight.busy()));
        self.take_over(room).await;
    }

    /// Takes over what a worker that is gone had in flight, without waiting until its leases expire.
    async fn take_over(self: &Arc<Self>, room: usize) {
        for worker in self.peers.gone() {
            let (zone, lease) = (&self.common.config.kazoo.zone, self.common.config.ledger.lease);
            match self.ledger.leased_by(&worker, zone, lease, self.limits.take * 2).await {
                Ok(leased) if leased.is_empty() => self.peers.forget(&worker),
                Ok(leased) => {
                    let recordings = leased.len();
                    let taken = self.take_some(leased, room, false).await;
                    debug!(event = "takeover", worker, recordings, taken, "taking over recordings");
                    if taken > 0 {
                        WorkerGone {
                            worker: &worker,
                            recordings: taken,
                        }
                        .emit();
                    }
                }
                Err(error) => {
                    debug!(event = "takeover_failed", %error, "in-flight recordings of a dead worker not read")
                }
            }
        }
    }

    /// Takes some of them, at most as many as there is `room` for.
    async fn take_some(self: &Arc<Self>, mut found: Vec<(Address, Record)>, room: usize, behind: bool) -> usize {
        fastrand::shuffle(&mut found);
        let wanted = found.into_iter().take(room);
        let wanted = wanted.map(|(address, record)| (address, Some(record.entry)));
        self.take(wanted.collect(), &Input::Due, behind).await
    }

    /// Takes recordings, each unless another worker has it. While events are `behind`, a recording of which nothing was heard yet is not
    /// taken. Each comes with the entry as it was found, if it was read. Returns how many were taken.
    pub async fn take(self: &Arc<Self>, wanted: Vec<(Address, Option<Entry>)>, input: &Input, behind: bool) -> usize {
        let is_silent = |entry: &Entry| entry.started().is_none() && entry.ended().is_none();
        let (mut addresses, mut waiting) = (Vec::new(), Vec::new());
        for (address, seen) in wanted {
            let seen = seen.map(|entry| self.known(entry));
            if behind && seen.as_ref().is_none_or(is_silent) {
                // Before its lease is taken: otherwise an uncommanded start would wait until the lease expires.
                continue;
            }
            if let Some(mailbox) = self.in_flight.take(address.key) {
                addresses.push(address);
                waiting.push((seen, mailbox));
            }
        }
        let is_gone = |worker: &str| self.peers.is_gone(worker);
        let lease = self.common.config.ledger.lease;
        let results = self.ledger.take(&addresses, lease, &is_gone).await;
        let mut taken = 0;
        for ((address, (seen, mailbox)), result) in addresses.iter().zip(waiting).zip(results) {
            match result {
                Ok(Some(record)) => {
                    self.drivers.begin(self.known(record.entry), input.clone(), mailbox);
                    taken += 1;
                }
                Ok(None) => self.leave(address, seen, mailbox),
                Err(error) => {
                    debug!(event = "lease_not_taken", %error, "lease not taken");
                    if let Some(entry) = &seen {
                        self.give_back(entry.clone());
                    }
                    self.leave(address, seen, mailbox);
                }
            }
        }
        taken
    }

    /// The lease may be written although its answer was lost. Then no worker would have the recording in flight until the lease expires.
    fn give_back(self: &Arc<Self>, entry: Entry) {
        if is_back(Fault::MailboxDropped) {
            return;
        }
        let sweep = Arc::clone(self);
        let giving = async move {
            let lease = Some(sweep.ledger.no_lease());
            let receipt = sweep.ledger.note(&entry, lease, Duration::ZERO).await;
            let written = receipt.within(sweep.common.config.ledger.lease);
            let _ = sweep.common.unless_stopped(written).await;
        };
        self.common.tasks.spawn("give_back", giving);
    }

    /// The ledger's version of a recording, with what this worker heard lately and the ledger may not have yet.
    fn known(&self, entry: Entry) -> Entry {
        self.memory.completed(entry)
    }

    /// Lets go of a recording that was not taken. Inputs that arrived meanwhile went to this task alone, so it drives the recording with them.
    fn leave(self: &Arc<Self>, address: &Address, seen: Option<Entry>, mut mailbox: Mailbox) {
        let Some(input) = mailbox.let_go().filter(|_| !is_back(Fault::MailboxDropped)) else {
            return;
        };
        match seen.or_else(|| self.memory.entry(address.key)) {
            Some(entry) => self.drivers.begin(self.known(entry), input, mailbox),
            None => {
                let (sweep, address) = (Arc::clone(self), address.clone());
                let going_on = async move {
                    if let Some(entry) = sweep.wait_for(&address).await {
                        sweep.drivers.begin(sweep.known(entry), input, mailbox);
                    }
                };
                self.common.tasks.spawn("left", going_on);
            }
        }
    }

    /// What the ledger has of a recording, when it answers. `None`: it has nothing, or the worker is shutting down.
    async fn wait_for(&self, address: &Address) -> Option<Entry> {
        loop {
            match self.ledger.load(address).await {
                Ok(record) => return record.map(|record| record.entry),
                Err(error) => debug!(event = "input_waits", %error, "input waits for the ledger"),
            }
            self.common.rest().await.ok()?;
        }
    }
}
