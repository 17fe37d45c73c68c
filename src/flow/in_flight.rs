//! The in-flight registry: which recordings this worker has in flight. One task drives a recording at a time, and gets the inputs of
//! other tasks.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::faults::{Fault, is_back};
use crate::lifecycle::Input;
use crate::recording::identity::Key;

/// The largest number of inputs that wait for the task that has the recording. Equal inputs wait once.
const WAITING: usize = 256;

type Table = Arc<Mutex<HashMap<Key, VecDeque<Input>>>>;

/// The recordings in flight.
#[derive(Debug, Clone, Default)]
pub struct InFlight {
    table: Table,
    idle: Arc<AtomicUsize>,
    /// An input was passed to a task.
    told: Arc<Notify>,
}

/// A recording that this task has in flight, and the inputs of other tasks.
#[derive(Debug)]
pub struct Mailbox {
    key: Key,
    table: Table,
    released: bool,
}

/// A task that only waits, for example for a slot of a switch. It does not count as busy.
#[derive(Debug)]
pub struct Idle(Arc<AtomicUsize>);

impl InFlight {
    /// Marks a recording as in flight for the caller's task; `None` when another task has it.
    pub fn take(&self, key: Key) -> Option<Mailbox> {
        let mut table = lock(&self.table);
        if table.contains_key(&key) {
            return None;
        }
        table.insert(key, VecDeque::new());
        Some(Mailbox {
            key,
            table: Arc::clone(&self.table),
            released: false,
        })
    }

    /// Passes an input to the task that has the recording. Returns the input if no task has it, or if too many inputs wait there
    /// already.
    ///
    /// # Errors
    /// The input, for the caller to act on.
    #[expect(
        clippy::result_large_err,
        reason = "the input comes back as it was; it is moved, not kept"
    )]
    pub fn tell(&self, key: Key, input: Input) -> Result<(), Input> {
        match lock(&self.table).get_mut(&key) {
            Some(inputs) if inputs.contains(&input) => Ok(()),
            Some(inputs) if inputs.len() < WAITING => {
                inputs.push_back(input);
                self.told.notify_waiters();
                Ok(())
            }
            _ => Err(input),
        }
    }

    /// Waits until an input for the task that has the recording is there.
    pub async fn told(&self, key: Key) {
        let has_inputs = || lock(&self.table).get(&key).is_some_and(|inputs| !inputs.is_empty());
        loop {
            let mut told = pin!(self.told.notified());
            // From here on, no input is missed.
            told.as_mut().enable();
            if has_inputs() {
                return;
            }
            told.await;
        }
    }

    /// Whether a task of this worker has the recording in flight.
    pub fn has(&self, key: Key) -> bool {
        lock(&self.table).contains_key(&key)
    }

    pub fn count(&self) -> usize {
        lock(&self.table).len()
    }

    /// Recordings whose task works, or holds something that other tasks wait for.
    pub fn busy(&self) -> usize {
        if is_back(Fault::WaitersBusy) {
            return self.count();
        }
        self.count().saturating_sub(self.idle.load(Ordering::Relaxed))
    }

    /// The caller's task counts as waiting until the returned value is dropped.
    pub fn idle(&self) -> Idle {
        self.idle.fetch_add(1, Ordering::Relaxed);
        Idle(Arc::clone(&self.idle))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Mailbox {
    /// The next input of another task, if there is one now.
    pub fn take_next(&mut self) -> Option<Input> {
        lock(&self.table).get_mut(&self.key)?.pop_front()
    }

    /// Removes the recording from the registry, unless an input is left. Then the input is returned, and the recording stays in flight.
    pub fn let_go(&mut self) -> Option<Input> {
        if self.released {
            return None;
        }
        // Under the lock: an input that was passed before this is found here, and a later one finds no task.
        let mut table = lock(&self.table);
        let left = table.get_mut(&self.key).and_then(VecDeque::pop_front);
        if left.is_none() {
            table.remove(&self.key);
            self.released = true;
        }
        left
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if !self.released {
            lock(&self.table).remove(&self.key);
        }
    }
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<Key, VecDeque<Input>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_in_one_hand_and_nothing_that_is_told_is_lost() {
        let (hands, key) = (InFlight::default(), Key::of("call", "action"));
        assert_eq!(hands.tell(key, Input::Due), Err(Input::Due));
        let mut mailbox = hands.take(key).unwrap();
        assert!(hands.take(key).is_none());
        hands.tell(key, Input::Due).unwrap();
        assert_eq!(mailbox.take_next(), Some(Input::Due));
        hands.tell(key, Input::Doubt).unwrap();
        assert_eq!(mailbox.let_go(), Some(Input::Doubt));
        assert!(hands.take(key).is_none(), "it is in hand until nothing is left");
        assert_eq!(mailbox.let_go(), None);
        let again = hands.take(key).unwrap();
        drop(mailbox);
        assert!(hands.take(key).is_none(), "an old mailbox takes nothing from a new one");
        drop(again);
    }

    #[test]
    fn what_is_told_again_and_again_leaves_room_for_what_is_new() {
        let (hands, key) = (InFlight::default(), Key::of("call", "action"));
        let mut mailbox = hands.take(key).unwrap();
        for _ in 0..10 * WAITING {
            hands.tell(key, Input::Due).unwrap();
        }
        hands.tell(key, Input::Doubt).unwrap();
        assert_eq!(
            (mailbox.take_next(), mailbox.take_next()),
            (Some(Input::Due), Some(Input::Doubt))
        );
        assert_eq!(mailbox.take_next(), None);
    }

    #[tokio::test]
    async fn a_task_that_rests_is_woken_by_an_input_of_its_own() {
        let (hands, key, other) = (InFlight::default(), Key::of("call", "action"), Key::of("call", "other"));
        let _mailboxes = [key, other].map(|key| hands.take(key).unwrap());
        let mut told = pin!(hands.told(key));
        assert!(futures_util::poll!(&mut told).is_pending());
        hands.tell(other, Input::Due).unwrap();
        assert!(futures_util::poll!(&mut told).is_pending());
        hands.tell(key, Input::Due).unwrap();
        assert!(futures_util::poll!(&mut told).is_ready());
        hands.told(key).await;
    }

    #[test]
    fn a_task_that_waits_for_its_turn_is_not_busy() {
        let hands = InFlight::default();
        let _mailboxes = ["1", "2"].map(|action| hands.take(Key::of("call", action)).unwrap());
        let idle = hands.idle();
        assert_eq!((hands.count(), hands.busy()), (2, 1));
        drop(idle);
        assert_eq!(hands.busy(), 2);
    }

    #[test]
    fn a_task_that_dies_lets_its_recording_go() {
        let (hands, key) = (InFlight::default(), Key::of("call", "action"));
        drop(hands.take(key));
        assert_eq!(hands.count(), 0);
        assert!(hands.take(key).is_some());
    }
}
