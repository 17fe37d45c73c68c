//! Requests and their replies. A reply contains the request's `Msg-ID`, and goes to this worker's exclusive reply queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::kazoo::envelope::Envelope;

/// Buffered replies of one request.
const WAITING: usize = 64;

type Waiting = Arc<Mutex<HashMap<String, mpsc::Sender<Envelope>>>>;

/// Which requests wait for replies.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    waiting: Waiting,
}

/// A request in flight. Dropping it ends the wait.
#[derive(Debug)]
pub struct Pending {
    msg_id: String,
    replies: mpsc::Receiver<Envelope>,
    waiting: Waiting,
}

impl Requests {
    /// Starts to wait for replies to `msg_id`. Call this before the request is sent.
    pub fn expect(&self, msg_id: &str) -> Pending {
        let (sender, replies) = mpsc::channel(WAITING);
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.insert(msg_id.to_owned(), sender);
        }
        Pending {
            msg_id: msg_id.to_owned(),
            replies,
            waiting: Arc::clone(&self.waiting),
        }
    }

    /// Passes a reply to the task that waits for it. `false` when no task waits.
    pub fn reply(&self, envelope: Envelope) -> bool {
        let Some(msg_id) = envelope.msg_id.clone() else {
            return false;
        };
        let sender = self
            .waiting
            .lock()
            .ok()
            .and_then(|waiting| waiting.get(&msg_id).cloned());
        sender.is_some_and(|sender| sender.try_send(envelope).is_ok())
    }
}

impl Pending {
    /// The next reply. It waits without a limit, so the caller must set a time-out.
    pub async fn next(&mut self) -> Option<Envelope> {
        self.replies.recv().await
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.remove(&self.msg_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(msg_id: &str) -> Envelope {
        Envelope::of(json!({"Event-Category": "switch_event", "Event-Name": "reply", "Msg-ID": msg_id})).unwrap()
    }

    #[tokio::test]
    async fn a_reply_finds_its_request_and_nobody_elses() {
        let requests = Requests::default();
        let (mut one, mut two) = (requests.expect("1"), requests.expect("2"));
        assert!(requests.reply(reply("2")) && requests.reply(reply("1")));
        assert!(!requests.reply(reply("3")));
        assert_eq!(one.next().await.unwrap().msg_id.as_deref(), Some("1"));
        assert_eq!(two.next().await.unwrap().msg_id.as_deref(), Some("2"));
        drop(one);
        assert!(!requests.reply(reply("1")), "a wait that ended is forgotten");
    }
}
