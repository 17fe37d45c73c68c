//! The first look at each recording that Kazoo's own recorder is to store. Recordings are gathered for a moment, so that one request tells of
//! all recordings of an account's month.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::flow::deliveries::{KazooCopies, Seen};

/// Recordings of one batch.
const MOST: usize = 200;

/// Recordings that wait for a batch. A handler waits for room.
const WAITING: usize = 256;

/// A recording, and where its handler waits for the result.
struct Asked {
    entry: Box<Entry>,
    answer: oneshot::Sender<Seen>,
}

/// Gathers recordings, and looks at them together.
pub struct FirstLooks {
    pub(super) copies: Arc<KazooCopies>,
    batch: Duration,
    asked: mpsc::Sender<Asked>,
    waiting: Mutex<mpsc::Receiver<Asked>>,
}

impl FirstLooks {
    pub fn new(copies: &Arc<KazooCopies>, batch: Duration) -> Self {
        let (asked, waiting) = mpsc::channel(WAITING);
        Self {
            copies: Arc::clone(copies),
            batch,
            asked,
            waiting: Mutex::new(waiting),
        }
    }

    /// What became of the recording. `None`: the worker goes down.
    pub(super) async fn look(&self, entry: &Entry) -> Option<Seen> {
        let (answer, seen) = oneshot::channel();
        let entry = Box::new(entry.clone());
        self.asked.send(Asked { entry, answer }).await.ok()?;
        seen.await.ok()
    }

    /// Looks until the worker goes down.
    pub async fn run(self: Arc<Self>) {
        let mut waiting = self.waiting.lock().await;
        while let Some(first) = waiting.recv().await {
            let until = Instant::now() + self.batch;
            let mut batch = vec![first];
            while batch.len() < MOST
                && let Ok(Some(next)) = tokio::time::timeout_at(until, waiting.recv()).await
            {
                batch.push(next);
            }
            let entries: Vec<&Entry> = batch.iter().map(|asked| &*asked.entry).collect();
            let seen = self.copies.look(&entries).await;
            for (asked, seen) in batch.into_iter().zip(seen) {
                // A handler that waits no longer has given its delivery back.
                let _ = asked.answer.send(seen);
            }
        }
    }
}
