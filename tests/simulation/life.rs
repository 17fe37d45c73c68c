//! What happens by itself: faults, calls, and the switch's events.

use std::time::Duration;

use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::kazoo::call::Parties;
use kz_record_call::lifecycle::Input;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::identity::Key;

use crate::world::*;

impl World {
    /// One random thing happens.
    pub async fn step(&mut self) {
        let passed = Duration::from_millis(self.rng.u64(..if self.faults { 8_000 } else { 60_000 }));
        self.now = self.now.plus(passed);
        self.workers.iter().for_each(|worker| worker.crew.clock.set(self.now));
        tokio::time::advance(passed).await;
        if self.chance(15) {
            self.break_something();
        }
        if self.chance(30) {
            self.mend_something();
        }
        if self.chance(10) && !self.store_down {
            let part = self.rng.usize(..2);
            self.retry_something(part);
        }
        if self.chance(5) && !self.store_down {
            let (part, nth) = (self.rng.usize(..2), self.rng.usize(..self.orders.len()));
            let key = *self.orders.keys().nth(nth).unwrap();
            self.noted_by_a_newer_version(part, key);
        }
        match self.rng.u8(..12) {
            0 | 1 => self.deliver_message(),
            2 => self.life_goes_on(),
            3 => self.sweep(),
            4 => self.sync(),
            5 | 6 => self.write_notes(),
            _ => self.work(),
        }
    }

    pub fn break_something(&mut self) {
        match self.rng.u8(..7) {
            0 | 1 => {
                let worker = self.rng.usize(..self.workers.len());
                self.crash(worker);
            }
            2 => self.parted = true,
            3 => self.store_down = true,
            4 => self.switch_down = true,
            5 => self.target_down = true,
            _ => self.hold_down = true,
        }
    }

    pub fn mend_something(&mut self) {
        match self.rng.u8(..7) {
            0 | 1 => self.workers.iter_mut().for_each(|worker| worker.alive = true),
            2 => self.parted = false,
            3 => self.store_down = false,
            4 => self.switch_down = false,
            5 => self.target_down = false,
            _ => self.hold_down = false,
        }
    }

    /// Everything that the worker had in memory is gone; what it had not acknowledged comes again.
    pub fn crash(&mut self, worker: usize) {
        let unacked = self.workers[worker].killed();
        self.queue.extend(unacked);
        self.note(format!("worker {worker} is killed"));
    }

    /// Files grow, calls end, and events are told, twice, or not at all.
    pub fn life_goes_on(&mut self) {
        let keys: Vec<Key> = self.files.keys().copied().collect();
        for key in keys {
            let ends = self.rng.u8(..4) == 0;
            let lost = self.chance(120);
            let twice = self.chance(200);
            let goes_on = self.chance(300);
            let again = self.chance(60);
            let file = self.files.get_mut(&key).unwrap();
            if !file.running {
                if again && file.alive {
                    self.begin_again(key);
                }
                continue;
            }
            let part = file.part();
            // Lengths that differ, as real ones do.
            file.grow(1000 + u64::from(part) * 10_007);
            if ends {
                let length = file.recorded[&part];
                // A call that goes on may be bridged again.
                (file.running, file.alive) = (false, goes_on && !lost);
                if lost {
                    self.note(format!("the end of {key} is told to nobody"));
                    continue;
                }
                let told = self.tell(length);
                self.queue.push(Message::Ended(told.clone(), key));
                if twice {
                    self.queue.push(Message::Ended(told, key));
                }
            }
        }
    }

    /// The switch begins to record again under the same name, as at another bridge. Where that is known to happen its event may be late, or lost;
    /// else it is heard at once: what happens before it is heard, nobody can know.
    pub fn begin_again(&mut self, key: Key) {
        let told = if self.orders[&key].0.may_begin_again() {
            self.rng.u8(..3)
        } else {
            0
        };
        let living = (0..self.workers.len()).find(|n| self.workers[*n].alive);
        let living = living.filter(|_| !self.store_down && !self.parted);
        if told == 0 && living.is_none() {
            return;
        }
        // Nobody is just being told to delete it.
        let in_hand = self.workers.iter().any(|worker| {
            let mut tasks = worker.tasks.iter();
            tasks.any(|(of, task)| self.root(*of) == key && task.slot.lock().unwrap().holds)
        });
        if in_hand || self.files[&key].part() > 3 {
            return;
        }
        let file = self.files.get_mut(&key).unwrap();
        let part = file.part() + 1;
        if !file.there {
            file.content.clear();
        }
        (file.running, file.there) = (true, true);
        file.content.push((part, 1000));
        file.recorded.insert(part, 1000);
        self.restarts += 1;
        self.note(format!("the switch records {key} again, part {part}"));
        let started = self.tell(0);
        let worker = match (told, living) {
            (0, Some(worker)) => worker,
            (1, _) => {
                self.unheard += 1;
                return self.queue.push(Message::Started(started, key));
            }
            _ => {
                self.unheard += 1;
                return self.note("and tells nobody".to_owned());
            }
        };
        let told = started;
        // Workers tell each other, for another one may have it in hand.
        let what = What::Started(told.clone());
        let mut member = key;
        for _ in 0..8 {
            let fact = Fact {
                at: self.now,
                by: "w".into(),
                what: what.clone(),
            };
            self.begun_again.insert(member, fact);
            for other in &self.workers {
                let _ = other.hands.tell(member, Input::Fact(what.clone()));
            }
            member = member.continuation();
        }
        self.hear(worker, Message::Started(told, key));
    }

    /// An event of the switch, that says now what it says.
    pub fn tell(&self, length: u64) -> Box<Told> {
        Box::new(Told {
            call_id: "call".into(),
            at: self.now,
            // The switch's stamps count in steps of 20 ms.
            stamp: Some(self.now.unix_micros() / 20_000 * 20_000),
            node: Some("fs".into()),
            path: None,
            length_ms: Some(length),
            completion_cause: None,
            hung_up: None,
            account_id: None,
            other_leg_call_id: None,
            parties: Parties::default(),
            variables: serde_json::Value::Null,
        })
    }
}
