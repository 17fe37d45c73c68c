//! What the switch told of a recording: that it started, and that it ended.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::kazoo::call::{Parties, clip};
use crate::kazoo::event::RecordEvent;
use crate::kazoo::time::Moment;

use super::names;

/// What a `RECORD_START` or `RECORD_STOP` told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The leg that the recording was on.
    pub call_id: String,
    /// When, by the switch's clock; else when we heard of it.
    pub at: Moment,
    /// The event's own stamp, Unix microseconds: the same in every copy of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<i64>,
    /// The switch that has the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The file's path there, if what was told can be it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Milliseconds recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_ms: Option<u64>,
    /// The switch's completion cause: a hint, never the only reason to give audio up.
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
    /// The channel variables, bounded.
    #[serde(default)]
    pub variables: Value,
}

impl Told {
    /// What an event would have told, had one come.
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

    /// What an event tells of the recording in the file `file_name`. Whoever may publish can send one: a path that cannot be that file's is not
    /// believed.
    pub fn of(event: &RecordEvent, file_name: &str, heard: Moment) -> Self {
        let told = event.recording.file_path.as_deref();
        let path = told.filter(|path| names::is_path_of(path, file_name));
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

    /// Whether the switch ended it for silence. The same two words are told at a hang-up, where they say whether there had been speech before.
    pub fn is_by_silence(&self) -> bool {
        let words = matches!(
            self.completion_cause.as_deref(),
            Some("success-silence" | "no-input-timeout")
        );
        words && self.hung_up == Some(false)
    }

    /// Where it stands among the events of its recording: microseconds. `Timestamp` alone counts whole seconds, rounded up.
    pub fn order(&self) -> i64 {
        self.stamp.unwrap_or(self.at.unix_micros())
    }
}
