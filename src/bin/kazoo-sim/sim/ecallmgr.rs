//! The rest of ecallmgr: answers about channels, and commands to the switch.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::{
    amqp::Received,
    check,
    events::REALM,
    record::{Direction, Entry, Role},
    state::State,
    tap, upload,
    wire::{Object, defaults, merge, split_address, text},
    world::World,
};

/// Writes a checked message of the worker down; `None` when it cannot be read at all.
fn take(
    world: &World,
    role: Role,
    message: &Received,
    rules: impl FnOnce(&Object) -> check::Findings,
) -> Option<Arc<Object>> {
    let (body, mut findings) = check::envelope(message, &world.options.worker_app);
    let body = body.map(Arc::new);
    if let Some(body) = &body {
        findings.extend(rules(body));
        world.log(Entry::message(
            role,
            Direction::Received,
            &message.exchange,
            &message.key,
            body.clone(),
        ));
    }
    for (rule, sentence) in findings {
        let body = String::from_utf8_lossy(&message.body);
        world.violate(rule, sentence, format!("{} {}: {body}", message.exchange, message.key));
    }
    body
}

/// Answers to a request's `Server-ID`.
fn answer(world: &World, ecallmgr: usize, request: &Object, body: Object) {
    let Some(server) = text(request, "Server-ID") else {
        return;
    };
    let (pid, queue) = split_address(server);
    let headers: Vec<(&str, &str)> = pid.map(|p| ("Deliver-To-PID", p)).into_iter().collect();
    world.publish_to(
        Role::Ecallmgr,
        &world.ecallmgrs[ecallmgr],
        "targeted",
        queue,
        body,
        &headers,
    );
}

/// `channel_status_req` and `query_channels_req`: every ecallmgr answers.
pub fn on_status_request(world: &Arc<World>, ecallmgr: usize, message: &Received) {
    let readable = serde_json::from_slice::<Object>(&message.body).unwrap_or_default();
    if text(&readable, "App-Name").is_some_and(|app| ["ecallmgr", "callflow"].contains(&app)) {
        return;
    }
    // All answer, but only the first that sees it writes it down.
    let id = text(&readable, "Msg-ID").unwrap_or_default().to_owned();
    let first = id.is_empty() || world.with(|s| s.questions.insert(id));
    let body = if first {
        take(world, Role::Ecallmgr, message, |body| {
            check::status_request(message, body)
        })
        .inspect(|body| world.with(|s| tap::observe(s, message, body.clone())))
    } else {
        Some(Arc::new(readable))
    };
    let Some(request) = body else {
        return;
    };
    let (mute, blind) = world.look(|s| {
        (
            s.faults.mute_ecallmgrs.contains(&ecallmgr),
            s.faults.blind_ecallmgrs.contains(&ecallmgr),
        )
    });
    if mute {
        return world.note(
            Role::Ecallmgr,
            text(&request, "Call-ID"),
            "fault: no answer to a status request",
        );
    }
    let reply = match text(&request, "Event-Name") {
        Some("channel_status_req") => status(world, ecallmgr, &request, blind),
        Some("query_channels_req") => query(world, ecallmgr, &request, blind),
        _ => None,
    };
    if let Some(reply) = reply {
        answer(world, ecallmgr, &request, reply);
    }
}

fn reply_headers(world: &World, ecallmgr: usize, request: &Object, name: &str) -> Object {
    let node = &world.options.ecallmgr_nodes[ecallmgr];
    let mut reply = defaults("call_event", name, "ecallmgr", "5.0.0", node);
    merge(&mut reply, json!({"Msg-ID": request.get("Msg-ID")}));
    reply
}

fn status(world: &World, ecallmgr: usize, request: &Object, blind: bool) -> Option<Object> {
    let id = text(request, "Call-ID")?;
    let mut reply = reply_headers(world, ecallmgr, request, "channel_status_resp");
    let node = &world.options.switch_node;
    let found = world.look(|s| {
        let leg = s.legs.get(id).filter(|l| l.alive && !blind)?;
        let call = s.calls.get(&leg.call)?;
        Some(json!({
            "Call-ID": id,
            "Status": "active",
            "Switch-Hostname": node.split_once('@').map_or(node.as_str(), |(_, host)| host),
            "Switch-Nodename": node,
            "Switch-URL": "sip:mod_sofia@10.20.30.40:11000",
            "Other-Leg-Call-ID": leg.other,
            "Realm": REALM,
            "Username": call.ccvs.get("Username"),
            "Custom-Channel-Vars": call.ccvs,
            "Custom-Application-Vars": call.options.cavs,
        }))
    });
    match found {
        Some(found) => merge(&mut reply, found),
        None if request.get("Active-Only") == Some(&Value::Bool(true)) => return None,
        None => {
            let error = "no node found with channel";
            merge(
                &mut reply,
                json!({"Call-ID": id, "Status": "terminated", "Error-Msg": error}),
            );
        }
    }
    Some(reply)
}

fn query(world: &World, ecallmgr: usize, request: &Object, blind: bool) -> Option<Object> {
    let wanted = text(request, "Call-ID");
    let channels: Object = world.look(|s| {
        let known = s
            .legs
            .values()
            .filter(|l| l.alive && !blind && wanted.is_none_or(|id| id == l.id));
        known
            .map(|leg| (leg.id.clone(), fields(world, s, &leg.id, request.get("Fields"))))
            .collect()
    });
    if channels.is_empty() && request.get("Active-Only") == Some(&Value::Bool(true)) {
        return None;
    }
    let mut reply = reply_headers(world, ecallmgr, request, "query_channels_resp");
    reply.insert("Channels".into(), Value::Object(channels));
    Some(reply)
}

/// `"all"`, or a list of names; none asked for gives an empty object, as in Kazoo.
fn fields(world: &World, s: &State, id: &str, wanted: Option<&Value>) -> Value {
    let mut all = Object::new();
    if let Some(leg) = s.legs.get(id)
        && let Some(call) = s.calls.get(&leg.call)
    {
        merge(
            &mut all,
            json!({
                "Account-ID": call.ccvs.get("Account-ID"),
                "Answered": leg.answered,
                "Authorizing-ID": call.ccvs.get("Authorizing-ID"),
                "Authorizing-Type": call.ccvs.get("Authorizing-Type"),
                "Call-Direction": call.options.direction,
                "Call-ID": id,
                "Call-Interaction-ID": call.ccvs.get("Call-Interaction-ID"),
                "Fetch-ID": call.fetch_id,
                "Is-Loopback": false,
                "Is-On-Hold": leg.held,
                "Media-Node": world.options.switch_node,
                "Other-Leg-Call-ID": leg.other,
                "Owner-ID": call.ccvs.get("Owner-ID"),
                "Realm": REALM,
                "Custom-Channel-Vars": call.ccvs,
            }),
        );
    }
    match wanted {
        Some(Value::Array(names)) => all.retain(|key, _| names.iter().any(|n| n == key)),
        Some(Value::String(s)) if s == "all" => {}
        _ => all.clear(),
    }
    Value::Object(all)
}

/// A command on the switch's shared queue: exactly one ecallmgr gets it.
pub fn on_switch_command(world: &Arc<World>, ecallmgr: usize, message: &Received) {
    let node = world.options.switch_node.clone();
    let Some(request) = take(world, Role::Switch, message, |body| {
        check::switch_command(message, body, &node)
    }) else {
        return;
    };
    world.with(|s| tap::observe(s, message, request.clone()));
    let argument = |key: &str| {
        request
            .get("Args")
            .and_then(|a| a.get(key))
            .and_then(Value::as_str)
            .unwrap_or("")
    };
    let (command, method) = (text(&request, "Command").unwrap_or_default(), argument("Http-Method"));
    if command != "send_http" {
        return reply_error(world, ecallmgr, &request, &format!("{command} not_implemented"), None);
    }
    if !method.is_empty() && method != "put" {
        return reply_error(
            world,
            ecallmgr,
            &request,
            &format!("kz_http_{method} command not found"),
            None,
        );
    }
    let file = PathBuf::from(argument("File-Name"));
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !world.look(|s| s.at(&file).is_some() || s.ordered.contains(name)) {
        world.violate(
            "file-name",
            format!("no recording was ever made at {}", file.display()),
            "",
        );
    }
    let twice = world.look(|s| s.faults.send_http_twice);
    if twice {
        world.note(
            Role::Switch,
            None,
            "fault: another zone's ecallmgr runs the same send_http",
        );
    }
    for _ in 0..=usize::from(twice) {
        tokio::spawn(upload::send_http(
            world.clone(),
            ecallmgr,
            request.clone(),
            argument("Url").to_owned(),
            file.clone(),
        ));
    }
}

/// `reply` with `Result` `error`.
pub fn reply_error(world: &World, ecallmgr: usize, request: &Object, error: &str, data: Option<Value>) {
    let mut reply = switch_reply(world, ecallmgr, request);
    let data = data.map(|data| api_event(world, request, "error", data));
    merge(
        &mut reply,
        json!({"Result": "error", "Error": error, "Event-Data": data}),
    );
    answer(world, ecallmgr, request, reply);
}

/// `reply` with `Result` `success`.
pub fn reply_success(world: &World, ecallmgr: usize, request: &Object, response: Value) {
    let mut reply = switch_reply(world, ecallmgr, request);
    let response = api_event(world, request, "success", response);
    merge(&mut reply, json!({"Result": "success", "Response": response}));
    answer(world, ecallmgr, request, reply);
}

/// What the switch says of a command that it ran.
fn api_event(world: &World, request: &Object, result: &str, more: Value) -> Object {
    let argument = |key: &str| request.get("Args").and_then(|a| a.get(key)).and_then(Value::as_str);
    let words = format!(
        "{} {}",
        argument("Url").unwrap_or_default(),
        argument("File-Name").unwrap_or_default()
    );
    let mut event = Object::new();
    merge(
        &mut event,
        json!({
            "Event-Name": "API",
            "Core-UUID": world.look(|s| s.core_uuid.clone()),
            "Event-Date-Timestamp": world.clock().tick_micros().to_string(),
            "API-Command": "kz_http_put",
            "API-Command-Argument": words,
            "API-Result": result,
        }),
    );
    merge(&mut event, more);
    event
}

fn switch_reply(world: &World, ecallmgr: usize, request: &Object) -> Object {
    let mut reply = reply_headers(world, ecallmgr, request, "reply");
    let node = request.get("FreeSWITCH-Node");
    merge(
        &mut reply,
        json!({"Event-Category": "switch_event", "Command": request.get("Command"), "FreeSWITCH-Node": node}),
    );
    reply
}
