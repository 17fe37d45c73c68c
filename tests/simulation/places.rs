//! Where audio goes: the accounts' databases, users' servers, and the hold. And who is told of it.

use std::collections::{BTreeMap, BTreeSet};

use kz_record_call::entry::fact::Destination;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::identity::Key;

use crate::switch::Content;
use crate::world::World;

/// The copy that a server with too few nodes took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    Safe,
    /// Its node is away until then.
    Away(Moment),
    /// Its node's disk is gone.
    Lost,
}

#[derive(Debug, Clone)]
pub struct Stored {
    pub content: Content,
    pub destination: Destination,
    pub copy: Copy,
}

#[derive(Debug, Default)]
pub struct Places {
    /// Audio at its destination, by recording. Other audio of the same recording is beside it.
    pub stored: BTreeMap<Key, Vec<Stored>>,
    /// Documents that came before their audio.
    pub documents: BTreeSet<Key>,
    /// Those of them that say that their audio arrived at its URL, and which audio.
    pub completed: BTreeMap<Key, Content>,
    /// What the document says of masks.
    pub masked: BTreeMap<Key, bool>,
    /// Copies in the hold, by name.
    pub held: BTreeMap<String, Content>,
    /// What was announced of each recording, in order.
    pub announced: BTreeMap<Key, Vec<(Moment, &'static str)>>,
    pub deliveries: BTreeMap<Key, u32>,
}

impl Places {
    /// The audio of a recording that a reader finds now.
    pub fn found(&self, key: Key, now: Moment) -> Option<&Stored> {
        self.found_as(key, now, |_| true)
    }

    /// The same for audio that `is_it`.
    pub fn found_as(&self, key: Key, now: Moment, is_it: impl Fn(&Content) -> bool) -> Option<&Stored> {
        let mut all = self
            .stored
            .get(&key)
            .into_iter()
            .flatten()
            .filter(|stored| is_it(&stored.content));
        let is_there = |stored: &&Stored| match stored.copy {
            Copy::Safe => true,
            Copy::Away(until) => until <= now,
            Copy::Lost => false,
        };
        all.find(is_there)
    }
}

impl World {
    /// Audio arrives at its destination. `true`: its server had too few copies.
    pub fn store(&self, key: Key, destination: Destination, content: &Content) -> bool {
        let here = matches!(destination, Destination::Account | Destination::ThirdParty);
        let copy = match here && (self.trouble().thin || self.mishap(120)) {
            true if self.chance(400) => Copy::Lost,
            true => Copy::Away(self.now().plus(self.between(60_000, 4 * 3_600_000))),
            false => Copy::Safe,
        };
        let mut places = self.places.lock().unwrap();
        *places.deliveries.entry(key).or_default() += 1;
        let all = places.stored.entry(key).or_default();
        match all.iter_mut().find(|stored| stored.content == *content) {
            // A write of what is there already changes nothing; of what is lost, it is new.
            Some(stored) if stored.copy == Copy::Safe => return false,
            Some(stored) => (stored.copy, stored.destination) = (copy, destination),
            None => all.push(Stored {
                content: content.clone(),
                destination,
                copy,
            }),
        }
        if copy != Copy::Safe {
            drop(places);
            self.count("too few copies");
            return true;
        }
        false
    }

    pub fn announce(&self, key: Key, what: &'static str) {
        let now = self.now();
        let mut places = self.places.lock().unwrap();
        places.announced.entry(key).or_default().push((now, what));
    }
}
