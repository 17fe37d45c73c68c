//! An action, from the bytes that the broker brings to the commands that go back to it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::LazyLock;

use jsonschema::Validator;
use kz_record_call::destination::url::Target;
use kz_record_call::kazoo::action::{Execute, ExecuteError, ReplyTo};
use kz_record_call::kazoo::dialplan;
use kz_record_call::kazoo::envelope::{Envelope, Sender};
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::carry::Seal;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::order::{Order, Url};
use kz_record_call::recording::plan::{Circumstances, Defaults, Plan, plan};
use kz_record_call::recording::settings::Correction;
use serde_json::{Value, json};

use crate::kazoo;

/// A day of November 2026.
pub const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

/// Kazoo's own configuration.
pub fn kazoos() -> Defaults {
    Defaults {
        format: Format::Mp3,
        min_sec: 0,
        max_time_limit: 10_800,
    }
}

/// One that says something else everywhere.
pub fn another() -> Defaults {
    Defaults {
        format: Format::Wav,
        min_sec: 2,
        max_time_limit: 600,
    }
}

/// A true action's message, with other data.
pub fn message(data: Option<&Value>) -> Value {
    static TRUE: LazyLock<Value> = LazyLock::new(|| {
        serde_json::from_str(include_str!("../fixtures/action_execute/01-start-minimal.json")).unwrap()
    });
    let mut message = TRUE.clone();
    match data {
        Some(data) => message["Data"] = data.clone(),
        None => drop(message.as_object_mut().unwrap().remove("Data")),
    }
    message
}

/// What an action came to.
pub struct Outcome {
    /// What is sent to the call, if anything: whole, and its `record_call` part.
    pub sent: Option<Value>,
    pub command: Value,
    /// `now`, or what it waits for.
    pub begins: &'static str,
    /// What is told to the call's channel before, if anything.
    pub set: Option<Value>,
    pub order: Option<Order>,
    pub corrections: Vec<Correction>,
}

/// Why the message cannot be run, though somebody is answered.
pub fn refusal(body: &[u8]) -> ExecuteError {
    let envelope = Envelope::decode("application/json", "", body).expect("a message");
    ReplyTo::of(&envelope).expect("somebody to answer");
    Execute::of(&envelope).expect_err("an action that is refused")
}

/// Reads the message as the worker does, plans it, and holds what is sent against the schemas, and against Kazoo's validators as they are stated
/// in `kazoo.rs`.
pub fn run(body: &[u8], defaults: &Defaults) -> Outcome {
    let envelope = Envelope::decode("application/json", "", body).expect("a message");
    ReplyTo::of(&envelope).expect("somebody to answer");
    let action = Execute::of(&envelope).expect("an action");
    static SEAL: LazyLock<Seal> = LazyLock::new(|| Seal::new(b"secret"));
    let circumstances = Circumstances {
        defaults,
        seal: &SEAL,
        zone: "local",
        recordings: "/tmp/",
        timestamp: None,
        now: NOW,
    };
    let sender = Sender {
        node: "kz_record_call@rec1".into(),
    };
    let (plan, corrections) = plan(&action, &circumstances);
    let (sent, order) = match plan {
        Plan::Skip => (None, None),
        Plan::Control(what) => {
            let id = "5a0f1b2c3d4e5f60718293a4b5c6d7e8";
            let name = format!("{id}.mp3");
            let sent = dialplan::control(&sender, &action.control, id, &action.call_id, &name, what);
            (Some(sent.body), None)
        }
        Plan::Start(order) => {
            let trigger = order.command.as_ref().expect("a new order").trigger;
            let sent = order.command(&sender, &action.call_id, trigger).expect("a command");
            assert_eq!((sent.exchange.name(), sent.mandatory), ("callctl", true));
            (Some(sent.body), Some(*order))
        }
    };
    let set = order
        .as_ref()
        .and_then(|order| order.follow_transfer(&sender, &action.call_id))
        .map(|set| set.body);
    for sent in sent.iter().chain(&set) {
        check(sent);
    }
    let (begins, command) = match sent.as_ref().map(|sent| &sent["Event-Actions"]) {
        Some(Value::Object(events)) if events.contains_key("Execute-On-Answer") => {
            ("Execute-On-Answer", events["Execute-On-Answer"]["Record-Call"].clone())
        }
        Some(Value::Object(events)) => ("Execute-On-Bridge", events["Execute-On-Bridge"]["Record-Call"].clone()),
        _ => ("now", sent.clone().unwrap_or(Value::Null)),
    };
    Outcome {
        sent,
        command,
        begins,
        set,
        order,
        corrections,
    }
}

static SCHEMAS: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| {
    let load = |name| {
        let path = format!("{}/schemas/messages/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        (name, jsonschema::validator_for(&schema).unwrap())
    };
    ["record_call.start", "record_call.control", "event_actions", "set"]
        .map(load)
        .into()
});

/// A command is valid by its schema and by Kazoo, and nothing in it reaches the switch's shell.
pub fn check(sent: &Value) {
    let schema = match (sent["Application-Name"].as_str(), sent["Record-Action"].as_str()) {
        (Some(wrapping @ ("event_actions" | "set")), _) => wrapping,
        (_, Some("start")) => "record_call.start",
        _ => "record_call.control",
    };
    let faults: Vec<String> = SCHEMAS[schema]
        .iter_errors(sent)
        .map(|fault| fault.to_string())
        .collect();
    assert!(faults.is_empty(), "{schema}: {faults:?}\n{sent:#}");
    let faults = kazoo::faults(sent);
    assert!(faults.is_empty(), "{faults:?}\n{sent:#}");
    if let Some(path) = std::env::var_os("TEST_MESSAGES") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{schema} {sent}\n").as_bytes()).unwrap();
    }
}

impl Outcome {
    /// What is seen of it: a header of the command, or what is kept for the document and the delivery. What was made from call and action is
    /// `derived`.
    pub fn seen(&self, what: &str) -> Value {
        let order = self.order.as_ref();
        let derived = |text: &str| match order {
            Some(order) if text == order.file_name || text == format!("202611-{}", order.key) => json!("derived"),
            _ => json!(text),
        };
        match what {
            "begins" => json!(self.begins),
            // Sent where it differs from what the switch does by itself.
            "the channel's recording_follow_transfer" => {
                let set = self
                    .set
                    .as_ref()
                    .map_or(&Value::Null, |set| &set["Custom-Channel-Vars"]);
                assert_eq!(set["recording_follow_transfer"], set["recording_follow_attxfer"]);
                set["recording_follow_transfer"].clone()
            }
            "extension" => {
                let name = self.command["Media-Name"].as_str().unwrap_or_default();
                json!(name.rsplit('.').next())
            }
            "document's id" => derived(self.command["Media-Recording-ID"].as_str().unwrap_or_default()),
            "document's name" => derived(order.map_or("", |order| &order.media_name)),
            "document's origin" => json!(order.map(|order| &order.origin)),
            "method" => json!(order.map(|order| order.method)),
            "url" => match order.map(|order| &order.url) {
                Some(Url::Given(url)) if Target::parse(url).is_ok() => json!(url),
                Some(Url::Given(_)) => json!("unusable"),
                _ => Value::Null,
            },
            header => match self.command.pointer(&format!("/{header}")) {
                Some(Value::String(text)) => derived(text),
                other => other.cloned().unwrap_or(Value::Null),
            },
        }
    }

    /// What was told of a key: what is used instead, and why.
    pub fn told(&self, key: &str) -> Option<(String, String)> {
        let mut told = self.corrections.iter().filter(|correction| correction.key == key);
        let correction = told.next()?;
        assert!(told.next().is_none(), "{key} is told twice: {:?}", self.corrections);
        let own = self.order.as_ref().map_or("", |order| &order.file_name);
        let used = if correction.used == own {
            "derived"
        } else {
            &correction.used
        };
        Some((used.to_owned(), correction.why.to_owned()))
    }
}
