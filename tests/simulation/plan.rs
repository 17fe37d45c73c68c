//! What is asked for, and what the calls will do.

use std::collections::BTreeMap;
use std::time::Duration;

use kz_record_call::entry::fact::Destination;
use kz_record_call::kazoo::call::Parties;
use kz_record_call::kazoo::dialplan::Trigger;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use kz_record_call::recording::order::{Command, Order, Url};
use kz_record_call::recording::settings::Method;

use crate::world::BEGIN;

/// One recording that a callflow asks for, and its call.
#[derive(Debug, Clone)]
pub struct Asked {
    pub order: Order,
    pub destination: Destination,
    pub switch: usize,
    pub begins: Duration,
    /// The target refuses it.
    pub refused: bool,
    /// The program panics at it, always.
    pub poisoned: bool,
    /// A callflow stops it before its call ends.
    pub stopped: bool,
    /// A callflow masks it.
    pub masked: bool,
    /// How often its call is bridged.
    pub bridges: u32,
    pub moves: bool,
    pub holds: bool,
    /// One of many that wait for a bad neighbour.
    pub crowd: bool,
    /// Its call ends at the moment when a worker looks whether it does.
    pub surprises: bool,
}

/// What a calm life has beside delays. None of it may delay other recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    SlowCouch,
    /// One switch reaches no worker.
    Firewall,
    /// One user's server is slow.
    SlowServer,
    /// A call ends while a worker looks at it, and that worker's next request fails.
    Surprises,
}

impl Beside {
    pub fn of(seed: u64) -> Self {
        match seed % 64 {
            _ if seed.is_multiple_of(8) => Self::SlowCouch,
            4 => Self::Firewall,
            12 => Self::SlowServer,
            20 | 52 => Self::Surprises,
            _ => Self::Nothing,
        }
    }

    pub fn has_crowd(self) -> bool {
        matches!(self, Self::Firewall | Self::SlowServer)
    }
}

/// When the calls of a crowd begin, and how many they are.
pub const CROWD_BEGINS: Duration = Duration::from_secs(300);
const CROWD: u64 = 60;

impl Asked {
    /// The leg that a transfer moves its recording to.
    pub fn other_leg(&self) -> String {
        format!("{}, leg b", self.order.call_id)
    }

    pub fn all(rng: &mut fastrand::Rng, calm: bool, beside: Beside) -> BTreeMap<Key, Self> {
        let count = if rng.u8(..20) == 0 { 10 } else { 4 };
        let mut all: Vec<Self> = (0..count).map(|n| Self::one(n, rng, calm)).collect();
        for asked in &mut all {
            asked.surprises = beside == Beside::Surprises;
        }
        if beside.has_crowd() {
            let crowd = (100..100 + CROWD).map(|n| Self {
                crowd: true,
                ..Self::one(n, rng, calm)
            });
            all.extend(crowd);
            for asked in &mut all {
                asked.meet(beside, rng);
            }
        }
        all.into_iter().map(|asked| (asked.order.key, asked)).collect()
    }

    /// Makes it a short call, at the time of the crowd, on the bad neighbour's switch or on the other one.
    fn meet(&mut self, beside: Beside, rng: &mut fastrand::Rng) {
        let of_neighbour = self.crowd || beside == Beside::SlowServer;
        self.switch = usize::from(!of_neighbour);
        (self.destination, self.order.url) = match beside {
            Beside::SlowServer if self.crowd => (Destination::Url, Url::Given("https://h/".into())),
            _ => (Destination::Account, Url::None),
        };
        if let Some(command) = &mut self.order.command {
            (command.node, command.trigger) = (Some(node(self.switch)), Trigger::Now);
        }
        (self.stopped, self.masked, self.moves, self.holds) = (false, false, false, false);
        self.bridges = 1;
        let later = if self.crowd { 0..5_000 } else { 90_000..150_000 };
        self.begins = CROWD_BEGINS + Duration::from_millis(rng.u64(later));
    }

    fn one(n: u64, rng: &mut fastrand::Rng, calm: bool) -> Self {
        let key = Key::of(&format!("call {n}"), "action");
        let trigger = if rng.u8(..3) == 0 {
            Trigger::Bridge
        } else {
            Trigger::Now
        };
        let min_sec = if rng.u8(..) < 30 { 3 } else { 0 };
        let mut chance = |per_cent: u8| rng.u8(..100) < per_cent;
        let (refused, poisoned) = (chance(5) && !calm, chance(3) && !calm);
        let (stopped, masked, moves, holds) = (chance(15), chance(15), chance(20), chance(40));
        let again = chance(50);
        let bridges = if trigger == Trigger::Bridge && again {
            rng.u32(2..4)
        } else {
            1
        };
        let format = if rng.bool() { Format::Mp3 } else { Format::Wav };
        let (destination, switch) = (Destination::ALL[rng.usize(..4)], rng.usize(..2));
        let url = match destination {
            Destination::Url => Url::Given("https://h/".into()),
            _ => Url::None,
        };
        Self {
            order: Order {
                url,
                ..order(key, n, node(switch), (min_sec, trigger, format))
            },
            destination,
            switch,
            begins: Duration::from_millis(rng.u64(..600_000)),
            refused,
            poisoned,
            stopped: stopped && bridges == 1,
            masked,
            bridges,
            moves: moves && bridges == 1,
            holds,
            crowd: false,
            surprises: false,
        }
    }
}

/// The name of a switch.
pub fn node(switch: usize) -> String {
    format!("freeswitch@fs{switch}")
}

fn order(key: Key, n: u64, node: String, (min_sec, trigger, format): (u32, Trigger, Format)) -> Order {
    let extension = if format == Format::Mp3 { "mp3" } else { "wav" };
    Order {
        key,
        media_id: MediaId::derived(key, BEGIN),
        call_id: format!("call {n}"),
        account_id: Some("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4".into()),
        zone: "local".into(),
        file_name: format!("{key}.{extension}"),
        media_name: format!("{key}.{extension}"),
        format,
        origin: "callflow : x".into(),
        method: Method::Put,
        url: Url::None,
        min_sec,
        asked_at: BEGIN,
        parties: Parties::default(),
        continues: None,
        trace: None,
        adopted: None,
        command: Some(Command {
            control: "q".into(),
            fetch_id: None,
            trigger,
            time_limit: 600,
            follow_transfer: true,
            sample_rate: None,
            silence: None,
            stereo: true,
            carry: "c".into(),
            node: Some(node),
            path: format!("/tmp/{key}.{extension}"),
        }),
    }
}
