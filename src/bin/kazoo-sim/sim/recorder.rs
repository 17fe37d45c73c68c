//! Kazoo's own recorder: how Kazoo starts a recording that media_mgr is to store, and the document that media_mgr writes for it.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    call::Call,
    state::Trigger,
    switch,
    wire::{Object, hex, text},
};

/// The recorder's name, by which media_mgr knows what is its own to store.
pub const RECORDER: &str = "kz_media_recording";

impl Call {
    /// Kazoo begins to record, with these settings, as for an account, an endpoint or a local `record_call` node. A `media_name` among them is
    /// the file's name, as it is when a callflow chose it.
    pub fn record_as_kazoo(&self, settings: Value) {
        let command = Arc::new(self.command(settings));
        switch::start(&self.world, &self.id(), &command);
    }

    /// The same, at every bridge.
    pub fn record_as_kazoo_at_bridges(&self, settings: Value) {
        let command = Arc::new(self.command(settings));
        let id = self.id();
        self.world.with(|s| {
            let leg = s.legs.get_mut(&id);
            leg.map(|leg| leg.on_event.push((Trigger::Bridge, command)))
        });
    }

    fn command(&self, mut settings: Value) -> Object {
        let format = settings["format"].as_str().unwrap_or("mp3").to_owned();
        let random = format!("{}.{format}", hex(32));
        let name = settings["media_name"].as_str().unwrap_or(&random).to_owned();
        settings["media_name"] = json!(name);
        let id = format!("{}-{}", self.world.clock().month(), hex(32));
        let command = json!({
            "Media-Name": name,
            "Media-Recording-ID": id,
            "Media-Recorder": RECORDER,
            "Time-Limit": settings["time_limit"].as_u64().unwrap_or(3_600),
            "Follow-Transfer": true,
            "Recording-Variables": {
                "Name": name, "ID": id, "Recorder": RECORDER, "Data": encoded(&settings),
            },
        });
        match command {
            Value::Object(command) => command,
            _ => Object::new(),
        }
    }
}

/// `base64(term_to_binary(Data))`: an object is a tuple of one list of pairs.
pub fn encoded(data: &Value) -> String {
    let mut bytes = vec![131];
    write(data, &mut bytes);
    STANDARD.encode(bytes)
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn binary(text: &str, out: &mut Vec<u8>) {
    out.push(109);
    out.extend(length(text.len()));
    out.extend(text.as_bytes());
}

fn atom(name: &str, out: &mut Vec<u8>) {
    out.extend([100, 0, u8::try_from(name.len()).unwrap_or(0)]);
    out.extend(name.as_bytes());
}

fn list<T>(items: &[T], mut each: impl FnMut(&T, &mut Vec<u8>), out: &mut Vec<u8>) {
    if !items.is_empty() {
        out.push(108);
        out.extend(length(items.len()));
        items.iter().for_each(|item| each(item, out));
    }
    out.push(106);
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => atom("null", out),
        Value::Bool(yes) => atom(if *yes { "true" } else { "false" }, out),
        Value::Number(n) => {
            out.push(98);
            let n = n.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
            out.extend(n.to_be_bytes());
        }
        Value::String(text) => binary(text, out),
        Value::Array(items) => list(items, write, out),
        Value::Object(map) => {
            out.extend([104, 1]);
            let pairs: Vec<(&String, &Value)> = map.iter().collect();
            let pair = |(key, value): &(&String, &Value), out: &mut Vec<u8>| {
                out.extend([104, 2]);
                binary(key, out);
                write(value, out);
            };
            list(&pairs, pair, out);
        }
    }
}

/// The document that media_mgr writes for a `RECORD_STOP`, without what depends on the writer: `pvt_node`, stamps and the hash.
pub fn document(stop: &Object, settings: &Value, modb: &str) -> Value {
    let recording = &stop["Recording"];
    let ccvs = &stop["Custom-Channel-Vars"];
    let path = recording["File-Path"].as_str().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit('.').next().unwrap_or_default();
    let ms = stop["Length"]
        .as_str()
        .map_or(stop["Length"].as_u64(), |ms| ms.parse().ok())
        .unwrap_or(0);
    let stamp = stop["Timestamp"].as_u64().unwrap_or(0);
    let id = recording["ID"].as_str().unwrap_or_default();
    let call_id = text(stop, "Call-ID").unwrap_or_default();
    let mut document = json!({
        "_id": id,
        "name": name,
        "description": format!("recording {name}"),
        "content_type": if extension == "wav" { "audio/x-wav" } else { "audio/mpeg" },
        "media_type": format!(".{extension}"),
        "media_source": "recorded",
        "source_type": "media_recording",
        "from": stop.get("From"),
        "to": stop.get("To"),
        "request": stop.get("Request"),
        "direction": stop.get("Call-Direction"),
        "start": stamp - ms / 1_000,
        "duration": ms / 1_000,
        "duration_ms": ms,
        "caller_id_number": stop.get("Caller-ID-Number"),
        "caller_id_name": stop.get("Caller-ID-Name"),
        "callee_id_number": stop.get("Callee-ID-Number"),
        "callee_id_name": stop.get("Callee-ID-Name"),
        "call_id": call_id,
        "endpoint_id": settings.get("endpoint_id"),
        "owner_id": ccvs.get("Owner-ID"),
        "url": settings.get("url"),
        "cdr_id": format!("{}-{call_id}", &id[..6]),
        "interaction_id": ccvs.get("Call-Interaction-ID"),
        "origin": settings["origin"].as_str().unwrap_or("no origin"),
        "custom_channel_vars": ccvs,
        "pvt_type": "call_recording",
        "pvt_account_id": ccvs.get("Account-ID"),
        "pvt_account_db": modb.replace('/', "%2F"),
    });
    if let Value::Object(map) = &mut document {
        map.retain(|_, value| !value.is_null());
    }
    document
}
