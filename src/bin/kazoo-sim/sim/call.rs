//! A test's hand on one call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    audio::Size,
    callflow::{self, RawExecute, Run},
    control, events, moves,
    options::CallOptions,
    record::Role,
    state::{CallKey, CallState, Control, Leg, Phase, Recording, State, Trigger},
    switch,
    wire::{Object, hex, pid, uuid},
    world::World,
};

/// How long Kazoo's control process outlives its channel.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// From `CHANNEL_BRIDGE` to what it makes the switch record.
const BRIDGE_TO_RECORDING: Duration = Duration::from_millis(200);

/// One call; cheap to clone.
#[derive(Clone)]
pub struct Call {
    pub(super) world: Arc<World>,
    pub(super) key: CallKey,
}

impl Call {
    pub(super) fn new(world: &Arc<World>, options: CallOptions) -> Self {
        let call_id = options.call_id.clone().unwrap_or_else(uuid);
        let other = options.other_leg.clone().or_else(|| options.bridged.then(uuid));
        let ecallmgr = options.ecallmgr.min(world.ecallmgrs.len() - 1);
        let queues = &world.control_queues[ecallmgr];
        let control = Control {
            pid: pid(),
            queue: queues[fastrand::usize(..queues.len())].clone(),
            ecallmgr,
            dead_from: None,
            waiting: std::collections::VecDeque::new(),
            running_app: options.running_app.clone(),
        };
        let fetch_id = uuid();
        let ccvs = channel_vars(world, &options, &fetch_id, ecallmgr);
        let key = world.with(|s| {
            s.next_call += 1;
            let key = s.next_call;
            let leg = |id: &str, other: Option<&str>| Leg {
                answered: options.answered || options.bridged,
                bridged: options.bridged,
                inbound: id == call_id && options.direction == "inbound",
                ..Leg::new(id, key, other)
            };
            s.legs.insert(call_id.clone(), leg(&call_id, other.as_deref()));
            if let Some(other) = &other {
                s.legs.insert(other.clone(), leg(other, Some(&call_id)));
            }
            let flow_pid = pid();
            s.flows.insert(flow_pid.clone(), key);
            s.controls.insert((control.queue.clone(), control.pid.clone()), key);
            let created_micros = world.clock().unix_micros();
            let (actions, recordings, quiet) = (Vec::new(), Vec::new(), options.quiet);
            s.calls.insert(
                key,
                CallState {
                    call_id,
                    fetch_id,
                    flow_pid,
                    control,
                    options,
                    ccvs,
                    created_micros,
                    actions,
                    recordings,
                    quiet,
                },
            );
            key
        });
        Self {
            world: world.clone(),
            key,
        }
    }

    pub(super) fn state<T>(&self, see: impl FnOnce(&CallState) -> T) -> T {
        // Calls are never forgotten.
        self.world.look(|s| see(&s.calls[&self.key]))
    }

    /// The id that the controlled leg has now.
    pub fn id(&self) -> String {
        self.state(|c| c.call_id.clone())
    }

    pub fn other_leg(&self) -> Option<String> {
        self.world
            .look(|s| s.legs.get(&s.calls.get(&self.key)?.call_id)?.other.clone())
    }

    pub fn account_id(&self) -> String {
        self.state(|c| {
            c.ccvs
                .get("Account-ID")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        })
    }

    pub fn fetch_id(&self) -> String {
        self.state(|c| c.fetch_id.clone())
    }

    /// Plays a `record_call` node with this data and returns at once; the run tells what the worker said.
    pub async fn execute(&self, data: Value) -> anyhow::Result<Run> {
        let body = self.action(data)?;
        let raw = RawExecute::new(serde_json::to_vec(&body)?).timestamp(self.world.clock().gregorian_micros());
        callflow::execute(&self.world, self.key, body, raw).await
    }

    /// The action as Kazoo would send it, to be changed and sent with [`Call::execute_raw`].
    pub fn action(&self, data: Value) -> anyhow::Result<Object> {
        callflow::action(&self.world, self.key, data)
    }

    /// Sends anything in the place of an action.
    pub async fn execute_raw(&self, raw: RawExecute) -> anyhow::Result<Run> {
        let body = serde_json::from_slice(&raw.body).unwrap_or_default();
        callflow::execute(&self.world, self.key, body, raw).await
    }

    /// From now on, so much is said in a recording.
    pub fn set_size(&self, size: Size) {
        self.world
            .with(|s| s.calls.get_mut(&self.key).map(|c| c.options.size = Some(size)));
    }

    pub fn answer(&self) {
        let id = self.id();
        let was = self
            .world
            .with(|s| s.legs.get_mut(&id).map(|l| std::mem::replace(&mut l.answered, true)));
        if was == Some(false) {
            events::publish(&self.world, &id, "CHANNEL_ANSWER", json!({}));
            control::fire(&self.world, &id, Trigger::Answer);
        }
    }

    /// The other leg is gone, and the call goes on without it.
    pub fn unbridge(&self) {
        let id = self.id();
        let other = self.other_leg();
        if let Some(other) = &other {
            let extra =
                json!({"Bridge-B-Unique-ID": other, "Disposition": "SUCCESS", "Application-Response": "SUCCESS"});
            events::publish(&self.world, &id, "CHANNEL_UNBRIDGE", extra);
        }
        self.world.with(|s| {
            if let Some(leg) = s.legs.get_mut(&id) {
                (leg.other, leg.bridged) = (None, false);
            }
            if let Some(leg) = other.and_then(|other| s.legs.get_mut(&other)) {
                (leg.other, leg.bridged) = (None, false);
            }
        });
    }

    /// Connects the call with its other leg (made up when it has none); again and again, if need be. What was to be recorded then
    /// begins a moment later.
    pub fn bridge(&self) {
        self.answer();
        let id = self.id();
        let (other, nth) = self.world.with(|s| {
            let other = s.legs.get(&id).and_then(|l| l.other.clone()).unwrap_or_else(uuid);
            let to = Some(other.clone());
            let leg = s
                .legs
                .entry(other.clone())
                .or_insert_with(|| Leg::new(&other, self.key, None));
            (leg.other, leg.bridged) = (Some(id.clone()), true);
            let leg = s.legs.get_mut(&id);
            let nth = leg.map_or(0, |leg| {
                (leg.other, leg.bridged, leg.bridges) = (to, true, leg.bridges + 1);
                leg.bridges
            });
            (other, nth)
        });
        events::publish(&self.world, &id, "CHANNEL_BRIDGE", json!({"Bridge-B-Unique-ID": other}));
        let (world, wait) = (self.world.clone(), self.world.lasting(BRIDGE_TO_RECORDING));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let goes_on = |s: &State| {
                let leg = s.legs.get(&id).filter(|l| l.alive && l.bridged);
                leg.is_some_and(|l| l.bridges == nth)
            };
            if world.look(goes_on) {
                control::fire(&world, &id, Trigger::Bridge);
            }
        });
    }

    /// The running bridge (or what else runs) ends; commands that waited behind it are executed.
    pub fn app_ends(&self) {
        control::app_ends(&self.world, self.key);
    }

    /// Ends both legs: running recordings first (`RECORD_STOP`), then `CHANNEL_DESTROY`. The control process lives two
    /// seconds more.
    pub async fn hangup(&self, cause: &str) {
        let id = self.id();
        let legs: Vec<String> = self.world.look(|s| {
            s.legs
                .values()
                .filter(|l| l.call == self.key && l.alive && l.id != id)
                .map(|l| l.id.clone())
                .collect()
        });
        for leg in legs {
            switch::hangup(&self.world, &leg, cause).await;
        }
        switch::hangup(&self.world, &id, cause).await;
        self.control_dies(KEEP_ALIVE);
    }

    pub(super) fn control_dies(&self, after: Duration) {
        let at = Instant::now() + after;
        self.world.with(|s| {
            s.calls
                .get_mut(&self.key)
                .map(|c| c.control.dead_from.get_or_insert(at).to_owned())
        });
    }

    /// The call ends, and nobody hears of it: no event of any kind. Its files are whole, as the switch closes them.
    pub fn vanish(&self) {
        let running = self.world.with(|s| {
            s.legs
                .values_mut()
                .filter(|l| l.call == self.key)
                .for_each(|l| l.alive = false);
            let mine = |r: &&Recording| r.call == self.key && !r.ended();
            s.recordings
                .iter()
                .filter(mine)
                .map(|r| r.path.clone())
                .collect::<Vec<_>>()
        });
        for path in running {
            switch::close_unheard(&self.world, &path);
        }
        self.world
            .note(Role::Switch, Some(&self.id()), "the channel is gone without a word");
        self.control_dies(Duration::ZERO);
    }

    /// Another channel takes this one's place (`CHANNEL_REPLACED`): same control process, new call id. Recordings go
    /// over to the new channel, where no command finds them.
    pub async fn replace(&self, new_id: &str) {
        let old = self.id();
        events::publish(&self.world, &old, "CHANNEL_REPLACED", json!({"Replaced-By": new_id}));
        self.world.with(|s| {
            let Some(mut leg) = s.legs.get(&old).cloned() else {
                return;
            };
            leg.id = new_id.to_owned();
            leg.media_recordings.clear();
            if let Some(other) = leg.other.clone().and_then(|o| s.legs.get_mut(&o)) {
                other.other = Some(new_id.to_owned());
            }
            s.legs.insert(new_id.to_owned(), leg);
            moves::move_all(s, &old, new_id);
            if let Some(call) = s.calls.get_mut(&self.key) {
                new_id.clone_into(&mut call.call_id);
            }
        });
        switch::hangup(&self.world, &old, "ATTENDED_TRANSFER").await;
    }

    /// A transfer by one of the parties: the control process ends, commands vanish from now on.
    pub fn transfer(&self) {
        events::publish(&self.world, &self.id(), "CHANNEL_TRANSFEROR", json!({}));
        self.control_dies(Duration::ZERO);
    }

    /// The control process dies and nobody is told.
    pub fn kill_control(&self) {
        self.control_dies(Duration::ZERO);
    }

    /// Publishes any event of this call, with `extra` laid over the usual fields: a foreign recorder's `RECORD_STOP`, say.
    pub fn publish_event(&self, name: &str, extra: Value) {
        events::publish(&self.world, &self.id(), name, extra);
    }

    /// This call's recordings, in the order of their first start.
    pub fn recordings(&self) -> Vec<Recording> {
        self.world.look(|s| s.recordings_of(self.key).cloned().collect())
    }

    /// Waits until this call has `n` recordings that have been started, ended or not.
    pub async fn wait_recordings(&self, n: usize, patience: Duration) -> anyhow::Result<Vec<Recording>> {
        let see = |s: &State| {
            let started = s.recordings_of(self.key).filter(|r| r.phase != Phase::Opening);
            let all: Vec<_> = started.cloned().collect();
            (all.len() >= n).then_some(all)
        };
        self.world.wait_for(&format!("{n} recording(s)"), patience, see).await
    }

    pub async fn wait_recording_started(&self, patience: Duration) -> anyhow::Result<Recording> {
        self.newest("RECORD_START", patience, |r| r.phase != Phase::Opening)
            .await
    }

    /// Waits until the newest recording has ended and its `RECORD_STOP` is out.
    pub async fn wait_recording_ended(&self, patience: Duration) -> anyhow::Result<Recording> {
        self.newest("RECORD_STOP", patience, Recording::ended).await
    }

    /// Waits until the switch has deleted the newest recording's file after an upload.
    pub async fn wait_file_deleted(&self, patience: Duration) -> anyhow::Result<Recording> {
        self.newest("the file's deletion", patience, |r| r.deleted).await
    }

    async fn newest(
        &self,
        what: &str,
        patience: Duration,
        fits: impl Fn(&Recording) -> bool,
    ) -> anyhow::Result<Recording> {
        self.world
            .wait_for(what, patience, |s| {
                s.recordings_of(self.key).last().filter(|r| fits(r)).cloned()
            })
            .await
    }
}

fn channel_vars(world: &World, options: &CallOptions, fetch_id: &str, ecallmgr: usize) -> Object {
    let account = options.account_id.as_ref().unwrap_or(&world.options.account_id);
    let now = world.clock().gregorian_secs();
    let mut ccvs = Object::new();
    super::wire::merge(
        &mut ccvs,
        json!({
            "Account-ID": account,
            "Account-Name": "Acme",
            "Account-Realm": events::REALM,
            "Authorizing-ID": "7e1c0f2ab6f94b41b0e2a3ffb8f0a111",
            "Authorizing-Type": "device",
            "Call-Interaction-ID": format!("{now}-{}", hex(8)),
            "CallFlow-ID": "c0ffee00c0ffee00c0ffee00c0ffee00",
            "Channel-Authorized": "true",
            "Ecallmgr-Node": world.options.ecallmgr_nodes[ecallmgr],
            "Fetch-ID": fetch_id,
            "Owner-ID": options.owner_id,
            "Realm": events::REALM,
            "Reseller-ID": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "Username": "user_a1b2c3",
        }),
    );
    callflow::overlay(&mut ccvs, &options.ccvs);
    ccvs
}
