//! Call events as the switch writes them and ecallmgr publishes them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    options::{CallOptions, Mistreat},
    record::Role,
    state::{CallState, Leg, Recording, State},
    wire::{Object, defaults, encode, gregorian, merge},
    world::World,
};

/// Publishes one event of a leg, with whatever the faults make of it.
pub fn publish(world: &Arc<World>, leg: &str, name: &str, extra: Value) {
    if let Some(event) = Event::of(world, leg, name, extra) {
        event.publish(world);
    }
}

/// What the switch told of a moment, on its way through an ecallmgr.
pub struct Event {
    leg: String,
    name: String,
    body: Object,
    ecallmgr: usize,
}

impl Event {
    /// The event as the leg is now. `None`: there is no such leg.
    pub fn of(world: &World, leg: &str, name: &str, extra: Value) -> Option<Self> {
        let (body, ecallmgr) = world.look(|s| build(world, s, leg, name, extra))?;
        let (leg, name) = (leg.to_owned(), name.to_owned());
        Some(Self {
            leg,
            name,
            body,
            ecallmgr,
        })
    }

    pub fn publish(self, world: &Arc<World>) {
        send_all(world, self);
    }
}

fn send_all(world: &Arc<World>, event: Event) {
    let Event { body, ecallmgr, .. } = event;
    let (leg, name) = (event.leg.as_str(), event.name.as_str());
    let (how, everybody) = world.with(|s| (mistreatment(s, name, leg), s.faults.everybody_publishes));
    let senders: Vec<usize> = if everybody {
        (0..world.ecallmgrs.len()).collect()
    } else {
        vec![ecallmgr]
    };
    match how {
        None => senders.iter().for_each(|i| send(world, *i, leg, name, &body)),
        Some(Mistreat::Drop) => world.note(Role::Ecallmgr, Some(leg), format!("fault: {name} is lost")),
        Some(Mistreat::Duplicate(times)) => {
            for _ in 0..=times {
                senders.iter().for_each(|i| send(world, *i, leg, name, &body));
            }
        }
        Some(Mistreat::Delay(by)) => {
            world.note(Role::Ecallmgr, Some(leg), format!("fault: {name} comes {by:?} late"));
            let (world, leg, name) = (world.clone(), leg.to_owned(), name.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                senders.iter().for_each(|i| send(&world, *i, &leg, &name, &body));
            });
        }
    }
}

fn send(world: &World, ecallmgr: usize, leg: &str, name: &str, body: &Object) {
    let key = format!("call.{name}.{}", encode(leg));
    let link = &world.ecallmgrs[ecallmgr];
    world.publish_to(Role::Ecallmgr, link, "callevt", &key, body.clone(), &[("call-id", leg)]);
}

fn mistreatment(state: &mut State, name: &str, leg: &str) -> Option<Mistreat> {
    let rule = state.faults.events.iter_mut().find(|f| {
        f.times != Some(0)
            && f.name.as_deref().is_none_or(|n| n == name)
            && f.call_id.as_deref().is_none_or(|id| id == leg)
    })?;
    rule.times = rule.times.map(|n| n.saturating_sub(1));
    Some(rule.how)
}

fn build(world: &World, state: &State, leg: &str, name: &str, extra: Value) -> Option<(Object, usize)> {
    let channel = state.legs.get(leg)?;
    let call = state.calls.get(&channel.call)?;
    let mut body = common(world, channel, call, name);
    // The rest has none of them; a channel that nobody has answered has none at its recording's end either.
    const WITH_PARTIES: [&str; 4] = [
        "CHANNEL_ANSWER",
        "CHANNEL_DESTROY",
        "CHANNEL_PROGRESS_MEDIA",
        "RECORD_STOP",
    ];
    if WITH_PARTIES.contains(&name) && (channel.answered || name != "RECORD_STOP") {
        let (from, to) = parties(&call.options);
        merge(&mut body, json!({"From": from, "To": to, "Request": to}));
    }
    merge(&mut body, extra);
    Some((body, call.control.ecallmgr))
}

/// The switch's stamp of this moment, for events that belong together.
pub fn stamp(world: &World) -> u64 {
    world.clock().tick_micros()
}

/// An event's `extra` with this stamp.
pub fn stamped(mut extra: Value, stamp: u64) -> Value {
    (extra["Msg-ID"], extra["Timestamp"]) = (json!(stamp.to_string()), json!(gregorian(stamp)));
    extra
}

pub fn parties(o: &CallOptions) -> (String, String) {
    (
        format!("{}@{REALM}", o.caller_number),
        format!("{}@{REALM}", o.callee_number),
    )
}

pub const REALM: &str = "acme.sip.example.com";

fn common(world: &World, leg: &Leg, call: &CallState, name: &str) -> Object {
    let (node, o) = (world.options.switch_node.as_str(), &call.options);
    let host = node.split_once('@').map_or(node, |(_, host)| host);
    let mut body = defaults("call_event", name, "freeswitch", "1.0", node);
    let (state, call_state, answer) = match (leg.alive, leg.answered) {
        (false, _) => ("REPORTING", "HANGUP", "hangup"),
        (true, false) if leg.early => ("EXECUTE", "EARLY", "early"),
        (true, false) => ("EXECUTE", "RINGING", "ringing"),
        (true, true) if leg.held => ("EXECUTE", "HELD", "answered"),
        (true, true) if leg.bridged => ("EXCHANGE_MEDIA", "ACTIVE", "answered"),
        (true, true) => ("EXECUTE", "ACTIVE", "answered"),
    };
    let (state, answer) = match leg.hanging_up && leg.alive {
        true => ("HANGUP", "hangup"),
        false => (state, answer),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    // Whom it reaches is known when somebody is reached.
    let callee = |text: &str| leg.other.as_ref().and_then(|_| some(text));
    let micros = stamp(world);
    merge(
        &mut body,
        json!({
            "Msg-ID": micros.to_string(),
            "Timestamp": gregorian(micros),
            "Call-ID": leg.id,
            "Other-Leg-Call-ID": leg.other,
            "Call-Direction": o.direction,
            "Caller-ID-Name": some(&o.caller_name),
            "Caller-ID-Number": some(&o.caller_number),
            "Callee-ID-Name": callee(&o.callee_name),
            "Callee-ID-Number": callee(&o.callee_number),
            "Caller-Destination-Number": some(&o.callee_number),
            "Channel-State": state,
            "Channel-Call-State": call_state,
            "Channel-Answer-State": answer,
            "Channel-Created-Time": call.created_micros.to_string(),
            "Channel-Name": format!("sofia/sipinterface_1/{}@{REALM}", o.caller_number),
            "Presence-ID": format!("{}@{REALM}", o.caller_number),
            "From-Tag": "9gXe2Z7mQ",
            "To-Tag": "Kr6yX0",
            "User-Agent": "Yealink SIP-T46S 66.85.0.5",
            "Media-Server": host,
            "Switch-Hostname": host,
            "Switch-Nodename": node,
            "Switch-URI": "sip:10.20.30.40:11000",
            "Switch-URL": "sip:mod_sofia@10.20.30.40:11000",
        }),
    );
    let mut ccvs = call.ccvs.clone();
    ccvs.entry("Privacy-Hide-Name").or_insert(json!(false));
    ccvs.entry("Privacy-Hide-Number").or_insert(json!(false));
    ccvs.remove("Media-Name");
    body.insert("Custom-Channel-Vars".into(), Value::Object(ccvs));
    body
}

/// What only recording events have.
pub fn recording(world: &World, recording: &Recording, file: Object) -> Value {
    let mut vars: Object = recording.vars.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let path = recording.path.to_string_lossy();
    if world.options.recording_file_path {
        vars.insert("File-Path".into(), json!(path));
    }
    if world.options.recording_file_vars {
        vars.extend(file);
    }
    json!({"Application-Name": "record", "Application-Response": path, "Recording": vars})
}

/// What the channel knows of the file that was recorded last: this is set before the file is closed, and counts at the channel's rate.
pub fn file_variables(recording: &Recording) -> Object {
    const CHANNEL_RATE: u64 = 8;
    let size = Some(recording.audio.told_len()).filter(|n| *n > 0 && !recording.unlinked);
    let ms = recording.length_ms;
    let mut vars = Object::new();
    merge(
        &mut vars,
        json!({
            "File-Size": size,
            "File-Samples": ms * CHANNEL_RATE,
            "File-Seconds": ms / 1_000,
            "File-MilliSeconds": ms,
            "Completion-Cause": recording.cause,
        }),
    );
    vars
}
