//! What Kazoo's validators (`kapi_dialplan`), ecallmgr and the switch ask of a command, and what we promised on top: stated from the wire alone,
//! once more. Shares nothing with the worker's forms, the schemas or the simulator. The fuzz target uses it too.

use serde_json::{Map, Value};

/// Texts that ecallmgr reads and the switch never sees in an application's argument.
const NOT_ARGUMENTS: &[&str] = &[
    "App-Name",
    "App-Version",
    "Application-Name",
    "Call-ID",
    "Event-Category",
    "Event-Name",
    "Insert-At",
    "Msg-ID",
    "Node",
];

/// What is wrong with a dialplan command; empty when nothing is.
pub fn faults(command: &Value) -> Vec<String> {
    let mut faults = Faults(Vec::new());
    let Some(command) = command.as_object() else {
        return vec!["not an object".into()];
    };
    faults.default_headers(command);
    match text(command, "Application-Name") {
        Some("record_call") => faults.record_call(command),
        Some("event_actions") => faults.event_actions(command),
        Some("set") => faults.set(command),
        other => faults.add(format!("Application-Name is {other:?}")),
    }
    faults.0
}

/// Every text of a command that ends in an application's argument, where FreeSWITCH expands `${…}`.
pub fn arguments(command: &Value) -> Vec<&str> {
    match command {
        Value::Object(members) => members
            .iter()
            .filter(|(key, _)| !NOT_ARGUMENTS.contains(&key.as_str()))
            .flat_map(|(key, value)| {
                let mut inner = arguments(value);
                inner.push(key);
                inner
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(arguments).collect(),
        Value::String(text) => vec![text],
        _ => Vec::new(),
    }
}

/// The only characters that an argument may have.
pub fn is_harmless(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: String) {
        self.0.push(fault);
    }

    fn unless(&mut self, right: bool, fault: impl FnOnce() -> String) {
        if !right {
            self.add(fault());
        }
    }

    /// Each of the values that a header may have; absent is right.
    fn one_of(&mut self, command: &Map<String, Value>, key: &str, allowed: &[&str]) {
        if let Some(value) = command.get(key) {
            let known = value.as_str().is_some_and(|text| allowed.contains(&text));
            self.unless(known, || format!("{key} is {value}"));
        }
    }

    /// `kz_api:validate`: the five default headers, as texts; and nothing is sent that is empty.
    fn default_headers(&mut self, command: &Map<String, Value>) {
        for key in [
            "App-Name",
            "App-Version",
            "Event-Category",
            "Event-Name",
            "Msg-ID",
            "Call-ID",
        ] {
            let right = text(command, key).is_some_and(|text| !text.is_empty());
            self.unless(right, || format!("{key} is {:?}", command.get(key)));
        }
        self.one_of(command, "Event-Category", &["call"]);
        self.one_of(command, "Event-Name", &["command"]);
        // A queue's other command could go first, or never.
        self.unless(text(command, "Insert-At") == Some("now"), || {
            "Insert-At is not now".into()
        });
        for (key, value) in command {
            let empty = value.is_null() || value.as_str() == Some("");
            self.unless(!empty, || format!("{key} is {value}"));
        }
    }

    fn record_call(&mut self, command: &Map<String, Value>) {
        self.one_of(command, "Record-Action", &["start", "stop", "mask", "unmask"]);
        self.unless(command.contains_key("Record-Action"), || "no Record-Action".into());
        self.unless(text(command, "Media-Name").is_some(), || "no Media-Name".into());
        for (key, right) in [
            ("Media-Name", Value::is_string as fn(&Value) -> bool),
            ("Media-Recorder", Value::is_string),
            ("Media-Recording-ID", Value::is_string),
            ("Record-Sample-Rate", is_integer),
            ("Record-Min-Sec", Value::is_string),
            ("Time-Limit", is_integer),
            ("Follow-Transfer", Value::is_boolean),
            ("Channels-As-Stereo", Value::is_boolean),
            ("Recording-Variables", Value::is_object),
            ("Record-Silence-Detection", Value::is_object),
        ] {
            if let Some(value) = command.get(key) {
                self.unless(right(value), || format!("{key} is {value}"));
            }
        }
        // ecallmgr would store the file by itself, or put a tenant's words on the command line.
        for key in [
            "Media-Transfer-Destination",
            "Media-Transfer-Method",
            "Additional-Headers",
            "Media-Recording-Origin",
            "Media-Recording-Endpoint-ID",
            "Server-ID",
        ] {
            self.unless(!command.contains_key(key), || format!("{key} is sent"));
        }
        for argument in arguments(&Value::Object(command.clone())) {
            self.unless(is_harmless(argument), || format!("an argument is {argument:?}"));
        }
        if text(command, "Record-Action") == Some("start") {
            self.start(command);
        }
    }

    fn start(&mut self, command: &Map<String, Value>) {
        // Defaults of these differ by version, and ecallmgr crashes without the id.
        for key in [
            "Media-Recorder",
            "Media-Recording-ID",
            "Time-Limit",
            "Follow-Transfer",
            "Record-Min-Sec",
            "Recording-Variables",
        ] {
            self.unless(command.contains_key(key), || format!("no {key}"));
        }
        let recorder = text(command, "Media-Recorder");
        self.unless(recorder == Some("kz_record_call"), || {
            format!("the recorder is {recorder:?}")
        });
        let digits = text(command, "Record-Min-Sec").is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
        self.unless(digits, || "Record-Min-Sec is not a number".into());
        self.unless(command.get("Time-Limit").and_then(Value::as_u64) >= Some(5), || {
            "Time-Limit is too little".into()
        });
        if let Some(rate) = command.get("Record-Sample-Rate").and_then(Value::as_u64) {
            self.unless((8_000..=48_000).contains(&rate), || {
                format!("Record-Sample-Rate is {rate}")
            });
        }
        let id = text(command, "Media-Recording-ID").unwrap_or_default();
        self.unless(is_id(id), || format!("Media-Recording-ID is {id:?}"));
        let name = text(command, "Media-Name").unwrap_or_default();
        self.unless(is_own_name(name), || {
            format!("Media-Name {name:?} may be another recording's")
        });
        if let Some(silence) = command.get("Record-Silence-Detection").and_then(Value::as_object) {
            let keys: Vec<&str> = silence.keys().map(String::as_str).collect();
            let right = keys == ["Final-Timeout", "Initial-Timeout", "Threshold"] && silence.values().all(is_integer);
            self.unless(right, || format!("Record-Silence-Detection is {silence:?}"));
        }
        let variables = command.get("Recording-Variables").and_then(Value::as_object);
        for (key, value) in variables.into_iter().flatten() {
            let short = value.as_str().is_some_and(|text| text.len() <= 1024);
            self.unless(short, || format!("the variable {key} is {value}"));
        }
        for (key, wanted) in [("Name", name), ("ID", id), ("Recorder", "kz_record_call")] {
            let given = variables.and_then(|variables| text(variables, key));
            self.unless(given == Some(wanted), || format!("the variable {key} is {given:?}"));
        }
        // Beside what we carry: settings of the switch, which it reads from here first. Numbers, and one word.
        for (key, value) in variables.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let right = match key.as_str() {
                "Name" | "Recorder" | "ID" | "Carry" => true,
                "RECORD_SILENCE_THRESHOLD" | "RECORD_INITIAL_TIMEOUT_MS" | "RECORD_FINAL_TIMEOUT_MS" => digits,
                "RECORD_STEREO" => value == "false",
                _ => false,
            };
            self.unless(right, || format!("the variable {key} is {value}"));
        }
        self.unless(variables.is_some_and(|v| v.contains_key("Carry")), || {
            "nothing is carried".into()
        });
        let stereo = command.get("Channels-As-Stereo").and_then(Value::as_bool);
        let channels = variables.and_then(|variables| text(variables, "RECORD_STEREO"));
        self.unless(stereo == channels.map(|word| word == "true"), || {
            format!("Channels-As-Stereo {stereo:?} and RECORD_STEREO {channels:?}")
        });
    }

    /// `kapi_dialplan:set`: both objects must be there. Two names are written to the channel as they are (`SPECIAL_CHANNEL_VARS`).
    fn set(&mut self, command: &Map<String, Value>) {
        self.default_headers(command);
        let empty = command
            .get("Custom-Call-Vars")
            .and_then(Value::as_object)
            .is_some_and(Map::is_empty);
        self.unless(empty, || "Custom-Call-Vars is missing, or is not empty".into());
        let set = command.get("Custom-Channel-Vars").and_then(Value::as_object);
        for (key, value) in set.into_iter().flatten() {
            let known = ["recording_follow_transfer", "recording_follow_attxfer"].contains(&key.as_str());
            let word = value.as_str().is_some_and(|text| ["true", "false"].contains(&text));
            self.unless(known && word, || format!("the channel's {key} is {value}"));
        }
        self.unless(set.is_some_and(|set| set.len() == 2), || {
            "not both ways of transfer".into()
        });
    }

    fn event_actions(&mut self, command: &Map<String, Value>) {
        let events = command.get("Event-Actions").and_then(Value::as_object);
        self.unless(events.is_some_and(|events| events.len() == 1), || {
            "not one event".into()
        });
        for (event, actions) in events.into_iter().flatten() {
            let known = ["Execute-On-Answer", "Execute-On-Bridge"].contains(&event.as_str());
            self.unless(known, || format!("the event is {event:?}"));
            let inner = actions.as_object().filter(|actions| actions.len() == 1);
            let Some(inner) = inner.and_then(|actions| actions.get("Record-Call")?.as_object()) else {
                self.add(format!("the actions are {actions}"));
                continue;
            };
            self.unless(text(inner, "Record-Action") == Some("start"), || {
                "it starts nothing".into()
            });
            self.unless(inner.get("Call-ID") == command.get("Call-ID"), || "another call".into());
            self.default_headers(inner);
            self.record_call(inner);
        }
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_u64() || value.is_i64()
}

/// `YYYYMM-` and 1 to 64 of `A-Z a-z 0-9 _ -`.
pub fn is_id(id: &str) -> bool {
    let Some((month, rest)) = id.split_at_checked(6) else {
        return false;
    };
    let rest = rest.strip_prefix('-').unwrap_or_default();
    month.bytes().all(|b| b.is_ascii_digit())
        && (1..=64).contains(&rest.len())
        && is_harmless(rest)
        && !rest.contains('.')
}

/// A name that no other recording has: 32 hex digits, and what it is.
fn is_own_name(name: &str) -> bool {
    let Some((stem, extension)) = name.split_once('.') else {
        return false;
    };
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    stem.len() == 32 && stem.bytes().all(hex) && ["mp3", "wav"].contains(&extension)
}
