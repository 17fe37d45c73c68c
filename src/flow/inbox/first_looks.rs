//! The first look at each recording that Kazoo's own recorder is to store. Recordings are gathered for a moment, so that one request tells of
//! all recordings of an account's month.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::flow::deliveries::{KazooCopies, Seen};

/// Recordings of one batch.
const MOST: usize = 200;

/// Batches that are looked at, at once.
const BATCHES: usize = 8;

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

    /// Looks until the worker goes down. A batch does not wait for the one before it, which can have a recording whose server does not answer.
    pub async fn run(self: Arc<Self>) {
        let mut waiting = self.waiting.lock().await;
        let mut looks = FuturesUnordered::new();
        let (mut batch, mut until) = (Vec::new(), Instant::now());
        loop {
            tokio::select! {
                next = waiting.recv(), if batch.len() < MOST => {
                    let Some(next) = next else { return };
                    if batch.is_empty() {
                        until = Instant::now() + self.batch;
                    }
                    batch.push(next);
                    if batch.len() == MOST {
                        until = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(until), if !batch.is_empty() && looks.len() < BATCHES => {
                    looks.push(self.look_at(std::mem::take(&mut batch)));
                }
                Some(()) = looks.next(), if !looks.is_empty() => {}
            }
        }
    }

    async fn look_at(&self, batch: Vec<Asked>) {
        let of = |asked: Asked| (asked.entry, Some(asked.answer));
        let (entries, mut answers): (Vec<_>, Vec<_>) = batch.into_iter().map(of).unzip();
        let entries: Vec<&Entry> = entries.iter().map(|entry| &**entry).collect();
        let tell = |index: usize, seen| {
            if let Some(answer) = answers.get_mut(index).and_then(Option::take) {
                // A handler that waits no longer has given its delivery back.
                let _ = answer.send(seen);
            }
        };
        self.copies.look(&entries, tell).await;
    }
}
