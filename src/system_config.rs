//! `system_config/media`: what the operators set for recordings, as Kazoo reads it (`kapps_config`): the section of our zone, then `default`.
//!
//! Read when a change notice comes, and polled, for notices can be lost. Kazoo's defaults are never written back. While it has never been
//! read, nothing that depends on it is decided: the default of `store_recordings` would throw recordings away.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::couch::Couch;
use crate::recording::plan::Defaults;
use crate::telemetry::events::ConfigRead;
use crate::telemetry::survive;

mod accounts;
mod media;
mod proxy;
mod storage;

pub use accounts::Accounts;
pub use media::{Media, ThirdParty};
pub use proxy::Proxy;
pub use storage::{Connection, Plan, Storage};

const DATABASE: &str = "system_config";
const DOCUMENT: &str = "media";

/// The settings as they are now. Cheap to clone.
#[derive(Clone)]
pub struct SystemConfig {
    state: watch::Receiver<Option<Media>>,
    changed: Arc<Notify>,
}

/// Pauses between reads until the first has succeeded.
const EAGER: Duration = Duration::from_secs(1);

impl SystemConfig {
    /// Begins to read, and to poll.
    pub fn start(couch: Couch, zone: String, poll: Duration, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (sender, state) = watch::channel(None);
        let changed = Arc::new(Notify::new());
        let noticed = Arc::clone(&changed);
        tasks.spawn(async move {
            while !stop.is_cancelled() {
                survive("system_config", read(&couch, &zone, &sender)).await;
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

    /// The settings; `None` while the database has never told them.
    pub fn current(&self) -> Option<Media> {
        self.state.borrow().clone()
    }

    /// What a plan needs; Kazoo's own defaults while the database has never told them.
    pub fn defaults(&self) -> Defaults {
        self.state
            .borrow()
            .as_ref()
            .map_or_else(Defaults::default, |media| media.defaults.clone())
    }

    /// Somebody changed the document: it is read at once.
    pub fn notice(&self) {
        self.changed.notify_one();
    }
}

async fn read(couch: &Couch, zone: &str, sender: &watch::Sender<Option<Media>>) {
    match couch.get(DATABASE, DOCUMENT).await {
        Ok(document) => {
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
        Err(error) => ConfigRead {
            result: Err((&error.to_string(), sender.borrow().is_some())),
        }
        .emit(),
    }
}

fn tell(media: &Media, zone: &str) {
    let third_party = match &media.third_party {
        ThirdParty::NotSet => "none".to_owned(),
        ThirdParty::Server(server) => server.authority(),
        ThirdParty::Unusable(why) => format!("unusable: {why}"),
    };
    let proxy = media.proxy.base.as_ref().map_or("none", |url| url.authority());
    info!(
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
