//! media_mgr, as far as it stores recordings (`media_recording`): its queue, which keeps a hundred messages, the document before the audio, and
//! its ways to lose a recording.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    couch::{Couch, modb_of},
    kazoo::Kazoo,
    recorder::{self, RECORDER},
    wire::{GREGORIAN_OFFSET, Object, text},
    world::World,
};

/// The queue of Kazoo 5.
pub const QUEUE: &str = "recordings";
/// The queue that Kazoo 4 has for recordings of endpoints, in place of the other one.
pub const QUEUE_OF_4: &str = "endpoint_recordings";

const KEPT: i32 = 100;
const KEPT_FOR_MS: i32 = 60_000;

/// What media_mgr does with one recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Document and audio, and the switch deletes its file.
    #[default]
    Stored,
    /// The process ends before it writes anything.
    Nothing,
    /// The document is written, and no attempt to upload succeeds.
    NoAudio,
    /// Stored, so long after its end.
    Late(Duration),
    /// Stored, and the switch does not hear of it: the file stays.
    LostAnswer,
    /// The file is too late for a later version of media_mgr: it deletes the document when the switch has no file.
    LaterDeletes,
}

/// The step at which media_mgr's node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Received,
    Documented,
    Uploaded,
}

/// What is broken, for all recordings or for some.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub all: Fate,
    /// By the recording's id.
    pub of: HashMap<String, Fate>,
    /// The node dies at this step of the next recording.
    pub dies_at: Option<Step>,
}

/// A node of media_mgr. Its queue goes with it when it is dropped or stopped.
pub struct MediaMgr {
    shared: Arc<Shared>,
    connection: Connection,
    queue: &'static str,
    consuming: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    world: Arc<World>,
    couch: Couch,
    /// The settings that all recordings were started with: media_mgr reads them from the event.
    settings: Value,
    faults: Mutex<Faults>,
    received: AtomicUsize,
    dead: watch::Sender<bool>,
}

impl MediaMgr {
    /// Declares and binds the queue, and consumes nothing yet.
    pub async fn declare(kazoo: &Kazoo, couch: &Couch, queue: &'static str, settings: Value) -> anyhow::Result<Self> {
        let world = kazoo.tap().world;
        let connection = Connection::connect(&world.options.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions {
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let mut limits = FieldTable::default();
        limits.insert("x-max-length".into(), AMQPValue::LongInt(KEPT));
        limits.insert("x-message-ttl".into(), AMQPValue::LongInt(KEPT_FOR_MS));
        channel.queue_declare(queue.into(), options, limits).await?;
        channel
            .queue_bind(
                queue.into(),
                "callevt".into(),
                "call.RECORD_STOP.*".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let shared = Arc::new(Shared {
            world,
            couch: couch.clone(),
            settings,
            faults: Mutex::default(),
            received: AtomicUsize::new(0),
            dead: watch::channel(false).0,
        });
        Ok(Self {
            shared,
            connection,
            queue,
            consuming: Mutex::new(None),
        })
    }

    /// A node that stores.
    pub async fn start(kazoo: &Kazoo, couch: &Couch, settings: Value) -> anyhow::Result<Self> {
        let node = Self::declare(kazoo, couch, QUEUE, settings).await?;
        node.consume().await?;
        Ok(node)
    }

    /// Each message is a process of its own, and nothing is acknowledged.
    pub async fn consume(&self) -> anyhow::Result<()> {
        let channel = self.connection.create_channel().await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut consumer = channel
            .basic_consume(self.queue.into(), "media_mgr".into(), options, FieldTable::default())
            .await?;
        let shared = Arc::clone(&self.shared);
        let consuming = tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let Ok(Value::Object(stop)) = serde_json::from_slice(&delivery.data) else {
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.handle(stop).await });
            }
        });
        *self.consuming.lock().unwrap_or_else(PoisonError::into_inner) = Some(consuming);
        Ok(())
    }

    /// Changes what is broken.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many ends of its own recordings it received.
    pub fn received(&self) -> usize {
        self.shared.received.load(Ordering::SeqCst)
    }

    /// Waits until the node has died of a fault.
    pub async fn died(&self) {
        let mut dead = self.shared.dead.subscribe();
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// One more attempt at a recording's audio, by a process that has been waiting.
    pub async fn try_again(&self, stop: &Object) -> anyhow::Result<()> {
        self.shared.store(stop).await
    }

    /// The node ends, and its queue with it.
    pub async fn stop(self) -> anyhow::Result<()> {
        if let Some(consuming) = self.consuming.lock().unwrap_or_else(PoisonError::into_inner).take() {
            consuming.abort();
        }
        self.connection.close(200, "done".into()).await?;
        Ok(())
    }
}

impl Drop for MediaMgr {
    fn drop(&mut self) {
        self.shared.dead.send_replace(true);
    }
}

impl Shared {
    async fn handle(&self, stop: Object) {
        if stop.get("Recording").and_then(|told| told["Recorder"].as_str()) != Some(RECORDER) {
            return;
        }
        self.received.fetch_add(1, Ordering::SeqCst);
        // A process that fails is gone, as in Kazoo.
        let _ = self.store(&stop).await;
    }

    fn fate(&self, id: &str) -> Fate {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.of.get(id).copied().unwrap_or(faults.all)
    }

    /// The node dies here, if it is to: nothing of it goes on.
    fn reaches(&self, step: Step) -> anyhow::Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.dies_at == Some(step) {
            faults.dies_at = None;
            self.dead.send_replace(true);
        }
        anyhow::ensure!(!*self.dead.borrow(), "the node is dead");
        Ok(())
    }

    async fn store(&self, stop: &Object) -> anyhow::Result<()> {
        let recording = &stop["Recording"];
        let id = recording["ID"].as_str().context("no ID")?;
        let path = recording["File-Path"].as_str().context("no File-Path")?;
        let account = stop["Custom-Channel-Vars"]["Account-ID"]
            .as_str()
            .context("no account")?;
        text(stop, "Length")
            .map(drop)
            .or_else(|| stop.get("Length").map(drop))
            .context("no Length")?;
        self.reaches(Step::Received)?;
        let fate = self.fate(id);
        match fate {
            Fate::Nothing => return Ok(()),
            Fate::Late(after) => tokio::time::sleep(after).await,
            _ => {}
        }
        let modb = modb_of(account, id);
        if self.couch.get(&modb, id).await?.is_none() {
            let mut document = recorder::document(stop, &self.settings, &modb);
            let now = self.world.options.clock.unix_micros() / 1_000_000 + GREGORIAN_OFFSET;
            (document["pvt_created"], document["pvt_modified"]) = (json!(now), json!(now));
            document["pvt_node"] = json!("kazoo_apps@kz1.example.com");
            self.couch.create(&modb, id, &document).await?;
        }
        self.reaches(Step::Documented)?;
        if fate == Fate::NoAudio {
            return Ok(());
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let Ok(bytes) = tokio::fs::read(path).await else {
            if fate == Fate::LaterDeletes {
                let document = self.couch.get(&modb, id).await?.context("no document")?;
                let rev = document["_rev"].as_str().unwrap_or_default();
                self.couch.delete(&modb, id, rev).await?;
            }
            anyhow::bail!("the switch has no {path}");
        };
        let document = self.couch.get(&modb, id).await?.context("no document")?;
        let rev = document["_rev"].as_str().unwrap_or_default();
        let kind = if name.ends_with(".wav") {
            "audio/wav"
        } else {
            "audio/mpeg"
        };
        self.couch.attach(&modb, (id, rev), (name, kind), bytes).await?;
        self.reaches(Step::Uploaded)?;
        if fate != Fate::LostAnswer {
            let _ = tokio::fs::remove_file(path).await;
            self.world.with(|s| {
                let its = s.recordings.iter_mut().filter(|r| r.path.to_str() == Some(path));
                its.for_each(|r| r.deleted = true);
            });
        }
        Ok(())
    }
}

/// A `RECORD_STOP` as Kazoo 4 publishes it: without `Recording`; the channel's variables name the recordings of the channel, the newest
/// first.
pub fn in_the_form_of_4(stop: &Object, newer: &[(&str, &str)]) -> Object {
    let mut stop = stop.clone();
    let recording = stop.remove("Recording").unwrap_or_default();
    let path = recording["File-Path"].as_str().unwrap_or_default();
    let own = path.rsplit('/').next().unwrap_or_default();
    let id = recording["ID"].as_str().unwrap_or_default();
    let list = |own: &str, of: fn(&(&str, &str)) -> String| {
        let all: Vec<String> = newer.iter().map(of).chain([own.to_owned()]).collect();
        match all.as_slice() {
            [one] => json!(one),
            all => json!(all),
        }
    };
    stop.insert("Application-Response".into(), json!(path));
    if let Some(Value::Object(variables)) = stop.get_mut("Custom-Channel-Vars") {
        variables.insert("Media-Recorder".into(), json!(RECORDER));
        variables.insert("Media-Names".into(), list(own, |(name, _)| (*name).to_owned()));
        variables.insert("Media-Recordings".into(), list(id, |(_, id)| (*id).to_owned()));
        // Of the newest one.
        let newest = newer.first().map_or(id, |(_, id)| id);
        variables.insert("Media-Recording-ID".into(), json!(newest));
    }
    stop
}
