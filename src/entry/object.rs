//! Objects in the stores of storage plans that have a recording's audio.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Entry;
use super::fact::What;

/// An object that has a recording's audio. Contains no secret: the document gets the plan's settings as they are then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// The number of the attempt that found it or put it there.
    pub attempt: u32,
    /// The handler's name in the plan.
    pub handler: String,
    /// Fingerprint of server, bucket and object name.
    pub place: String,
    /// The digest of the audio.
    pub sha256: String,
    /// What showed that the object is whole: `digest` or `length`.
    pub proof: String,
    /// What the store said of it, for the document.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Entry {
    /// The object that has this audio, in an object store, if it is at this place.
    pub fn object_at(&self, place: &str, sha256: &str) -> Option<&StoredObject> {
        self.facts().rev().find_map(|fact| match &fact.what {
            What::ObjectStored(object) if object.place == place && object.sha256 == sha256 => Some(&**object),
            _ => None,
        })
    }
}

#[cfg(test)]
impl StoredObject {
    /// One of a few objects, at one of a few places.
    pub fn example(n: u32, etag: String) -> Self {
        Self {
            attempt: n,
            handler: "9b1c".into(),
            place: (n % 3).to_string(),
            sha256: (n % 4).to_string(),
            proof: "digest".into(),
            metadata: BTreeMap::from([("etag".to_owned(), etag)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::Fact;
    use crate::kazoo::time::Moment;
    use crate::recording::identity::Key;

    use super::*;

    #[test]
    fn an_object_is_known_by_its_place_and_its_audio() {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        entry.add(Fact {
            at: Moment::from_unix_seconds(1),
            by: "x".into(),
            what: What::ObjectStored(Box::new(StoredObject::example(1, "e".into()))),
        });
        assert!(entry.object_at("1", "1").is_some());
        // The plan changed, or the recording has more audio now.
        assert!(entry.object_at("2", "1").is_none() && entry.object_at("1", "2").is_none());
        // The audio is safe only when its document tells where it is.
        assert!(!entry.audio_is_safe());
    }
}
