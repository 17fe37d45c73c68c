//! Calls whose id was replaced lately.

use std::sync::{Mutex, PoisonError};

use crate::kazoo::action::ReplyTo;

use super::bounded::Bounded;

/// Calls whose id was replaced lately: the callflow would ignore an answer under the old id.
#[derive(Debug, Default)]
pub struct CallIds(Mutex<Bounded<String, String>>);

/// The largest number of replacements that are remembered.
const REMEMBERED: usize = 10_000;

impl CallIds {
    /// A call has another id from now on.
    pub fn replace(&self, old: &str, new: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(old.to_owned(), new.to_owned(), REMEMBERED);
    }

    /// The call's present id.
    pub fn current(&self, call_id: &str) -> String {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = call_id;
        // A call can be replaced again. The limit ends a possible circle.
        for _ in 0..8 {
            match map.get(now) {
                Some(next) => now = next,
                None => break,
            }
        }
        now.to_owned()
    }

    /// The same address, with the call's present id.
    pub fn address(&self, to: &ReplyTo) -> ReplyTo {
        ReplyTo {
            call_id: self.current(&to.call_id),
            ..to.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_followed_through_its_replacements() {
        let replaced = CallIds::default();
        replaced.replace("a", "b");
        replaced.replace("b", "c");
        assert_eq!(replaced.current("a"), "c");
        assert_eq!(replaced.current("x"), "x");
        replaced.replace("c", "a");
        let _ = replaced.current("a");
    }
}
