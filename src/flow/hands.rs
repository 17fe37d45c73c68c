//! Which recordings this worker has in hand. One task goes on with a recording at a time; what others learn of it meanwhile is handed to
//! that task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::recording::identity::Key;

use super::next::Input;

/// Inputs that wait for the task that has the recording.
const WAITING: usize = 64;

type Table = Arc<Mutex<HashMap<Key, mpsc::Sender<Input>>>>;

/// The recordings in hand.
#[derive(Debug, Clone, Default)]
pub struct Hands(Table);

/// A recording in this task's hand, and what others learn of it.
#[derive(Debug)]
pub struct Mailbox {
    key: Key,
    inputs: mpsc::Receiver<Input>,
    table: Table,
    released: bool,
}

impl Hands {
    /// Takes a recording in hand; `None` when another task has it.
    pub fn take(&self, key: Key) -> Option<Mailbox> {
        let mut table = lock(&self.0);
        if table.contains_key(&key) {
            return None;
        }
        let (sender, inputs) = mpsc::channel(WAITING);
        table.insert(key, sender);
        Some(Mailbox {
            key,
            inputs,
            table: Arc::clone(&self.0),
            released: false,
        })
    }

    /// Hands something to the task that has the recording; gives it back when nobody has.
    ///
    /// # Errors
    /// The input, for the caller to act on.
    pub fn tell(&self, key: Key, input: Input) -> Result<(), Input> {
        match lock(&self.0).get(&key) {
            Some(sender) => sender.try_send(input).map_err(mpsc::error::TrySendError::into_inner),
            None => Err(input),
        }
    }

    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Mailbox {
    /// The next thing that others learnt, if there is one now.
    pub fn take_next(&mut self) -> Option<Input> {
        self.inputs.try_recv().ok()
    }

    /// Lets the recording go, unless something is left to take in.
    ///
    /// # Errors
    /// The mailbox and what is left.
    pub fn let_go(mut self) -> Result<(), (Box<Self>, Input)> {
        let table = Arc::clone(&self.table);
        // Under the lock: what is told before this is seen here, what is told after finds nobody.
        let mut table = lock(&table);
        match self.inputs.try_recv() {
            Ok(input) => Err((Box::new(self), input)),
            Err(_) => {
                table.remove(&self.key);
                self.released = true;
                Ok(())
            }
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if !self.released {
            lock(&self.table).remove(&self.key);
        }
    }
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<Key, mpsc::Sender<Input>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_in_one_hand_and_nothing_that_is_told_is_lost() {
        let (hands, key) = (Hands::default(), Key::of("call", "action"));
        assert_eq!(hands.tell(key, Input::Due), Err(Input::Due));
        let mut mailbox = hands.take(key).unwrap();
        assert!(hands.take(key).is_none());
        hands.tell(key, Input::Due).unwrap();
        assert_eq!(mailbox.take_next(), Some(Input::Due));
        hands.tell(key, Input::Doubt).unwrap();
        let (mailbox, left) = mailbox.let_go().unwrap_err();
        assert_eq!(left, Input::Doubt);
        mailbox.let_go().unwrap();
        assert!(hands.take(key).is_some());
    }

    #[test]
    fn a_task_that_dies_lets_its_recording_go() {
        let (hands, key) = (Hands::default(), Key::of("call", "action"));
        drop(hands.take(key));
        assert_eq!(hands.count(), 0);
        assert!(hands.take(key).is_some());
    }
}
