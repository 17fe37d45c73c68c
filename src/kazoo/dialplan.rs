//! Dialplan commands to a call's control process (`kapi_dialplan`), and the errors that ecallmgr returns.

use serde_json::{Map, Value, json};

use super::address::Address;
use super::envelope::{Envelope, MessageError, Sender};
use super::json::owned_text;
use super::names::{Exchange, RECORDER};
use super::outgoing::Outgoing;

/// A recording, as its start command describes it (`kapi_dialplan:record_call`, `ecallmgr_call_command:record_call`).
///
/// Each value ends up in an application argument on the switch, which expands `${…}`. The worker builds all values itself, and they match
/// `[A-Za-z0-9._-]*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordStart {
    /// The call's present id.
    pub call_id: String,
    /// Base name of the file on the switch, with the extension. It is unique.
    pub media_name: String,
    /// The recording's id, which is also its document's id. ecallmgr crashes on a start without it.
    pub media_id: String,
    /// Seconds.
    pub time_limit: u32,
    pub follow_transfer: bool,
    /// Seconds. Always sent, as a string.
    pub min_sec: u32,
    /// Hertz.
    pub sample_rate: Option<u32>,
    pub silence: Option<Silence>,
    /// Two channels: the left one is the recorded leg, the right one is what that leg hears. Otherwise one channel contains both.
    pub stereo: bool,
    /// The recording context, which the switch returns in `Recording.Carry` of the recording's events.
    pub carry: String,
}

/// Silence detection. Kazoo's 2026 continuation reads it from a header of the command. Kazoo 5.0 ignores that header, and passes the
/// recording's own variables to the switch. The switch reads its settings from these first, so both are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Silence {
    pub threshold: u32,
    /// Milliseconds of silence at the start that end the recording. 0 disables this.
    pub initial_timeout_ms: u32,
    /// Milliseconds of silence after speech that end the recording. 0 disables this.
    pub final_timeout_ms: u32,
}

impl Silence {
    /// The settings in the switch's own names. A time-out sets the threshold to 200, unless the threshold is given as well.
    fn variables(self) -> [(&'static str, u32); 3] {
        [
            ("RECORD_SILENCE_THRESHOLD", self.threshold),
            ("RECORD_INITIAL_TIMEOUT_MS", self.initial_timeout_ms),
            ("RECORD_FINAL_TIMEOUT_MS", self.final_timeout_ms),
        ]
    }
}

/// When a start takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    Now,
    /// At `CHANNEL_ANSWER`. Never on a channel that is answered already.
    Answer,
    /// At each later bridge of the leg.
    Bridge,
}

/// A command to a running recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    Stop,
    Mask,
    Unmask,
}

impl Control {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Mask => "mask",
            Self::Unmask => "unmask",
        }
    }
}

const CATEGORY: &str = "call";
const NAME: &str = "command";

/// The start command, or the `event_actions` command that contains it for later (`kapps_call:start_recording`).
pub fn start(sender: &Sender, to: &Address, msg_id: &str, start: &RecordStart, trigger: Trigger) -> Outgoing {
    let command = sender.message(CATEGORY, NAME, msg_id, Value::Object(start_body(start)));
    let at = match trigger {
        Trigger::Now => return Outgoing::to(Exchange::Callctl, to, command),
        Trigger::Answer => "Execute-On-Answer",
        Trigger::Bridge => "Execute-On-Bridge",
    };
    let body = json!({
        "Application-Name": "event_actions",
        "Call-ID": start.call_id,
        "Insert-At": "now",
        "Event-Actions": { at: { "Record-Call": command } },
    });
    Outgoing::to(Exchange::Callctl, to, sender.message(CATEGORY, NAME, msg_id, body))
}

/// Sets whether recordings of the call's channel follow a transfer of its peer. At a transfer the switch reads the channel's own variables,
/// whatever the recording's command said (`recording_follow_transfer`, `recording_follow_attxfer`). ecallmgr writes these two names
/// unchanged, without the prefix of other channel variables (`ecallmgr_util:get_fs_key`). Its validator requires both objects
/// (`kapi_dialplan:set`).
pub fn follow_transfer(sender: &Sender, to: &Address, msg_id: &str, call_id: &str, follow: bool) -> Outgoing {
    let follow = follow.to_string();
    let body = json!({
        "Application-Name": "set",
        "Call-ID": call_id,
        "Insert-At": "now",
        "Custom-Channel-Vars": { "recording_follow_transfer": follow, "recording_follow_attxfer": follow },
        "Custom-Call-Vars": {},
    });
    Outgoing::to(Exchange::Callctl, to, sender.message(CATEGORY, NAME, msg_id, body))
}

/// Stops, masks or unmasks the recording in the file `media_name`. The switch matches only the path.
pub fn control(
    sender: &Sender,
    to: &Address,
    msg_id: &str,
    call_id: &str,
    media_name: &str,
    what: Control,
) -> Outgoing {
    let body = json!({
        "Application-Name": "record_call",
        "Call-ID": call_id,
        "Record-Action": what.name(),
        "Insert-At": "now",
        "Media-Name": media_name,
    });
    Outgoing::to(Exchange::Callctl, to, sender.message(CATEGORY, NAME, msg_id, body))
}

fn start_body(start: &RecordStart) -> Map<String, Value> {
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("Application-Name", json!("record_call"));
    put("Call-ID", json!(start.call_id));
    put("Record-Action", json!("start"));
    put("Insert-At", json!("now"));
    put("Media-Name", json!(start.media_name));
    put("Media-Recorder", json!(RECORDER));
    put("Media-Recording-ID", json!(start.media_id));
    put("Time-Limit", json!(start.time_limit));
    put("Follow-Transfer", json!(start.follow_transfer));
    put("Record-Min-Sec", json!(start.min_sec.to_string()));
    if let Some(rate) = start.sample_rate {
        put("Record-Sample-Rate", json!(rate));
    }
    if let Some(silence) = start.silence {
        let detection = json!({
            "Threshold": silence.threshold,
            "Initial-Timeout": silence.initial_timeout_ms,
            "Final-Timeout": silence.final_timeout_ms,
        });
        put("Record-Silence-Detection", detection);
    }
    if !start.stereo {
        put("Channels-As-Stereo", json!(false));
    }
    put("Recording-Variables", Value::Object(variables(start)));
    body
}

/// The recording's own variables, for the switch's command line: names that the worker builds, numbers and one boolean. They contain no
/// text from outside.
fn variables(start: &RecordStart) -> Map<String, Value> {
    let mut variables = Map::new();
    let mut put = |key: &str, value: String| variables.insert(key.to_owned(), Value::String(value));
    put("Name", start.media_name.clone());
    put("Recorder", RECORDER.to_owned());
    put("ID", start.media_id.clone());
    put("Carry", start.carry.clone());
    for (name, number) in start.silence.into_iter().flat_map(Silence::variables) {
        put(name, number.to_string());
    }
    if !start.stereo {
        put("RECORD_STEREO", false.to_string());
    }
    variables
}

/// An error of a command (`kapi_dialplan:error`, published by `ecallmgr_call_control:send_error_resp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialplanError {
    /// The command's `Msg-ID`.
    pub msg_id: String,
    pub call_id: Option<String>,
    pub message: String,
}

impl DialplanError {
    /// # Errors
    /// When the message is not `error`/`dialplan`, or names no command.
    pub fn of(envelope: &Envelope) -> Result<Self, MessageError> {
        if !envelope.is("error", "dialplan") {
            return Err(envelope.unexpected());
        }
        let part = |key: &str| owned_text(&envelope.body, key);
        let message = [part("Error-Message"), part("Dialplan-Error")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        Ok(Self {
            msg_id: envelope.msg_id.clone().ok_or(MessageError::Missing("Msg-ID"))?,
            call_id: part("Call-ID"),
            message: super::call::clip(&message.join(" / "), 300).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> RecordStart {
        RecordStart {
            call_id: "a84b@pc33".into(),
            media_name: "9d1f0c3b5e7a4b6c8d0e1f2a3b4c5d6e.mp3".into(),
            media_id: "202611-7c9e6679f4a14b0f9c3ad2e8b5f1a007".into(),
            time_limit: 600,
            follow_transfer: true,
            min_sec: 0,
            sample_rate: Some(16000),
            silence: None,
            stereo: true,
            carry: "AbC-_9".into(),
        }
    }

    fn sent(trigger: Trigger) -> Outgoing {
        let to = Address::parse("pid://<0.9182.3>/ecallmgr@kz1-<0.1834.0>-a41c77de").unwrap();
        start(
            &Sender {
                node: "kz_record_call@rec1".into(),
            },
            &to,
            "5a0f",
            &example(),
            trigger,
        )
    }

    #[test]
    fn a_start_goes_to_the_calls_control_process() {
        let sent = sent(Trigger::Now);
        assert_eq!(sent.exchange, Exchange::Callctl);
        assert_eq!(sent.routing_key, "ecallmgr@kz1-<0.1834.0>-a41c77de");
        assert_eq!(sent.deliver_to_pid.as_deref(), Some("<0.9182.3>"));
        assert!(sent.mandatory);
        let body = &sent.body;
        assert_eq!(body["Insert-At"], "now");
        assert_eq!(body["Record-Min-Sec"], "0");
        assert_eq!(body["Record-Sample-Rate"], 16000);
        assert_eq!(body["Media-Recorder"], body["Recording-Variables"]["Recorder"]);
        assert_eq!(body["Media-Recording-ID"], body["Recording-Variables"]["ID"]);
        let names: Vec<_> = body["Recording-Variables"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["Carry", "ID", "Name", "Recorder"]);
    }

    #[test]
    fn a_delayed_start_wraps_the_whole_command() {
        for (trigger, key) in [
            (Trigger::Answer, "Execute-On-Answer"),
            (Trigger::Bridge, "Execute-On-Bridge"),
        ] {
            let wrapped = sent(trigger).body;
            assert_eq!(wrapped["Application-Name"], "event_actions");
            assert_eq!(wrapped["Insert-At"], "now");
            assert_eq!(wrapped["Event-Actions"][key]["Record-Call"], sent(Trigger::Now).body);
        }
    }

    #[test]
    fn silence_and_channels_reach_the_switch_as_the_recordings_own_variables() {
        let asked = RecordStart {
            silence: Some(Silence {
                threshold: 300,
                initial_timeout_ms: 2000,
                final_timeout_ms: 0,
            }),
            stereo: false,
            ..example()
        };
        let body = Value::Object(start_body(&asked));
        let variables = &body["Recording-Variables"];
        assert_eq!(variables["RECORD_SILENCE_THRESHOLD"], "300");
        assert_eq!(variables["RECORD_INITIAL_TIMEOUT_MS"], "2000");
        assert_eq!(variables["RECORD_FINAL_TIMEOUT_MS"], "0");
        assert_eq!(
            (&variables["RECORD_STEREO"], &body["Channels-As-Stereo"]),
            (&json!("false"), &json!(false))
        );
        assert_eq!(body["Record-Silence-Detection"]["Initial-Timeout"], 2000);
    }

    #[test]
    fn what_a_transfer_does_is_set_on_the_channel_itself() {
        let to = Address::parse("pid://<0.9182.3>/ecallmgr@kz1-<0.1834.0>-a41c77de").unwrap();
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let sent = follow_transfer(&sender, &to, "5a0f", "a84b@pc33", false);
        assert_eq!((sent.exchange, sent.mandatory), (Exchange::Callctl, true));
        assert_eq!(
            sent.body["Custom-Channel-Vars"],
            json!({"recording_follow_transfer": "false", "recording_follow_attxfer": "false"})
        );
        assert_eq!(
            (&sent.body["Application-Name"], &sent.body["Custom-Call-Vars"]),
            (&json!("set"), &json!({}))
        );
    }
}
