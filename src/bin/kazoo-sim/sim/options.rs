//! What a test may choose about the simulated cluster and its calls.

use std::{path::PathBuf, time::Duration};

use super::{
    audio::Size,
    wire::{Clock, Object},
};

/// How Kazoo's own queues are declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueStyle {
    /// Exactly as Kazoo does: transient, shared, deleted with its last consumer.
    #[default]
    Kazoo,
    /// The same but durable, for brokers that forbid transient shared queues (RabbitMQ 4.3).
    Durable,
}

/// One zone of a cluster: a callflow node, some ecallmgrs, one switch.
#[derive(Clone, Debug)]
pub struct KazooOptions {
    pub uri: String,
    /// For people only: a zone's name never shows on the wire, several zones are several instances.
    pub zone: String,
    pub callflow_node: String,
    pub ecallmgr_nodes: Vec<String>,
    pub switch_node: String,
    pub account_id: String,
    /// Where the switch records (`recording_file_path`); `None` makes a folder that goes away with the simulator.
    pub recordings: Option<PathBuf>,
    /// How much is said on a call that does not choose by itself.
    pub size: Size,
    pub declare_exchanges: bool,
    pub queues: QueueStyle,
    /// Run the observer (needed for [`super::Tap`] and for the check of the order of replies). Off for load runs.
    pub observe: bool,
    /// The `App-Name` that the worker must use.
    pub worker_app: String,
    /// Print violations to standard error as they happen.
    pub loud: bool,
    /// The timeline forgets its oldest entries beyond this.
    pub timeline_limit: usize,
    /// How long a second of the switch lasts, in real ones: steps in which files are written, time limits, silence, the wait after a bridge.
    pub time_scale: f64,
    /// Whether the file of a running recording grows, as a real one does. Off where it would only cost time.
    pub files_grow: bool,
    /// The switch's global `recording_follow_transfer` and `recording_follow_attxfer`, true in Kazoo's configuration: where the channel has none
    /// of its own, recordings go along.
    pub follow_transfer: bool,
    /// Whether events carry `Recording.File-Path`; public switch definitions lack it, Kazoo 5 reads it.
    pub recording_file_path: bool,
    /// Whether `RECORD_STOP` carries `File-Size` and its like.
    pub recording_file_vars: bool,
    pub clock: Clock,
    /// In which share of the hang-ups `CHANNEL_DESTROY` reaches the broker before `RECORD_STOP`. On a real switch and ecallmgr: 0.2.
    pub crossed_ends: f64,
    /// Decides which hang-ups those are.
    pub seed: u64,
    /// Kazoo's wait before it connects again.
    pub reconnect: Duration,
}

impl Default for KazooOptions {
    fn default() -> Self {
        Self {
            uri: "amqp://guest:guest@localhost:5672".into(),
            zone: "zone-a".into(),
            callflow_node: "kazoo_apps@kz1.example.com".into(),
            ecallmgr_nodes: vec!["ecallmgr@kz1.example.com".into()],
            switch_node: "freeswitch@fs1.example.com".into(),
            account_id: "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4".into(),
            recordings: None,
            size: Size::Millis(2_000),
            declare_exchanges: true,
            queues: QueueStyle::Kazoo,
            observe: true,
            worker_app: "kz_record_call".into(),
            loud: true,
            timeline_limit: 200_000,
            time_scale: 1.0,
            files_grow: true,
            follow_transfer: true,
            recording_file_path: true,
            recording_file_vars: true,
            clock: Clock::default(),
            crossed_ends: 0.2,
            seed: fastrand::u64(..),
            reconnect: Duration::from_millis(500),
        }
    }
}

impl KazooOptions {
    pub fn new(uri: &str) -> Self {
        Self {
            uri: uri.into(),
            ..Self::default()
        }
    }

    /// Whether the end of the n-th leg is told before the ends of its recordings.
    pub(super) fn crosses(&self, nth: u64) -> bool {
        fastrand::Rng::with_seed(self.seed ^ nth).f64() < self.crossed_ends
    }

    /// `n` ecallmgr nodes, all connected to the switch.
    #[must_use]
    pub fn ecallmgrs(mut self, n: usize) -> Self {
        self.ecallmgr_nodes = (1..=n).map(|i| format!("ecallmgr@kz{i}.example.com")).collect();
        self
    }
}

/// A call as it stands when its flow reaches the `record_call` node.
#[derive(Clone, Debug)]
pub struct CallOptions {
    pub call_id: Option<String>,
    /// The b-leg; made up when the call is bridged and this is absent.
    pub other_leg: Option<String>,
    pub direction: String,
    pub caller_name: String,
    pub caller_number: String,
    pub callee_name: String,
    pub callee_number: String,
    pub answered: bool,
    pub bridged: bool,
    pub account_id: Option<String>,
    pub owner_id: Option<String>,
    /// `None`: neither `cf_flow_name` nor a label to fall back on.
    pub flow_name: Option<String>,
    /// Added to (and winning over) the usual channel variables, custom application variables, key-value store and the
    /// `Call` object itself; a null takes a key away.
    pub ccvs: Object,
    pub cavs: Object,
    pub kvs: Object,
    pub call: Object,
    /// How much is said; absent: the cluster's choice.
    pub size: Option<Size>,
    /// Which ecallmgr controls the call.
    pub ecallmgr: usize,
    /// Nobody says anything.
    pub quiet: bool,
    /// The application that runs on the channel; a command that is not `now` waits for its end.
    pub running_app: Option<String>,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            call_id: None,
            other_leg: None,
            direction: "inbound".into(),
            caller_name: "Extension 1000".into(),
            caller_number: "1000".into(),
            callee_name: "Extension 2000".into(),
            callee_number: "2000".into(),
            answered: true,
            bridged: false,
            account_id: None,
            owner_id: Some("9d8c7b6a5f4e3d2c1b0a998877665544".into()),
            flow_name: Some("Main Number".into()),
            ccvs: Object::new(),
            cavs: Object::new(),
            kvs: Object::new(),
            call: Object::new(),
            size: None,
            ecallmgr: 0,
            quiet: false,
            running_app: Some("bridge".into()),
        }
    }
}

impl CallOptions {
    /// Answered and talking to somebody.
    #[must_use]
    pub fn talking() -> Self {
        Self {
            bridged: true,
            ..Self::default()
        }
    }

    /// Still ringing.
    #[must_use]
    pub fn ringing() -> Self {
        Self {
            answered: false,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn size(mut self, size: Size) -> Self {
        self.size = Some(size);
        self
    }

    #[must_use]
    pub fn parties(mut self, caller: (&str, &str), callee: (&str, &str)) -> Self {
        (self.caller_name, self.caller_number) = (caller.0.into(), caller.1.into());
        (self.callee_name, self.callee_number) = (callee.0.into(), callee.1.into());
        self
    }
}

/// How a `RECORD_*` or `CHANNEL_*` event is mistreated on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistreat {
    Drop,
    Duplicate(u32),
    Delay(Duration),
}

/// A rule for events; the first that fits decides.
#[derive(Clone, Debug)]
pub struct EventFault {
    /// `None`: every event.
    pub name: Option<String>,
    /// `None`: of every call.
    pub call_id: Option<String>,
    pub how: Mistreat,
    /// How often it still applies; `None`: always.
    pub times: Option<u32>,
}

impl EventFault {
    pub fn new(name: &str, how: Mistreat) -> Self {
        Self {
            name: Some(name.into()),
            call_id: None,
            how,
            times: None,
        }
    }

    #[must_use]
    pub fn times(mut self, n: u32) -> Self {
        self.times = Some(n);
        self
    }

    #[must_use]
    pub fn of(mut self, call_id: &str) -> Self {
        self.call_id = Some(call_id.into());
        self
    }
}

/// How the next upload goes wrong. Each entry of [`Faults::uploads`] is used up by one upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadFault {
    /// As it should.
    None,
    /// The connection is closed after so many bytes of the body.
    CutAfter(u64),
    /// Nothing more is sent after so many bytes; the connection stays open this long.
    StallAfter(u64, Duration),
    /// `Content-Length` promises so many bytes more than come; then the connection is closed.
    PromiseMore(u64),
    /// `Content-Length` promises so many bytes fewer than come.
    PromiseLess(u64),
}

/// What is broken. All of it can be switched while calls run.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub events: Vec<EventFault>,
    /// Every ecallmgr publishes every event, as with `restrict_channel_event_publisher` off.
    pub everybody_publishes: bool,
    /// Ecallmgrs that do not know the switch: they answer `terminated` to every status request.
    pub blind_ecallmgrs: Vec<usize>,
    /// Ecallmgrs that do not answer status requests.
    pub mute_ecallmgrs: Vec<usize>,
    /// Commands vanish, as with a dead control process.
    pub ignore_commands: bool,
    /// So many starts are taken and nothing happens (the switch's result is never reported).
    pub ignore_starts: u32,
    /// The text of the dialplan error that the next commands get instead of being executed, oldest first.
    pub dialplan_errors: Vec<String>,
    /// So many replies to `send_http` are lost.
    pub lose_send_http_replies: u32,
    /// `send_http` replies arrive this much later.
    pub delay_send_http_replies: Option<Duration>,
    /// Another zone's ecallmgr serves the same switch: every `send_http` runs twice at once.
    pub send_http_twice: bool,
    /// Bytes a second of each upload.
    pub bandwidth: Option<u64>,
    pub uploads: Vec<UploadFault>,
    /// The disk takes no file longer than so many bytes.
    pub disk_full: Option<u64>,
    /// The switch keeps its files, as packages older than the deletion do.
    pub keep_files: bool,
}
