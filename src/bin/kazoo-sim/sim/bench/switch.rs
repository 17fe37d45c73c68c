//! ecallmgr and media switches, with as little work as possible: they confirm each start, end the
//! recording at once if they are to, and upload one and the same file for every recording. They
//! check nothing: `kazoo` does, for demonstrations and tests.

mod obey;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use lapin::{Channel, Connection};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        audio::{Audio, Format, Size},
        report::say,
        wire::{encode, hex, pid},
    },
    calls::{self, Length, close, switch_node},
};

/// The file that each recording of a run has.
#[derive(Clone, Debug)]
pub struct AudioFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub millis: u64,
}

impl AudioFile {
    /// Writes a WAV file of at most so many bytes: 16 bits, 8 kHz, two channels.
    pub async fn write(path: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        let format = Format::Wav {
            rate: 8_000,
            channels: 2,
        };
        let audio = Audio::new(&hex(32), format, Size::Bytes(bytes));
        let (bytes, millis) = (audio.len(), audio.millis());
        let file = path.clone();
        tokio::task::spawn_blocking(move || audio.write(&file)).await??;
        Ok(Self { path, bytes, millis })
    }
}

#[derive(Clone, Debug)]
pub struct SwitchOptions {
    pub amqp_uri: String,
    pub account: String,
    /// The number of media switches. A worker takes a few uploads of each switch at once.
    pub switches: usize,
    pub file: AudioFile,
    /// Whether a recording ends as soon as it has begun.
    pub ends: bool,
}

/// The simulated switches, until they are closed.
pub struct Switch {
    /// The control queue of all calls.
    pub control: String,
    shared: Arc<Shared>,
    connections: [Connection; 2],
}

/// How many recordings got how far.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub started: u64,
    /// Their files were uploaded with success.
    pub stored: u64,
    /// Uploads that the worker did not take.
    pub refused: u64,
}

struct Shared {
    options: SwitchOptions,
    channel: Channel,
    ended: Mutex<HashSet<String>>,
    /// Path to call.
    files: Mutex<HashMap<String, String>>,
    waiting: Mutex<HashMap<String, oneshot::Sender<()>>>,
    started: AtomicU64,
    stored: AtomicU64,
    refused: AtomicU64,
}

enum Todo {
    Command(Vec<u8>),
    Upload(Vec<u8>),
    Status(Vec<u8>),
}

/// A queue of ecallmgr, and what its messages ask for.
struct Queue {
    name: String,
    bindings: Vec<(&'static str, String)>,
    kind: fn(Vec<u8>) -> Todo,
}

fn queues(control: &str, switches: usize) -> [Queue; 3] {
    let command = |n| ("switch", format!("switch.command.{}", encode(&switch_node(n))));
    [
        Queue {
            name: control.to_owned(),
            bindings: vec![("callctl", control.to_owned())],
            kind: Todo::Command,
        },
        Queue {
            name: format!("load-fs_node-{}", hex(8)),
            bindings: (0..switches).map(command).collect(),
            kind: Todo::Upload,
        },
        Queue {
            name: format!("ecallmgr-status-{}", hex(8)),
            bindings: vec![("callevt", "call.status_req.*".to_owned())],
            kind: Todo::Status,
        },
    ]
}

impl Switch {
    pub async fn start(options: SwitchOptions) -> anyhow::Result<Self> {
        let uri = &options.amqp_uri;
        let (hearing, sending) = (calls::connect(uri).await?, calls::connect(uri).await?);
        let channel = sending.create_channel().await?;
        calls::declare_exchanges(&channel).await?;
        let (todo, doing) = mpsc::unbounded_channel();
        let control = format!("ecallmgr@load-{}-{}", pid(), hex(8));
        for Queue { name, bindings, kind } in queues(&control, options.switches) {
            let todo = todo.clone();
            let on = move |body| drop(todo.send(kind(body)));
            calls::consume(&hearing, &name, Length::Kazoo, &bindings, on).await?;
        }
        let shared = Arc::new(Shared {
            options,
            channel,
            ended: Mutex::default(),
            files: Mutex::default(),
            waiting: Mutex::default(),
            started: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        tokio::spawn(work(shared.clone(), doing));
        Ok(Self {
            control,
            shared,
            connections: [hearing, sending],
        })
    }

    /// Gets a value when the file of the call's recording is uploaded with success.
    pub fn stored(&self, call_id: &str) -> oneshot::Receiver<()> {
        let (done, stored) = oneshot::channel();
        if let Ok(mut waiting) = self.shared.waiting.lock() {
            waiting.insert(call_id.to_owned(), done);
        }
        stored
    }

    /// Closes the connections, and with them removes the queues: otherwise they get what is for the
    /// next switches.
    pub async fn close(self) {
        for connection in self.connections {
            close(&connection).await;
        }
    }

    pub fn progress(&self) -> Progress {
        Progress {
            started: self.shared.started.load(Ordering::Relaxed),
            stored: self.shared.stored.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }
}

async fn work(shared: Arc<Shared>, mut doing: mpsc::UnboundedReceiver<Todo>) {
    while let Some(todo) = doing.recv().await {
        let done = match todo {
            Todo::Command(body) => shared.command(&body).await,
            Todo::Status(body) => shared.status(&body).await,
            Todo::Upload(body) => {
                let shared = shared.clone();
                tokio::spawn(async move { shared.upload(&body).await });
                Ok(())
            }
        };
        if let Err(why) = done {
            return say(format!("the simulated switches stop: {why:#}"));
        }
    }
}
