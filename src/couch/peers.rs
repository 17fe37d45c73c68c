//! Messages about credentials between workers. The first refused worker keeps the other workers from being refused too.
//!
//! CouchDB locks an account after five failures from one address. Five workers behind one address would cause five failures in their first
//! second. A message reports that the server refused credentials, or accepts them again. A mark, made with the cluster's secret, identifies
//! the credentials. Workers also take a lock to verify credentials, because a message alone can arrive too late.

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::recording::digest::hex;

/// Messages that may wait to be published.
const WAITING: usize = 64;

/// When the lock is unavailable, the first request waits a random time. Of several workers that start at once, one then asks first.
const SPREAD: Duration = Duration::from_millis(800);

/// A message about credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// An HMAC of server, user and password. No reader of the message can recover them from it.
    pub mark: String,
    /// Whether the server accepts them again.
    pub accepted: bool,
}

/// A lock that lets one worker at a time verify credentials.
pub trait Turn: Send {
    /// Whether the server refused the credentials to another worker a moment ago.
    fn is_refused(&self) -> bool;

    /// Releases the lock, and leaves the verdict for the worker that takes the lock next.
    fn end(self: Box<Self>, verdict: Verdict) -> BoxFuture<'static, ()>;
}

/// The result of a verification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The server was not asked, or did not answer. The verdict of an earlier worker stays valid.
    #[default]
    Unasked,
    Taken,
    /// No worker needs to verify the credentials again for this long.
    Refused(Duration),
}

/// Takes the lock of the credentials with a mark. `None` when the lock is unavailable.
pub type Turns = Box<dyn Fn(String) -> BoxFuture<'static, Option<Box<dyn Turn>>> + Send + Sync>;

struct Peers {
    key: hmac::Key,
    news: mpsc::Sender<News>,
    turns: Turns,
}

static PEERS: OnceLock<Peers> = OnceLock::new();

/// Starts to exchange messages with other workers, once in a process. The caller publishes the messages of the receiver, and passes
/// received messages to `heard`. `key` is derived from the cluster's secret.
pub fn join(key: [u8; 32], turns: Turns) -> mpsc::Receiver<News> {
    let (news, receiver) = mpsc::channel(WAITING);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let _ = PEERS.set(Peers { key, news, turns });
    receiver
}

/// The mark of credentials. `None` in a process that is not a worker.
pub(super) fn mark(credentials: &str) -> Option<String> {
    let tag = hmac::sign(&PEERS.get()?.key, credentials.as_bytes());
    tag.as_ref().get(..16).map(hex)
}

pub(super) fn tell(credentials: &str, accepted: bool) {
    if let (Some(peers), Some(mark)) = (PEERS.get(), mark(credentials)) {
        // When no task receives the message, each worker finds out by itself.
        let _ = peers.news.try_send(News { mark, accepted });
    }
}

/// Takes the lock to verify credentials that were never used, or were refused. `None` in a process that is not a worker, and when the lock
/// is unavailable.
pub(super) async fn take_turn(credentials: &str) -> Option<Box<dyn Turn>> {
    let peers = PEERS.get()?;
    let turn = (peers.turns)(mark(credentials)?).await;
    if turn.is_none() {
        tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    }
    turn
}
