//! A recording that goes on from another, and whether it has anything of its own: events that come late tell of audio that is kept already.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::ledger::address;
use crate::recording::digest::Digests;

use super::next::{Case, Input};
use super::perform::Parts;

/// How long the ledger has to tell. Without its word the recording goes its own way: audio that is kept twice is better than none.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// More parts than that are not looked through.
const MOST_PARTS: usize = 8;

/// What becomes of a recording whose audio is another's.
pub(super) fn already_kept() -> Input {
    Input::Fact(What::Concluded {
        outcome: Outcome::Discarded,
        cause: Cause::AlreadyKept,
    })
}

impl Parts {
    /// Whether this very audio is safe in one of the recordings that this one goes on from.
    pub(super) async fn is_kept_before(&self, case: &Case, digests: &Digests) -> bool {
        let ancestors = self.ancestors(&case.entry).await;
        ancestors.iter().any(|before| before.is_safe(digests))
    }

    /// Whether all that was told of is in what this one goes on from, by what is known now. Asked when there is no file.
    pub(super) async fn was_all_kept_before(&self, case: &Case) -> bool {
        let ancestors = self.ancestors(&case.entry).await;
        let kept = ancestors.iter().find(|before| !before.is_already_kept());
        kept.is_some_and(|before| before.audio_is_safe() && !before.goes_on())
    }

    /// Nearest first.
    async fn ancestors(&self, entry: &Entry) -> Vec<Entry> {
        let mut found: Vec<Entry> = Vec::new();
        while found.len() < MOST_PARTS {
            let last = found.last().unwrap_or(entry);
            let Some(continues) = last.order().and_then(|order| order.continues.as_ref()) else {
                break;
            };
            let mut address = address(last);
            address.key = continues.key;
            match tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address)).await {
                Ok(Ok(Some(record))) => found.push(record.entry),
                _ => break,
            }
        }
        found
    }
}
