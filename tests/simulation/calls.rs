//! The calls, and the events that the switch publishes.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::kazoo::call::Parties;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::identity::Key;
use serde_json::Value;
use tokio::sync::Notify;

use crate::broker::{Body, Queue};
use crate::world::{WORLD, World};

/// By then a worker has looked whether an open recording's call lives.
const LOOKED_AT: Duration = Duration::from_secs(400);

impl World {
    /// Publishes a start, or the end of a part of this length.
    pub fn report(&self, key: Key, length: Option<u64>) {
        if self.trouble().events_lost && self.chance(300) {
            self.count("events lost");
            let parts = self.switch.lock().unwrap().files[&key].parts();
            if length.is_none() && parts == 1 {
                self.unheard.lock().unwrap().insert(key);
            }
            if length.is_some() {
                self.end_unheard.lock().unwrap().insert(key);
            }
            return self.note(WORLD, || format!("no event of that reaches a queue: {key}"));
        }
        self.unheard.lock().unwrap().remove(&key);
        if length.is_some() {
            self.end_unheard.lock().unwrap().remove(&key);
        }
        let asked = &self.asked[&key];
        let call = self.switch.lock().unwrap().calls[&key].clone();
        let moved = call.moved;
        let skew = self.switch.lock().unwrap().skews[asked.switch];
        let at = self.now().unix_micros() + skew;
        let told = Box::new(Told {
            call_id: if moved {
                asked.other_leg()
            } else {
                asked.order.call_id.clone()
            },
            at: Moment::from_unix_micros(at / 1_000_000 * 1_000_000),
            // The switch's stamps count in steps of 20 ms.
            stamp: Some(at / 20_000 * 20_000),
            node: Some(crate::plan::node(asked.switch)),
            path: asked.order.command.as_ref().map(|command| command.path.clone()),
            length_ms: length,
            completion_cause: length.map(|_| "success-silence-none".into()),
            hung_up: length.map(|_| !call.alive && !call.other_alive),
            account_id: None,
            other_leg_call_id: None,
            parties: Parties::default(),
            variables: Value::Null,
        });
        let body = match length {
            None => Body::Started(told, key),
            Some(_) => Body::Ended(told, key),
        };
        match asked.surprises {
            true => self.publish_at_once(Queue::Events, body),
            false => self.publish(Queue::Events, body),
        }
    }

    /// One call, from its first action to its end.
    pub async fn call(self: Arc<Self>, key: Key) {
        let asked = self.asked[&key].clone();
        tokio::time::sleep(asked.begins).await;
        let life = self.switch.lock().unwrap().lives[asked.switch];
        let is_over = || self.switch.lock().unwrap().lives[asked.switch] != life;
        self.set(key, |call| call.alive = true);
        self.publish(Queue::Actions, Body::Start(key));
        self.note(WORLD, || format!("a callflow asks for {key}: {:?}", asked.destination));
        for bridge in 0..asked.bridges {
            tokio::time::sleep(self.between(500, 15_000)).await;
            if is_over() {
                return;
            }
            self.set(key, |call| call.bridged = true);
            tokio::time::sleep(Duration::from_millis(200)).await;
            if self.switch.lock().unwrap().calls[&key].armed && !is_over() {
                self.begin(key);
            }
            self.talk(key, bridge == 0, &is_over).await;
            if is_over() {
                return;
            }
            self.set(key, |call| call.bridged = false);
            // The switch ends a recording of a bridge that way only if it is stopped; a callflow does that here.
            if bridge + 1 < asked.bridges {
                self.end(key);
            }
        }
        if asked.surprises {
            let looked_at = Arc::new(Notify::new());
            self.surprises
                .lock()
                .unwrap()
                .insert(key.to_string(), Arc::clone(&looked_at));
            let _ = tokio::time::timeout(LOOKED_AT, looked_at.notified()).await;
            self.surprises.lock().unwrap().remove(&key.to_string());
        }
        self.set(key, |call| (call.alive, call.other_alive) = (false, false));
        self.end(key);
        self.note(WORLD, || format!("the call of {key} is over"));
    }

    pub fn set(&self, key: Key, change: impl FnOnce(&mut crate::switch::Call)) {
        change(self.switch.lock().unwrap().calls.get_mut(&key).unwrap());
    }

    async fn talk(&self, key: Key, first: bool, is_over: &(dyn Fn() -> bool + Send + Sync)) {
        let asked = &self.asked[&key];
        tokio::time::sleep(self.between(100, 120_000)).await;
        if asked.masked && first && !is_over() {
            self.publish(Queue::Actions, Body::Mask(key));
            tokio::time::sleep(self.between(3_000, 60_000)).await;
        }
        if asked.moves && !is_over() {
            let known = self.rng(fastrand::Rng::bool);
            self.set(key, |call| {
                (call.moved, call.alive, call.bridged) = (true, false, false);
                (call.other_alive, call.other_known) = (true, known);
            });
            self.note(WORLD, || {
                format!(
                    "{key} moves to another leg, which is {}",
                    if known { "known" } else { "unknown" }
                )
            });
        }
        if asked.holds && !is_over() {
            self.hold(key, true);
            // On a leg that nobody knows, a file that rests for a quarter of an hour counts as one that its switch left: see docs/limits.md.
            let call = self.switch.lock().unwrap().calls[&key].clone();
            let longest = if call.moved && !call.other_known {
                600_000
            } else {
                1_500_000
            };
            tokio::time::sleep(self.between(5_000, longest)).await;
            if is_over() {
                return;
            }
            self.hold(key, false);
            tokio::time::sleep(self.between(500, 60_000)).await;
        }
        if asked.stopped && !is_over() {
            self.publish(Queue::Actions, Body::Stop(key));
            tokio::time::sleep(self.between(60_000, 120_000)).await;
        }
    }
}
