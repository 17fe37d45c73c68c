//! Two media switches: calls, files, and uploads, as a FreeSWITCH does them.
//!
//! A file grows in steps of its encoder, and not at all while the recorded leg is on hold. Its header is complete only when it is closed. An
//! upload has what was in the file when it began. Its status alone decides: after a 2xx the file is gone, whatever is still written to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::fact::CollectFailure;
use kz_record_call::kazoo::dialplan::Trigger;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::audio::{Audio, Finding};
use kz_record_call::recording::digest::Digests;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::Key;

use crate::plan::Asked;
use crate::world::{WORLD, World};

/// What is in a file: of each part, how many milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub parts: Vec<(u32, u64)>,
    /// Its header says that its writer did not close it.
    pub open: bool,
    pub format: Format,
}

impl Content {
    pub fn audio(&self) -> Audio {
        let ms: u64 = self.parts.iter().map(|(_, ms)| ms).sum();
        let digest = format!("{:?}{}", self.parts, self.open);
        let finding = match (ms, self.open) {
            (0, _) => Some(Finding::Empty),
            (_, true) if self.format == Format::Wav => Some(Finding::Unfinished),
            _ => None,
        };
        Audio {
            // MP3: 4096 bytes are 2048 ms. A file that was closed has some bytes more.
            size: ms * 2 + u64::from(!self.open),
            digests: Digests {
                md5: digest.clone(),
                sha256: digest,
            },
            duration_ms: Some(ms),
            findings: finding.into_iter().collect(),
            as_written: None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Part {
    ms: u64,
    since: Option<Moment>,
}

/// A recording as the switch has it.
#[derive(Debug)]
pub struct File {
    pub format: Format,
    pub at: usize,
    /// Every part that was ever recorded, counted from 1.
    parts: BTreeMap<u32, Part>,
    /// The parts in the file that is on the disk now.
    on_disk: Vec<u32>,
    pub there: bool,
    pub running: bool,
    killed: bool,
    /// The switch was told to delete it, and did not.
    pub undeleted: bool,
    pub masks: Vec<(Moment, bool)>,
    /// When masks arrived that did not find the recording.
    pub missed_masks: Vec<Moment>,
}

impl File {
    fn ms(&self, part: u32, now: Moment) -> u64 {
        let part = &self.parts[&part];
        let more = part
            .since
            .map_or(0, |since| u64::try_from(now.since(since).as_millis()).unwrap());
        part.ms + more
    }

    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    fn step(&self) -> u64 {
        if self.format == Format::Mp3 { 2048 } else { 20 }
    }

    pub fn content(&self, now: Moment) -> Content {
        let last = self.parts.keys().next_back().copied();
        let of = |part: &u32| {
            let ms = self.ms(*part, now);
            let is_written = self.running && Some(*part) == last;
            (*part, if is_written { ms / self.step() * self.step() } else { ms })
        };
        Content {
            parts: self.on_disk.iter().map(of).collect(),
            open: self.running || self.killed,
            format: self.format,
        }
    }

    /// What was recorded, of each part.
    pub fn recorded(&self, now: Moment) -> BTreeMap<u32, u64> {
        self.parts.keys().map(|part| (*part, self.ms(*part, now))).collect()
    }

    fn stop_writing(&mut self, now: Moment) {
        if let Some(mut last) = self.parts.last_entry() {
            let part = last.get_mut();
            if let Some(since) = part.since.take() {
                part.ms += u64::try_from(now.since(since).as_millis()).unwrap();
            }
        }
    }
}

/// A call: the leg of the action, and the leg that a transfer moves the recording to.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub alive: bool,
    pub bridged: bool,
    pub moved: bool,
    /// The other leg, after a move.
    pub other_alive: bool,
    /// Events told workers of the other leg.
    pub other_known: bool,
    pub on_hold: bool,
    pub armed: bool,
}

impl Call {
    pub fn lives(&self) -> bool {
        self.alive || self.other_alive
    }
}

#[derive(Debug)]
pub struct Switch {
    pub files: BTreeMap<Key, File>,
    pub calls: BTreeMap<Key, Call>,
    /// How often each switch was killed.
    pub lives: [u32; 2],
    pub skews: [i64; 2],
}

impl Switch {
    pub fn of(asked: &BTreeMap<Key, Asked>, rng: &mut fastrand::Rng) -> Self {
        Self {
            files: BTreeMap::new(),
            calls: asked.keys().map(|key| (*key, Call::default())).collect(),
            lives: [0; 2],
            skews: std::array::from_fn(|_| {
                if rng.bool() {
                    rng.i64(-3600..3600) * 1_000_000
                } else {
                    0
                }
            }),
        }
    }
}

/// An upload whose switch waits for an answer.
pub struct Upload {
    pub root: Key,
    pub content: Content,
    pub audio: Audio,
    pub world: Arc<World>,
    at: usize,
    life: u32,
}

impl World {
    /// The start command arrives.
    pub fn command(&self, key: Key) {
        let bridge = self.asked[&key].order.command.as_ref().unwrap().trigger == Trigger::Bridge;
        let begins = {
            let mut switch = self.switch.lock().unwrap();
            let call = switch.calls.get_mut(&key).unwrap();
            call.armed |= call.alive && bridge;
            call.alive && (!bridge || call.bridged)
        };
        if begins {
            self.begin(key);
        }
    }

    /// The switch begins to record, unless it records already.
    pub fn begin(&self, key: Key) {
        let now = self.now();
        let asked = &self.asked[&key];
        {
            let mut switch = self.switch.lock().unwrap();
            let on_hold = switch.calls[&key].on_hold;
            let file = switch.files.entry(key).or_insert_with(|| File {
                format: asked.order.format,
                at: asked.switch,
                parts: BTreeMap::new(),
                on_disk: Vec::new(),
                there: false,
                running: false,
                killed: false,
                undeleted: false,
                masks: Vec::new(),
                missed_masks: Vec::new(),
            });
            if file.running {
                return;
            }
            let part = file.parts.len() as u32 + 1;
            if !file.there {
                file.on_disk.clear();
            }
            let since = (!on_hold).then_some(now);
            file.parts.insert(part, Part { ms: 0, since });
            file.on_disk.push(part);
            (file.there, file.running, file.undeleted) = (true, true, false);
            self.note(WORLD, || format!("the switch records {key}, part {part}"));
            if part > 1 {
                self.count("began again");
            }
        }
        self.report(key, None);
    }

    /// The switch ends the recording, and says so.
    pub fn end(&self, key: Key) {
        let now = self.now();
        let length = {
            let mut switch = self.switch.lock().unwrap();
            let Some(file) = switch.files.get_mut(&key).filter(|file| file.running) else {
                return;
            };
            file.stop_writing(now);
            (file.running, file.killed) = (false, false);
            let part = file.parts.len() as u32;
            file.ms(part, now)
        };
        self.ended.lock().unwrap().insert(key, now);
        self.note(WORLD, || format!("the switch ends {key} after {length} ms"));
        self.report(key, Some(length));
    }

    pub fn hold(&self, key: Key, on: bool) {
        let now = self.now();
        let mut switch = self.switch.lock().unwrap();
        switch.calls.get_mut(&key).unwrap().on_hold = on;
        if let Some(file) = switch.files.get_mut(&key).filter(|file| file.running) {
            file.stop_writing(now);
            if !on && let Some(mut last) = file.parts.last_entry() {
                last.get_mut().since = Some(now);
            }
        }
        drop(switch);
        self.note(WORLD, || format!("{key} is {} hold", if on { "on" } else { "off" }));
    }

    /// The switch is killed: calls and events are gone, files stay as they were on the disk.
    pub fn kill_switch(&self, at: usize) {
        let now = self.now();
        let mut switch = self.switch.lock().unwrap();
        switch.lives[at] += 1;
        for (key, call) in &mut switch.calls {
            if self.asked[key].switch == at {
                *call = Call::default();
            }
        }
        for file in switch.files.values_mut().filter(|file| file.at == at && file.running) {
            file.stop_writing(now);
            let step = file.step();
            let mut last = file.parts.last_entry().unwrap();
            last.get_mut().ms = last.get().ms / step * step;
            (file.running, file.killed) = (false, true);
        }
        drop(switch);
        self.note(WORLD, || format!("switch {at} is killed"));
    }

    /// A worker asks the switch for a file.
    pub async fn upload(&self, root: Key) -> Result<Upload, (CollectFailure, String)> {
        let fail = |failure, why: &str| Err((failure, why.to_owned()));
        let at = self.asked[&root].switch;
        tokio::time::sleep(self.between(20, 250)).await;
        if self.trouble().cut[at] || self.trouble().no_uploads[at] {
            tokio::time::sleep(Duration::from_secs(30)).await;
            return fail(CollectFailure::Unreachable, "the switch does not answer");
        }
        let (content, life) = {
            let switch = self.switch.lock().unwrap();
            let file = switch
                .files
                .get(&root)
                .filter(|file| file.there && !self.trouble().unopened[at]);
            let Some(file) = file else {
                return fail(CollectFailure::Missing, "error opening file");
            };
            (file.content(self.now()), switch.lives[at])
        };
        // Beside a crowd, no upload of the switch itself is slow: it would take its slot from the others, and the judge measures what the bad
        // neighbour takes.
        let is_slow = self.chance(100) && !self.beside.has_crowd();
        let takes = if is_slow {
            self.between(1000, 60_000)
        } else {
            self.between(50, 800)
        };
        tokio::time::sleep(takes).await;
        let is_cut = self.switch.lock().unwrap().lives[at] != life;
        if is_cut || self.mishap(50) {
            return fail(CollectFailure::Broken, "the upload broke off");
        }
        self.count("uploads");
        Ok(Upload {
            root,
            audio: content.audio(),
            content,
            world: self.me(),
            at,
            life,
        })
    }

    /// The switch gets a 2xx, or not. `false`: it waits no longer.
    pub fn answer(&self, upload: &Upload, release: bool) -> bool {
        let is_cut = self.switch.lock().unwrap().lives[upload.at] != upload.life;
        if is_cut || self.mishap(20) {
            return false;
        }
        if release && self.mishap(20) {
            let mut switch = self.switch.lock().unwrap();
            switch.files.get_mut(&upload.root).unwrap().undeleted = true;
        } else if release {
            let (world, pause) = (self.me(), self.between(1, 60));
            let (root, at, life) = (upload.root, upload.at, upload.life);
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                world.delete(root, at, life);
            });
        }
        true
    }

    fn delete(&self, root: Key, at: usize, life: u32) {
        let mut switch = self.switch.lock().unwrap();
        if switch.lives[at] != life {
            return;
        }
        let file = switch.files.get_mut(&root).unwrap();
        let running = file.running;
        file.there = false;
        file.on_disk.clear();
        file.killed = false;
        self.note(WORLD, || {
            let still = if running { ", which it is still writing" } else { "" };
            format!("the switch deletes the file of {root}{still}")
        });
    }
}

impl World {
    /// A stop or mask by its path: on the leg that the recording began on, and only while it runs there.
    pub fn obey(&self, key: Key, stop: bool) {
        let now = self.now();
        let mut switch = self.switch.lock().unwrap();
        let moved = switch.calls[&key].moved;
        let Some(file) = switch.files.get_mut(&key) else {
            return;
        };
        if moved || !file.running {
            if !stop {
                file.missed_masks.push(now);
            }
            return;
        }
        if !stop {
            file.masks.push((now, true));
        }
        drop(switch);
        if stop {
            self.count("stopped");
            self.end(key);
        }
    }
}
