//! What people do with a call that is recorded: hold it, hand it over, leave it. Where a recording goes along with a leg there is no second
//! `RECORD_START`, commands by its path find nothing from then on, and `RECORD_STOP` comes under that leg.

use std::time::Duration;

use serde_json::json;

use super::{
    call::Call,
    events,
    record::Role,
    state::{Leg, State},
    switch,
    world::World,
};

/// How a leg is handed over: which of the switch's variables decides about its recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    Blind,
    Attended,
}

impl Handover {
    const fn variable(self) -> &'static str {
        match self {
            Self::Blind => "recording_follow_transfer",
            Self::Attended => "recording_follow_attxfer",
        }
    }
}

impl Call {
    /// The controlled leg's party puts the call on hold: what is recorded of that leg stands still, and so does its time limit.
    pub fn hold(&self) {
        self.set_hold(&self.id(), true);
    }

    pub fn unhold(&self) {
        self.set_hold(&self.id(), false);
    }

    /// The other party does. Recordings of the controlled leg go on.
    pub fn hold_other(&self) {
        if let Some(other) = self.other_leg() {
            self.set_hold(&other, true);
        }
    }

    pub fn unhold_other(&self) {
        if let Some(other) = self.other_leg() {
            self.set_hold(&other, false);
        }
    }

    fn set_hold(&self, leg: &str, on: bool) {
        self.world.with(|s| {
            if let Some(leg) = s.legs.get_mut(leg) {
                leg.held = on;
            }
            s.set_clocks();
        });
        let event = if on { "CHANNEL_HOLD" } else { "CHANNEL_UNHOLD" };
        events::publish(&self.world, leg, event, json!({}));
    }

    /// Nobody says anything from now on, or they talk again.
    pub fn quiet(&self, on: bool) {
        self.world.with(|s| s.calls.get_mut(&self.key).map(|c| c.quiet = on));
    }

    /// A variable of the controlled leg's channel, as a dialplan command sets it.
    pub fn set_variable(&self, name: &str, value: &str) {
        let id = self.id();
        self.world.with(|s| {
            let leg = s.legs.get_mut(&id);
            leg.map(|l| l.vars.insert(name.to_owned(), value.to_owned()))
        });
    }

    /// The running recordings go over to the other leg and nothing is told; both legs stay.
    pub fn move_recordings(&self) {
        let (id, other) = (self.id(), self.other_leg());
        if let Some(other) = other {
            self.world.with(|s| move_all(s, &id, &other));
            self.world
                .note(Role::Switch, Some(&id), format!("recordings go over to {other}"));
        }
    }

    /// The controlled party refers the other one to another place and leaves (a blind transfer by A). Recordings go along with the other leg,
    /// unless the switch's variables say that they do not: then they end here. Returns the call that the other leg is from now on, with a
    /// flow and call control of its own, and the same interaction.
    pub async fn refer_away(&self) -> anyhow::Result<Call> {
        let (id, other) = self.legs()?;
        self.tell_transfer(&id, &other);
        hand_over(&self.world, &id, &other, Handover::Blind);
        self.leave(&id, "BLIND_TRANSFER").await;
        self.control_dies(Duration::ZERO);
        Ok(self.adopt(&other, None))
    }

    /// The other party refers the controlled one to another place and leaves: recordings of the controlled leg stay on it. It gets another
    /// flow and other call control: the call that is returned.
    pub async fn is_referred(&self) -> anyhow::Result<Call> {
        let (id, other) = self.legs()?;
        self.tell_transfer(&other, &id);
        self.leave(&other, "BLIND_TRANSFER").await;
        self.control_dies(Duration::ZERO);
        Ok(self.adopt(&id, None))
    }

    /// The other leg is sent elsewhere by the switch (`uuid_transfer -bleg`), recordings with it. This call stays, alone: another start of the
    /// same file is refused here. Returns the other leg's call.
    pub fn transfer_other(&self) -> anyhow::Result<Call> {
        let (id, other) = self.legs()?;
        self.world.with(|s| move_all(s, &id, &other));
        self.unbridge();
        Ok(self.adopt(&other, None))
    }

    /// The controlled party of both calls connects the two others and leaves (an attended transfer). Recordings of each leg go along with the
    /// leg that it was bridged with. Returns the call that the two are from now on.
    pub async fn attended_transfer(&self, second: &Call) -> anyhow::Result<Call> {
        let ((a1, b), (a2, c)) = (self.legs()?, second.legs()?);
        self.tell_transfer(&a1, &b);
        for (from, to) in [(&a1, &b), (&a2, &c)] {
            hand_over(&self.world, from, to, Handover::Attended);
        }
        self.leave(&a1, "ATTENDED_TRANSFER").await;
        second.leave(&a2, "ATTENDED_TRANSFER").await;
        self.control_dies(Duration::ZERO);
        second.control_dies(Duration::ZERO);
        let both = self.adopt(&b, Some(&c));
        events::publish(&self.world, &b, "CHANNEL_BRIDGE", json!({"Bridge-B-Unique-ID": c}));
        Ok(both)
    }

    /// The controlled leg is a loopback's, and the switch takes that out: recordings go to the leg that it was bridged with, Kazoo follows to
    /// the caller's.
    pub async fn bow_out(&self, caller: &str) -> anyhow::Result<()> {
        let (id, endpoint) = self.legs()?;
        self.world.with(|s| {
            let leg = Leg {
                bridged: true,
                inbound: true,
                ..Leg::new(caller, self.key, Some(&endpoint))
            };
            s.legs.insert(caller.to_owned(), leg);
            move_all(s, &id, &endpoint);
        });
        let extra = json!({"Resigning-UUID": id, "Connecting-Leg-A-UUID": endpoint, "Connecting-Leg-B-UUID": caller});
        events::publish(&self.world, &id, "CHANNEL_DIRECT", extra);
        self.leave(&id, "NORMAL_UNSPECIFIED").await;
        self.world.with(|s| {
            if let Some(leg) = s.legs.get_mut(&endpoint) {
                (leg.other, leg.bridged) = (Some(caller.to_owned()), true);
            }
            if let Some(call) = s.calls.get_mut(&self.key) {
                caller.clone_into(&mut call.call_id);
            }
        });
        events::publish(
            &self.world,
            caller,
            "CHANNEL_BRIDGE",
            json!({"Bridge-B-Unique-ID": endpoint}),
        );
        Ok(())
    }

    fn legs(&self) -> anyhow::Result<(String, String)> {
        let other = self
            .other_leg()
            .filter(|id| self.world.look(|s| s.legs.get(id).is_some_and(|l| l.alive)));
        let other = other.ok_or_else(|| anyhow::anyhow!("the call has no other leg"))?;
        Ok((self.id(), other))
    }

    fn tell_transfer(&self, transferor: &str, transferee: &str) {
        events::publish(&self.world, transferor, "CHANNEL_TRANSFEROR", json!({}));
        events::publish(&self.world, transferee, "CHANNEL_TRANSFEREE", json!({}));
    }

    /// A leg's end, with its events: the bridge first.
    async fn leave(&self, leg: &str, cause: &str) {
        let other = self.world.look(|s| s.legs.get(leg).and_then(|l| l.other.clone()));
        if let Some(other) = &other {
            let extra = json!({"Bridge-B-Unique-ID": other, "Disposition": "SUCCESS"});
            events::publish(&self.world, leg, "CHANNEL_UNBRIDGE", extra);
        }
        switch::hangup(&self.world, leg, cause).await;
        self.world.with(|s| {
            let other = other.and_then(|other| s.legs.get_mut(&other));
            let other = other.filter(|l| l.other.as_deref() == Some(leg));
            other.map(|l| (l.other, l.bridged) = (None, false))
        });
    }

    /// A leg becomes a call of its own, bridged with another one if that is given.
    fn adopt(&self, leg: &str, with: Option<&str>) -> Call {
        let (mut options, ccvs) = self.state(|c| (c.options.clone(), c.ccvs.clone()));
        std::mem::swap(&mut options.caller_name, &mut options.callee_name);
        std::mem::swap(&mut options.caller_number, &mut options.callee_number);
        let kept = self.world.look(|s| s.legs.get(leg).cloned());
        options.call_id = Some(leg.to_owned());
        options.other_leg = with.map(str::to_owned);
        options.bridged = with.is_some();
        options.answered = true;
        options
            .ccvs
            .extend(ccvs.into_iter().filter(|(key, _)| key != "Fetch-ID"));
        let call = Call::new(&self.world, options);
        self.world.with(|s| {
            for id in [Some(leg), with].into_iter().flatten() {
                let Some(new) = s.legs.get_mut(id) else { continue };
                if let Some(old) = kept.as_ref().filter(|old| old.id == id) {
                    let (call, other, bridged) = (new.call, new.other.clone(), new.bridged);
                    *new = Leg {
                        call,
                        other,
                        bridged,
                        ..old.clone()
                    };
                }
            }
            s.set_clocks();
        });
        call
    }
}

/// Recordings of a leg go over to another, or do not.
fn hand_over(world: &World, from: &str, to: &str, how: Handover) {
    let goes = world.with(|s| {
        let own = s.legs.get(from).and_then(|l| l.vars.get(how.variable()));
        let goes = own.map_or(world.options.follow_transfer, |value| value == "true");
        if goes {
            move_all(s, from, to);
        }
        goes
    });
    let words = if goes {
        format!("recordings go over to {to}")
    } else {
        "recordings do not go along".to_owned()
    };
    world.note(Role::Switch, Some(from), words);
}

/// The old channel keeps its list of recordings: `Media-Recordings` is never shortened.
pub(super) fn move_all(s: &mut State, from: &str, to: &str) {
    for recording in s.recordings.iter_mut().filter(|r| r.call_id == from && !r.ended()) {
        to.clone_into(&mut recording.call_id);
        recording.moved = true;
    }
    s.set_clocks();
}
