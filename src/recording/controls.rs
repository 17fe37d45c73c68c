//! The stop, mask and unmask commands in a recording's document: those that may have taken effect, and those that did not.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;

const KEYS: [&str; 2] = ["masks", "not_obeyed"];

/// Why a command to a running recording had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The recording was on another leg by then. The switch looks for it on the leg where it began, does not find it, and reports no error.
    Moved,
    /// The recording ended on another leg, and no event reported when it moved. The command came before or after the move.
    PerhapsMoved,
    /// The broker had no queue for the command: the call's control process has ended.
    Undelivered,
    /// The switch kept recording after the command.
    Unconfirmed,
    /// The command reached the switch after the end of the recording.
    Ended,
}

impl Why {
    pub const ALL: [Self; 5] = [
        Self::Moved,
        Self::PerhapsMoved,
        Self::Undelivered,
        Self::Unconfirmed,
        Self::Ended,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::PerhapsMoved => "perhaps_moved",
            Self::Undelivered => "undelivered",
            Self::Unconfirmed => "unconfirmed",
            Self::Ended => "ended",
        }
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Moved => "the recording was on another leg than the command",
            Self::PerhapsMoved => "the recording moved to another leg, perhaps before this command",
            Self::Undelivered => "the call's control process was gone",
            Self::Unconfirmed => "the switch did not end the recording",
            Self::Ended => "the recording had ended when the command was sent",
        }
    }
}

/// A command that had no effect, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotObeyed {
    pub at: Moment,
    pub what: Control,
    pub why: Why,
}

/// The results of all control commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Controls {
    /// When the audio was masked (`true`) and unmasked.
    pub masks: Vec<(Moment, bool)>,
    pub not_obeyed: Vec<NotObeyed>,
}

impl Controls {
    /// Writes the results into `pvt_recording`, and removes those of an earlier version.
    pub fn write(&self, private: &mut Map<String, Value>) {
        let masks = self.masks.iter();
        let masks: Vec<Value> = masks
            .map(|(at, on)| json!({"at": at.rfc3339(), "masked": on}))
            .collect();
        let not_obeyed = self.not_obeyed.iter();
        let not_obeyed = not_obeyed
            .map(|one| json!({"at": one.at.rfc3339(), "action": one.what.name(), "why": one.why.name()}))
            .collect();
        for (key, all) in KEYS.into_iter().zip([masks, not_obeyed]) {
            if all.is_empty() {
                private.remove(key);
            } else {
                private.insert(key.to_owned(), Value::Array(all));
            }
        }
    }

    /// A fingerprint that differs between versions of the results.
    pub fn fingerprint(&self) -> String {
        let mut written = Map::new();
        self.write(&mut written);
        Self::fingerprint_of(&written)
    }

    /// The fingerprint of the results in a `pvt_recording`.
    pub fn fingerprint_of(private: &Map<String, Value>) -> String {
        let written = KEYS.map(|key| private.get(key).unwrap_or(&Value::Null).to_string());
        let mut digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, written.join(" ").as_bytes())
            .simple()
            .to_string();
        digest.truncate(12);
        digest
    }
}
