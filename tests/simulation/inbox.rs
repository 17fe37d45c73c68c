//! What a worker does with a message: as the handlers of `flow` do, it notes, acknowledges what is durable, and drives on.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{BEFORE_ANY_START, Route, What};
use kz_record_call::flow::journal::read;
use kz_record_call::kazoo::dialplan::Trigger;
use kz_record_call::ledger::{Noted, address};
use kz_record_call::lifecycle::Input;
use kz_record_call::recording::identity::Key;

use crate::broker::{Body, Delivery, Notice, Queue, Unconfirmed};
use crate::faults::{Fault, is_back};
use crate::worker::{LEASE, LINGER, Worker};

const KNOWLEDGE: Duration = Duration::from_secs(3);
const BUDGET: Duration = Duration::from_millis(800);
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn handle(worker: Arc<Worker>, delivery: Delivery) {
    let done = match delivery.message.body.clone() {
        Body::Start(key) => worker.start(key, &delivery).await,
        Body::Stop(key) => worker.control(key, &delivery, true).await,
        Body::Mask(key) => worker.control(key, &delivery, false).await,
        Body::Started(told, key) => worker.event(key, What::Started(told)).await,
        Body::Ended(told, key) => worker.event(key, What::Ended(told)).await,
        Body::Journalled(body) => {
            let entry = read(body.to_string().as_bytes(), worker.now()).unwrap();
            let noting = async { worker.ledger.note(&entry, None, BUDGET).await.noted().await };
            tokio::time::timeout(PATIENCE, noting).await == Ok(Noted::Durable)
        }
    };
    if done {
        let control = match delivery.message.body {
            Body::Stop(key) => Some((key, true)),
            Body::Mask(key) => Some((key, false)),
            _ => None,
        };
        worker.world.acknowledged.lock().unwrap().extend(control);
        if let Body::Start(key) = delivery.message.body {
            worker.world.started.lock().unwrap().insert(key);
        }
        worker.world.broker.ack(&delivery);
    } else if delivery.message.queue == Queue::Actions {
        worker.world.undone(&delivery);
    } else {
        worker.world.give_back(&delivery);
    }
}

impl Worker {
    async fn start(self: &Arc<Self>, key: Key, delivery: &Delivery) -> bool {
        let world = &self.world;
        let order = world.asked[&key].order.clone();
        let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
        let is_whole = |entry: &Entry| entry.order().is_some_and(|order| order.command.is_some());
        if let Some(entry) = self.memory.entry(key).filter(is_whole) {
            let answered = world.result(key).await;
            return self.journal.write(&entry).await && answered;
        }
        let mut entry = self.memory.completed(Entry::of_order(order, &self.policy.worker));
        if delivery.message.redelivered {
            let answered = world.result(key).await;
            return self.start_in_doubt(entry).await && answered;
        }
        self.memory.remember(&entry);
        let sent = self.send_start(key).await;
        let answered = world.result(key).await;
        match sent {
            Ok(()) => drop(entry.add(self.fact(What::Commanded))),
            Err(Unconfirmed::Unroutable) => {
                let why = "x".into();
                entry.add(self.fact(What::CommandLost { why }));
            }
            Err(Unconfirmed::Late) => {}
        }
        self.note(|| format!("starts {key}: {sent:?}, {trigger:?}"));
        self.memory.remember(&entry);
        let durable = self.journal.write(&entry).await;
        if !entry.is_commanded() {
            self.go_on(entry, Input::Due);
        }
        answered && durable
    }

    /// A start command for the call's control queue.
    pub async fn send_start(&self, key: Key) -> Result<(), Unconfirmed> {
        let (world, root) = (&self.world, self.world.root(key));
        let done = || {
            let lives = world.switch.lock().unwrap().calls[&root].lives();
            if lives {
                let (world, pause) = (Arc::clone(world), world.between(5, 150));
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    world.command(root);
                });
            }
            lives
        };
        world.confirmed(done).await
    }

    async fn start_in_doubt(self: &Arc<Self>, mut entry: Entry) -> bool {
        if let Some(heard) = self.memory.entry(entry.key) {
            entry = entry.merge(heard);
        }
        let known = match self.ledger.is_up() {
            true => tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&entry))).await,
            false => Ok(Ok(None)),
        };
        if let Ok(Ok(Some(record))) = known {
            let is_whole = record.entry.order().is_some_and(|order| order.command.is_some());
            let known = if is_whole {
                record.entry
            } else {
                record.entry.merge(entry)
            };
            self.memory.remember(&known);
            let durable = is_whole || self.journal.write(&known).await;
            if !known.is_commanded() {
                self.go_on(known, Input::Due);
            }
            return durable;
        }
        let durable = self.journal.write(&entry).await;
        self.go_on(entry, Input::Due);
        durable
    }

    /// A start, or an end.
    async fn event(self: &Arc<Self>, key: Key, what: What) -> bool {
        if let What::Started(_) = &what {
            let _ = self.hands.tell(key, Input::Fact(what.clone()));
        }
        let (mut entry, surely) = self.known(key).await;
        let ended = matches!(what, What::Ended(_));
        let known = entry.started().is_some() || entry.ended().is_some();
        let fact = self.fact(what.clone());
        let again = entry.add(fact.clone()) && !ended && known;
        self.note(|| format!("hears that {key} {}", if ended { "ended" } else { "started" }));
        self.memory.remember(&entry);
        let lease = (ended && surely).then(|| self.ledger.lease(LEASE));
        let receipt = self.ledger.note(&entry, lease, LINGER).await;
        if again {
            self.began_again(key, &fact);
            self.world.notify(self.n, &Notice::BeganAgain(key, fact));
        }
        if !surely {
            let _ = self.hands.tell(key, Input::Fact(what));
        } else if ended || entry.stop_asked_at().is_some() || entry.is_masked() || entry.is_to_be_continued() {
            self.go_on(entry, Input::Fact(what));
        }
        tokio::time::timeout(PATIENCE, receipt.noted()).await == Ok(Noted::Durable)
    }

    /// What is known of a recording, and whether that is enough to act on.
    async fn known(&self, key: Key) -> (Entry, bool) {
        let order = self.world.asked[&key].order.clone();
        let remembered = self.memory.entry(key).filter(|entry| entry.order().is_some());
        let (entry, surely) = match remembered {
            Some(entry) if !entry.order().unwrap().may_begin_again() => (entry, true),
            remembered => {
                let is_here = remembered.is_some();
                let mut carried = order.clone();
                carried.command = None;
                let own = remembered.unwrap_or_else(|| Entry::of_order(carried, &self.policy.worker));
                if !self.ledger.is_up() {
                    (own, false)
                } else {
                    match tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&own))).await {
                        Ok(Ok(Some(record))) if !is_here => (record.entry, true),
                        Ok(Ok(Some(record))) => (record.entry.merge(own), true),
                        Ok(Ok(None)) => (own, true),
                        _ => (own, false),
                    }
                }
            }
        };
        (self.memory.completed(entry), surely)
    }

    /// A stop, or a mask, of the call's recording.
    async fn control(self: &Arc<Self>, key: Key, delivery: &Delivery, stop: bool) -> bool {
        let world = &self.world;
        let answered = world.result(key).await;
        let entry = match self.memory.entry(key) {
            Some(entry) => entry,
            None => {
                let own = self
                    .memory
                    .completed(Entry::of_order(world.asked[&key].order.clone(), "w"));
                let found = tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&own))).await;
                match found {
                    Ok(Ok(Some(record))) => self.memory.completed(record.entry),
                    Ok(Ok(None)) if !world.broker.has(Queue::Journal) && delivery.message.returns > 5 => {
                        world.unfound.lock().unwrap().insert((key, stop));
                        return answered;
                    }
                    _ if is_back(Fault::StopInMemory) => {
                        // Only the notice to the other workers has it.
                        let fact = self.fact(What::StopAsked {
                            action: "stop".into(),
                            route: None,
                        });
                        self.heard_of(key, &[fact]);
                        return answered;
                    }
                    _ => return false,
                }
            }
        };
        let sent = self.send_control(key, stop).await.is_ok() || is_back(Fault::MaskPresumed) && !stop;
        let action = if stop { "stop" } else { "mask" }.to_owned();
        let route = Some(Route {
            control: "q".into(),
            call_id: entry.call_id.clone(),
        });
        let start = entry.newest_start();
        let mut facts = vec![self.fact(match stop {
            true => What::StopAsked {
                action: action.clone(),
                route,
            },
            false => What::MaskAsked {
                action: action.clone(),
                on: true,
                asked: Some(self.now()),
                route,
            },
        })];
        if sent {
            facts.push(self.fact(match stop {
                true => What::StopSent { n: 1, start },
                false => What::Masked {
                    action,
                    on: true,
                    n: 0,
                    start: Some(start.unwrap_or(BEFORE_ANY_START)),
                    sender: Some(self.name.clone()),
                },
            }));
        }
        self.note(|| format!("{} {key}: {sent}", if stop { "stops" } else { "masks" }));
        self.heard_of(key, &facts);
        world.notify(self.n, &Notice::Asked(key, facts.clone()));
        let mut entry = entry;
        facts.into_iter().for_each(|fact| _ = entry.add(fact));
        let durable = self.journal.write(&entry).await;
        self.go_on(self.memory.completed(entry), Input::Due);
        answered && durable
    }

    /// A stop or mask command for the call's control queue.
    pub async fn send_control(&self, key: Key, stop: bool) -> Result<(), Unconfirmed> {
        let (world, root) = (&self.world, self.world.root(key));
        let done = || {
            let call = world.switch.lock().unwrap().calls[&root].clone();
            if !call.lives() {
                return false;
            }
            let (world, pause) = (Arc::clone(world), world.between(5, 100));
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                world.obey(root, stop);
            });
            true
        };
        world.confirmed(done).await
    }
}
