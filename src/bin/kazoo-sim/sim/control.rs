//! ecallmgr's call control: takes commands from the control queues, checks them as Kazoo's validators do, and lets the
//! switch execute them.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::{
    amqp::Received,
    check,
    record::{Direction, Entry, Role},
    state::{CallKey, State, Trigger},
    switch,
    wire::{Object, defaults, encode, merge, text, without_defaults},
    world::World,
};

/// A message on a control queue.
pub fn on_message(world: &Arc<World>, message: &Received) {
    let (body, mut findings) = check::envelope(message, &world.options.worker_app);
    let Some(body) = body.map(Arc::new) else {
        return report(world, message, &findings);
    };
    let (exchange, key) = (message.exchange.as_str(), message.key.as_str());
    world.log(Entry::message(
        Role::Ecallmgr,
        Direction::Received,
        exchange,
        key,
        body.clone(),
    ));
    if exchange != "callctl" {
        check::found(
            &mut findings,
            "exchange",
            format!("a command by {exchange:?}: ecallmgr ignores it"),
        );
        return report(world, message, &findings);
    }
    findings.extend(check::kind(message, &body, "callctl", "call", &["command"]));
    match text(&body, "Application-Name") {
        Some("record_call") => findings.extend(check::record_call(&body, &world.options.worker_app, false)),
        Some("event_actions") => findings.extend(check::event_actions(&body, &world.options.worker_app)),
        Some("set") => findings.extend(check::set(&body)),
        other => check::found(
            &mut findings,
            "application",
            format!("unexpected application {other:?}"),
        ),
    }
    let call = match process(world, message) {
        Process::Alive(call) => Some(call),
        Process::Dead => {
            world.note(
                Role::Ecallmgr,
                text(&body, "Call-ID"),
                format!(
                    "the control process is gone: the command vanishes: {}",
                    text(&body, "Media-Name").unwrap_or_default()
                ),
            );
            None
        }
        Process::Unknown(why) => {
            check::found(&mut findings, "deliver-to-pid", why);
            None
        }
    };
    report(world, message, &findings);
    if let Some(call) = call {
        dispatch(world, call, &body);
    }
}

fn report(world: &World, message: &Received, findings: &check::Findings) {
    for (rule, text) in findings {
        let body = String::from_utf8_lossy(&message.body);
        world.violate(
            rule,
            text.clone(),
            format!("{} {}: {body}", message.exchange, message.key),
        );
    }
}

enum Process {
    Alive(CallKey),
    Dead,
    Unknown(String),
}

/// The process behind `Deliver-To-PID`; without it Kazoo's shared listener drops the message in silence.
fn process(world: &World, message: &Received) -> Process {
    let Some(pid) = &message.to_pid else {
        return Process::Unknown("a command without Deliver-To-PID is dropped in silence".into());
    };
    world.look(|s| match s.controls.get(&(message.queue.to_string(), pid.clone())) {
        None => Process::Unknown(format!("no process {pid} behind {}", message.queue)),
        Some(call) if s.calls.get(call).is_some_and(|c| c.control.alive()) => Process::Alive(*call),
        Some(_) => Process::Dead,
    })
}

/// `Insert-At` decides: at once, or behind the application that runs.
fn dispatch(world: &Arc<World>, call: CallKey, body: &Arc<Object>) {
    let (ignored, error) = world.with(|s| {
        if let Some(name) = text(body, "Media-Name") {
            s.ordered.insert(name.to_owned());
        }
        let first = (!s.faults.dialplan_errors.is_empty()).then(|| s.faults.dialplan_errors.remove(0));
        (s.faults.ignore_commands, first)
    });
    if ignored {
        return world.note(Role::Ecallmgr, text(body, "Call-ID"), "fault: the command is ignored");
    }
    if let Some(error) = error {
        return send_error(world, call, body, &error, "throw");
    }
    match body.get("Insert-At").map_or(Some("tail"), Value::as_str) {
        Some("now") => execute(world, call, body),
        Some("flush") => {
            world.with(|s| s.calls.get_mut(&call).map(|c| c.control.waiting.clear()));
            app_ends(world, call);
            execute(world, call, body);
        }
        Some(at @ ("head" | "tail")) => {
            let runs = world.with(|s| {
                let control = &mut s.calls.get_mut(&call)?.control;
                let running = control.running_app.clone()?;
                match at {
                    "head" => control.waiting.push_front(body.clone()),
                    _ => control.waiting.push_back(body.clone()),
                }
                Some(running)
            });
            match runs {
                Some(app) => world.note(
                    Role::Ecallmgr,
                    text(body, "Call-ID"),
                    format!("the command waits behind {app}"),
                ),
                None => execute(world, call, body),
            }
        }
        // Kazoo logs it and drops the command.
        other => world.note(
            Role::Ecallmgr,
            text(body, "Call-ID"),
            format!("unknown Insert-At {other:?}: dropped"),
        ),
    }
}

/// The running application has ended: what waited is executed in order.
pub fn app_ends(world: &Arc<World>, call: CallKey) {
    let waiting = world.with(|s| {
        s.calls.get_mut(&call).map(|c| {
            c.control.running_app = None;
            std::mem::take(&mut c.control.waiting)
        })
    });
    waiting
        .unwrap_or_default()
        .iter()
        .for_each(|command| execute(world, call, command));
}

fn execute(world: &Arc<World>, call: CallKey, command: &Arc<Object>) {
    let Some(leg) = text(command, "Call-ID") else {
        return send_error(world, call, command, "Could not execute dialplan action", "badmatch");
    };
    if !world.look(|s| owns(s, call, leg)) {
        let text = "call command provided with a command for a different call id";
        world.violate("call-id", format!("a command for {leg}, which is not this call"), "");
        return send_error(world, call, command, text, "throw");
    }
    match text(command, "Application-Name") {
        Some("record_call") => record_call(world, call, leg, command),
        Some("event_actions") => event_actions(world, call, leg, command),
        Some("set") => set(world, leg, command),
        _ => send_error(world, call, command, "application unknown", "throw"),
    }
}

/// The call's own leg, its other leg, or a channel whose other leg is the call.
fn owns(s: &State, call: CallKey, leg: &str) -> bool {
    let current = s.calls.get(&call).map(|c| c.call_id.as_str());
    let other_of = |id: &str| s.legs.get(id).and_then(|l| l.other.as_deref());
    current.is_some_and(|id| id == leg || other_of(id) == Some(leg) || other_of(leg) == Some(id))
}

fn record_call(world: &Arc<World>, call: CallKey, leg: &str, command: &Arc<Object>) {
    if !check::is_valid_record_call(command) {
        let text = "record_call failed to execute as JObj did not validate";
        return send_error(world, call, command, text, "throw");
    }
    let path: Option<PathBuf> = text(command, "Media-Name").map(|n| switch::recording_path(&world.folder, n));
    match (text(command, "Record-Action"), path) {
        (Some("start"), Some(_)) if text(command, "Media-Recording-ID").is_some() => switch::start(world, leg, command),
        (Some("start"), _) => {
            send_error(
                world,
                call,
                command,
                "Could not execute dialplan action: record_call",
                "badarg",
            );
        }
        // The channel variable it would use instead holds an id, not a path.
        (_, None) => world.note(Role::Switch, Some(leg), "no Media-Name: nothing is found"),
        (Some("stop"), Some(path)) => switch::stop(world, leg, &path),
        (Some(action), Some(path)) => switch::mask(world, leg, &path, action == "mask"),
        (None, _) => {}
    }
}

/// The two names that are written as they are; other channel variables get a prefix, and the switch does not look at them.
fn set(world: &World, leg: &str, command: &Object) {
    let vars = command.get("Custom-Channel-Vars").and_then(Value::as_object);
    for (key, value) in vars.into_iter().flatten() {
        if check::FOLLOW_VARIABLES.contains(&key.as_str()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            world.note(Role::Switch, Some(leg), format!("{key}={value}"));
            world.with(|s| s.legs.get_mut(leg).map(|l| l.vars.insert(key.clone(), value)));
        }
    }
}

/// Compiles the delayed commands into the channel; they fire when the switch gets there, or never.
fn event_actions(world: &Arc<World>, call: CallKey, leg: &str, command: &Arc<Object>) {
    let Some(Value::Object(events)) = command.get("Event-Actions") else {
        let text = "event_actions failed to execute as JObj did not validate";
        return send_error(world, call, command, text, "throw");
    };
    let mut compiled = Vec::new();
    for (event, actions) in events {
        let trigger = match event.as_str() {
            "Execute-On-Answer" => Trigger::Answer,
            "Execute-On-Bridge" => Trigger::Bridge,
            _ => continue,
        };
        for inner in actions
            .as_object()
            .into_iter()
            .flat_map(Object::values)
            .filter_map(Value::as_object)
        {
            if !check::is_valid_record_call(inner) {
                let text = "record_call failed to execute as JObj did not validate";
                return send_error(world, call, command, text, "throw");
            }
            compiled.push((trigger, Arc::new(inner.clone())));
        }
    }
    world.note(
        Role::Switch,
        Some(leg),
        format!("{} delayed command(s) set", compiled.len()),
    );
    world.with(|s| {
        // A worker may ask for the file of a start that never ran.
        let names = compiled.iter().filter_map(|(_, command)| text(command, "Media-Name"));
        s.ordered.extend(names.map(str::to_owned));
        if let Some(channel) = s.legs.get_mut(leg).filter(|l| l.alive) {
            channel.on_event.extend(compiled);
        }
    });
}

/// The switch runs what was set for this moment: on answer once, on bridge every time.
pub fn fire(world: &Arc<World>, leg: &str, trigger: Trigger) {
    let due = world.with(|s| {
        let Some(channel) = s.legs.get_mut(leg) else {
            return Vec::new();
        };
        let due: Vec<_> = channel
            .on_event
            .iter()
            .filter(|(t, _)| *t == trigger)
            .map(|(_, c)| c.clone())
            .collect();
        if trigger == Trigger::Answer {
            channel.on_event.retain(|(t, _)| *t != trigger);
        }
        due
    });
    due.iter().for_each(|command| switch::start(world, leg, command));
}

/// What ecallmgr tells about a command that it could not execute. It also force-advances the call's queue.
pub fn send_error(world: &Arc<World>, call: CallKey, command: &Object, message: &str, error: &str) {
    let Some((call_id, ecallmgr, up)) = world.look(|s| {
        let c = s.calls.get(&call)?;
        Some((
            c.call_id.clone(),
            c.control.ecallmgr,
            s.legs.get(&c.call_id).is_some_and(|l| l.alive),
        ))
    }) else {
        return;
    };
    let node = &world.options.ecallmgr_nodes[ecallmgr];
    let mut body = defaults("error", "dialplan", "ecallmgr", "4.0.0", node);
    merge(
        &mut body,
        json!({
            "Msg-ID": command.get("Msg-ID"),
            "Error-Message": message,
            "Dialplan-Error": error,
            "Channel-State": if up { "EXECUTE" } else { "DOWN" },
            "Channel-Call-State": if up { "ACTIVE" } else { "DOWN" },
            "Request": without_defaults(command),
            "Call-ID": call_id,
        }),
    );
    let key = format!("call.dialplan.{}", encode(&call_id));
    world.publish(Role::Ecallmgr, &world.ecallmgrs[ecallmgr], "callevt", &key, body);
    app_ends(world, call);
}
