//! The identity of a recording. It is derived from the call and the action, so that a redelivered action starts no second recording.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::kazoo::time::{Moment, Month};

/// Our namespace for derived ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b7a_7265_636f_7264_8063_616c_6c00_0001);

/// A recording's key: 32 hex digits. It is the same at each worker and at each delivery of its action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(Uuid);

impl Key {
    /// The key of the recording that the action `msg_id` of the call `call_id` starts.
    pub fn of(call_id: &str, msg_id: &str) -> Self {
        let call = Uuid::new_v5(&NAMESPACE, call_id.as_bytes());
        Self(Uuid::new_v5(&call, msg_id.as_bytes()))
    }

    /// A stable id for an object of this recording, such as one of its messages: 32 hex digits.
    pub fn derived(self, what: &str) -> String {
        Uuid::new_v5(&self.0, what.as_bytes()).simple().to_string()
    }

    /// The key of this recording's continuation.
    #[must_use]
    pub fn continuation(self) -> Self {
        Self(Uuid::new_v5(&self.0, b"continuation"))
    }

    /// The key of audio of this recording that differs from the stored audio.
    #[must_use]
    pub fn of_audio(self, sha256: &str) -> Self {
        Self(Uuid::new_v5(&self.0, format!("audio {sha256}").as_bytes()))
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// A text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 lower-case hex digits")]
pub struct NotAKey;

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        plain
            .then(|| Uuid::try_parse(text).ok())
            .flatten()
            .map(Self)
            .ok_or(NotAKey)
    }
}

impl TryFrom<String> for Key {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

/// A recording's id, which is its document's `_id`: `YYYYMM-` and 1 to 64 of `A-Za-z0-9_-`.
///
/// The month also selects the database: Crossbar looks for a recording only there (`cb_recordings:load_recording_doc`). The alphabet is
/// safe on the switch's command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediaId(String);

/// A text that cannot be a recording's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a media_id is YYYYMM- and 1 to 64 of A-Z a-z 0-9 _ -")]
pub struct NotAMediaId;

impl MediaId {
    /// The id of a recording whose action chose none.
    pub fn derived(key: Key, started: Moment) -> Self {
        Self(format!("{}-{key}", started.month()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn month(&self) -> Month {
        // `new` accepts only real months.
        Month::of_id(&self.0).unwrap_or_else(|| Moment::from_unix_seconds(0).month())
    }

    fn new(text: String) -> Result<Self, NotAMediaId> {
        let name = text
            .get(6..)
            .and_then(|rest| rest.strip_prefix('-'))
            .ok_or(NotAMediaId)?;
        let good = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
            && Month::of_id(&text).is_some();
        good.then_some(Self(text)).ok_or(NotAMediaId)
    }
}

impl fmt::Display for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MediaId {
    type Err = NotAMediaId;

    fn from_str(text: &str) -> Result<Self, NotAMediaId> {
        Self::new(text.to_owned())
    }
}

impl TryFrom<String> for MediaId {
    type Error = NotAMediaId;

    fn try_from(text: String) -> Result<Self, NotAMediaId> {
        Self::new(text)
    }
}

impl From<MediaId> for String {
    fn from(id: MediaId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_action_of_the_same_call_is_the_same_recording() {
        let key = Key::of("call", "action");
        assert_eq!(key, Key::of("call", "action"));
        assert_ne!(key, Key::of("call", "other"));
        assert_ne!(key, Key::of("other", "action"));
        assert_ne!(Key::of("ab", "c"), Key::of("a", "bc"));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_ne!(key.derived("stored"), key.derived("failed"));
    }

    #[test]
    fn only_ids_that_pass_a_command_line_and_name_a_month_are_ids() {
        for good in ["202611-a", "202611-Ab_-9", &format!("202611-{}", "x".repeat(64))] {
            assert!(good.parse::<MediaId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "202611",
            "202611-",
            "20261-a",
            "202613-a",
            "202611_a",
            "202611-a.b",
            "202611-${system id}",
            "202611-a b",
            "202611-ä",
            "é2026-a",
            &format!("202611-{}", "x".repeat(65)),
            "202611-a\n",
        ] {
            assert!(bad.parse::<MediaId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_id_or_none(text in any::<String>()) {
            if let Ok(id) = text.parse::<MediaId>() {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')));
            }
        }
    }
}
