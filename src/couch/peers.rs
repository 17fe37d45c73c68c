//! What workers tell each other of credentials: the first that is refused keeps the others from being refused as well.
//!
//! CouchDB locks an account after five failures from one address, and five workers behind one address would come to that in their first
//! second. A message says that the server refused credentials, or takes them again; a mark, made with the cluster's secret, tells which.

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::recording::digest::hex;

/// A message waits for so many others.
const WAITING: usize = 64;

/// The first request of a worker waits for its ears, the queue that such messages come to: so long at the most,
const EARS: Duration = Duration::from_secs(1);
/// and then by lot, so that of several workers that begin at once one comes first.
const SPREAD: Duration = Duration::from_millis(800);

/// What is told of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Server, user and password, so that nobody can tell them.
    pub mark: String,
    /// Whether the server takes them again.
    pub accepted: bool,
}

struct Peers {
    key: hmac::Key,
    news: mpsc::Sender<News>,
    ready: watch::Receiver<bool>,
}

static PEERS: OnceLock<Peers> = OnceLock::new();

/// Begins to tell other workers, once in a process: what comes out is to be published, and what they say goes to `heard`. `key` is derived from the
/// cluster's secret; `ready` tells that messages can be heard.
pub fn join(key: [u8; 32], ready: watch::Receiver<bool>) -> mpsc::Receiver<News> {
    let (news, receiver) = mpsc::channel(WAITING);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let _ = PEERS.set(Peers { key, news, ready });
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

/// Waits before credentials are used for the first time.
pub(super) async fn take_turns() {
    if let Some(peers) = PEERS.get() {
        let mut ready = peers.ready.clone();
        let _ = timeout(EARS, ready.wait_for(|ready| *ready)).await;
        tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    }
}
