//! The switch's reports of a recording's start and end.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::kazoo::call::{Parties, clip};
use crate::kazoo::event::RecordEvent;
use crate::kazoo::time::Moment;

use super::names;
use super::order::Order;

/// The content of a `RECORD_START` or `RECORD_STOP`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The leg that the recording was on.
    pub call_id: String,
    /// The time by the switch's clock, else when the worker received the event.
    pub at: Moment,
    /// The switch's own time of the event, in Unix microseconds. It is equal in each copy of the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<i64>,
    /// The switch with the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The file's path on the switch, if the reported path can be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Milliseconds recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_ms: Option<u64>,
    /// The switch's completion cause. It is a hint, and never the only reason to give up audio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_cause: Option<String>,
    /// Whether the leg was hanging up at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung_up: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_leg_call_id: Option<String>,
    #[serde(default)]
    pub parties: Parties,
    /// The channel variables, with limits.
    #[serde(default)]
    pub variables: Value,
}

impl Told {
    /// The content that an event would have had, if one had arrived.
    pub fn presumed(call_id: &str, at: Moment, node: &str, path: &str) -> Self {
        Self {
            call_id: call_id.to_owned(),
            at,
            stamp: None,
            node: Some(node.to_owned()),
            path: Some(path.to_owned()),
            length_ms: None,
            completion_cause: None,
            hung_up: None,
            account_id: None,
            other_leg_call_id: None,
            parties: Parties::default(),
            variables: Value::Object(serde_json::Map::new()),
        }
    }

    /// Whether the switch could not write the file to its end, as on a full disk. It then reports the length that it wrote. An MP3 file has no
    /// such report.
    pub fn is_write_failure(&self) -> bool {
        self.completion_cause.as_deref() == Some("uri-failure")
    }

    /// The event's report of the recording in the file `file_name`. Any client that may publish can send such an event, so a path that
    /// cannot be that file's is ignored.
    pub fn of(event: &RecordEvent, file_name: &str, heard: Moment) -> Self {
        Self::of_file(event, (file_name, names::is_path_of), heard)
    }

    /// The event's report of the recording of that order.
    pub fn of_order(event: &RecordEvent, order: &Order, heard: Moment) -> Self {
        Self::of_file(event, (&order.file_name, |path, _| order.is_path(path)), heard)
    }

    fn of_file(event: &RecordEvent, (file_name, is_its): (&str, impl Fn(&str, &str) -> bool), heard: Moment) -> Self {
        let told = event.recording.file_path.as_deref();
        let path = told.filter(|path| is_its(path, file_name));
        if path.is_none()
            && let Some(told) = told
        {
            warn!(
                event = "foreign_path_ignored",
                call_id = event.call_id,
                file_name,
                told = clip(told, 200),
                "path of another file ignored"
            );
        }
        Self {
            call_id: event.call_id.clone(),
            at: event.at.unwrap_or(heard),
            stamp: event.stamp,
            node: event.switch_node.clone(),
            path: path.map(str::to_owned),
            length_ms: event.length_ms,
            completion_cause: event.recording.completion_cause.clone(),
            hung_up: event.hung_up,
            account_id: event.account_id.clone(),
            other_leg_call_id: event.other_leg_call_id.clone(),
            parties: event.parties.clone(),
            variables: event.variables.clone(),
        }
    }

    /// Whether the switch ended the recording because of silence. The switch also sends these two causes at a hang-up. They then say
    /// whether there had been speech before.
    pub fn is_by_silence(&self) -> bool {
        let words = matches!(
            self.completion_cause.as_deref(),
            Some("success-silence" | "no-input-timeout")
        );
        words && self.hung_up == Some(false)
    }

    /// The event's position among the events of its recording, in microseconds. `Timestamp` has only whole seconds, rounded up.
    pub fn order(&self) -> i64 {
        self.stamp.unwrap_or(self.at.unix_micros())
    }
}
