//! Asks a switch for a file, and receives the upload.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::amqp::{Consumers, Publisher, Requests};
use crate::entry::Entry;
use crate::entry::fact::CollectFailure;
use crate::ingest::{Ingest, Progress, Upload, Wanted};
use crate::kazoo::switch::{self, SendHttpReply};
use crate::ledger::{Ledger, address};
use crate::lifecycle::{Answer, Case};
use crate::recording::adopt::is_random;
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::identity::Key;
use crate::recording::order::Order;
use crate::telemetry::events::NoEcallmgr;

use crate::flow::common::{AGAIN, Common};
use crate::flow::kazoo_recorder::{KazooRecorder, may_be_asked_for};
use crate::flow::memory::OpenRecordings;

/// What a switch uploaded, or why it did not.
pub type Fetched<U> = Result<U, (CollectFailure, String)>;

/// The files of the switches.
pub trait Files: Send + Sync {
    type Upload: Received;

    /// Asks a switch for a file, and receives it.
    fn fetch(
        &self,
        case: &Case,
        order: &Order,
        node: &str,
        path: &str,
    ) -> impl Future<Output = Fetched<Self::Upload>> + Send;

    /// This audio of a recording is safe: a switch that uploads exactly this audio once more may delete its file.
    fn remember_safe(&self, key: Key, written: &Digests);

    /// Answers a switch that it may delete its file. `false`: the switch waits no longer. A later upload of the same bytes gets the same
    /// answer without a further look at the call, so that is left to files that are written once. Another zone's upload may have
    /// opened the file before it was deleted, and end when the switch records the next bridge under the same name.
    fn release(&self, entry: &Entry, upload: Self::Upload) -> bool {
        let written = upload.audio().written().clone();
        let released = upload.answer(Answer::Release);
        if released && entry.order().is_some_and(Order::is_written_once) {
            self.remember_safe(entry.key, &written);
        }
        released
    }

    /// Whether the switch may be recording another call into the recording's file, of which it uploaded this.
    fn is_shared(&self, entry: &Entry, audio: &Audio) -> impl Future<Output = bool> + Send;

    /// Whether Kazoo's own recorder may ask for the recording's file too.
    fn is_kazoos_too(&self, entry: &Entry) -> impl Future<Output = bool> + Send;
}

/// A file that was received, and whose switch waits for the answer.
pub trait Received: Send + Sync {
    fn audio(&self) -> &Audio;

    /// Answers the switch. `false`: it waits no longer.
    fn answer(self, answer: Answer) -> bool;
}

impl Received for Upload {
    fn audio(&self) -> &Audio {
        &self.audio
    }

    fn answer(self, answer: Answer) -> bool {
        Self::answer(self, answer)
    }
}

/// Asks switches for files.
pub struct Fetcher {
    pub common: Arc<Common>,
    pub ingest: Ingest,
    pub publisher: Publisher,
    /// Has the queue for replies.
    pub consumers: Consumers,
    pub requests: Requests,
    pub memory: Arc<OpenRecordings>,
    pub ledger: Ledger,
    /// Set if it counts whether Kazoo's own recorder runs.
    pub kazoo_recorder: Option<Arc<KazooRecorder>>,
}

impl Files for Fetcher {
    type Upload = Upload;

    /// The result is what our ingest received, never what the reply says.
    async fn fetch(&self, case: &Case, order: &Order, node: &str, path: &str) -> Fetched<Upload> {
        if !self.ingest.spool().has_room(0) {
            return Err((CollectFailure::NotNow, "the spool's disk has too little room".into()));
        }
        let limits = &self.common.config.flow;
        let wanted = Wanted {
            key: order.key,
            media_id: order.media_id.clone(),
            format: order.format,
            told_ms: case.entry.told_ms(),
        };
        let mut expected = self.ingest.expect(wanted);
        let reply_to = self
            .consumers
            .reply_queue(self.common.config.amqp.publish_timeout)
            .await
            .ok_or((CollectFailure::NotNow, "there is no AMQP session".to_owned()))?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = switch::send_http(&self.common.sender, &msg_id, &reply_to, node, path, &expected.url)
            .map_err(|error| (CollectFailure::Broken, error.to_string()))?;
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.map_err(|error| {
            (
                CollectFailure::Unreachable,
                if error.is_unroutable() {
                    NoEcallmgr { switch: node }.emit();
                    "no ecallmgr serves the switch".to_owned()
                } else {
                    error.to_string()
                },
            )
        })?;
        let mut progress = expected.progress();
        let mut patience = Instant::now() + limits.upload_start_timeout;
        let mut said = None;
        loop {
            let receiving = matches!(*progress.borrow_and_update(), Progress::Receiving(_));
            tokio::select! {
                upload = expected.upload() => match upload {
                    Some(upload) => return Ok(upload),
                    None => return Err((CollectFailure::Broken, "the upload was lost".into())),
                },
                changed = progress.changed() => {
                    if changed.is_err() {
                        return Err((CollectFailure::Broken, "the upload was lost".into()));
                    }
                    if let Progress::Failed(error) = &*progress.borrow() {
                        // The switch's reply must still come, and an upload of another zone may come too.
                        said = Some((CollectFailure::Broken, error.to_string()));
                        patience = Instant::now() + limits.upload_start_timeout.min(AGAIN);
                    }
                }
                reply = replies.next() => {
                    let reply = reply.and_then(|envelope| SendHttpReply::of(&envelope).ok());
                    let failure = match &reply {
                        Some(reply) if reply.says_file_missing() => CollectFailure::Missing,
                        _ => CollectFailure::Broken,
                    };
                    let why = match reply {
                        Some(SendHttpReply { success: true, .. }) => "the switch says success, but uploaded nothing".to_owned(),
                        Some(reply) => format!("the switch says: {}", reply.error.unwrap_or_else(|| "error".into())),
                        None => "the reply cannot be read".to_owned(),
                    };
                    if said.is_none() || failure == CollectFailure::Missing {
                        said = Some((failure, why));
                    }
                    // A PUT that is under way decides, whatever the reply says. Without a PUT the attempt ends here.
                    patience = patience.min(Instant::now() + Duration::from_millis(200));
                }
                () = tokio::time::sleep_until(patience), if !receiving => {
                    return Err(said.unwrap_or((
                        CollectFailure::Unreachable,
                        format!("the switch did not begin to upload within {:?}", limits.upload_start_timeout),
                    )));
                }
            }
        }
    }

    fn remember_safe(&self, key: Key, written: &Digests) {
        self.ingest.remember_safe(key, written);
    }

    async fn is_kazoos_too(&self, entry: &Entry) -> bool {
        match &self.kazoo_recorder {
            Some(kazoo_recorder) => kazoo_recorder.may_ask_for(entry).await,
            // `adopt.mode` was set back to `off`. Nothing tells whether Kazoo's own recorder got the end.
            None => may_be_asked_for(entry, self.common.now()),
        }
    }

    /// Only a callflow that chose the name of Kazoo's own recording can bring two calls into one file. Another worker may have heard of the
    /// other call alone: then the form of the file tells. Of the end of the other call, too, another worker may have heard: the ledger knows.
    async fn is_shared(&self, entry: &Entry, audio: &Audio) -> bool {
        let order = entry.order().filter(|order| order.adopted.is_some());
        let Some(order) = order.filter(|order| !is_random(&order.file_name)) else {
            return false;
        };
        if audio.seems_open(order.format) {
            return true;
        }
        for other in self.memory.sharing_its_file(entry) {
            let loading = tokio::time::timeout(AGAIN, self.ledger.load(&address(&other))).await;
            match loading {
                Ok(Ok(Some(record))) if record.entry.told_end().is_some() => self.memory.remember(&record.entry),
                _ => return true,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use crate::config::{Config, Layers};
    use crate::ingest::{Expected, Spool};
    use crate::kazoo::dialplan::Trigger;
    use crate::kazoo::time::Clock;
    use crate::lifecycle::tests::order;

    use super::*;

    /// The files of a switch, at the real port for uploads.
    struct Uploads(Ingest);

    impl Files for Uploads {
        type Upload = Upload;

        async fn fetch(&self, _: &Case, _: &Order, _: &str, _: &str) -> Fetched<Upload> {
            Err((CollectFailure::Missing, String::new()))
        }

        fn remember_safe(&self, key: Key, written: &Digests) {
            self.0.remember_safe(key, written);
        }

        async fn is_shared(&self, _: &Entry, _: &Audio) -> bool {
            false
        }

        async fn is_kazoos_too(&self, _: &Entry) -> bool {
            false
        }
    }

    impl Uploads {
        async fn open() -> (Self, Removed) {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let set = [("KZ_RECORD_CALL__INGEST__LISTEN".to_owned(), "127.0.0.1:0".to_owned())];
            let config = Config::of(Layers::load(None, set.into_iter()).unwrap()).unwrap();
            let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let (spool, clock) = (Spool::open(&dir, 0).unwrap(), Clock::system());
            let ingest = Ingest::start(
                &config.ingest,
                "127.0.0.1",
                b"secret",
                spool,
                clock,
                &tasks,
                stop.clone(),
            );
            (Self(ingest.await.unwrap()), Removed(dir, stop))
        }

        fn expect(&self, order: &Order) -> Expected {
            self.0.expect(Wanted {
                key: order.key,
                media_id: order.media_id.clone(),
                format: order.format,
                told_ms: None,
            })
        }
    }

    /// What is left of a port at its end.
    struct Removed(PathBuf, CancellationToken);

    impl Drop for Removed {
        fn drop(&mut self) {
            self.1.cancel();
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A switch that uploads its file.
    async fn put(url: String) -> u16 {
        let sent = reqwest::Client::new().put(&url).body(vec![0u8; 10_000]).send().await;
        sent.unwrap().status().as_u16()
    }

    /// The status of an upload that a delivery releases, and of a later upload of the same bytes.
    async fn answers(order: &Order) -> [u16; 2] {
        let (files, _removed) = Uploads::open().await;
        let mut expected = files.expect(order);
        let url = expected.url.clone();
        let entry = Entry::of_order(order.clone(), "w");
        let releasing = async { files.release(&entry, expected.upload().await.unwrap()) };
        let (first, released) = tokio::join!(put(url.clone()), releasing);
        assert!(released);
        drop(expected);
        [first, put(url).await]
    }

    /// Two zones serve the switch, and the second zone's upload began before the first one let the switch delete the file. The switch
    /// records the next bridge under the same name by then.
    #[tokio::test]
    async fn only_a_file_that_is_written_once_is_released_by_a_later_upload_too() {
        let mut order = order();
        assert_eq!(
            answers(&order).await,
            [200, 200],
            "the answer to the first one was lost"
        );
        order.command.as_mut().unwrap().trigger = Trigger::Bridge;
        assert_eq!(answers(&order).await, [200, 503], "it may begin again");
        order.command.as_mut().unwrap().trigger = Trigger::Now;
        order.adopted = serde_json::from_value(serde_json::json!({})).ok();
        assert_eq!(answers(&order).await, [200, 503], "a callflow may have chosen the name");
    }

    /// Such a file stays on the switch, and the worker looks at the call before it asks for the file again.
    #[tokio::test]
    async fn no_later_upload_is_released_if_the_switch_did_not_wait_for_the_answer() {
        let (files, _removed) = Uploads::open().await;
        let order = order();
        let mut expected = files.expect(&order);
        let (url, mut progress) = (expected.url.clone(), expected.progress());
        let gives_up = tokio::spawn(put(url.clone()));
        let upload = expected.upload().await.unwrap();
        gives_up.abort();
        progress
            .wait_for(|progress| *progress == Progress::Waiting)
            .await
            .unwrap();
        assert!(!files.release(&Entry::of_order(order, "w"), upload));
        drop(expected);
        assert_eq!(put(url).await, 503);
    }
}
