//! What a run does, made from its seed alone: the calls with all that happens in them, and the troubles around them. The same seed gives the same
//! plan, wherever and whenever; what comes of it depends on the machine's moods too.

mod calls;
mod troubles;

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// The users' servers that recordings are sent to.
pub const SERVERS: usize = 3;

/// Recordings of the same plan that all ask for the same `media_id`, by how they name it.
pub const SAME_ID: &str = "always-the-same";

/// What is drawn apart from the rest has this in its seed.
const ODD: u64 = 0x0dd;
const KAZOOS: u64 = 0xca200;
const STORES: u64 = 0x5_704e;

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    /// Whether the workers store what Kazoo's own recorder would store.
    pub adopts: bool,
    /// Calls begin, and troubles strike, within this time.
    pub length: Duration,
    /// Kazoo's month turns this long after the beginning.
    pub turn: Duration,
    pub calls: Vec<CallPlan>,
    /// In the order of their beginnings.
    pub troubles: Vec<Trouble>,
}

/// One call.
#[derive(Debug, Clone)]
pub struct CallPlan {
    pub n: usize,
    /// When it reaches its flow.
    pub at: Duration,
    /// Whose it is.
    pub account: Account,
    pub ringing: bool,
    pub start_event: Fate,
    pub stop_event: Fate,
    pub starts: Vec<StartPlan>,
    pub steps: Vec<Step>,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Its recordings go into its monthly database, or to the third party while one is set.
    Plain,
    /// A storage plan takes them through the store proxy.
    Planned,
    /// A storage plan names an object store, which the workers serve themselves.
    Native,
}

/// One recording that is asked for.
#[derive(Debug, Clone)]
pub struct StartPlan {
    /// Unique in the plan; the callflow node's label.
    pub label: String,
    /// Unique in the plan: by its time limit a file on the switch is known to be this one's, whatever else is mixed up.
    pub limit_s: u64,
    /// How much is said, unique in the plan: no two recordings of one id have the same bytes.
    pub millis: u64,
    pub wav: bool,
    pub url: Option<UrlPlan>,
    pub when: When,
    pub same_id: bool,
    pub min_s: u64,
    /// Not an action's: Kazoo records by itself.
    pub kazoos: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct UrlPlan {
    pub server: usize,
    pub post: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Now,
    Answer,
    Bridge,
}

/// What becomes of a call's RECORD_START or RECORD_STOP on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Lost,
    Repeated(u32),
    Late(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Talk(Duration),
    /// The n-th of the call's starts.
    Start(usize),
    /// Kazoo begins the n-th of the call's starts by itself.
    Kazoos(usize),
    /// The n-th start's action is delivered once more.
    Again(usize),
    Stop,
    Mask,
    Unmask,
    Answer,
    /// So much is said after it.
    Bridge(u64),
    /// What runs is ended by the switch, as at the end of a bridge.
    EndParts,
    /// Recordings go over to the other leg.
    Move,
    /// The call gets another id.
    Replace,
    /// Call control is gone.
    Transfer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    HangUp,
    /// The switch loses the call, and says nothing.
    Vanish,
    /// After the hang-up somebody cleans the switch's folder.
    LoseFile,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub at: Duration,
    pub length: Duration,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// SIGKILL, and a new one after that time.
    Kill(usize),
    /// SIGTERM, and a new one.
    Renew(usize),
    /// SIGTERM to the version that the workers begin with, and this version in its place from then on.
    Upgrade(usize),
    /// SIGSTOP for that time: longer than its leases.
    Freeze(usize),
    LoseSpool(usize),
    /// In good order, or by SIGKILL.
    RestartBroker {
        killed: bool,
    },
    /// The workers are cut off the broker, Kazoo is not.
    CutBroker,
    /// The database is stopped, or killed, and started again after that time.
    StopDatabase {
        killed: bool,
    },
    Database(Cut),
    /// The database answers as a cluster does whose nodes do not see each other.
    OddDatabase(Odd),
    OddThirdParty(Odd),
    ThirdParty(Cut),
    /// An operator sets `third_party_bigcouch_host`, and takes it away after that time.
    UseThirdParty,
    Server(usize, Mood),
    StoreProxy(Mood),
    ObjectStore(StoreMood),
    /// The plan of the object store has a wrong secret for that time.
    WrongPlan,
    /// The endpoint that gets the outcomes.
    Endpoint(Mood),
    /// No ecallmgr takes commands for the switch.
    NoEcallmgr,
    /// The next uploads break.
    Uploads(u32),
    SlowUploads,
    LoseReplies(u32),
    /// Another zone's ecallmgr runs every `send_http` a second time.
    TwoZones,
    /// So many starts are taken by the switch, and nothing happens.
    IgnoreStarts(u32),
    /// So many commands are refused by call control.
    Refuse(u32),
}

/// How a connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Refuse,
    Hang,
    /// Connections are cut after so many bytes.
    After(u64),
}

/// What a database answers that is a cluster in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// Every other request fails.
    Errors,
    /// A node that knows no databases yet, or not any more.
    NoDatabases,
    /// What is written is on fewer nodes than it should be, and that is said: 202.
    FewCopies,
    /// Every other write is done, and answered as a conflict.
    Conflicts,
}

/// What a server does with uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Status(u16),
    /// Takes everything, and never answers.
    Hang,
    /// The connection breaks.
    Cut(Cut),
}

/// What an object store does with uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMood {
    Refuses(u16, &'static str),
    RefusesEarly(u16, &'static str),
    ClosesAt(u64),
    LosesAnswer,
    StoresLess,
    Silent,
}

impl Plan {
    pub fn new(seed: u64, recordings: usize, length: Duration, workers: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut calls = calls::plan(&mut random, recordings, length);
        calls::into_object_store(&mut Rng::with_seed(seed ^ STORES), &mut calls);
        let mut troubles = troubles::plan(&mut random, length, workers);
        let turn = length.mul_f64(0.4 + random.f64() * 0.2);
        troubles::odd_ones(&mut Rng::with_seed(seed ^ ODD), length, &mut troubles);
        troubles::of_stores(&mut Rng::with_seed(seed ^ STORES), length, &mut troubles);
        let mut kazoos = Rng::with_seed(seed ^ KAZOOS);
        let adopts = kazoos.bool();
        if adopts {
            let begun = (calls.len(), recordings);
            calls.extend(calls::kazoos(&mut kazoos, begun, recordings / 8 + 1, length));
            calls.sort_by_key(|call| call.at);
        }
        Self {
            seed,
            workers,
            adopts,
            length,
            turn,
            calls,
            troubles,
        }
    }

    /// The workers are replaced, one after the other, while calls come in.
    pub fn with_upgrade(mut self) -> Self {
        troubles::upgrade(self.workers, self.length, &mut self.troubles);
        self
    }

    pub fn starts(&self) -> impl Iterator<Item = (&CallPlan, &StartPlan)> {
        self.calls
            .iter()
            .flat_map(|call| call.starts.iter().map(move |start| (call, start)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            workers,
            length,
            turn,
            ..
        } = self;
        writeln!(
            f,
            "seed {seed}: {} recordings ({} of them Kazoo's own) in {} calls within {length:.1?}, {workers} workers; the month turns after {turn:.1?}",
            self.starts().count(),
            self.starts().filter(|(_, start)| start.kazoos).count(),
            self.calls.len()
        )?;
        for Trouble { at, length, what } in &self.troubles {
            writeln!(f, "  {:>8.3} s  {what:?} for {length:.1?}", at.as_secs_f64())?;
        }
        for call in &self.calls {
            let CallPlan { n, at, account, .. } = call;
            writeln!(
                f,
                "  {:>8.3} s  call {n} ({account:?}{}), RECORD_START {:?}, RECORD_STOP {:?}: {:?}, then {:?}",
                at.as_secs_f64(),
                if call.ringing { ", ringing" } else { "" },
                call.start_event,
                call.stop_event,
                call.steps,
                call.end
            )?;
            for start in &call.starts {
                writeln!(f, "              {start:?}")?;
            }
        }
        Ok(())
    }
}

/// One of `among`, by their weights.
fn pick<T: Clone>(random: &mut Rng, among: &[(u32, T)]) -> T {
    let total: u32 = among.iter().map(|(weight, _)| weight).sum();
    let mut at = random.u32(0..total);
    for (weight, what) in among {
        if at < *weight {
            return what.clone();
        }
        at -= weight;
    }
    among[0].1.clone()
}

fn millis(random: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.u64(from..to))
}
