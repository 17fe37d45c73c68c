use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::kazoo::envelope::Envelope;
use crate::recording::audio::Audio;
use crate::recording::controls::Controls;
use crate::recording::digest::Digests;
use crate::recording::document::Subject;
use crate::recording::ending::Told;

use super::*;

const NOW: Moment = Moment::from_unix_seconds(1_795_947_400);

/// The files of `tests/fixtures/kazoo_recorder`.
macro_rules! fixtures {
    ($name:expr; $($known:literal),+ $(,)?) => {
        match $name {
            $($known => include_str!(concat!("../../../tests/fixtures/kazoo_recorder/", $known, ".json")),)+
            other => panic!("no fixture {other}"),
        }
    };
}

fn fixture(name: &str) -> Value {
    let text = fixtures!(
        name;
        "workers0-account_inbound-p5b-RECORD_STOP",
        "workers1-account_inbound-p5c-RECORD_START",
        "workers1-account_inbound-p5c-RECORD_STOP",
        "workers1-account_inbound-p5c-document",
        "workers1-endpoint_inbound-p5c-RECORD_START",
        "workers1-endpoint_inbound-p5c-RECORD_STOP",
        "workers1-endpoint_inbound-p5c-document",
        "workers1-local_record_call-p5d-RECORD_START",
        "workers1-local_record_call-p5d-RECORD_STOP",
        "workers1-local_record_call-p5d-document",
    );
    serde_json::from_str(text).unwrap()
}

fn event(body: Value) -> RecordEvent {
    RecordEvent::of(&Envelope::of(body).unwrap()).unwrap()
}

fn circumstances() -> Circumstances<'static> {
    Circumstances {
        zone: "local",
        shared_names: false,
        months: Moment::from_unix_seconds(1_790_000_000).month()..=NOW.month(),
        at: NOW,
    }
}

fn ordered(body: Value) -> (Order, Option<TermError>) {
    order(&event(body), &circumstances()).unwrap()
}

/// A JSON object as Kazoo writes it into `Recording.Data`.
fn data(fields: &[(&str, Term)]) -> String {
    let pair = |(key, value): &(&str, Term)| Term::Tuple(vec![Term::binary(key), value.clone()]);
    let pairs = Term::List(fields.iter().map(pair).collect());
    Term::Tuple(vec![pairs]).to_base64().unwrap()
}

fn with_data(text: &str) -> Value {
    let mut body = fixture("workers1-account_inbound-p5c-RECORD_STOP");
    body["Recording"]["Data"] = json!(text);
    body
}

const KINDS: [&str; 3] = ["account_inbound-p5c", "endpoint_inbound-p5c", "local_record_call-p5d"];

/// Fields that no other program can write in the same way.
const OF_THE_WRITER: [&str; 7] = [
    "_attachments",
    "_rev",
    "pvt_created",
    "pvt_document_hash",
    "pvt_modified",
    "pvt_node",
    "pvt_recording",
];

fn without(document: &Value, keys: &[&str]) -> Map<String, Value> {
    let mut fields = document.as_object().unwrap().clone();
    fields.retain(|key, _| !keys.contains(&key.as_str()));
    fields
}

#[test]
fn the_document_is_the_one_that_media_mgr_wrote_for_the_same_event() {
    for kind in KINDS {
        let stop = event(fixture(&format!("workers1-{kind}-RECORD_STOP")));
        let (order, unreadable) = order(&stop, &circumstances()).unwrap();
        assert_eq!(unreadable, None);
        let ended = Told::of_order(&stop, &order, NOW);
        assert!(ended.path.is_some(), "{kind}");
        let start = event(fixture(&format!("workers1-{kind}-RECORD_START")));
        let started = Told::of_order(&start, &order, NOW);
        let audio = Audio {
            size: 7,
            digests: Digests {
                md5: "00".into(),
                sha256: "11".into(),
            },
            duration_ms: Some(59_000),
            findings: vec![],
            as_written: None,
        };
        let subject = Subject {
            order: &order,
            id: &order.media_id,
            account_id: order.account_id.as_deref().unwrap(),
            started: Some(&started),
            ended: &ended,
            told_ms: ended.length_ms,
            audio: Some(&audio),
            destination: "account",
            node: "kz_record_call@rec1",
            url_credentials: false,
            now: NOW,
            controls: Controls::default(),
            presumed: false,
            first_peer: None,
        };
        let ours = Value::Object(subject.document());
        let kazoos = fixture(&format!("workers1-{kind}-document"));
        assert_eq!(
            without(&ours, &OF_THE_WRITER),
            without(&kazoos, &OF_THE_WRITER),
            "{kind}"
        );
        for stamp in ["pvt_created", "pvt_modified", "pvt_node"] {
            assert!(ours.get(stamp).is_some(), "{kind}: {stamp}");
        }
    }
}

#[test]
fn both_events_of_a_recording_name_the_same_recording() {
    for kind in KINDS {
        let of = |name: &str| ordered(fixture(&format!("workers1-{kind}-{name}"))).0;
        let (start, stop) = (of("RECORD_START"), of("RECORD_STOP"));
        let who = |order: &Order| {
            (
                order.key,
                order.media_id.clone(),
                order.file_name.clone(),
                order.asked_at.month(),
            )
        };
        assert_eq!(who(&start), who(&stop), "{kind}");
        assert_eq!((&start.origin, &start.url), (&stop.origin, &stop.url));
        assert!(!stop.adopted.unwrap().shared_name);
    }
    // Without consumers of Kazoo's queue, the events are the same.
    let order = ordered(fixture("workers0-account_inbound-p5b-RECORD_STOP")).0;
    assert_eq!(order.media_id.as_str(), "202611-18ad4189e418ac34fa6111161c8c80d9");
    assert_eq!(order.origin, "inbound from onnet to account");
    assert_eq!(order.adopted.unwrap().time_limit, Some(600));
}

#[test]
fn the_settings_of_the_recording_decide_where_it_goes() {
    let text = data(&[
        ("url", Term::binary("https://rec.example.com/in")),
        ("method", Term::binary("POST")),
        ("record_on_bridge", Term::atom("true")),
        ("time_limit", Term::binary("90")),
        ("nested", Term::Tuple(vec![Term::List(vec![])])),
    ]);
    let (order, unreadable) = ordered(with_data(&text));
    assert_eq!(unreadable, None);
    assert_eq!(order.url, Url::Given("https://rec.example.com/in".into()));
    assert_eq!((order.method, order.origin.as_str()), (Method::Post, NO_ORIGIN));
    assert!(order.may_begin_again() && order.time_limit() == Some(90));
    // No settings at all, and no URL.
    let mut bare = with_data("x");
    bare["Recording"].as_object_mut().unwrap().remove("Data");
    let (order, unreadable) = ordered(bare);
    assert_eq!((order.url, unreadable), (Url::None, None));
    // A URL that is too long is not cut.
    let long = data(&[("url", Term::binary(&format!("https://h/{}", "x".repeat(MAX_URL))))]);
    assert_eq!(ordered(with_data(&long)).0.url, Url::Lost);
}

#[test]
fn hostile_settings_are_refused_and_the_recording_is_kept() {
    let raw = |bytes: &[u8]| STANDARD.encode(bytes);
    // Compressed terms can grow a thousandfold: Kazoo never writes them.
    let compressed = raw(&[131, 80, 0xff, 0xff, 0xff, 0xff, 0x78, 0x9c]);
    let wide = raw(&[131, 108, 0xff, 0xff, 0xff, 0xff]);
    let deep = raw(&[&[131][..], &[104, 1].repeat(5_000), &[106]].concat());
    for bad in ["no base64", &compressed, &wide, &deep, &"A".repeat(65 << 10)] {
        let (order, unreadable) = ordered(with_data(bad));
        assert!(unreadable.is_some(), "{}", &bad[..8]);
        // Where it must go is unknown, so it goes nowhere by itself.
        assert_eq!(order.url, Url::Lost);
        assert!(order.may_begin_again());
    }
}

#[test]
fn an_id_that_can_be_no_recordings_of_today_is_not_believed() {
    for bad in ["203501-a", "202611", "", "../202611-a", "202611-${system id}"] {
        let mut body = fixture("workers1-account_inbound-p5c-RECORD_STOP");
        body["Recording"]["ID"] = json!(bad);
        let (order, _) = ordered(body);
        assert_eq!(order.media_id.as_str(), format!("202611-{}", order.key), "{bad}");
    }
}

/// A flow of a later version of Kazoo can choose the id (`media_id`), and give one id to all its calls.
#[test]
fn an_id_that_a_callflow_chose_joins_no_two_recordings() {
    let of = |name: &str, id: &str, call_id: &str, path: &str| {
        let mut body = fixture(&format!("workers1-account_inbound-p5c-{name}"));
        body["Call-ID"] = json!(call_id);
        body["Recording"]["ID"] = json!(id);
        body["Recording"]["File-Path"] = json!(path);
        ordered(body).0
    };
    let random = ["0", "1"].map(|digit| format!("/tmp/{}.mp3", digit.repeat(32)));
    for id in ["202611-support", &format!("202611-{}", "A".repeat(32))] {
        for paths in [random.each_ref().map(String::as_str), ["/tmp/support.mp3"; 2]] {
            let [one, other] = [("a", paths[0]), ("b", paths[1])].map(|(call_id, path)| {
                let [start, stop] = ["RECORD_START", "RECORD_STOP"].map(|name| of(name, id, call_id, path));
                assert_eq!(start.key, stop.key, "{id} {path}");
                stop
            });
            assert_ne!(one.key, other.key, "{id} {paths:?}");
            // Kazoo's document has the id.
            assert_eq!((one.media_id.as_str(), other.media_id.as_str()), (id, id));
        }
    }
    // The file tells which recording it is, wherever the call goes.
    let moved = ["a", "b"].map(|call_id| of("RECORD_STOP", "202611-support", call_id, &random[0]).key);
    assert_eq!(moved[0], moved[1]);
}

/// A recording that runs while its worker is upgraded keeps its entry.
#[test]
fn an_id_that_kazoo_drew_is_the_key_alone() {
    for kind in KINDS {
        for name in ["RECORD_START", "RECORD_STOP"] {
            let body = fixture(&format!("workers1-{kind}-{name}"));
            let id = body["Recording"]["ID"].as_str().unwrap().to_owned();
            assert_eq!(ordered(body).0.key, Key::of(KAZOO_RECORDER, &id));
        }
    }
}

#[test]
fn only_a_file_of_audio_is_asked_for_and_only_by_its_own_name() {
    let with_path = |path: &str| {
        let mut body = fixture("workers1-account_inbound-p5c-RECORD_STOP");
        body["Recording"]["File-Path"] = json!(path);
        event(body)
    };
    let refused = |path: &str| order(&with_path(path), &circumstances()).err();
    assert_eq!(refused("/etc/passwd"), Some(NotAdoptable::Format));
    assert_eq!(refused("/tmp/x.mp4"), Some(NotAdoptable::Format));
    assert_eq!(refused("/tmp/"), Some(NotAdoptable::NoFile));
    assert_eq!(refused("/tmp/a\n.mp3"), Some(NotAdoptable::NoFile));
    for (path, is_believed) in [
        ("/tmp/desk+one.wav", true),
        ("tmp/desk.wav", false),
        ("/tmp/../etc/desk.wav", false),
    ] {
        let event = with_path(path);
        let (order, _) = order(&event, &circumstances()).unwrap();
        assert!(order.adopted.as_ref().unwrap().shared_name, "a callflow chose {path}");
        assert_eq!(
            Told::of_order(&event, &order, NOW).path.is_some(),
            is_believed,
            "{path}"
        );
    }
    let accepted = Circumstances {
        shared_names: true,
        ..circumstances()
    };
    let (order, _) = order(&with_path("/tmp/desk+one.wav"), &accepted).unwrap();
    assert_eq!((order.media_name.as_str(), order.format), ("desk+one.wav", Format::Wav));
    assert!(!order.adopted.unwrap().shared_name);
}

#[test]
fn an_entry_of_an_older_version_has_no_adopted_order() {
    let (mut order, _) = ordered(fixture("workers1-account_inbound-p5c-RECORD_STOP"));
    let mut written = serde_json::to_value(&order).unwrap();
    assert_eq!(serde_json::from_value::<Order>(written.clone()).unwrap(), order);
    written.as_object_mut().unwrap().remove("adopted");
    order.adopted = None;
    assert_eq!(serde_json::from_value::<Order>(written).unwrap(), order);
}

/// Kazoo 5.0 does not know these settings and flags. Later versions obey them.
#[test]
fn what_later_versions_of_kazoo_obey_is_read_from_the_event() {
    let fields = |more: &[(&str, Term)]| {
        let url = ("url", Term::binary("https://example.com/in"));
        with_data(&data(&[&[url], more].concat()))
    };
    let adopted = |body: Value| {
        let (order, unreadable) = ordered(body);
        assert_eq!(unreadable, None);
        (order.url, order.adopted.unwrap())
    };
    let given = Url::Given("https://example.com/in".into());
    let (url, plain) = adopted(fields(&[]));
    assert_eq!(url, given);
    assert_eq!(
        (plain.wanted, plain.bowed_out, plain.media_db, plain.retry_times),
        (None, false, None, None)
    );
    let (url, wanted) = adopted(fields(&[("should_store_recording", Term::Atom("true".into()))]));
    assert_eq!((url, wanted.wanted), (Url::None, Some(true)));
    let (url, unwanted) = adopted(fields(&[("should_store_recording", Term::Atom("false".into()))]));
    assert_eq!((url, unwanted.wanted), (given, Some(false)));
    let (_, rounds) = adopted(fields(&[("storage_retry_times", Term::Integer(20))]));
    assert_eq!(rounds.retry_times, Some(20));
    for (name, is_one) in [
        ("account%2F4b%2Fa1%2Fx-202611", true),
        ("../_users?a", false),
        ("_users", false),
    ] {
        let (_, elsewhere) = adopted(fields(&[("media_db", Term::binary(name))]));
        assert_eq!(
            elsewhere.media_db,
            is_one.then(|| "account/4b/a1/x-202611".into()),
            "{name}"
        );
    }
    for (flags, bowed_out) in [
        (json!([true, true]), true),
        (json!(["true", "true"]), true),
        (json!([true, false]), false),
        (json!([null, true]), false),
    ] {
        let mut body = fields(&[]);
        body["Channel-Is-Loopback"] = flags[0].clone();
        body["Channel-Loopback-Bowout"] = flags[1].clone();
        assert_eq!(adopted(body).1.bowed_out, bowed_out, "{flags}");
    }
}

proptest! {
    #[test]
    fn any_settings_are_read_or_refused(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Data::read(&text);
        let _ = Data::read(&STANDARD.encode(&bytes));
        let _ = Data::read(&STANDARD.encode([&[131][..], &bytes].concat()));
    }
}
