//! A fact that several versions of an entry share: a copy of an entry copies no fact.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Serialize, Serializer};

use super::fact::Fact;

/// A fact, and its fingerprint once that was asked for.
#[derive(Clone)]
pub struct SharedFact(Arc<(Fact, OnceLock<u64>)>);

impl SharedFact {
    /// A number of the content. Facts with the same content have the same number.
    pub(super) fn fingerprint(&self) -> u64 {
        let of_content = || fingerprint(&serde_json::to_string(&self.what).unwrap_or_default());
        *self.0.1.get_or_init(of_content)
    }
}

/// A number of a fact's content, which is given as text.
pub(super) fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl From<Fact> for SharedFact {
    fn from(fact: Fact) -> Self {
        Self(Arc::new((fact, OnceLock::new())))
    }
}

impl Deref for SharedFact {
    type Target = Fact;

    fn deref(&self) -> &Fact {
        &self.0.0
    }
}

impl PartialEq for SharedFact {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl PartialEq<Fact> for SharedFact {
    fn eq(&self, other: &Fact) -> bool {
        **self == *other
    }
}

impl fmt::Debug for SharedFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for SharedFact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}
