//! Everything the simulated cluster knows. [`super::world`] keeps it behind one lock.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    audio::{Audio, Size},
    options::{CallOptions, Faults},
    record::{Entry, Violation},
    term::Decision,
    wire::{Object, text},
};

/// Which of the calls; stable while its call id changes.
pub type CallKey = u64;

/// When an `event_actions` command fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    Answer,
    Bridge,
}

/// The process that serves a call's control address.
#[derive(Clone, Debug)]
pub struct Control {
    pub pid: String,
    pub queue: String,
    pub ecallmgr: usize,
    /// Set when the process goes: at once after a transfer, two seconds after the channel's end.
    pub dead_from: Option<Instant>,
    pub waiting: VecDeque<Arc<Object>>,
    pub running_app: Option<String>,
}

impl Control {
    pub fn alive(&self) -> bool {
        self.dead_from.is_none_or(|t| Instant::now() < t)
    }
}

/// A controlled call: the flow's process, the control process and the leg they belong to now.
#[derive(Clone, Debug)]
pub struct CallState {
    pub call_id: String,
    pub fetch_id: String,
    pub flow_pid: String,
    pub control: Control,
    pub options: CallOptions,
    pub ccvs: Object,
    pub created_micros: u64,
    /// Actions executed, in order.
    pub actions: Vec<String>,
    /// Recordings made, as places in the state's list.
    pub recordings: Vec<usize>,
    /// Nobody says anything.
    pub quiet: bool,
}

/// A channel of the switch.
#[derive(Clone, Debug)]
pub struct Leg {
    pub id: String,
    pub call: CallKey,
    pub other: Option<String>,
    pub answered: bool,
    pub bridged: bool,
    /// Bridges so far, and parts that were ended as at a bridge's end: what a bridge makes the switch do must not come after it.
    pub bridges: u64,
    pub alive: bool,
    /// It called in; the others were called.
    pub inbound: bool,
    /// It hears something, though nobody has answered.
    pub early: bool,
    /// Its party has put the call on hold: what is recorded of this leg stands still.
    pub held: bool,
    /// It is hanging up: its recordings end, and after that the channel.
    pub hanging_up: bool,
    pub on_event: Vec<(Trigger, Arc<Object>)>,
    /// The channel array `Media-Recordings`, newest first; never shortened.
    pub media_recordings: Vec<String>,
    /// Channel variables that decide about recordings.
    pub vars: BTreeMap<String, String>,
    /// `File-…` and `Completion-Cause` of the recording that ended last.
    pub last_file: Object,
}

impl Leg {
    pub fn new(id: &str, call: CallKey, other: Option<&str>) -> Self {
        Self {
            id: id.to_owned(),
            call,
            other: other.map(str::to_owned),
            answered: true,
            bridged: false,
            bridges: 0,
            alive: true,
            inbound: false,
            early: false,
            held: false,
            hanging_up: false,
            on_event: Vec::new(),
            media_recordings: Vec::new(),
            vars: BTreeMap::new(),
            last_file: Object::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The file is being created; `RECORD_START` is not out yet.
    Opening,
    Running,
    /// Stopped; the last bytes are being written.
    Ending,
    /// The file is whole and `RECORD_STOP` was sent (or dropped by a fault).
    Ended,
}

/// A recording of the switch: one file.
#[derive(Clone, Debug)]
pub struct Recording {
    /// `Media-Recording-ID`.
    pub id: String,
    /// `Media-Name`.
    pub name: String,
    pub path: PathBuf,
    pub node: String,
    /// The leg that records now.
    pub call_id: String,
    /// The leg that the newest part was started on: another start of the file is refused there while it runs.
    pub origin: String,
    pub call: CallKey,
    pub phase: Phase,
    pub masked: bool,
    /// How often it was masked.
    pub masks: u32,
    /// How often it was started; more than one means appended.
    pub starts: u32,
    /// The exact content of the file once ended.
    pub audio: Audio,
    /// What is in the file while it is being recorded.
    pub begun: Audio,
    /// How much is to be said in the newest part.
    pub size: Size,
    pub clock: Clockwork,
    /// When the time limit strikes, if the leg is not on hold then.
    pub limit_at: Instant,
    pub silence: Silence,
    /// Goes on in a file that is there.
    pub append: bool,
    /// Of the newest part.
    pub length_ms: u64,
    /// What comes back in `Recording`: the headers' variables, overridden by `Recording-Variables`.
    pub vars: BTreeMap<String, String>,
    pub limit_secs: u64,
    pub min_secs: String,
    pub cause: String,
    pub started_at: Instant,
    pub ended_at: Option<Instant>,
    /// The switch deleted the file after an upload.
    pub deleted: bool,
    /// It did so while it was recording: what came then is nowhere.
    pub unlinked: bool,
    /// It went over to another channel, where no command finds it.
    pub moved: bool,
}

/// How long a recording has been running, without the time on hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clockwork {
    ran: Duration,
    since: Option<Instant>,
}

impl Clockwork {
    pub fn ran(&self, now: Instant) -> Duration {
        self.ran
            + self
                .since
                .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// Runs, or stands still, from now on.
    pub fn run(&mut self, on: bool, now: Instant) {
        self.ran = self.ran(now);
        self.since = on.then_some(now);
    }
}

/// The silence that ends a recording.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    /// 0: silence is not looked for.
    pub threshold: u64,
    pub initial_ms: u64,
    pub final_ms: u64,
    pub spoke: bool,
    /// Since when nobody speaks, in time recorded.
    pub quiet_since: Option<Duration>,
}

impl Recording {
    /// Samples of the newest part so far, where a second of the switch's lasts `scale` seconds. One whose length is settled gets slower
    /// and slower, and is never whole before its end.
    pub fn position(&self, now: Instant, scale: f64) -> u64 {
        let ms = (self.clock.ran(now).as_secs_f64() * 1_000.0 / scale) as u64;
        let rate = self.audio.format.rate();
        match self.size {
            Size::Lasting => ms / 20 * 20 * rate / 1_000,
            Size::Millis(_) | Size::Bytes(_) => {
                let (whole, now) = (self.audio.last_units(), ms * rate / 1_000);
                let part = u128::from(whole) * u128::from(now) / u128::from((whole + now).max(1));
                u64::try_from(part).unwrap_or(0).min(whole.saturating_sub(1))
            }
        }
    }

    pub fn running(&self) -> bool {
        self.phase == Phase::Running
    }

    pub fn ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub fn bytes(&self) -> u64 {
        self.audio.len()
    }
}

/// One HTTP PUT by the switch.
#[derive(Clone, Debug)]
pub struct Upload {
    pub file: PathBuf,
    pub url: String,
    pub total: u64,
    pub sent: u64,
    pub started_at: Instant,
    pub finished: bool,
    /// The final HTTP status; 0 when there was none.
    pub status: u16,
}

/// One executed action as callflow sees it.
#[derive(Clone, Debug)]
pub struct RunState {
    pub call: CallKey,
    pub msg_id: String,
    pub starts: bool,
    pub published: Instant,
    pub times_published: u32,
    pub routed: Option<bool>,
    pub accepted: Option<Instant>,
    pub accepted_count: u32,
    pub result: Option<(Instant, Decision)>,
    pub result_count: u32,
    /// As the observer's single queue ordered them: accepted, first command, result.
    pub order: Vec<&'static str>,
    /// When the observer saw the first result.
    pub answered: Option<Instant>,
}

/// A message of the worker as the observer saw it.
#[derive(Clone, Debug)]
pub struct Observed {
    pub at: Instant,
    pub exchange: String,
    pub key: String,
    pub category: String,
    pub name: String,
    pub traceparent: Option<String>,
    pub body: Arc<Object>,
}

impl Observed {
    /// A header's text, or nothing.
    pub fn header(&self, key: &str) -> &str {
        text(&self.body, key).unwrap_or_default()
    }
}

#[derive(Default)]
pub struct State {
    pub(super) next_call: CallKey,
    pub(super) hangups: u64,
    pub(super) calls: HashMap<CallKey, CallState>,
    pub(super) legs: HashMap<String, Leg>,
    pub(super) recordings: Vec<Recording>,
    pub(super) by_path: HashMap<PathBuf, usize>,
    /// `Media-Name`s of start commands that reached call control, whether anybody obeyed or not: these files may be looked for.
    pub(super) ordered: HashSet<String>,
    pub(super) uploads: Vec<Upload>,
    pub(super) runs: HashMap<String, RunState>,
    pub(super) flows: HashMap<String, CallKey>,
    pub(super) controls: HashMap<(String, String), CallKey>,
    pub(super) faults: Faults,
    pub(super) violations: Vec<Violation>,
    pub(super) tolerated: Vec<String>,
    pub(super) timeline: VecDeque<Entry>,
    pub(super) observed: Vec<Observed>,
    pub(super) observer_queue: String,
    /// Somebody of the cluster lost the broker, and perhaps messages with it.
    pub(super) broker_lost: bool,
    /// The switch's `Core-UUID`: another one after each of its starts.
    pub(super) core_uuid: String,
    /// `Msg-ID`s of channel questions seen: every ecallmgr gets each.
    pub(super) questions: HashSet<String>,
}

impl State {
    pub fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    pub fn uploads(&self) -> &[Upload] {
        &self.uploads
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub fn timeline(&self) -> impl Iterator<Item = &Entry> {
        self.timeline.iter()
    }

    /// Messages of the worker, as the observer saw them.
    pub fn observed(&self) -> &[Observed] {
        &self.observed
    }

    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// What callflow knows of an action, by its `Msg-ID`.
    pub fn run(&self, msg_id: &str) -> Option<&RunState> {
        self.runs.get(msg_id)
    }

    /// The newest recording with this id.
    pub fn recording(&self, id: &str) -> Option<&Recording> {
        self.recordings.iter().rev().find(|r| r.id == id)
    }

    pub(super) fn recordings_of(&self, call: CallKey) -> impl Iterator<Item = &Recording> {
        let places = self
            .calls
            .get(&call)
            .map(|c| c.recordings.as_slice())
            .unwrap_or_default();
        places.iter().filter_map(|i| self.recordings.get(*i))
    }

    /// The newest recording into a file.
    pub(super) fn at(&self, path: &Path) -> Option<&Recording> {
        self.recordings.get(*self.by_path.get(path)?)
    }

    pub(super) fn at_mut(&mut self, path: &Path) -> Option<&mut Recording> {
        self.recordings.get_mut(*self.by_path.get(path)?)
    }

    /// Recordings stand still while the leg that carries them is on hold.
    pub(super) fn set_clocks(&mut self) {
        let now = Instant::now();
        for recording in self.recordings.iter_mut().filter(|r| !r.ended()) {
            let held = self.legs.get(&recording.call_id).is_some_and(|l| l.held);
            let runs = matches!(recording.phase, Phase::Opening | Phase::Running);
            recording.clock.run(runs && !held, now);
        }
    }

    pub(super) fn add(&mut self, recording: Recording) {
        let place = self.recordings.len();
        self.by_path.insert(recording.path.clone(), place);
        if let Some(call) = self.calls.get_mut(&recording.call) {
            call.recordings.push(place);
        }
        self.recordings.push(recording);
    }
}
