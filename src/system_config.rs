//! `system_config/media`: the operator's settings for recordings. They are read as Kazoo reads them (`kapps_config`): the section of our
//! zone, then `default`.
//!
//! The document is read after each change notice, and polled, because notices can be lost. Kazoo's defaults are never written back. Until
//! the first successful read, no decision that depends on it is made: the default of `store_recordings` would discard recordings.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::couch::{Couch, CouchError};
use crate::recording::plan::Defaults;
use crate::telemetry::events::ConfigRead;
use crate::telemetry::survive;

mod accounts;
mod media;
mod proxy;
mod recorder_tries;
mod storage;

pub use accounts::Accounts;
pub use media::{Media, ThirdParty};
pub use proxy::Proxy;
pub use recorder_tries::{ROUNDS, Tries};
pub use storage::{Connection, Handler, Plan, Settings, Storage};

const DATABASE: &str = "system_config";
const DOCUMENT: &str = "media";

/// The current settings. Cheap to clone.
#[derive(Clone)]
pub struct SystemConfig {
    state: watch::Receiver<Option<Media>>,
    changed: Arc<Notify>,
}

/// Interval between reads until the first success.
const EAGER: Duration = Duration::from_secs(1);

/// An error that repeats at each read is logged once in this time.
const SAID_ONCE_IN: Duration = Duration::from_secs(60);

impl SystemConfig {
    /// Starts to read and to poll.
    pub fn start(couch: Couch, zone: String, poll: Duration, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (sender, state) = watch::channel(None);
        let changed = Arc::new(Notify::new());
        let noticed = Arc::clone(&changed);
        let mut said = None;
        tasks.spawn(async move {
            while !stop.is_cancelled() {
                survive("system_config", read(&couch, &zone, &sender, &mut said)).await;
                let pause = if sender.borrow().is_some() {
                    poll
                } else {
                    EAGER.min(poll)
                };
                tokio::select! {
                    () = noticed.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        Self { state, changed }
    }

    /// The settings. `None` until the database was read once.
    pub fn current(&self) -> Option<Media> {
        self.state.borrow().clone()
    }

    /// Waits until the database was read once, at most for this time.
    pub async fn known_within(&self, limit: Duration) {
        let mut state = self.state.clone();
        let known = async { drop(state.wait_for(Option::is_some).await) };
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// The settings for a recording's plan. Kazoo's own defaults until the database was read once.
    pub fn defaults(&self) -> Defaults {
        self.state
            .borrow()
            .as_ref()
            .map_or_else(Defaults::default, |media| media.defaults.clone())
    }

    /// An operator or Kazoo changed the document. It is read at once.
    pub fn notice(&self) {
        self.changed.notify_one();
    }
}

/// `said` is the error that was logged last, and when.
async fn read(
    couch: &Couch,
    zone: &str,
    sender: &watch::Sender<Option<Media>>,
    said: &mut Option<(CouchError, Instant)>,
) {
    // While the settings are those of a missing document, a missing document is no change, so one node's answer is enough.
    let was_missing = sender.borrow().as_ref() == Some(&Media::read(&Value::Null, zone));
    let found = match was_missing {
        true => couch.get(DATABASE, DOCUMENT).await,
        false => couch.get_surely(DATABASE, DOCUMENT).await,
    };
    match found {
        Ok(document) => {
            *said = None;
            let media = Media::read(&document.unwrap_or(Value::Null), zone);
            sender.send_if_modified(|present| {
                let news = present.as_ref() != Some(&media);
                if news {
                    tell(&media, zone);
                    *present = Some(media);
                }
                news
            });
            ConfigRead { result: Ok(()) }.emit();
        }
        // This includes a missing database. A server without this database knows none of the cluster's databases, and says nothing about
        // recordings.
        Err(error) => {
            let is_old = said
                .as_ref()
                .is_some_and(|(before, at)| *before == error && at.elapsed() < SAID_ONCE_IN);
            ConfigRead {
                result: Err((&error.to_string(), sender.borrow().is_some(), !is_old)),
            }
            .emit();
            if !is_old {
                *said = Some((error, Instant::now()));
            }
        }
    }
}

fn tell(media: &Media, zone: &str) {
    let third_party = match &media.third_party {
        ThirdParty::NotSet => "none".to_owned(),
        ThirdParty::Server(server) => server.authority(),
        ThirdParty::Unusable(why) => format!("unusable: {why}"),
    };
    let proxy = media.proxy.base.as_ref().map_or("none", |url| url.authority());
    info!(event = "media_config_read",
        zone,
        store_recordings = media.store_recordings,
        extension = %media.defaults.format,
        record_min_sec = media.defaults.min_sec,
        max_recording_time_limit = media.defaults.max_time_limit,
        third_party,
        proxy,
        storage_retry_times = media.storage_retry_times,
        "system_config/media read"
    );
}

#[cfg(test)]
mod tests {
    use crate::couch::testing;

    use super::*;

    const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

    /// Waits until the server has received `times` requests.
    async fn asked(log: &testing::Log, times: usize) {
        let waiting = async {
            while log.lock().unwrap().len() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_without_the_databases_does_not_have_recordings_thrown_away() {
        for answer in [
            testing::no_database(),
            // BigCouch and CouchDB 1.
            (404, serde_json::json!({"error": "not_found", "reason": "no_db_file"})),
            // The page of a proxy.
            (404, Value::String("<html>Not Found</html>".into())),
            (200, Value::String("<html>Welcome</html>".into())),
        ] {
            let said = format!("{answer:?}");
            let (couch, log) = testing::couch(move |_| answer.clone()).await;
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let poll = Duration::from_millis(1);
            let config = SystemConfig::start(couch.clone(), "local".into(), poll, &tasks, stop.clone());
            // The second read follows after the first result was processed.
            asked(&log, 3).await;
            assert_eq!(config.current(), None, "{said}");
            assert_eq!(Accounts::new(couch).plan(ACCOUNT).await, Plan::Unknown, "{said}");
            stop.cancel();
        }
    }

    #[tokio::test]
    async fn a_document_that_is_missing_on_a_server_with_its_database_is_an_answer() {
        let (couch, log) =
            testing::couch(|_| (404, serde_json::json!({"error": "not_found", "reason": "missing"}))).await;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let poll = Duration::from_millis(1);
        let config = SystemConfig::start(couch.clone(), "local".into(), poll, &tasks, stop.clone());
        asked(&log, 3).await;
        assert_eq!(config.current().map(|media| media.store_recordings), Some(false));
        assert_eq!(Accounts::new(couch).plan(ACCOUNT).await, Plan::None);
        stop.cancel();
    }

    /// A start that the broker delivers again must not be planned with other settings than before: its file would have another name.
    #[tokio::test]
    async fn settings_that_are_being_read_are_waited_for() {
        let missing = || (404, serde_json::json!({"error": "not_found", "reason": "missing"}));
        let (couch, _) = testing::couch(move |_| missing()).await;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let poll = Duration::from_secs(60);
        let config = SystemConfig::start(couch, "local".into(), poll, &tasks, stop.clone());
        config.known_within(Duration::from_secs(30)).await;
        assert!(config.current().is_some());
        let (unknown, _) = testing::couch(|_| testing::no_database()).await;
        let config = SystemConfig::start(unknown, "local".into(), poll, &tasks, stop.clone());
        config.known_within(Duration::from_millis(100)).await;
        assert_eq!(config.current(), None, "but not for ever");
        stop.cancel();
    }
}
