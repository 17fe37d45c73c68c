//! Sends the outcomes of recordings to endpoints of operators, beside all that is done to the recordings themselves.
//!
//! Which endpoint must get a notice is noted with the outcome, in one write. The worker that noted it sends the notice at once. If it is
//! killed before it notes the result, or the endpoint did not accept the notice, any worker sends it when it is due:
//!
//! ```text
//! worker A   outcome published, owed: [archive]   POST ── 503    failed, attempt 1
//! worker B                                                                 due: lease, POST ── 200   sent
//! ```
//!
//! Each endpoint has a task, slots and a circuit breaker of its own. No recording waits for any of them: nothing here has a recording in
//! flight, and a notice that waits is only a fact.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tracing::debug;

use crate::destination::circuit_breaker::CircuitBreakers;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::entry::webhooks::Debt;
use crate::ledger::{Ledger, Noted, Record};
use crate::lifecycle;
use crate::recording::identity::Key;
use crate::telemetry::events::{WebhookParked, WebhookRefused, WebhookSent};
use crate::webhook::Client;

use super::common::Common;
use super::in_flight::InFlight;
use super::memory::Peers;

mod payload;

pub use payload::{payload, test_payload};

/// Notices that wait for a slot in memory. The ledger has all of them.
const WAITING: usize = 256;

/// Entries that one query reads, per month.
const TAKE: usize = 32;

/// The worker queries for due notices at this multiple of the ledger's own interval.
const SELDOM: u32 = 5;

/// Delay before the next query where the last one did not return all that is due.
const NEXT: Duration = Duration::from_millis(100);

/// Passes new notices to the tasks of their endpoints.
#[derive(Clone, Default)]
pub struct Outcomes(Arc<[(String, mpsc::Sender<Entry>)]>);

/// One endpoint. May touch: the endpoint, and the ledger's entries.
pub struct Webhook {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub in_flight: InFlight,
    /// The other workers, according to their heartbeats.
    pub peers: Arc<Peers>,
    pub breakers: Arc<CircuitBreakers>,
    pub endpoint: Endpoint,
}

/// What is known of an endpoint.
pub struct Endpoint {
    name: String,
    /// Its name among the targets of circuit breakers.
    target: String,
    client: Client,
    slots: Arc<Semaphore>,
    new: tokio::sync::Mutex<mpsc::Receiver<Entry>>,
    /// Recordings whose notice is under way.
    sending: Mutex<HashSet<Key>>,
}

/// A recording whose notice is under way, until this is dropped.
struct Sending {
    webhook: Arc<Webhook>,
    key: Key,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.webhook.endpoint.sending().remove(&self.key);
    }
}

impl Outcomes {
    /// The endpoints, and what passes new notices to them.
    pub fn to(endpoints: Vec<(String, Client)>, slots: usize) -> (Self, Vec<Endpoint>) {
        let (mut senders, mut all) = (Vec::new(), Vec::new());
        for (name, client) in endpoints {
            let (sender, new) = mpsc::channel(WAITING);
            senders.push((name.clone(), sender));
            all.push(Endpoint {
                target: format!("webhook {name}"),
                name,
                client,
                slots: Arc::new(Semaphore::new(slots)),
                new: tokio::sync::Mutex::new(new),
                sending: Mutex::default(),
            });
        }
        (Self(senders.into()), all)
    }

    /// Passes on what a step of `worker` owes. A notice that finds no room here is sent when it is due.
    pub fn owed(&self, worker: &str, before: &Entry, after: &Entry) {
        let news = after.facts().filter(|fact| fact.by == worker);
        for fact in news {
            if let What::WebhooksOwed(owed) = &fact.what
                && !before.facts().any(|known| known == fact)
            {
                let wanted = self.0.iter().filter(|(name, _)| owed.endpoints.contains(name));
                wanted.for_each(|(_, sender)| drop(sender.try_send(after.clone())));
            }
        }
    }
}

impl Endpoint {
    fn sending(&self) -> std::sync::MutexGuard<'_, HashSet<Key>> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Webhook {
    /// Sends notices until the worker goes down.
    pub async fn run(self: Arc<Self>) {
        let mut new = self.endpoint.new.lock().await;
        let usual = self.common.config.ledger.poll * SELDOM;
        let jittered = |pause: Duration| Instant::now() + pause.mul_f64(0.75 + fastrand::f64() * 0.5);
        let mut next = jittered(usual);
        loop {
            tokio::select! {
                biased;
                () = self.common.stop().cancelled() => return,
                () = tokio::time::sleep_until(next) => {
                    let has_more = self.send_due().await;
                    next = jittered(if has_more { NEXT.min(usual) } else { usual });
                }
                Some(entry) = new.recv() => self.send_new(entry).await,
            }
        }
    }

    /// Sends the notice of an outcome that this worker has just published.
    async fn send_new(self: &Arc<Self>, entry: Entry) {
        if self.breakers.rests(&self.endpoint.target).is_some() {
            return;
        }
        let Some(sending) = self.begin(entry.key).await else {
            return;
        };
        // The slot may have become free only after the time at which other workers send it.
        let may_begin = entry.next_webhook(&self.endpoint.name).is_some_and(|debt| {
            let due = lifecycle::due_at(&entry, &debt, &self.common.policy);
            debt.attempts == 0 && self.common.now().plus(self.common.config.webhooks.timeout) < due
        });
        if may_begin && self.breakers.may_begin(&self.endpoint.target).is_ok() {
            self.common.tasks.spawn("webhook", sending.send(entry, false));
        }
    }

    /// Sends what is due, and not under way. Returns whether more is due.
    async fn send_due(self: &Arc<Self>) -> bool {
        let (endpoint, zone) = (&self.endpoint, &self.common.config.kazoo.zone);
        if !self.ledger.is_up() || self.breakers.rests(&endpoint.target).is_some() {
            return false;
        }
        let due = self
            .ledger
            .webhooks_due((zone, &endpoint.name), self.common.now(), TAKE)
            .await;
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                debug!(event = "webhooks_not_read", endpoint = endpoint.name, %error, "due webhooks not read");
                return false;
            }
        };
        let is_full = due.len() >= TAKE;
        let mut begun = 0;
        for (address, _) in due {
            let Some(sending) = self.begin(address.key).await else {
                continue;
            };
            // This worker drives the recording, and has its lease.
            let is_driven = self.in_flight.has(address.key);
            // What the query returned may be old: another worker may have sent the notice since.
            let known = if is_driven {
                self.ledger.load(&address).await
            } else {
                let lease = self.common.config.ledger.lease;
                let is_gone = |worker: &str| self.peers.is_gone(worker);
                let taken = self.ledger.take(&[address], lease, &is_gone).await.pop();
                taken.unwrap_or(Ok(None))
            };
            let Ok(Some(Record { entry, .. })) = known else {
                continue;
            };
            if self.breakers.may_begin(&endpoint.target).is_err() {
                if !is_driven {
                    let _ = self.note(&entry, true).await;
                }
                return false;
            }
            self.common.tasks.spawn("webhook", sending.send(entry, !is_driven));
            begun += 1;
        }
        is_full && begun > 0
    }

    /// Waits for a slot. `None` when a notice of the recording is under way, or the worker is shutting down.
    async fn begin(self: &Arc<Self>, key: Key) -> Option<Sending> {
        let slot = Arc::clone(&self.endpoint.slots).acquire_owned();
        let slot = self.common.unless_stopped(slot).await.ok()?.ok()?;
        self.endpoint.sending().insert(key).then(|| Sending {
            webhook: Arc::clone(self),
            key,
            _slot: slot,
        })
    }

    /// Sends one notice, and returns the facts that follow.
    async fn attempt(&self, entry: &Entry, debt: &Debt) -> (bool, Vec<What>) {
        let (endpoint, begun) = (&self.endpoint, Instant::now());
        let body = payload(entry, debt).to_string();
        let result = endpoint
            .client
            .send(&debt.notice.id, self.common.now(), body.as_bytes())
            .await;
        let (name, media_id) = (
            endpoint.name.as_str(),
            entry.order().map_or("", |order| order.media_id.as_str()),
        );
        match result {
            Ok(accepted) => {
                self.breakers.delivered(&endpoint.target);
                WebhookSent {
                    endpoint: name,
                    media_id,
                    outcome: debt.outcome.name(),
                    status: accepted.status,
                    took: begun.elapsed(),
                }
                .emit();
                (true, vec![What::WebhookSent(debt.notice.clone())])
            }
            Err(refused) => {
                self.breakers.failed(&endpoint.target, entry.key, &refused.why);
                let facts = lifecycle::refused(debt, refused.why.clone(), refused.retry_after_s, &self.common.policy);
                let attempt = debt.attempts.saturating_add(1);
                let why = refused.why.as_str();
                if facts.iter().any(|what| matches!(what, What::WebhookParked(_))) {
                    WebhookParked {
                        endpoint: name,
                        media_id,
                        attempt,
                        why,
                    }
                    .emit();
                } else {
                    WebhookRefused {
                        endpoint: name,
                        media_id,
                        attempt,
                        why,
                    }
                    .emit();
                }
                (false, facts)
            }
        }
    }

    /// Notes what became of a notice, until the ledger has it. Without that, the notice would be sent again.
    async fn note(&self, entry: &Entry, leased: bool) -> Result<(), super::common::Interrupted> {
        loop {
            // If this worker drives the recording by now, the lease is the driver's.
            let lease = (leased && !self.in_flight.has(entry.key)).then(|| self.ledger.no_lease());
            let receipt = self.ledger.note(entry, lease, self.common.config.ledger.linger).await;
            if receipt.noted().await != Noted::Not {
                return Ok(());
            }
            self.common.rest().await?;
        }
    }
}

impl Sending {
    /// Sends the recording's notices to the endpoint, one after the other, as long as the endpoint accepts them.
    async fn send(self, mut entry: Entry, leased: bool) {
        let webhook = &self.webhook;
        let common = &webhook.common;
        let mut first = true;
        while let Some(debt) = entry.next_webhook(&webhook.endpoint.name) {
            let is_due = || lifecycle::due_at(&entry, &debt, &common.policy) <= common.now();
            // A later notice waited only for the one before it.
            if !first && debt.attempts > 0 && !is_due() {
                break;
            }
            first = false;
            let (accepted, facts) = webhook.attempt(&entry, &debt).await;
            for what in facts {
                entry.add(Fact {
                    at: common.now(),
                    by: common.policy.worker.clone(),
                    what,
                });
            }
            if !accepted {
                break;
            }
        }
        if first {
            // Another worker has sent it. That says nothing about the endpoint.
            webhook.breakers.undecided(&webhook.endpoint.target);
        }
        let _ = webhook.note(&entry, leased).await;
    }
}
