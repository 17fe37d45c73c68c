//! Call events (`kapi_call:event`), which ecallmgr publishes on `callevt` for the switch.

use std::collections::BTreeSet;

use serde_json::Value;

use super::call::{Parties, bounded_variables, is_account_id, shown};
use super::envelope::{Envelope, MAX_ID_BYTES, MessageError, check_ids};
use super::json::{boolean_at, integer_at, owned_text, text, text_or_number};
use super::names::{KAZOO_RECORDER, RECORDER};
use super::time::Moment;

/// The kind of a recording event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventName {
    RecordStart,
    RecordStop,
}

/// No call has more recordings of one name. Each of them costs a look into a database.
const MOST_CANDIDATES: usize = 16;

/// Longest possible path of a file (`PATH_MAX` of Linux), in bytes.
const MAX_PATH: usize = 4096;

/// Longest `Recording.Data` that is kept, in bytes of base64. Kazoo writes some hundred bytes.
const MAX_DATA: usize = 64 << 10;

/// `RECORD_START` or `RECORD_STOP` of one recording, which any program may have started.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordEvent {
    pub name: EventName,
    /// The leg of the recording at that moment. It may differ from the leg where the recording started.
    pub call_id: String,
    /// The time of the event, by its `Timestamp` (Gregorian seconds, rounded up).
    pub at: Option<Moment>,
    pub recording: Recording,
    /// The Erlang name of the switch (`Switch-Nodename`). `send_http` is addressed to it.
    pub switch_node: Option<String>,
    /// Milliseconds recorded (`Length`, else `Recording.File-MilliSeconds`). It is a channel variable, so it may belong to another
    /// recording.
    pub length_ms: Option<u64>,
    pub other_leg_call_id: Option<String>,
    /// Whether the leg was hanging up, by `Channel-State`.
    pub hung_up: Option<bool>,
    /// The switch's own time of the event, in Unix microseconds. It distinguishes events within one second, and is equal in each copy of an
    /// event.
    pub stamp: Option<i64>,
    pub account_id: Option<String>,
    pub fetch_id: Option<String>,
    /// Whether the channel is a loopback leg that left the call (`Channel-Is-Loopback`, `Channel-Loopback-Bowout`).
    pub bowed_out: bool,
    pub parties: Parties,
    /// The channel variables, with limits.
    pub variables: Value,
}

/// The `Recording` object of an event (`kz_recording`): the values of the start, and those that the switch adds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    pub id: Option<String>,
    /// The file's base name, as given at the start.
    pub name: Option<String>,
    pub recorder: Option<String>,
    /// The recording context that the start command contained.
    pub carry: Option<String>,
    /// The settings that Kazoo's own recorder was started with: base64 of an Erlang term. It is kept only for a recording of Kazoo's own
    /// recorder. Empty, which is no term, if it was too long.
    pub data: Option<String>,
    /// Path on the switch (`File-Path`, else the event's `Application-Response`).
    pub file_path: Option<String>,
    /// Only a hint, because it is a channel variable.
    pub completion_cause: Option<String>,
    /// Kazoo 4 started it. Its events have no `Recording`; see `of_channel`.
    pub kazoo_4: bool,
    /// The ids of which one is its, if nothing tells which. The newest comes first.
    pub candidates: Vec<String>,
}

impl Recording {
    /// Whether we started it.
    pub fn is_ours(&self) -> bool {
        self.recorder.as_deref() == Some(RECORDER)
    }

    /// The recording of Kazoo 4's recorder that a channel's event is about. Its recorder is a channel variable, and stays for whatever the
    /// channel records later, such as voicemail. The lists have each name and id that Kazoo started on the channel, in the same order. If a
    /// callflow gave one name to two of them, nothing tells which one the event is about: it has candidates then, and no id.
    fn of_channel(variables: &Value, path: &str) -> Option<Self> {
        if text(variables, "Media-Recorder") != Some(KAZOO_RECORDER) {
            return None;
        }
        let name = path.rsplit('/').next()?;
        let (names, ids) = (listed(variables, "Media-Names"), listed(variables, "Media-Recordings"));
        let positions = (0..names.len()).filter(|position| names[*position] == name);
        let mut candidates: Vec<String> = positions
            .filter_map(|position| Some((*ids.get(position)?).to_owned()))
            .collect();
        let mut known = BTreeSet::new();
        candidates.retain(|id| known.insert(id.clone()));
        if candidates.len() > MOST_CANDIDATES {
            return None;
        }
        let id = match candidates.len() {
            0 => return None,
            1 => candidates.pop(),
            _ => None,
        };
        Some(Self {
            id,
            candidates,
            name: Some(name.to_owned()),
            recorder: Some(KAZOO_RECORDER.to_owned()),
            file_path: Some(path.to_owned()),
            kazoo_4: true,
            ..Self::default()
        })
    }

    /// Whether Kazoo's own recorder is to store it.
    pub fn is_kazoos(&self) -> bool {
        self.recorder.as_deref() == Some(KAZOO_RECORDER)
    }
}

impl RecordEvent {
    /// Whether a call event is one of these. `None` when the message is not a call event.
    pub fn is_one(envelope: &Envelope) -> Option<bool> {
        let known = ["RECORD_START", "RECORD_STOP"];
        (envelope.category == "call_event").then(|| known.contains(&envelope.name.as_str()))
    }

    /// A recording of Kazoo's own recorder, of Kazoo 5 or 4. `None`: the event is about another recording.
    ///
    /// # Errors
    /// As `of`.
    pub fn of_kazoos(envelope: &Envelope) -> Result<Option<Self>, MessageError> {
        let mut event = Self::of(envelope)?;
        if envelope.body.get("Recording").is_none()
            && let Some(path) = event.recording.file_path.as_deref()
            && let Some(variables) = envelope.body.get("Custom-Channel-Vars")
            && let Some(recording) = Recording::of_channel(variables, path)
        {
            event.recording = recording;
        }
        let id = event.recording.id.as_deref();
        check_ids(&[
            ("Media-Recordings", id),
            ("Media-Names", event.recording.name.as_deref()),
        ])?;
        for id in &event.recording.candidates {
            check_ids(&[("Media-Recordings", Some(id))])?;
        }
        Ok(Some(event).filter(|event| event.recording.is_kazoos()))
    }

    /// Reads a `RECORD_START` or `RECORD_STOP`. Lenient: fields may be missing or of another type.
    ///
    /// # Errors
    /// Another kind of message, a message without `Call-ID`, or an id that is too long.
    pub fn of(envelope: &Envelope) -> Result<Self, MessageError> {
        let name = match (envelope.category.as_str(), envelope.name.as_str()) {
            ("call_event", "RECORD_START") => EventName::RecordStart,
            ("call_event", "RECORD_STOP") => EventName::RecordStop,
            _ => return Err(envelope.unexpected()),
        };
        let body = &envelope.body;
        let recording = body.get("Recording").unwrap_or(&Value::Null);
        let variables = body.get("Custom-Channel-Vars").unwrap_or(&Value::Null);
        let length = integer_at(body, "Length").or_else(|| integer_at(recording, "File-MilliSeconds"));
        let call_id = owned_text(body, "Call-ID").ok_or(MessageError::Missing("Call-ID"))?;
        check_ids(&[
            ("Call-ID", Some(&call_id)),
            ("Fetch-ID", text(variables, "Fetch-ID")),
            ("Other-Leg-Call-ID", text(body, "Other-Leg-Call-ID")),
            ("Switch-Nodename", text(body, "Switch-Nodename")),
            ("Recording.ID", text(recording, "ID")),
            ("Recording.Name", text(recording, "Name")),
        ])?;
        Ok(Self {
            name,
            call_id,
            at: event_time(body),
            recording: Recording {
                id: owned_text(recording, "ID"),
                name: owned_text(recording, "Name"),
                recorder: owned_text(recording, "Recorder"),
                carry: owned_text(recording, "Carry"),
                data: (text(recording, "Recorder") == Some(KAZOO_RECORDER))
                    .then(|| text(recording, "Data"))
                    .flatten()
                    .map(|data| if data.len() <= MAX_DATA { data } else { "" }.to_owned()),
                file_path: owned_text(recording, "File-Path")
                    .or_else(|| owned_text(body, "Application-Response"))
                    .filter(|path| path.len() <= MAX_PATH),
                completion_cause: text(recording, "Completion-Cause").map(|cause| shown(cause).to_owned()),
                kazoo_4: false,
                candidates: Vec::new(),
            },
            switch_node: owned_text(body, "Switch-Nodename"),
            length_ms: length.and_then(|ms| u64::try_from(ms).ok()),
            other_leg_call_id: owned_text(body, "Other-Leg-Call-ID"),
            hung_up: text(body, "Channel-State").map(|state| matches!(state, "HANGUP" | "REPORTING" | "DESTROY")),
            stamp: numbered(body).map(Moment::unix_micros),
            account_id: owned_text(variables, "Account-ID").filter(|id| is_account_id(id)),
            fetch_id: owned_text(variables, "Fetch-ID"),
            bowed_out: ["Channel-Is-Loopback", "Channel-Loopback-Bowout"]
                .iter()
                .all(|key| boolean_at(body, key) == Some(true)),
            parties: Parties::of(body),
            variables: bounded_variables(Some(variables)),
        })
    }
}

/// A list of texts. A list of one is the text itself (`ecallmgr_util`).
fn listed<'a>(variables: &'a Value, key: &str) -> Vec<&'a str> {
    match variables.get(key) {
        Some(Value::Array(all)) => all.iter().map(|one| one.as_str().unwrap_or_default()).collect(),
        Some(Value::String(one)) => vec![one.as_str()],
        _ => Vec::new(),
    }
}

/// The old and the new id, if the event reports that a call's id was replaced. The events are `CHANNEL_REPLACED` and `CHANNEL_DIRECT`,
/// after which Kazoo follows the B leg of the connection (`cf_exe:handle_channel_replaced`, `handle_channel_direct`).
pub fn replaced_by(envelope: &Envelope) -> Option<(String, String)> {
    let body = &envelope.body;
    let new = match (envelope.category.as_str(), envelope.name.as_str()) {
        ("call_event", "CHANNEL_REPLACED") => owned_text(body, "Replaced-By"),
        ("call_event", "CHANNEL_DIRECT") => {
            owned_text(body, "Connecting-Leg-B-UUID").or_else(|| owned_text(body, "Replaced-By"))
        }
        _ => None,
    };
    owned_text(body, "Call-ID")
        .zip(new)
        .filter(|(old, new)| old != new && old.len().max(new.len()) <= MAX_ID_BYTES)
}

/// `Timestamp` (Gregorian seconds), else `Msg-ID`, which on call events is the switch's Unix microseconds.
pub(super) fn event_time(body: &Value) -> Option<Moment> {
    let stamped = integer_at(body, "Timestamp").map(Moment::from_gregorian_seconds);
    stamped.filter(is_plausible).or_else(|| numbered(body))
}

pub(super) fn numbered(body: &Value) -> Option<Moment> {
    let number = text_or_number(body, "Msg-ID")?.parse().ok()?;
    Some(Moment::from_unix_micros(number)).filter(is_plausible)
}

fn is_plausible(at: &Moment) -> bool {
    const YEAR_2000: i64 = 946_684_800;
    const YEAR_2100: i64 = 4_102_444_800;
    (YEAR_2000..YEAR_2100).contains(&at.unix_seconds())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str) -> Result<RecordEvent, MessageError> {
        let path = format!("{}/tests/fixtures/call_events/{name}.json", env!("CARGO_MANIFEST_DIR"));
        RecordEvent::of(&Envelope::read(&std::fs::read(path).unwrap()).unwrap())
    }

    #[test]
    fn a_true_stop_is_read() {
        let stop = event("02-record-stop").unwrap();
        assert_eq!(stop.name, EventName::RecordStop);
        assert_eq!(stop.length_ms, Some(59_840));
        assert_eq!(stop.switch_node.as_deref(), Some("freeswitch@fs1.example.com"));
        assert_eq!(
            stop.recording.id.as_deref(),
            Some("202611-7ade19929b4c2e2293edf5eb03af1497")
        );
        assert!(!stop.recording.is_ours());
        assert_eq!(stop.at.unwrap().gregorian_seconds(), 63_962_610_391);
        assert_eq!(stop.parties.caller_id_number.as_deref(), Some("1000"));
        assert_eq!(event("01-record-start").unwrap().name, EventName::RecordStart);
        assert!(matches!(
            event("07-channel-destroy"),
            Err(MessageError::Unexpected { .. })
        ));
    }

    /// Three recordings on one channel, and voicemail after them.
    #[test]
    fn a_recording_of_kazoo_4_has_the_id_at_the_place_of_its_name() {
        let names = ["c.mp3", "b.mp3", "a.mp3"];
        let ids = ["202611-c", "202611-b", "202611-a"];
        let of = |path: &str, names: Value, ids: Value| {
            let body = json!({
                "Event-Category": "call_event", "Event-Name": "RECORD_STOP", "Call-ID": "call", "Application-Response": path,
                "Custom-Channel-Vars": {
                    "Media-Recorder": KAZOO_RECORDER, "Media-Recording-ID": "202611-c", "Media-Names": names, "Media-Recordings": ids,
                },
            });
            RecordEvent::of_kazoos(&Envelope::of(body).unwrap())
                .unwrap()
                .map(|event| event.recording)
        };
        for (path, id) in [
            ("/tmp/a.mp3", "202611-a"),
            ("/tmp/b.mp3", "202611-b"),
            ("/tmp/c.mp3", "202611-c"),
        ] {
            let recording = of(path, json!(names), json!(ids)).unwrap();
            assert_eq!(recording.id.as_deref(), Some(id));
            assert_eq!(recording.file_path.as_deref(), Some(path));
            assert!(recording.kazoo_4 && recording.is_kazoos());
        }
        assert!(
            of("/tmp/a.mp3", json!("a.mp3"), json!("202611-a")).is_some(),
            "a list of one"
        );
        assert_eq!(of("/tmp/voicemail.mp3", json!(names), json!(ids)), None);
        assert_eq!(
            of("/tmp/a.mp3", json!(names), json!(["202611-c"])),
            None,
            "no id at its place"
        );
        assert_eq!(of("/tmp/a.mp3", json!({"x": 1}), json!(ids)), None);
        // A callflow chose the name, for two recordings at once. Either can have ended.
        let twice = of("/tmp/x.mp3", json!(["x.mp3", "x.mp3"]), json!(["202611-b", "202611-a"])).unwrap();
        assert_eq!((twice.id, twice.name.as_deref()), (None, Some("x.mp3")));
        assert_eq!(twice.candidates, ["202611-b", "202611-a"], "the newest first");
        let many: Vec<String> = (0..17).map(|n| format!("202611-{n}")).collect();
        assert_eq!(
            of("/tmp/x.mp3", json!(vec!["x.mp3"; 17]), json!(many)),
            None,
            "that is no call"
        );
        let again = of("/tmp/x.mp3", json!(["x.mp3", "x.mp3"]), json!(["202611-a", "202611-a"])).unwrap();
        assert_eq!(again.id.as_deref(), Some("202611-a"), "one recording");
    }

    #[test]
    fn the_path_may_stand_in_either_of_two_places_and_the_length_too() {
        let body = json!({
            "Event-Category": "call_event", "Event-Name": "RECORD_STOP", "Call-ID": "c", "Msg-ID": "1795382731123456",
            "Application-Response": "/tmp/a.mp3", "Recording": {"File-MilliSeconds": 61020, "Recorder": "kz_record_call"},
        });
        let stop = RecordEvent::of(&Envelope::of(body).unwrap()).unwrap();
        assert_eq!(stop.recording.file_path.as_deref(), Some("/tmp/a.mp3"));
        assert_eq!(stop.length_ms, Some(61_020));
        assert_eq!(stop.at, Some(Moment::from_unix_micros(1_795_382_731_123_456)));
        assert!(stop.recording.is_ours());
    }

    #[test]
    fn an_event_whose_ids_are_too_long_to_be_kept_is_refused() {
        let long = "i".repeat(MAX_ID_BYTES + 1);
        let event = |change: &dyn Fn(&mut Value)| {
            let mut body = json!({
                "Event-Category": "call_event", "Event-Name": "RECORD_STOP", "Call-ID": "c", "Recording": {}, "Custom-Channel-Vars": {},
            });
            change(&mut body);
            RecordEvent::of(&Envelope::of(body).unwrap())
        };
        assert!(event(&|body| body["Call-ID"] = json!("i".repeat(MAX_ID_BYTES))).is_ok());
        let refused = |header| Err(MessageError::TooLong(header));
        assert_eq!(event(&|body| body["Call-ID"] = json!(long)), refused("Call-ID"));
        assert_eq!(
            event(&|body| body["Custom-Channel-Vars"]["Fetch-ID"] = json!(long)),
            refused("Fetch-ID")
        );
        assert_eq!(
            event(&|body| body["Recording"]["ID"] = json!(long)),
            refused("Recording.ID")
        );
        let path = event(&|body| body["Recording"]["File-Path"] = json!("/".repeat(MAX_PATH + 1)));
        assert_eq!(path.unwrap().recording.file_path, None);
    }

    #[test]
    fn nonsense_fields_are_absent_not_fatal() {
        let body = json!({
            "Event-Category": "call_event", "Event-Name": "RECORD_STOP", "Call-ID": "c", "Length": {"x": 1},
            "Timestamp": "soon", "Recording": [1, 2], "Custom-Channel-Vars": "none", "Switch-Nodename": 3,
        });
        let stop = RecordEvent::of(&Envelope::of(body).unwrap()).unwrap();
        assert_eq!((stop.length_ms, stop.at, stop.switch_node), (None, None, None));
        assert_eq!(stop.recording, Recording::default());
    }
}
