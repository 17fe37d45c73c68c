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
    /// Of a stop: the switch kept recording after the command. Of a mask or unmask: its worker was killed while it sent the command, or the
    /// command of an earlier action came after it.
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

    pub const fn meaning(self, what: Control) -> &'static str {
        match (self, what) {
            (Self::Moved, _) => "the recording was on another leg than the command",
            (Self::PerhapsMoved, _) => "the recording moved to another leg, perhaps before this command",
            (Self::Undelivered, _) => "the command did not reach the call's control process",
            (Self::Unconfirmed, Control::Stop) => "the switch did not end the recording",
            (Self::Unconfirmed, _) => {
                "its worker was killed while it sent the command, or an earlier action came after it; the switch may have obeyed"
            }
            (Self::Ended, _) => "the recording had ended when the command was sent",
        }
    }

    /// Which of two reasons is told where two workers noted different ones: the one that rests on more knowledge.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Undelivered => 1,
            Self::Ended => 2,
            Self::Unconfirmed => 3,
            Self::PerhapsMoved => 4,
        }
    }
}

/// A command that had no effect, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotObeyed {
    pub at: Moment,
    pub what: Control,
    pub why: Why,
    /// When the action was sent, by its sender's clock.
    pub asked_at: Option<Moment>,
}

/// A change of the audio: masked from then on, or unmasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// When the broker had the command.
    pub at: Moment,
    pub on: bool,
    /// When the action was sent, by its sender's clock.
    pub asked_at: Option<Moment>,
    /// The switch may have obeyed from this time on: a worker was killed while it sent the command, and the command was sent again.
    pub perhaps_at: Option<Moment>,
}

/// The results of all control commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Controls {
    /// When the audio was masked and unmasked, in the order in which actions asked.
    pub masks: Vec<Mask>,
    pub not_obeyed: Vec<NotObeyed>,
}

impl Controls {
    /// Writes the results into `pvt_recording`, and removes those of an earlier version.
    pub fn write(&self, private: &mut Map<String, Value>) {
        let time = |at: Option<Moment>| at.map_or(Value::Null, |at| at.rfc3339().into());
        let masks = self.masks.iter().map(|mask| {
            json!({
                "at": mask.at.rfc3339(), "masked": mask.on, "asked_at": time(mask.asked_at),
                "perhaps_at": time(mask.perhaps_at),
            })
        });
        let not_obeyed = self.not_obeyed.iter().map(|one| {
            json!({
                "at": one.at.rfc3339(), "action": one.what.name(), "why": one.why.name(),
                "asked_at": time(one.asked_at),
            })
        });
        let told = |mut one: Value| {
            if let Some(fields) = one.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            one
        };
        let masks: Vec<Value> = masks.map(told).collect();
        let not_obeyed = not_obeyed.map(told).collect();
        for (key, all) in KEYS.into_iter().zip([masks, not_obeyed]) {
            if all.is_empty() {
                private.remove(key);
            } else {
                private.insert(key.to_owned(), Value::Array(all));
            }
        }
    }

    /// A fingerprint that differs between versions of the results. Fields that earlier versions do not write are left out: two versions that
    /// run side by side must not amend the documents of each other.
    pub fn fingerprint(&self) -> String {
        let mut written = Map::new();
        self.write(&mut written);
        Self::fingerprint_of(&written)
    }

    /// The fingerprint of the results in a `pvt_recording`.
    pub fn fingerprint_of(private: &Map<String, Value>) -> String {
        let written = KEYS.map(|key| {
            let mut told = private.get(key).cloned().unwrap_or(Value::Null);
            for one in told
                .as_array_mut()
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                one.remove("asked_at");
            }
            told.to_string()
        });
        let mut digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, written.join(" ").as_bytes())
            .simple()
            .to_string();
        digest.truncate(12);
        digest
    }
}
