//! The judge: knows what was asked, what the switch wrote, and what arrived. Of the ledger it knows only whether work is left in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::TIDIES;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::identity::Key;
use serde_json::Value;

use crate::places::Copy;
use crate::plan::Beside;
use crate::switch::Content;
use crate::world::World;

/// The seconds after its end within which a recording must be at its destination, if nothing goes wrong.
const SOON: u64 = 240;
/// The same for a short recording whose first delivery fails, while other recordings wait for a switch that no upload leaves. A sweep takes it up:
/// its delay is 6 s, the sweep's at most 50 s, and two attempts have the rest.
const NEXT_TO_A_FIREWALL: u64 = 65;
/// The same for a recording on the switch of a crowd that goes to a slow server. The server never has the last slot of a worker. There each of the 60
/// recordings takes 3 s at most, and the crowd's calls end within 120 s: 60 s of work are left then.
const NEXT_TO_A_SLOW_SERVER: u64 = 60;
/// The same for a recording that may wait for a lease that was left: one of bridges, or one whose ledger is slow. A lease lasts 300 s.
const AFTER_A_LEASE: u64 = 480;

/// Within this time after the end, a mask and the end have no certain order.
const JUST_AFTER: Duration = Duration::from_secs(1);

/// By then everything must have come to rest.
const REST: u64 = 16 * 3600;

impl World {
    /// Waits until nothing is left to do. The error is what is left.
    pub async fn rest(self: &Arc<Self>) -> Result<(), String> {
        for _ in 0..REST / 300 {
            tokio::time::sleep(Duration::from_secs(300)).await;
            if self.left().is_none() {
                return Ok(());
            }
        }
        match self.left() {
            // Its copy is lost, and another recording has the audio: a worker reads it back every hour.
            Some(left) if !left.contains("is unverified") => Err(format!("it does not come to rest: {left}")),
            _ => Ok(()),
        }
    }

    /// What is left to do.
    fn left(&self) -> Option<String> {
        if !self.broker.is_empty() {
            return Some(self.broker.left());
        }
        let workers = self.workers.lock().unwrap().clone();
        if workers.iter().flatten().any(|worker| worker.hands.count() > 0) {
            return Some("a worker drives something".to_owned());
        }
        let entries = self.cluster().everything();
        for (id, document) in entries.iter().filter(|(id, _)| id.starts_with('c')) {
            let Some((_, body)) = document.winner() else { continue };
            let state = body["state"].as_str().unwrap_or("?");
            let is_final = matches!(state, "stored" | "delivered" | "discarded" | "failed");
            if !(is_final || state == "parked" && body.get("due").is_none()) {
                return Some(format!("{id} is {state}, due {:?}", body.get("due")));
            }
        }
        None
    }

    /// The facts of each recording, as the ledger has them.
    pub fn ledger(&self) -> Vec<String> {
        let entries = self.cluster().everything();
        let bodies = entries.values().filter_map(|document| Some(document.winner()?.1));
        let lines = bodies.flat_map(|body| {
            let key = body["key"].as_str().unwrap_or("?").to_owned();
            let facts = body["facts"].as_array().cloned().unwrap_or_default();
            let line =
                move |fact: Value| format!("{key} {} {} {}: {}", fact["at"], fact["by"], fact["fact"], fact["of"]);
            facts.into_iter().map(line)
        });
        lines.collect()
    }

    /// The verdict.
    pub fn judge(&self) -> Result<(), String> {
        let families = self.families();
        for (root, family) in &families {
            self.judge_family(*root, family)?;
            for key in family {
                self.judge_one(*key, *root)?;
            }
        }
        self.judge_calm()?;
        self.judge_controls()?;
        self.judge_starts()?;
        self.judge_versions()
    }

    /// Where nothing goes wrong, everything arrives once, and soon.
    fn judge_calm(&self) -> Result<(), String> {
        if !self.calm {
            return Ok(());
        }
        let places = self.places.lock().unwrap();
        // One of a crowd waits for longer than a lease, and a request that failed is repeated.
        let is_of_crowd = |key: &Key| self.asked[&self.root(*key)].crowd;
        let may_repeat = |key: &Key| is_of_crowd(key) || self.beside == Beside::Surprises || self.trouble().couch_slow;
        for (key, n) in &places.deliveries {
            if *n > 1 && !may_repeat(key) {
                return Err(format!("{key} was delivered {n} times, and nothing went wrong"));
            }
        }
        let ended = self.ended.lock().unwrap();
        for (key, announced) in places.announced.iter().filter(|(key, _)| !is_of_crowd(key)) {
            let Some((at, _)) = announced.iter().rfind(|(_, what)| !what.starts_with("doc_")) else {
                continue;
            };
            let took = ended
                .get(key)
                .map(|ended| at.since(*ended).as_secs())
                .unwrap_or_default();
            let may_wait = self.trouble().couch_slow;
            let limit = match self.beside {
                Beside::Firewall => NEXT_TO_A_FIREWALL,
                Beside::SlowServer => NEXT_TO_A_SLOW_SERVER,
                _ if may_wait => AFTER_A_LEASE,
                _ => SOON,
            };
            if took > limit {
                return Err(format!("{key} took {took} s, and nothing went wrong"));
            }
        }
        Ok(())
    }

    fn families(&self) -> BTreeMap<Key, BTreeSet<Key>> {
        let mut families: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
        let parts = self.roots.lock().unwrap().clone();
        for key in self.asked.keys().chain(parts.keys()) {
            families.entry(self.root(*key)).or_default().insert(*key);
        }
        families
    }

    fn last_word(&self, key: Key) -> Option<&'static str> {
        let places = self.places.lock().unwrap();
        let mut outcomes = places
            .announced
            .get(&key)?
            .iter()
            .filter(|(_, what)| !what.starts_with("doc_"));
        outcomes.next_back().map(|(_, what)| *what)
    }

    /// Whether all that was recorded is somewhere, and at its destination if nothing is parked.
    fn judge_family(&self, root: Key, family: &BTreeSet<Key>) -> Result<(), String> {
        let words: Vec<Option<&str>> = family.iter().map(|key| self.last_word(*key)).collect();
        let min_sec = self.asked[&root].order.min_sec;
        let may_lack =
            min_sec > 0 && words.contains(&Some("discarded")) || self.discarded.lock().unwrap().contains(&root);
        // A worker whose node is cut off can say "parked" after another one has discarded what is too short.
        let is_discarded = family.iter().any(|key| self.is_known_as(*key, &["discarded"]));
        let switch = self.switch.lock().unwrap();
        let Some(file) = switch.files.get(&root).filter(|_| !may_lack) else {
            return Ok(());
        };
        let recorded = file.recorded(self.now());
        let is_short = recorded.values().sum::<u64>() < u64::from(min_sec) * 1000;
        if is_discarded && is_short {
            return Ok(());
        }
        let on_switch = file.there.then(|| file.content(self.now()));
        drop(switch);
        let places = self.places.lock().unwrap();
        let arrived = family.iter().flat_map(|key| places.stored.get(key)).flatten();
        let arrived: Vec<&Content> = arrived
            .filter(|stored| stored.copy != Copy::Lost)
            .map(|stored| &stored.content)
            .collect();
        let name = root.to_string();
        let held = places
            .held
            .iter()
            .filter(|(held, _)| held.starts_with(&name))
            .map(|(_, content)| content);
        let anywhere = sum(arrived.iter().copied().chain(held).chain(&on_switch));
        if anywhere != recorded {
            return Err(format!(
                "audio of {root} is lost: recorded {recorded:?}, kept {anywhere:?}"
            ));
        }
        let settled = words
            .iter()
            .all(|word| matches!(word, Some("stored" | "delivered" | "failed" | "discarded")));
        let stored = words.iter().all(|word| matches!(word, Some("stored" | "delivered")));
        let file = self
            .switch
            .lock()
            .unwrap()
            .files
            .get(&root)
            .map(|file| (file.there, file.undeleted));
        let may_be_gone = self.unopened.lock().unwrap()[self.asked[&root].switch].1;
        if stored && file == Some((true, false)) && !may_be_gone && !self.is_said_to_stay(family) {
            return Err(format!(
                "the file of {root} stays on its switch, and no operator hears of it"
            ));
        }
        let there = sum(arrived.iter().copied());
        if self.may_be_given_up(root) {
            return Ok(());
        }
        // A file that its switch cannot open for minutes counts as gone, and stays there: see docs/limits.md.
        let is_left = may_be_gone && file.is_some_and(|(there, _)| there);
        if settled && there != recorded && !is_left {
            return Err(format!("{root} is settled, recorded {recorded:?}, arrived {there:?}"));
        }
        Ok(())
    }

    /// Whether the ledger has a recording in one of these states.
    fn is_known_as(&self, key: Key, states: &[&str]) -> bool {
        let entries = self.cluster().everything();
        let mut bodies = entries.values().filter_map(|document| Some(document.winner()?.1));
        let is_its = |body: &&Arc<Value>| body["key"].as_str() == Some(&key.to_string());
        let state = bodies.find(is_its).and_then(|body| body["state"].as_str());
        state.is_some_and(|state| states.contains(&state))
    }

    /// Whether no read-back found the delivery of a recording, according to the ledger.
    fn is_unverified(&self, key: Key) -> bool {
        self.is_known_as(key, &["unverified"])
    }

    /// Whether no event told of a recording, and its switch could not open files: a worker asks once for the file of a recording of which it
    /// heard nothing. See docs/limits.md.
    fn may_be_given_up(&self, root: Key) -> bool {
        let opens_nothing = self.unopened.lock().unwrap()[self.asked[&root].switch].0;
        opens_nothing && self.unheard.lock().unwrap().contains(&root)
    }

    /// Whether a worker asked often enough for the file of one of these, and then reported that it stays.
    fn is_said_to_stay(&self, family: &BTreeSet<Key>) -> bool {
        let entries = self.cluster().everything();
        let bodies = entries.values().filter_map(|document| Some(document.winner()?.1));
        let mut theirs = bodies.filter(|body| {
            let key = body["key"].as_str().and_then(|key| key.parse().ok());
            key.is_some_and(|key| family.contains(&key))
        });
        theirs.any(|body| {
            let facts = body["facts"].as_array().into_iter().flatten();
            let tidied: Vec<_> = facts.filter(|fact| fact["fact"] == "tidied").collect();
            tidied.len() >= TIDIES && tidied.iter().all(|fact| fact["of"]["left"].is_string())
        })
    }

    fn judge_one(&self, key: Key, root: Key) -> Result<(), String> {
        let asked = &self.asked[&root];
        let was_recorded = self.switch.lock().unwrap().files.contains_key(&root);
        let places = self.places.lock().unwrap();
        let is_there = places.found(key, self.now()).is_some();
        let family_has = places.stored.keys().any(|other| self.root(*other) == root);
        let held = places
            .held
            .keys()
            .filter(|name| name.starts_with(&root.to_string()))
            .count();
        drop(places);
        let word = self.last_word(key);
        match word {
            None => return Err(format!("no outcome of {key} was published")),
            // Another recording of its family has the audio: see docs/limits.md.
            Some("stored" | "delivered") if !(is_there || family_has && (key != root || self.is_unverified(key))) => {
                return Err(format!("{key} is announced as stored, and is not there"));
            }
            Some("failed") if was_recorded && key == root && !self.may_be_given_up(root) => {
                return Err(format!("{key} was recorded, and is given up"));
            }
            Some("discarded") => {
                let never = asked.bridges > 0 && !was_recorded;
                let short = asked.order.min_sec > 0;
                let by_operator = self.discarded.lock().unwrap().contains(&root);
                if !(never || short || by_operator || key != root || self.may_be_given_up(root)) {
                    return Err(format!("{key} is thrown away"));
                }
            }
            // Each side of a partition announces what it knows, and their words come in any order.
            Some("parked") if is_there && self.is_known_as(key, &["stored", "delivered"]) => {}
            Some("parked") if asked.order.min_sec > 0 && self.is_known_as(key, &["discarded"]) => {}
            // Two sides of a partition: on one of them it was parked still.
            Some("parked") if self.discarded.lock().unwrap().contains(&root) => {}
            Some("parked") if key == root && was_recorded && !asked.refused && !asked.poisoned => {
                return Err(format!("{key} is parked, though nothing is wrong any more"));
            }
            Some("parked") if key == root && was_recorded => {
                let on_switch = self.switch.lock().unwrap().files[&root].there;
                if held == 0 && !on_switch && !family_has {
                    return Err(format!("{key} is parked, and its audio is nowhere"));
                }
            }
            _ => {}
        }
        self.judge_mask(key, root)
    }

    /// A document must not say that audio is masked which is not. It may say so of a mask that came just after the end, and of one that did
    /// not find its recording when no event reported the end. See docs/limits.md.
    fn judge_mask(&self, key: Key, root: Key) -> Result<(), String> {
        let says = self.places.lock().unwrap().masked.get(&key).copied().unwrap_or(false);
        let switch = self.switch.lock().unwrap();
        let file = switch.files.get(&root);
        let was_masked = file.is_some_and(|file| !file.masks.is_empty());
        let ended = self.ended.lock().unwrap().get(&root).copied();
        let is_excused = |missed: &Moment| {
            let just_after = ended.is_some_and(|ended| missed.since(ended) <= JUST_AFTER);
            just_after || self.end_unheard.lock().unwrap().contains(&root)
        };
        let is_excused = file.is_some_and(|file| file.missed_masks.iter().any(is_excused));
        if says && !was_masked && !is_excused {
            return Err(format!("the document of {key} says that it is masked, and it is not"));
        }
        Ok(())
    }

    /// A stop or mask that was acknowledged is durable.
    fn judge_controls(&self) -> Result<(), String> {
        let entries = self.cluster().everything();
        let known: BTreeSet<(String, bool)> = entries
            .values()
            .filter_map(|document| Some(document.winner()?.1))
            .flat_map(|body| {
                let key = body["key"].as_str().unwrap_or_default().to_owned();
                let facts = body["facts"].as_array().into_iter().flatten();
                let kinds = facts.filter_map(|fact| fact["fact"].as_str());
                let controls = kinds.filter(|kind| matches!(*kind, "stop_asked" | "mask_asked"));
                let stops: Vec<bool> = controls.map(|kind| kind == "stop_asked").collect();
                stops.into_iter().map(move |stop| (key.clone(), stop))
            })
            .collect();
        let unfound = self.unfound.lock().unwrap();
        for (key, stop) in self.acknowledged.lock().unwrap().difference(&unfound) {
            if !known.contains(&(key.to_string(), *stop)) {
                let what = if *stop { "stop" } else { "mask" };
                return Err(format!(
                    "a {what} of {key} was acknowledged, and the ledger does not know it"
                ));
            }
        }
        Ok(())
    }

    /// A start that was acknowledged is durable, whole.
    fn judge_starts(&self) -> Result<(), String> {
        let entries = self.cluster().everything();
        let bodies = entries.values().filter_map(|document| Some(document.winner()?.1));
        let whole: BTreeSet<String> = bodies
            .filter(|body| {
                let facts = body["facts"].as_array().into_iter().flatten();
                let mut asked = facts.filter(|fact| fact["fact"] == "asked");
                asked.any(|fact| fact["of"]["command"].is_object())
            })
            .map(|body| body["key"].as_str().unwrap_or_default().to_owned())
            .collect();
        let started = self.started.lock().unwrap();
        match started.iter().find(|key| !whole.contains(&key.to_string())) {
            Some(key) => Err(format!(
                "the start of {key} was acknowledged, and the ledger does not have it"
            )),
            None => Ok(()),
        }
    }

    /// What a newer version wrote is still there.
    fn judge_versions(&self) -> Result<(), String> {
        let newer = self.newer.lock().unwrap().clone();
        let entries = self.cluster().everything();
        for document in entries.values() {
            let Some((_, body)) = document.winner() else { continue };
            let Some(key) = body["key"].as_str().and_then(|key| key.parse::<Key>().ok()) else {
                continue;
            };
            let facts = body["facts"].as_array().into_iter().flatten();
            let there = facts.filter(|fact| fact["fact"] == "of_the_next_version").count();
            let wrote = newer.get(&key).copied().unwrap_or(0).min(32) as usize;
            if there < wrote {
                return Err(format!(
                    "{key} has {there} facts of a newer version, which wrote {wrote}"
                ));
            }
        }
        Ok(())
    }
}

/// The most that is known of each part.
fn sum<'a>(contents: impl Iterator<Item = &'a Content>) -> BTreeMap<u32, u64> {
    let mut all: BTreeMap<u32, u64> = BTreeMap::new();
    for (part, ms) in contents.flat_map(|content| &content.parts) {
        let known = all.entry(*part).or_default();
        *known = (*known).max(*ms);
    }
    all
}
