//! Limits of how many tasks do the same at once, by name: uploads from a switch, deliveries to a host.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A limited number of slots for each name.
pub struct Slots {
    each: usize,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Names for which too many tasks waited, until no task waits for them.
    crowded: Mutex<HashSet<String>>,
}

/// Whether too many tasks wait for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    No,
    Newly,
    Still,
}

/// Recordings that wait in this worker for a slot of one switch. Further ones wait in the ledger.
const WAITING_EACH: usize = 64;

/// The largest number of names that are remembered: users' URLs can name any number of hosts.
const MOST_NAMES: usize = 1024;

impl Slots {
    pub fn new(each: usize) -> Self {
        Self {
            each,
            gates: Mutex::default(),
            crowded: Mutex::default(),
        }
    }

    /// Waits for a slot.
    pub async fn slot(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        self.gate(name).acquire_owned().await.ok()
    }

    /// Whether as many tasks as may wait for a slot of that name wait for one already.
    pub fn crowded(&self, name: &str) -> Crowded {
        let waiting = self.waiting(name);
        let mut crowded = self.crowded.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting < WAITING_EACH {
            if waiting == 0 {
                crowded.remove(name);
            }
            return Crowded::No;
        }
        if crowded.len() < MOST_NAMES && crowded.insert(name.to_owned()) {
            return Crowded::Newly;
        }
        Crowded::Still
    }

    fn waiting(&self, name: &str) -> usize {
        // The map and this function have one reference each. Further references belong to tasks that have a slot, or wait for one.
        Arc::strong_count(&self.gate(name)).saturating_sub(2 + self.each)
    }

    /// A slot, if one is free now.
    pub fn free_slot(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        self.gate(name).try_acquire_owned().ok()
    }

    fn gate(&self, name: &str) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() >= MOST_NAMES && !gates.contains_key(name) {
            // Keeps the gates that a task uses or waits for.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(
            gates
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(self.each))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_wait_for_a_slot_of_a_switch_and_the_others_rest_elsewhere() {
        let slots = Arc::new(Slots::new(2));
        let held = [slots.slot("fs1").await, slots.slot("fs1").await];
        assert_eq!(slots.crowded("fs1"), Crowded::No, "all slots are taken, and none waits");
        let wait = |slots: Arc<Slots>| async move { drop(slots.slot("fs1").await) };
        let waiting: Vec<_> = (0..WAITING_EACH)
            .map(|_| tokio::spawn(wait(Arc::clone(&slots))))
            .collect();
        while slots.waiting("fs1") < WAITING_EACH {
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.crowded("fs1"), Crowded::Newly);
        assert_eq!(slots.crowded("fs1"), Crowded::Still, "that is logged once");
        assert_eq!(slots.crowded("fs2"), Crowded::No, "and is nothing to another switch");
        drop(held);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(slots.crowded("fs1"), Crowded::No);
    }
}
