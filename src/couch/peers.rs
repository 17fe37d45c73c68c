//! What workers tell each other of credentials: the first that is refused keeps the others from being refused as well.
//!
//! CouchDB locks an account after five failures from one address, and five workers behind one address would come to that in their first
//! second. A message says that the server refused credentials, or takes them again; a mark, made with the cluster's secret, tells which. And workers take turns
//! to prove credentials: a message alone can come too late.

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::recording::digest::hex;

/// A message waits for so many others.
const WAITING: usize = 64;

/// Where no turn is to be had, the first request waits by lot, so that of several workers that begin at once one comes first.
const SPREAD: Duration = Duration::from_millis(800);

/// What is told of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Server, user and password, so that nobody can tell them.
    pub mark: String,
    /// Whether the server takes them again.
    pub accepted: bool,
}

/// A turn in which one worker proves credentials, and no other does.
pub trait Turn: Send {
    /// The server refused them to another worker a moment ago.
    fn is_refused(&self) -> bool;

    /// Ends it; the worker that has the next turn is told.
    fn end(self: Box<Self>, verdict: Verdict) -> BoxFuture<'static, ()>;
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The server was not asked, or did not tell: what others know stands.
    #[default]
    Unasked,
    Taken,
    /// No worker need ask again for so long.
    Refused(Duration),
}

/// Takes a turn for the credentials with a mark; `None` when there is none to be had.
pub type Turns = Box<dyn Fn(String) -> BoxFuture<'static, Option<Box<dyn Turn>>> + Send + Sync>;

struct Peers {
    key: hmac::Key,
    news: mpsc::Sender<News>,
    turns: Turns,
}

static PEERS: OnceLock<Peers> = OnceLock::new();

/// Begins to tell other workers, once in a process: what comes out is to be published, and what they say goes to `heard`. `key` is derived from the
/// cluster's secret.
pub fn join(key: [u8; 32], turns: Turns) -> mpsc::Receiver<News> {
    let (news, receiver) = mpsc::channel(WAITING);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let _ = PEERS.set(Peers { key, news, turns });
    receiver
}

/// The mark of credentials; `None` in a process that is no worker.
pub(super) fn mark(credentials: &str) -> Option<String> {
    let tag = hmac::sign(&PEERS.get()?.key, credentials.as_bytes());
    tag.as_ref().get(..16).map(hex)
}

pub(super) fn tell(credentials: &str, accepted: bool) {
    if let (Some(peers), Some(mark)) = (PEERS.get(), mark(credentials)) {
        // Nobody listens: each worker finds out by itself then.
        let _ = peers.news.try_send(News { mark, accepted });
    }
}

/// Takes the turn to prove credentials that were never used yet, or were refused. `None` in a process that is no worker, and where there is no turn to be had.
pub(super) async fn take_turn(credentials: &str) -> Option<Box<dyn Turn>> {
    let peers = PEERS.get()?;
    let turn = (peers.turns)(mark(credentials)?).await;
    if turn.is_none() {
        tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    }
    turn
}
