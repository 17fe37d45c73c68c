//! The `Call` object of an action: all that the worker learns about the call.

use serde_json::{Value, json};

use super::super::{
    events::{REALM, parties},
    state::{CallState, State},
    wire::{Object, address, merge},
    world::World,
};

/// `kapps_call:to_json`: what the worker learns about the call.
pub fn call_object(world: &World, s: &State, call: &CallState) -> Value {
    let o = &call.options;
    let leg = s.legs.get(&call.call_id);
    let recording = s.recordings.iter().any(|r| r.call_id == call.call_id && r.running());
    let node = world.options.switch_node.as_str();
    let (from, to) = parties(o);
    let control = address(&call.control.pid, &call.control.queue);
    let account = call.ccvs.get("Account-ID").and_then(Value::as_str).unwrap_or_default();
    let mut object = Object::new();
    merge(
        &mut object,
        json!({
            "Account-DB": account_db(account),
            "Account-ID": account,
            "Authorizing-ID": call.ccvs.get("Authorizing-ID"),
            "Authorizing-Type": call.ccvs.get("Authorizing-Type"),
            "Call-Bridged": leg.is_some_and(|l| l.bridged),
            "Call-Direction": o.direction,
            "Call-ID": call.call_id,
            "Callee-ID-Name": o.callee_name,
            "Callee-ID-Number": o.callee_number,
            "Caller-ID-Name": o.caller_name,
            "Caller-ID-Number": o.caller_number,
            "Control-Queue": control,
            "Controller-Queue": address(&call.flow_pid, &world.flow_queue),
            "Custom-Application-Vars": o.cavs,
            "Custom-Channel-Vars": call.ccvs,
            "Custom-SIP-Headers": {},
            "Fetch-ID": call.fetch_id,
            "From": from,
            "From-Realm": REALM,
            "From-Tag": "9gXe2Z7mQ",
            "From-User": o.caller_number,
            "Is-Call-Forward": false,
            "Is-Recording": recording,
            "Key-Value-Store": key_values(call),
            "Language": "en-us",
            "Message-Left": false,
        }),
    );
    merge(
        &mut object,
        json!({
            "Other-Leg-Call-ID": leg.and_then(|l| l.other.clone()),
            "Owner-ID": o.owner_id,
            "Request": to,
            "Request-Realm": REALM,
            "Request-User": o.callee_number,
            "Resource-Type": "audio",
            "Switch-Hostname": node.split_once('@').map_or(node, |(_, host)| host),
            "Switch-Nodename": node,
            "Switch-URI": "sip:10.20.30.40:11000",
            "Switch-URL": "sip:mod_sofia@10.20.30.40:11000",
            "To": to,
            "To-Realm": REALM,
            "To-User": o.callee_number,
        }),
    );
    overlay(&mut object, &o.call);
    Value::Object(object)
}

fn key_values(call: &CallState) -> Object {
    let mut kvs = Object::new();
    merge(
        &mut kvs,
        json!({
            "action-exit-keys": ["_"],
            "cf_capture_groups": {},
            "cf_flow_id": call.ccvs.get("CallFlow-ID"),
            "cf_flow_name": call.options.flow_name,
            "cf_last_action": "record_call",
            "cf_old_action": call.actions.last().map(|_| "record_call"),
            "cf_no_match": false,
            "remote-action": "record_call",
        }),
    );
    overlay(&mut kvs, &call.options.kvs);
    kvs
}

/// A test's wishes win; a null takes the key away.
pub fn overlay(object: &mut Object, wishes: &Object) {
    for (key, value) in wishes {
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
}

/// `account%2Fab%2Fcd%2Frest`: the encoded form that Kazoo puts into messages.
pub fn account_db(account: &str) -> String {
    if account.len() < 5 || !account.is_ascii() {
        return account.to_owned();
    }
    format!("account%2F{}%2F{}%2F{}", &account[..2], &account[2..4], &account[4..])
}
