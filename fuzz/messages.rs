//! Whatever comes by the broker: read as the worker reads it, then planned, with what must hold of the outcome whatever came.
//!
//! An input's first byte says how the body is packed, its second which true message the rest is put into, and where; 0 is nowhere. The routing
//! key is in no input: nothing that reads a message looks at it.
use std::io::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::flow::journal;
use kz_record_call::flow::memory::{Open, OpenRecordings};
use kz_record_call::flow::peer_notices::{News, restart_of};
use kz_record_call::kazoo::action::{self, Execute, ReplyTo};
use kz_record_call::kazoo::address::Address;
use kz_record_call::kazoo::channel::{StatusReply, answered_request, channel_state, status_request};
use kz_record_call::kazoo::dialplan::{self, Control, DialplanError, Trigger};
use kz_record_call::kazoo::envelope::{Envelope, MAX_BODY_BYTES, MessageError, Sender};
use kz_record_call::kazoo::event::{RecordEvent, replaced_by};
use kz_record_call::kazoo::outgoing::Outgoing;
use kz_record_call::kazoo::switch::{SendHttpReply, send_http};
use kz_record_call::kazoo::time::{Moment, message_time};
use kz_record_call::lifecycle::{Case, Hand, Input, Policy, step};
use kz_record_call::recording::adopt;
use kz_record_call::recording::carry::Seal;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::names;
use kz_record_call::recording::order::{Order, Url};
use kz_record_call::recording::plan::{Circumstances, Defaults, Plan, plan};
use kz_record_call::system_config::Media;
use serde_json::{Value, json};

use crate::kazoo;

const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);
const ID: &str = "5a0f1b2c3d4e5f60718293a4b5c6d7e8";

/// True messages, and the places in them that an input can be put into.
const TEMPLATES: &[(&str, &[&str])] = &[
    (
        include_str!("../tests/fixtures/action_execute/02-start-all-keys.json"),
        &[
            "/Data",
            "/Data",
            "/Data/url",
            "/Data/media_id",
            "/Data/media_name",
            "/Data/label",
            "/Data/time_limit",
            "/Data/silence_detection",
            "/Call",
            "/Call/Control-Queue",
            "/Call/Controller-Queue",
            "/Call/Custom-Channel-Vars",
            "/Call/Account-ID",
            "/Call/Fetch-ID",
            "/Call/Key-Value-Store/cf_flow_name",
            "/Call-ID",
            "/Server-ID",
            "/Msg-ID",
        ],
    ),
    (
        include_str!("../tests/fixtures/action_execute/03-stop.json"),
        &["/Data", "/Call/Custom-Channel-Vars/Media-Name", "/Call-ID"],
    ),
    (
        include_str!("../tests/fixtures/call_events/02-record-stop.json"),
        &[
            "/Recording",
            "/Recording/File-Path",
            "/Recording/Recorder",
            "/Recording/Data",
            "/Custom-Channel-Vars",
            "/Timestamp",
            "/Msg-ID",
            "/Length",
            "/Call-ID",
            "/Switch-Nodename",
            "/Event-Name",
        ],
    ),
    (
        r#"{"Event-Category":"switch_event","Event-Name":"reply","Msg-ID":"5a","Result":"error","Error":"x","Event-Data":{"API-Error":"error opening file"}}"#,
        &["/Event-Data", "/Error", "/Result"],
    ),
    (
        r#"{"Event-Category":"call_event","Event-Name":"channel_status_resp","Msg-ID":"5a","Status":"active","Other-Leg-Call-ID":"b"}"#,
        &["/Status", "/Other-Leg-Call-ID"],
    ),
    (
        r#"{"Event-Category":"call_event","Event-Name":"query_channels_resp","Msg-ID":"5a","Channels":{"c":{"Answered":true}}}"#,
        &["/Channels", "/Channels/c"],
    ),
    (
        r#"{"Event-Category":"error","Event-Name":"dialplan","Msg-ID":"5a","Call-ID":"c","Error-Message":"no","Dialplan-Error":"throw"}"#,
        &["/Error-Message", "/Msg-ID", "/Dialplan-Error"],
    ),
    (
        r#"{"Event-Category":"call_event","Event-Name":"CHANNEL_DIRECT","Call-ID":"c","Connecting-Leg-B-UUID":"d","Replaced-By":"e"}"#,
        &["/Call-ID", "/Connecting-Leg-B-UUID"],
    ),
    (
        r#"{"Event-Category":"configuration","Event-Name":"doc_edited","ID":"media","Database":"system_config","default":{"store_recordings":true}}"#,
        &["/default", "/local", "/ID"],
    ),
    (
        r#"{"Event-Category":"kz_record_call","Event-Name":"recordings","Recordings":[{"opened":{"key":"5a0f1b2c3d4e5f60718293a4b5c6d7e8","call_id":"c","media_id":"m","file_name":"f","asked_at":1}}]}"#,
        &["/Recordings", "/Recordings/0/opened", "/Recordings/0/opened/file_name"],
    ),
    (
        r#"{"Event-Category":"kz_record_call","Event-Name":"began_again","Key":"5a0f1b2c3d4e5f60718293a4b5c6d7e8","Fact":{}}"#,
        &["/Fact", "/Key"],
    ),
    (
        r#"{"key":"5a0f1b2c3d4e5f60718293a4b5c6d7e8","call_id":"c","facts":[{"at":1795386262000000,"by":"w","fact":"commanded"}]}"#,
        &["/facts", "/call_id"],
    ),
];

/// Each template split where an input goes.
static SPLIT: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    const HOLE: &str = "kz-record-call-hole";
    let mut all = Vec::new();
    for (text, places) in TEMPLATES {
        for place in *places {
            let mut message: Value = serde_json::from_str(text).expect("a template");
            let (parent, name) = place.rsplit_once('/').expect("a pointer");
            message.pointer_mut(parent).expect("a place")[name] = json!(HOLE);
            let whole = message.to_string();
            let (before, after) = whole.split_once(&format!("\"{HOLE}\"")).expect("a hole");
            all.push((before.to_owned(), after.to_owned()));
        }
    }
    all
});

/// One input.
pub fn messages(data: &[u8]) {
    let [packing, place, rest @ ..] = data else { return };
    let body = match usize::from(*place) {
        0 => rest.to_vec(),
        n => {
            let (before, after) = &SPLIT[n % SPLIT.len()];
            [before.as_bytes(), rest, after.as_bytes()].concat()
        }
    };
    let (kind, encoding, body) = match packing % 8 {
        0..=2 => ("application/json", "", body),
        3 => ("", "gzip", gzipped(&body)),
        4 => ("application/json", "gzip", rest.to_vec()),
        5 => ("application/json; charset=utf-8", "", body),
        6 => ("application/erlang", "", body),
        _ => ("application/json", "br", body),
    };
    if let Ok(entry) = journal::read(&body, NOW) {
        journalled(&entry, *packing);
    }
    match Envelope::decode(kind, encoding, &body) {
        Ok(envelope) => read(&envelope, *packing),
        Err(MessageError::TooLarge(limit)) => assert!(limit == MAX_BODY_BYTES && encoding == "gzip"),
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("a vector");
    encoder.finish().expect("a vector")
}

fn sender() -> Sender {
    Sender {
        node: "kz_record_call@rec1".into(),
    }
}

fn seal() -> &'static Seal {
    static SEAL: LazyLock<Seal> = LazyLock::new(|| Seal::new(b"secret"));
    &SEAL
}

/// Every reader has a look at every message: each must refuse what is not its own.
fn read(envelope: &Envelope, packing: u8) {
    answers(envelope);
    if let Ok(action) = Execute::of(envelope) {
        planned(&action, packing);
    }
    if let Ok(event) = RecordEvent::of(envelope) {
        ended(&event);
    }
    if let Some((old, new)) = replaced_by(envelope) {
        assert!(old != new && !old.is_empty() && !new.is_empty());
    }
    if let Ok(error) = DialplanError::of(envelope) {
        assert!(error.message.len() <= 300 && !error.msg_id.is_empty());
    }
    if let Ok(reply) = SendHttpReply::of(envelope) {
        assert!(reply.error.as_ref().is_none_or(|words| words.len() <= 300));
        let _ = reply.says_file_missing();
    }
    let _ = StatusReply::of(envelope);
    let _ = channel_state(envelope, "c");
    let _ = Media::read(&envelope.body, "local");
    told(envelope);
}

/// What other workers tell.
fn told(envelope: &Envelope) {
    let memory = OpenRecordings::default();
    for news in News::of(envelope, NOW) {
        comes_back(&news);
        let open = news.open().clone();
        memory.open(open.clone());
        if let Some(newest) = memory.newest(open.fetch_id.as_deref(), &open.call_id, None) {
            let to = Address::parse("q").expect("an address");
            let sent = dialplan::control(&sender(), &to, ID, "c", &newest.file_name, Control::Stop);
            commanded(&sent, "c");
        }
        if let News::Closed(open) = news {
            memory.close(open.key);
            assert!(!memory.is_open(open.key));
        }
    }
    if let Some((key, started, open)) = restart_of(envelope, NOW) {
        comes_back(&started);
        memory.began_again(key, started);
        if let Some(open) = open {
            comes_back(&open);
            assert!(names::is_plain(&open.file_name));
            memory.reopen(open);
            assert!(memory.is_open(key));
        }
        consistent(&memory.complete(Entry::new(key, "c")));
    }
}

/// What was written down while the ledger was away: whatever it is, there is an end to what is done about it at once.
fn journalled(entry: &Entry, packing: u8) {
    let entry = entry.clone().merge(Entry::new(entry.key, &entry.call_id));
    consistent(&entry);
    if let Some(order) = entry.order()
        && let Some(sent) = order.command(&sender(), "c", Trigger::Now)
    {
        assert!(kazoo::arguments(&sent.body).into_iter().all(kazoo::is_harmless));
    }
    let hands = [Hand::Empty, Hand::Received, Hand::Tried, Hand::HoldRefused];
    let mut case = Case {
        entry,
        hand: hands[usize::from(packing >> 6)],
        informed: packing & 1 == 0,
    };
    let mut now = NOW;
    for input in [Input::Due, Input::Doubt, Input::HoldRefused, Input::Due] {
        step(&mut case, input, now, &policy());
        consistent(&case.entry);
        now = now.plus(Duration::from_secs(3600));
    }
}

fn policy() -> Policy {
    let seconds = |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect();
    Policy {
        worker: "w".into(),
        retry: seconds(&[5, 30]),
        jitter: 20,
        max_attempts: 12,
        hold: true,
        hold_pause: Duration::from_secs(60),
        hold_retention: None,
        looks: seconds(&[60, 300]),
        start_timeout: Duration::from_secs(30),
        check_interval: Duration::from_secs(300),
        grace: Duration::from_secs(60),
        probe_gap: Duration::from_secs(60),
        stop_repeats: seconds(&[2, 5, 15]),
        stop_alarm: Duration::from_secs(30),
        rescue: true,
        hooks: kz_record_call::lifecycle::Hooks::default(),
    }
}

fn comes_back<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let written = serde_json::to_string(value).expect("it can be written");
    assert_eq!(&serde_json::from_str::<T>(&written).expect("it can be read"), value);
}

/// Whoever can be answered is answered, in Kazoo's form.
fn answers(envelope: &Envelope) {
    let Ok(to) = ReplyTo::of(envelope) else { return };
    for message in [action::accepted(&sender(), &to), action::continues(&sender(), &to)] {
        assert_eq!(message.body["Msg-ID"], json!(to.msg_id));
        assert_eq!(message.body["Event-Category"], "callflow");
        addressed(&message);
    }
}

/// What the broker, and Kazoo's listeners behind it, take.
fn addressed(message: &Outgoing) {
    assert!((1..=255).contains(&message.routing_key.len()));
    if let Some(pid) = &message.deliver_to_pid {
        let inner = pid
            .strip_prefix('<')
            .and_then(|pid| pid.strip_suffix('>'))
            .expect("a pid");
        let numbers: Vec<&str> = inner.split('.').collect();
        assert!(
            numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u64>().is_ok()),
            "{pid}"
        );
    }
}

fn planned(action: &Execute, packing: u8) {
    let defaults = Defaults {
        max_time_limit: [10_800, 600, 0, u32::MAX][usize::from(packing >> 6)],
        ..Defaults::default()
    };
    let timestamp = (packing & 32 != 0).then_some(63_962_605_462_493_562);
    let circumstances = Circumstances {
        defaults: &defaults,
        seal: seal(),
        zone: "local",
        recordings: "/tmp/",
        timestamp,
        now: NOW,
    };
    let (made, corrections) = plan(action, &circumstances);
    assert_eq!(
        plan(action, &circumstances),
        (made.clone(), corrections.clone()),
        "the same again"
    );
    for (n, correction) in corrections.iter().enumerate() {
        assert!(
            correction.given.len() <= 64 && correction.used.len() <= 128,
            "{correction:?}"
        );
        assert!(
            corrections[..n].iter().all(|other| other.key != correction.key),
            "{corrections:?}"
        );
    }
    match made {
        Plan::Skip => {}
        Plan::Control(what) => {
            if let Some(name) = action.call.media_name.as_deref().filter(|name| names::is_plain(name)) {
                let sent = dialplan::control(&sender(), &action.control, ID, &action.call_id, name, what);
                commanded(&sent, &action.call_id);
            }
        }
        Plan::Start(order) => ordered(action, &order, timestamp, &defaults),
    }
    let asked = status_request(&sender(), ID, "replies", &action.call_id);
    assert!(asked.is_none_or(|asked| asked.routing_key.len() <= 255));
    addressed(&answered_request(&sender(), ID, "replies", &action.call_id));
}

fn ordered(action: &Execute, order: &Order, timestamp: Option<u64>, defaults: &Defaults) {
    let command = order.command.as_ref().expect("it is new");
    for trigger in [command.trigger, Trigger::Now] {
        let sent = order
            .command(&sender(), &action.call_id, trigger)
            .expect("it can be sent");
        assert_eq!(sent.routing_key, action.control.queue());
        commanded(&sent, &action.call_id);
    }
    assert!(command.time_limit <= defaults.max_time_limit.max(5));
    assert!(names::is_plain(&order.media_name) && order.media_name.len() <= 128);
    assert!(!order.media_name.starts_with('_') && order.media_name.ends_with(order.format.extension()));
    assert!(order.origin.starts_with("callflow : ") && order.origin.len() <= 139);
    assert!(
        matches!(&order.url, Url::None)
            || matches!(&order.url, Url::Given(url) if url.len() <= 2048 && !url.is_empty())
    );
    let month = timestamp.and_then(|t| message_time(t, NOW)).unwrap_or(NOW).month();
    assert!(order.media_id.month() == month || order.media_id.as_str() == action.data["media_id"]);
    comes_back(order);
    comes_back(&order.continuation());
    let carried = seal().open(Some(&command.carry)).expect("it is ours");
    assert_eq!((carried.key, &carried.media_id), (order.key, &order.media_id));
    assert_eq!(
        (carried.format, carried.method, carried.min_sec),
        (order.format, order.method, order.min_sec)
    );
    assert_eq!(carried.account_id, order.account_id);
    assert!(
        carried.url == order.url || carried.url == Url::Lost,
        "nobody forgets that there was one"
    );
    let mut entry = Entry::of_order(order.clone(), "w");
    entry.add(Fact {
        at: NOW,
        by: "w".into(),
        what: What::Commanded,
    });
    consistent(&entry);
}

/// Kazoo takes it, nothing of it reaches the switch's shell, and it is no longer than what came.
fn commanded(sent: &Outgoing, call_id: &str) {
    addressed(sent);
    let faults = kazoo::faults(&sent.body);
    assert!(faults.is_empty(), "{faults:?}");
    let arguments = kazoo::arguments(&sent.body);
    assert!(arguments.iter().all(|argument| kazoo::is_harmless(argument)));
    // A control character takes six bytes, and the call's id is there twice in a delayed start.
    assert!(sent.body.to_string().len() <= 4096 + 12 * call_id.len());
}

/// The same event, as if Kazoo's own recorder had begun the recording.
fn adopted(event: &RecordEvent) {
    let mut event = event.clone();
    event.recording.data = event.recording.data.or_else(|| event.recording.carry.clone());
    let circumstances = adopt::Circumstances {
        zone: "local",
        shared_names: false,
        months: NOW.month()..=NOW.month(),
        at: NOW,
    };
    let Ok((order, unreadable)) = adopt::order(&event, &circumstances) else {
        return;
    };
    comes_back(&order);
    assert!(order.is_harmless() && order.control().is_none() && order.start("call").is_none());
    assert!(order.media_id.month() == NOW.month() && order.asked_at.month() == NOW.month());
    assert!(
        unreadable.is_none() || order.url == Url::Lost,
        "where it must go is unknown"
    );
    assert!(order.file_name.len() <= 255 && order.origin.len() <= 256);
    let told = Told::of_order(&event, &order, NOW);
    let inside = |path: &str| path.starts_with('/') && !path.split('/').any(|part| part == "..");
    assert!(told.path.as_deref().is_none_or(inside));
    let mut entry = Entry::of_order(order, "w");
    assert!(Open::of(&entry).is_none(), "no action of ours is for it");
    for what in [What::Started(Box::new(told.clone())), What::Ended(Box::new(told))] {
        entry.add(Fact {
            at: NOW,
            by: "w".into(),
            what,
        });
    }
    consistent(&entry);
}

fn ended(event: &RecordEvent) {
    adopted(event);
    let name = event.recording.name.as_deref().unwrap_or_default();
    let told = Told::of(event, name, NOW);
    let path = told.path.as_deref();
    assert!(path.is_none_or(|path| path.starts_with('/') && path.ends_with(name) && !path.contains("/../")));
    comes_back(&told);
    let variables = event.variables.as_object().expect("they are an object");
    assert!(variables.len() <= 64 && event.variables.to_string().len() <= 256 * 1024);
    if let (Some(node), Some(path)) = (&told.node, &told.path)
        && let Ok(sent) = send_http(&sender(), ID, "replies", node, path, "http://rec1:24530/r/abc")
    {
        let argument = sent.body["Args"]["File-Name"].as_str().expect("a path");
        assert!(!argument.contains("${") && !argument.contains(char::is_whitespace));
        addressed(&sent);
    }
    let order = match seal().open(event.recording.carry.as_deref()) {
        Ok(order) => order,
        Err(_) => return,
    };
    let mut entry = Entry::of_order(order, "w");
    for what in [What::Started(Box::new(told.clone())), What::Ended(Box::new(told))] {
        entry.add(Fact {
            at: NOW,
            by: "w".into(),
            what,
        });
    }
    consistent(&entry);
}

/// An entry is the union of what is known, however often it is told.
fn consistent(entry: &Entry) {
    comes_back(entry);
    assert_eq!(&entry.clone().merge(entry.clone()), entry);
    let _ = (entry.parts().len(), entry.is_open(), entry.ended_at(), Open::of(entry));
    let _ = (entry.untold_start(), entry.owes_release(), entry.goes_on());
}
