//! The one closed table of how a recording can end, and why. The document, the event, the metric, the log and the docs use it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Document and audio are in a database, or where the account's storage plan says.
    Stored,
    /// The audio is at the user's URL, the document in the account's database.
    Delivered,
    /// Nothing was to be kept.
    Discarded,
    /// There is no audio to keep.
    Failed,
    /// The recording is parked with its audio kept. An operator must retry or discard it.
    Parked,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The audio is what its name says.
    Complete,
    /// The audio was kept as it came, but something is wrong with it. The document's findings say what.
    SuspectAudio,
    /// A user deleted the document before the worker knew that it was stored.
    Deleted,
    /// `store_recordings` is false.
    StoringDisabled,
    /// Shorter than `record_min_sec`.
    TooShort,
    /// It was to begin at an answer or a bridge that never came.
    NeverTriggered,
    /// All that the switch recorded is in the recording that this one continues.
    AlreadyKept,
    /// Kazoo's own recorder has stored it.
    StoredByKazoo,
    /// An operator discarded it.
    DiscardedByOperator,
    /// It was parked with its audio in the hold for as long as the configuration keeps such audio.
    RetentionOver,
    /// The switch never reported its start, and no other event of it arrived.
    NeverStarted,
    /// Call control refused the start command.
    StartRefused,
    /// The call's control process was gone before the start command.
    CallGone,
    /// The switch does not have the file any more.
    FileGone,
    /// The user's URL cannot be served.
    UnusableUrl,
    /// The user's URL is signed, and its signature is not valid any more.
    UrlExpired,
    /// The destination stayed undecided, attempt after attempt: a part of the configuration could not be read, or makes no sense.
    Undecided,
    /// No account: neither the action nor an event named one.
    NoAccount,
    /// The account does not exist.
    UnknownAccount,
    /// The target refuses this recording.
    Refused,
    /// No attempt at the target succeeded: it did not answer, or answered what may pass.
    Unreachable,
    /// The switch did not upload its file, attempt after attempt.
    NotCollected,
    /// The recording context did not contain the URL, which was too long, or is unreadable. The ledger does not know the URL either.
    SettingsLost,
    /// Kazoo's store proxy, which the account's storage plan needs, cannot be used.
    NoStoreProxy,
    /// The object store refuses what the account's storage plan says: credentials, bucket or policy.
    PlanRefused,
    /// A callflow chose the name of its file, and two calls can have the same file.
    SharedName,
    /// Kazoo's own recorder did not store it, and tries no more.
    NotStoredByKazoo,
    /// The program itself panicked on it, attempt after attempt.
    ProgramFault,
}

impl Outcome {
    pub const ALL: [Self; 5] = [
        Self::Stored,
        Self::Delivered,
        Self::Discarded,
        Self::Failed,
        Self::Parked,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Delivered => "delivered",
            Self::Discarded => "discarded",
            Self::Failed => "failed",
            Self::Parked => "parked",
        }
    }

    /// The causes that an outcome can have.
    pub const fn causes(self) -> &'static [Cause] {
        match self {
            Self::Stored | Self::Delivered => &[Cause::Complete, Cause::SuspectAudio, Cause::Deleted],
            Self::Discarded => &[
                Cause::StoringDisabled,
                Cause::TooShort,
                Cause::NeverTriggered,
                Cause::AlreadyKept,
                Cause::StoredByKazoo,
                Cause::Deleted,
                Cause::DiscardedByOperator,
                Cause::RetentionOver,
            ],
            Self::Failed => &[
                Cause::NeverStarted,
                Cause::StartRefused,
                Cause::CallGone,
                Cause::FileGone,
            ],
            Self::Parked => &[
                Cause::NoAccount,
                Cause::UnknownAccount,
                Cause::Refused,
                Cause::Unreachable,
                Cause::NotCollected,
                Cause::UnusableUrl,
                Cause::UrlExpired,
                Cause::SettingsLost,
                Cause::NoStoreProxy,
                Cause::PlanRefused,
                Cause::Undecided,
                Cause::SharedName,
                Cause::NotStoredByKazoo,
                Cause::ProgramFault,
            ],
        }
    }
}

impl Cause {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::SuspectAudio => "suspect_audio",
            Self::Deleted => "deleted",
            Self::StoringDisabled => "storing_disabled",
            Self::TooShort => "too_short",
            Self::NeverTriggered => "never_triggered",
            Self::AlreadyKept => "already_kept",
            Self::StoredByKazoo => "stored_by_kazoo",
            Self::DiscardedByOperator => "discarded_by_operator",
            Self::RetentionOver => "retention_over",
            Self::NeverStarted => "never_started",
            Self::StartRefused => "start_refused",
            Self::CallGone => "call_gone",
            Self::FileGone => "file_gone",
            Self::UnusableUrl => "unusable_url",
            Self::UrlExpired => "url_expired",
            Self::Undecided => "undecided",
            Self::NoAccount => "no_account",
            Self::UnknownAccount => "unknown_account",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NotCollected => "not_collected",
            Self::SettingsLost => "settings_lost",
            Self::NoStoreProxy => "no_store_proxy",
            Self::PlanRefused => "plan_refused",
            Self::SharedName => "shared_name",
            Self::NotStoredByKazoo => "not_stored_by_kazoo",
            Self::ProgramFault => "program_fault",
        }
    }

    /// Whether the cause was concluded from silence. The conclusion is void once something is heard of the recording.
    pub const fn is_silence(self) -> bool {
        matches!(
            self,
            Self::NeverTriggered | Self::NeverStarted | Self::StartRefused | Self::CallGone
        )
    }

    /// What it means, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Complete => "the audio is complete and has the format of its file name",
            Self::SuspectAudio => "the audio is stored as the switch wrote it, and has findings",
            Self::Deleted => "the audio was stored, and a user has deleted the document since",
            Self::StoringDisabled => "store_recordings is false in system_config/media: the file stays on the switch",
            Self::TooShort => "the recording is shorter than its record_min_sec",
            Self::NeverTriggered => {
                "the call ended before the answer or bridge at which the recording would have begun"
            }
            Self::AlreadyKept => "all audio is in the recording that this one continues",
            Self::StoredByKazoo => "Kazoo's own recorder has stored it",
            Self::DiscardedByOperator => "an operator discarded it",
            Self::RetentionOver => {
                "no operator retried it within hold.retention_days, so its audio was removed from the hold"
            }
            Self::NeverStarted => "no event reported a start on the switch",
            Self::StartRefused => "call control refused the start command",
            Self::CallGone => "the call was over before it could be recorded",
            Self::FileGone => "the switch has no such file, and the destination has no copy",
            Self::UnusableUrl => "the url of the action cannot be used",
            Self::UrlExpired => "the signature of the action's url is not valid any more",
            Self::Undecided => {
                "destination undecided: system_config/media or the account's storage plan cannot be read, or names no server"
            }
            Self::NoAccount => "neither the action nor an event named the account",
            Self::UnknownAccount => "the account does not exist, or is deleted",
            Self::Refused => "the target refuses this recording permanently",
            Self::Unreachable => "no attempt at the target succeeded",
            Self::NotCollected => "the switch did not upload its file in any attempt",
            Self::SettingsLost => {
                "the url is lost: the recording context was too long or sealed with another secret, and the ledger has no order"
            }
            Self::NoStoreProxy => "the account's storage plan needs Kazoo's store proxy, which cannot be used",
            Self::PlanRefused => {
                "the object store refuses the account's storage plan: credentials, bucket, policy or certificate"
            }
            Self::SharedName => "the callflow chose the file's name, so the file may have the audio of several calls",
            Self::NotStoredByKazoo => {
                "Kazoo's own recorder did not store it, and tries no more: the file may be on the switch"
            }
            Self::ProgramFault => "the handler panicked in every attempt: a program fault, see the log",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_closed_and_every_cause_belongs_to_one_outcome_at_least() {
        let pairs: Vec<_> = Outcome::ALL
            .iter()
            .flat_map(|o| o.causes().iter().map(move |c| (*o, *c)))
            .collect();
        assert!(pairs.len() <= 32, "{}", pairs.len());
        let mut names: Vec<_> = pairs.iter().map(|(o, c)| format!("{o}/{c}")).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
