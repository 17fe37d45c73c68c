//! What this worker remembers of the recordings of its zone. A `stop` is looked up here, and this memory saves reads of the ledger. Nothing
//! that depends on it alone is promised: it is limited, and another worker's memory differs.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::entry::Entry;
use crate::entry::fact::{Fact, Route, What};
use crate::entry::legs::Leg;
use crate::kazoo::leg::{LegEvent, encoded_leg};
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;
use crate::recording::identity::Key;

use super::bounded::Bounded;
use super::open::Open;

/// The largest number of entries that are remembered completely.
const ENTRIES: usize = 5_000;
/// The largest number of recordings that are remembered as commanded, and as open.
const KEYS: usize = 50_000;
/// The largest number of facts that are remembered of the legs of one recording.
const LEGS: usize = 24;

#[derive(Debug, Default)]
struct Memory {
    open: Bounded<Key, Open>,
    by_call: HashMap<String, HashSet<Key>>,
    by_fetch: HashMap<String, HashSet<Key>>,
    by_interaction: HashMap<String, HashSet<Key>>,
    /// By every leg that a recording is on, or may be on, in the form of routing keys.
    by_leg: HashMap<String, HashSet<Key>>,
    /// What was learned of the legs of open recordings.
    legs: HashMap<Key, Vec<Fact>>,
    entries: Bounded<Key, Entry>,
    /// Recordings whose end was heard here. A handler that began before that and ends later does not open them again.
    over: Bounded<Key, Option<i64>>,
    /// Recordings that ended according to another worker, and their end, in the switch's order, if that is known. They may begin again.
    closed: Bounded<Key, Option<i64>>,
    /// The legs that lead to each recording in `by_leg`.
    linked: HashMap<Key, HashSet<String>>,
    commanded: Bounded<Key, ()>,
    /// From the id of a start command to its recording.
    commands: Bounded<String, Key>,
    /// Recordings that the switch began again lately. The ledger may not know it yet.
    restarts: Bounded<Key, Fact>,
    /// Calls whose channel was set so that its recordings do not follow a transfer.
    unfollowing: Bounded<String, ()>,
    /// Stops and masks that were carried out, and on which recording.
    done: Bounded<String, (Key, String)>,
    /// The control address that the newest action on a call named.
    routes: Bounded<String, (Moment, Route)>,
}

/// The memory. One for each worker.
#[derive(Debug, Default)]
pub struct OpenRecordings(Mutex<Memory>);

impl OpenRecordings {
    /// A recording is open, according to this worker or another one.
    pub fn open(&self, open: Open) {
        let mut memory = self.lock();
        if let Some(known) = memory.open.get_mut(&open.key) {
            known.stopping |= open.stopping;
            return;
        }
        if memory.over.get(&open.key).is_some() {
            return;
        }
        if open.stays {
            memory.unfollowing.insert(open.call_id.clone(), (), KEYS);
        }
        memory.by_call.entry(open.call_id.clone()).or_default().insert(open.key);
        if let Some(fetch_id) = &open.fetch_id {
            memory.by_fetch.entry(fetch_id.clone()).or_default().insert(open.key);
        }
        if let Some(interaction) = &open.interaction {
            let keys = memory.by_interaction.entry(interaction.clone()).or_default();
            keys.insert(open.key);
        }
        memory.link(open.key, &open.call_id);
        if let Some(entry) = memory.entries.get(&open.key).cloned() {
            entry
                .living_legs()
                .into_iter()
                .for_each(|leg| memory.link(open.key, leg));
        }
        memory.commanded.insert(open.key, (), KEYS);
        if let Some(forgotten) = memory.open.insert(open.key, open, KEYS) {
            memory.unlink(&forgotten);
        }
    }

    /// Follows the legs of an open recording that Kazoo's own recorder began. No action finds it here: only its key and its legs lead to it.
    /// `again`: it began again after its end was heard.
    pub fn follow(&self, entry: &Entry, again: bool) {
        let Some(open) = Open::of_any(entry) else { return };
        let mut memory = self.lock();
        if again {
            memory.over.remove(&open.key);
        }
        if memory.over.get(&open.key).is_some() || memory.open.get(&open.key).is_some() {
            return;
        }
        memory.link(open.key, &open.call_id);
        for leg in entry.living_legs() {
            memory.link(open.key, leg);
        }
        if let Some(forgotten) = memory.open.insert(open.key, open, KEYS) {
            memory.unlink(&forgotten);
        }
    }

    /// The recording began again after its end was heard.
    pub fn reopen(&self, open: Open) {
        let mut memory = self.lock();
        memory.over.remove(&open.key);
        memory.closed.remove(&open.key);
        drop(memory);
        self.open(open);
    }

    /// The recording ended.
    pub fn close(&self, key: Key) {
        let mut memory = self.lock();
        let end = memory.entries.get(&key).and_then(|entry| entry.told_end());
        if let Some(end) = end.map(Told::order) {
            memory.over.insert(key, Some(end), KEYS);
        }
        if let Some(open) = memory.open.remove(&key) {
            memory.unlink(&open);
        }
        memory.entries.remove(&key);
    }

    /// The recording ended, according to another worker or the ledger. `end`: in the switch's order, if that is known.
    pub fn heard_of_end(&self, key: Key, end: Option<i64>) {
        let mut memory = self.lock();
        let restarted = memory.restarts.get(&key).and_then(|fact| match &fact.what {
            What::Started(told) => Some(told.order()),
            _ => None,
        });
        if restarted.zip(end).is_some_and(|(start, end)| start >= end) {
            // The notice of the start after it was faster.
            return;
        }
        memory.closed.insert(key, end, KEYS);
        drop(memory);
        self.close(key);
    }

    /// Whether an end of the recording was heard.
    pub fn was_closed(&self, key: Key) -> bool {
        let memory = self.lock();
        memory.over.get(&key).is_some() || memory.closed.get(&key).is_some()
    }

    /// Whether an end of the recording was heard that the entry may lack. A start after that end shows that the entry does not lack it.
    pub fn was_closed_since(&self, entry: &Entry) -> bool {
        let memory = self.lock();
        let mut ends = [memory.over.get(&entry.key), memory.closed.get(&entry.key)]
            .into_iter()
            .flatten();
        let start = entry.newest_start();
        // The switch's stamps tick: an end and the start after it can have the same one.
        ends.any(|end| end.zip(start).is_none_or(|(end, start)| start < end))
    }

    /// Whether an end of the recording was heard that came after this start, in the switch's order.
    pub fn ended_after(&self, key: Key, start: i64) -> bool {
        let memory = self.lock();
        let ends = [memory.over.get(&key), memory.closed.get(&key)];
        ends.into_iter().flatten().any(|end| end.is_some_and(|end| end > start))
    }

    /// Remembers all that is known of an open recording.
    pub fn remember(&self, entry: &Entry) {
        let mut memory = self.lock();
        if let Some(order) = entry.order() {
            memory.commands.insert(order.command_id(), order.key, KEYS);
        }
        if memory.over.get(&entry.key).is_some() {
            return;
        }
        if let Some(known) = memory.entries.get_mut(&entry.key) {
            *known = known.clone().merge(entry.clone());
        } else {
            memory.entries.insert(entry.key, entry.clone(), ENTRIES);
        }
        if memory.open.get(&entry.key).is_some() {
            for leg in entry.living_legs() {
                memory.link(entry.key, leg);
            }
        }
    }

    /// What is remembered of a recording.
    pub fn entry(&self, key: Key) -> Option<Entry> {
        let memory = self.lock();
        let mut entry = memory.entries.get(&key).cloned()?;
        memory.add_legs(&mut entry);
        Some(entry)
    }

    /// Whether an open recording is, or may be, on a leg, in the form of routing keys. The events of every call are checked with this
    /// before they are read.
    pub fn follows(&self, encoded: &str) -> bool {
        self.lock().by_leg.contains_key(encoded)
    }

    /// Remembers what happened to a leg. Returns the open recordings for which this is new.
    pub fn learn(&self, leg: &Leg, at: Moment, by: &str) -> Vec<Key> {
        let mut memory = self.lock();
        let concerned = memory
            .by_leg
            .get(&encoded_leg(&leg.call_id))
            .cloned()
            .unwrap_or_default();
        let fact = Fact {
            at,
            by: by.to_owned(),
            what: What::Leg(Box::new(leg.clone())),
        };
        let mut news = Vec::new();
        for key in concerned {
            if memory.open.get(&key).is_none() {
                continue;
            }
            let known = memory.legs.entry(key).or_default();
            // A bridge with no new leg adds nothing, and an end counts once. For a leg that moves again and again the last move is kept.
            let says_same = |known: &Fact| match &known.what {
                What::Leg(known) if leg.event == LegEvent::Bridged => {
                    known.call_id == leg.call_id && known.other == leg.other
                }
                what => *what == fact.what,
            };
            if known.iter().any(says_same) {
                continue;
            }
            if known.len() >= LEGS {
                known.remove(1);
            }
            known.push(fact.clone());
            if let Some(other) = &leg.other {
                memory.link(key, other);
            }
            news.push(key);
        }
        news
    }

    /// The recordings that are open in one conversation, by its `Call-Interaction-ID`: oldest first.
    pub fn of_interaction(&self, interaction: &str) -> Vec<Open> {
        let memory = self.lock();
        let keys = memory.by_interaction.get(interaction);
        let mut open: Vec<Open> = keys
            .into_iter()
            .flatten()
            .filter_map(|key| memory.open.get(key).cloned())
            .collect();
        open.sort_by_key(|open| open.asked_at);
        open
    }

    /// Whether the recording was commanded, as far as this worker remembers.
    pub fn is_commanded(&self, key: Key) -> bool {
        self.lock().commanded.get(&key).is_some()
    }

    /// The recording that a start command's id belongs to.
    pub fn of_command(&self, msg_id: &str) -> Option<Key> {
        self.lock().commands.get(msg_id).copied()
    }

    /// An action named the present control address of its call.
    pub fn controlled(&self, at: Moment, route: Route) {
        self.lock().routes.insert(route.call_id.clone(), (at, route), KEYS);
    }

    /// The control address that the newest action on a call named, and when.
    pub fn route(&self, call_id: &str) -> Option<(Moment, Route)> {
        self.lock().routes.get(call_id).cloned()
    }

    /// Adds the facts of a stop, mask or unmask that this worker or another one carried out.
    pub fn hear(&self, key: Key, call_id: &str, facts: &[Fact]) {
        let mut memory = self.lock();
        let mut entry = memory
            .entries
            .get(&key)
            .cloned()
            .unwrap_or_else(|| Entry::new(key, call_id));
        for fact in facts {
            entry.add(fact.clone());
        }
        memory.entries.insert(key, entry, ENTRIES);
    }

    /// Whether an action on this call said that its recording does not follow a transfer.
    pub fn is_unfollowing(&self, call_id: &str) -> bool {
        self.lock().unfollowing.get(call_id).is_some()
    }

    /// The newest recording of the call that is open and not being stopped. The call is found by the fetch id, which stays when the call's
    /// id is replaced, and by its id. If `by` is given, a recording that was ordered after it does not count.
    pub fn newest(&self, fetch_id: Option<&str>, call_id: &str, by: Option<Moment>) -> Option<Open> {
        let memory = self.lock();
        // Of both: a recording that is known only by its events has no fetch id.
        let of_fetch = fetch_id.and_then(|id| memory.by_fetch.get(id)).into_iter();
        let keys = of_fetch.chain(memory.by_call.get(call_id)).flatten();
        let open = keys
            .filter_map(|key| memory.open.get(key))
            .filter(|open| !open.stopping && by.is_none_or(|by| open.asked_at <= by));
        open.max_by_key(|open| open.asked_at).cloned()
    }

    /// A stop of the recording was sent, as far as this worker knows.
    pub fn is_stopping(&self, key: Key) -> bool {
        self.lock().open.get(&key).is_some_and(|open| open.stopping)
    }

    /// The open recordings of the call, including those that are being stopped.
    pub fn of_call(&self, fetch_id: Option<&str>, call_id: &str) -> Vec<Open> {
        let memory = self.lock();
        let of_fetch = fetch_id.and_then(|id| memory.by_fetch.get(id)).into_iter();
        let keys: HashSet<&Key> = of_fetch.chain(memory.by_call.get(call_id)).flatten().collect();
        keys.into_iter()
            .filter_map(|key| memory.open.get(key).cloned())
            .collect()
    }

    /// A stop or mask was carried out on a recording.
    pub fn done(&self, action: &str, key: Key, media_id: &str) {
        self.lock()
            .done
            .insert(action.to_owned(), (key, media_id.to_owned()), KEYS);
    }

    /// The recording on which a stop or mask was carried out, and its media id.
    pub fn done_on(&self, action: &str) -> Option<(Key, String)> {
        self.lock().done.get(action).cloned()
    }

    /// A stop of the recording was sent.
    pub fn stopping(&self, key: Key) {
        if let Some(open) = self.lock().open.get_mut(&key) {
            open.stopping = true;
        }
    }

    /// The switch began the recording again.
    pub fn began_again(&self, key: Key, started: Fact) {
        self.lock().restarts.insert(key, started, ENTRIES);
    }

    /// An entry from the ledger, with what this worker knows and the ledger may not have yet.
    pub fn completed(&self, entry: Entry) -> Entry {
        let known = self.entry(entry.key);
        self.complete(match known {
            Some(known) => entry.merge(known),
            None => entry,
        })
    }

    /// Adds the latest start, of which every worker was notified, to an entry from the ledger. The task that releases the switch's file
    /// must know it.
    pub fn complete(&self, mut entry: Entry) -> Entry {
        let memory = self.lock();
        if let Some(started) = memory.restarts.get(&entry.key).cloned()
            && !matches!(&started.what, What::Started(told) if entry.is_of_one_before(told))
        {
            entry.add(started);
        }
        memory.add_legs(&mut entry);
        drop(memory);
        entry
    }

    /// What the switch records into this recording's file too, as far as this worker heard: a callflow can name the file.
    pub fn sharing_its_file(&self, entry: &Entry) -> Vec<Entry> {
        let file = |told: &Told| Some((told.node.clone()?, told.path.clone()?));
        let Some(own) = entry.ended().or(entry.started()).and_then(file) else {
            return Vec::new();
        };
        let memory = self.lock();
        let others = memory.entries.values().filter(|other| other.key != entry.key);
        let into_it = others.filter(|other| other.started().and_then(file).as_ref() == Some(&own));
        into_it.filter(|other| other.is_open()).cloned().collect()
    }

    /// Whether the recording is open, as far as this worker remembers.
    pub fn is_open(&self, key: Key) -> bool {
        self.lock().open.get(&key).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn link(&mut self, key: Key, call_id: &str) {
        let leg = encoded_leg(call_id);
        self.linked.entry(key).or_default().insert(leg.clone());
        self.by_leg.entry(leg).or_default().insert(key);
    }

    /// The legs of a recording that is over are not needed.
    fn add_legs(&self, entry: &mut Entry) {
        if entry.told_end().is_none() {
            for fact in self.legs.get(&entry.key).into_iter().flatten() {
                entry.add(fact.clone());
            }
        }
    }

    fn unlink(&mut self, open: &Open) {
        fn take(map: &mut HashMap<String, HashSet<Key>>, id: &str, key: Key) {
            if let Some(keys) = map.get_mut(id) {
                keys.remove(&key);
                if keys.is_empty() {
                    map.remove(id);
                }
            }
        }
        take(&mut self.by_call, &open.call_id, open.key);
        if let Some(fetch_id) = &open.fetch_id {
            take(&mut self.by_fetch, fetch_id, open.key);
        }
        if let Some(interaction) = &open.interaction {
            take(&mut self.by_interaction, interaction, open.key);
        }
        self.legs.remove(&open.key);
        for leg in self.linked.remove(&open.key).into_iter().flatten() {
            take(&mut self.by_leg, &leg, open.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(action: &str, at: i64) -> Open {
        Open {
            key: Key::of("call", action),
            call_id: "call".into(),
            fetch_id: Some("fetch".into()),
            media_id: "202611-a".into(),
            file_name: "a.mp3".into(),
            interaction: Some("63963164363-c19045b1".into()),
            asked_at: Moment::from_unix_seconds(at),
            stopping: false,
            stays: false,
            ended: None,
        }
    }

    #[test]
    fn a_stop_finds_the_newest_and_the_next_one_the_one_before() {
        let registry = OpenRecordings::default();
        registry.open(open("1", 1));
        registry.open(open("2", 2));
        let newest = registry.newest(None, "call", None).unwrap();
        assert_eq!(newest.key, Key::of("call", "2"));
        registry.stopping(newest.key);
        assert_eq!(registry.newest(None, "call", None).unwrap().key, Key::of("call", "1"));
        assert_eq!(
            registry.newest(Some("fetch"), "another id now", None).unwrap().key,
            Key::of("call", "1")
        );
        registry.close(Key::of("call", "1"));
        assert_eq!(registry.newest(Some("fetch"), "call", None), None);
        assert!(
            registry.is_commanded(Key::of("call", "1")),
            "it is still known to have been commanded"
        );
    }

    #[test]
    fn the_newest_is_found_though_only_an_older_one_has_a_fetch_id() {
        let registry = OpenRecordings::default();
        registry.open(open("1", 1));
        let newer = Open {
            fetch_id: None,
            ..open("2", 2)
        };
        registry.open(newer.clone());
        assert_eq!(registry.newest(Some("fetch"), "call", None), Some(newer));
    }

    #[test]
    fn nothing_stays_of_the_legs_of_a_recording_that_is_over() {
        let registry = OpenRecordings::default();
        let key = Key::of("call", "1");
        registry.open(open("1", 1));
        for n in 0..100 {
            let leg = Leg {
                call_id: "call".into(),
                event: LegEvent::Bridged,
                other: Some(format!("leg {n}")),
                control: None,
                was_answered: None,
                stamp: Some(n),
            };
            registry.learn(&leg, Moment::from_unix_seconds(n), "w");
        }
        assert!(registry.follows(&encoded_leg("leg 50")));
        registry.close(key);
        let leg = Leg {
            call_id: "leg 50".into(),
            event: LegEvent::Gone,
            other: None,
            control: None,
            was_answered: None,
            stamp: None,
        };
        assert!(registry.learn(&leg, Moment::from_unix_seconds(200), "w").is_empty());
        let memory = registry.lock();
        assert!(memory.by_leg.is_empty() && memory.linked.is_empty() && memory.legs.is_empty());
    }

    #[test]
    fn a_start_that_is_handled_after_its_own_end_opens_nothing() {
        let registry = OpenRecordings::default();
        let mut known = Entry::new(Key::of("call", "1"), "call");
        registry.open(open("1", 1));
        let told = crate::recording::ending::Told::presumed("call", Moment::from_unix_seconds(5), "fs", "/tmp/a.mp3");
        known.add(Fact {
            at: Moment::from_unix_seconds(5),
            by: "w".into(),
            what: What::Ended(Box::new(told)),
        });
        registry.remember(&known);
        registry.close(known.key);
        registry.open(open("1", 1));
        registry.remember(&known);
        assert_eq!(registry.newest(None, "call", None), None);
        // A new start opens it again.
        registry.reopen(open("1", 1));
        assert!(registry.newest(None, "call", None).is_some());
    }

    fn stamped(second: i64) -> Box<Told> {
        let at = Moment::from_unix_seconds(second);
        let mut told = Told::presumed("call", at, "fs", "/tmp/a.mp3");
        told.stamp = Some(at.unix_micros());
        Box::new(told)
    }

    fn fact(second: i64, what: What) -> Fact {
        let (at, by) = (Moment::from_unix_seconds(second), "w".to_owned());
        Fact { at, by, what }
    }

    /// Another worker handled its end and its next start. Otherwise a stop here would reach an older recording of the call.
    #[test]
    fn a_recording_that_began_again_at_another_worker_is_not_over() {
        let key = Key::of("call", "1");
        let end = stamped(20).order();
        let mut written = Entry::new(key, "call");
        written.add(fact(10, What::Started(stamped(10))));
        for own in [false, true] {
            let registry = OpenRecordings::default();
            registry.open(open("1", 1));
            if own {
                written.add(fact(20, What::Ended(stamped(20))));
                registry.remember(&written);
                registry.close(key);
            } else {
                registry.heard_of_end(key, Some(end));
            }
            assert!(registry.was_closed(key) && registry.newest(None, "call", None).is_none());
            let running = Entry::new(key, "call");
            assert!(registry.was_closed_since(&running), "the ledger lacks the end");
            let mut again = written.clone();
            again.add(fact(30, What::Started(stamped(30))));
            assert!(
                !registry.was_closed_since(&again),
                "the ledger has what came after the end"
            );
            registry.began_again(key, fact(30, What::Started(stamped(30))));
            registry.reopen(open("1", 1));
            assert!(!registry.was_closed(key) && registry.newest(None, "call", None).is_some());
            // The notice of the end before it is late.
            registry.heard_of_end(key, Some(end));
            assert!(registry.is_open(key) && !registry.was_closed(key));
            registry.heard_of_end(key, Some(stamped(40).order()));
            assert!(!registry.is_open(key) && registry.was_closed_since(&again));
        }
    }

    #[test]
    fn an_end_of_which_no_more_is_known_counts() {
        let (registry, key) = (OpenRecordings::default(), Key::of("call", "1"));
        registry.open(open("1", 1));
        registry.heard_of_end(key, None);
        let mut written = Entry::new(key, "call");
        written.add(fact(10, What::Started(stamped(10))));
        assert!(registry.was_closed_since(&written));
    }

    /// The switch would delete what the other call is recorded into.
    #[test]
    fn a_file_is_shared_as_long_as_another_call_is_recorded_into_it() {
        let entry = |action: &str, facts: Vec<What>| {
            let key = Key::of("call", action);
            let mut order = crate::lifecycle::tests::order();
            order.key = key;
            let mut entry = Entry::of_order(order, "w");
            for what in facts {
                let (at, by) = (Moment::from_unix_seconds(1_795_386_270), "w".to_owned());
                entry.add(Fact { at, by, what });
            }
            entry
        };
        let told = || crate::lifecycle::tests::told(5000);
        let mut elsewhere = told();
        elsewhere.node = Some("freeswitch@other".into());
        let registry = OpenRecordings::default();
        let first = entry("1", vec![What::Started(told()), What::Ended(told())]);
        registry.remember(&first);
        registry.remember(&entry("2", vec![What::Started(elsewhere)]));
        assert!(registry.sharing_its_file(&first).is_empty());
        registry.remember(&entry("3", vec![What::Started(told())]));
        assert_eq!(registry.sharing_its_file(&first).len(), 1);
        registry.remember(&entry("3", vec![What::Ended(told())]));
        assert!(registry.sharing_its_file(&first).is_empty());
    }
}
