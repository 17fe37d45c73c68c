//! Crash points: a decorator around what a driver does and notes. The worker can die, or the program panic, before and after each of it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::flow::common::Interrupted;
use kz_record_call::flow::driver::{Effects, EntryStore};
use kz_record_call::kazoo::time::Moment;
use kz_record_call::ledger::{Address, Lease, Receipt};
use kz_record_call::lifecycle::{Case, Effect, Input};

use crate::worker::Worker;

pub struct Gate<T> {
    inner: T,
    worker: Arc<Worker>,
}

impl<T> Gate<T> {
    pub fn new(worker: Arc<Worker>, inner: T) -> Self {
        Self { inner, worker }
    }

    /// The worker may die here.
    async fn point(&self, where_: &str) {
        let world = &self.worker.world;
        if world.mishap(3) {
            self.worker.note(|| format!("dies {where_}"));
            let worker = Arc::clone(&self.worker);
            // The kill aborts this task, too.
            tokio::spawn(async move { worker.kill() });
            std::future::pending::<()>().await;
        }
    }
}

impl<E: Effects> Effects for Gate<E> {
    type Upload = E::Upload;

    async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<E::Upload>) -> Result<Input, Interrupted> {
        let world = &self.worker.world;
        let (name, key) = (format!("{effect:?}"), case.entry.key);
        let name: String = name.chars().take(60).collect();
        self.point("before an effect").await;
        let poisoned = world.asked[&world.root(key)].poisoned && matches!(effect, Effect::Decide);
        if poisoned || world.mishap(3) {
            self.worker.note(|| format!("panics at {name} of {key}"));
            world.count("panics");
            // Without the panic hook, which would print it.
            resume_unwind(Box::new("x"));
        }
        let input = self.inner.perform(case, effect, hand).await;
        self.worker.note(|| {
            let came = format!("{input:?}");
            let came: String = came.chars().take(110).collect();
            format!("{key} {name} -> {came}")
        });
        self.point("after an effect").await;
        input
    }

    fn keep(&self, upload: E::Upload) {
        self.inner.keep(upload);
    }

    fn panicked(&self, entry: &Entry, why: &str) {
        self.inner.panicked(entry, why);
    }

    fn stepped(&self, before: &Entry, after: &Entry) {
        self.inner.stepped(before, after);
    }

    fn receives_since(&self) -> Option<Moment> {
        self.inner.receives_since()
    }
}

impl<L: EntryStore> EntryStore for Gate<L> {
    async fn known(&self, address: &Address) -> Option<Option<Entry>> {
        self.point("before it asks the ledger").await;
        let known = self.inner.known(address).await;
        self.point("after it asked the ledger").await;
        known
    }

    async fn note(&self, entry: &Entry, lease: Option<Lease>, linger: Duration) -> Receipt {
        self.point("before a note").await;
        let receipt = self.inner.note(entry, lease, linger).await;
        self.point("after a note").await;
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        self.inner.lease(duration)
    }

    fn no_lease(&self) -> Lease {
        self.inner.no_lease()
    }
}
