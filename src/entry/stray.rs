//! Misattributed audio: audio in the hold that is not the recording's own.
//!
//! A worker may have received other audio of the same name, from a later part. The ledger could not say what was done already, for example
//! because its databases were partitioned. Then one entry has two copies in the hold, or a copy that is not the delivered audio. Each copy
//! that is not the recording's own is split off into a recording of its own. If it was also delivered, into a second document, the
//! continuation gets the fact of that delivery.

use crate::kazoo::time::Moment;
use crate::recording::identity::Key;

use super::Entry;
use super::fact::{Fact, Holding, What};

impl Entry {
    /// Misattributed copies in the hold.
    pub(super) fn strays(&self) -> impl Iterator<Item = &Holding> {
        let held = self.facts().filter_map(|fact| match &fact.what {
            What::Held { n, holding } => Some((*n, holding)),
            _ => None,
        });
        held.clone().filter_map(move |(n, holding)| {
            let own = held.clone().find(|(other, own)| *other == n && !self.is_strange(own));
            let is_own = own.is_some_and(|(_, own)| own.name == holding.name);
            (!is_own).then_some(holding)
        })
    }

    /// Whether the recording was delivered, and with other audio than this. Other audio than that of the first delivery counts as delivered only
    /// if enough copies took it: read-backs are of the first delivery.
    pub(super) fn is_strange(&self, holding: &Holding) -> bool {
        let own = self.delivery().and_then(|delivery| delivery.sha256.as_deref());
        let mut delivered = self.facts().filter_map(|fact| match &fact.what {
            What::Uploaded { sha256, .. } => Some(sha256.as_deref()),
            What::Delivered(delivery) => {
                let sha256 = delivery.sha256.as_deref();
                (!delivery.below_quorum || sha256 == own).then_some(sha256)
            }
            _ => None,
        });
        let all = |sha256: Option<&str>| sha256.is_some_and(|sha256| sha256 != holding.digests.sha256);
        delivered.clone().next().is_some() && delivered.all(all)
    }

    /// What was delivered in addition to this recording's own audio, as facts for the continuation.
    pub(super) fn delivered_beside(&self) -> Vec<What> {
        let own = self.delivery().and_then(|delivery| delivery.sha256.as_deref());
        // Of one that too few copies took, nothing is certain: the continuation delivers that audio itself.
        let other = self.facts().find_map(|fact| match &fact.what {
            What::Delivered(delivery) if !delivery.below_quorum => {
                delivery.sha256.as_deref().filter(|sha256| Some(*sha256) != own)
            }
            _ => None,
        });
        let Some((other, _)) = other.zip(own) else {
            return Vec::new();
        };
        let is_of_it = |what: &What| match what {
            What::Collected(audio) => audio.digests.sha256 == other,
            What::Delivered(delivery) => delivery.sha256.as_deref() == Some(other),
            _ => false,
        };
        let told = self.facts().map(|fact| &fact.what);
        told.filter(|what| is_of_it(what)).cloned().collect()
    }

    /// A misattributed copy that was not split off yet.
    pub fn stray(&self) -> Option<&Holding> {
        let mut strays = self.strays();
        strays.find(|holding| !self.has(|what| matches!(what, What::Separated { name } if *name == holding.name)))
    }

    /// The recordings that misattributed copies became.
    pub fn apart(&self) -> Vec<Key> {
        let is_apart =
            |holding: &&Holding| self.has(|what| matches!(what, What::Separated { name } if *name == holding.name));
        let strays = self.strays().filter(is_apart);
        let key = |holding: &Holding| Some(self.order()?.of_audio(&holding.digests.sha256).key);
        strays.filter_map(key).collect()
    }

    /// The recording of its own that a misattributed copy becomes; `None` if the copy is this recording's.
    pub fn separated(&self, name: &str, now: Moment, by: &str) -> Option<Self> {
        let holding = self.strays().find(|holding| holding.name == name)?;
        let mut entry = Self::of_order(self.order()?.of_audio(&holding.digests.sha256), by);
        let collected = self.facts().find_map(|fact| match &fact.what {
            What::Collected(audio) if audio.digests == holding.digests => Some(fact.what.clone()),
            _ => None,
        });
        // The nearest end. Which part the audio belongs to is not certain.
        let parts = self.parts();
        let ended = parts.iter().rev().find_map(|part| part.ended).or(self.ended());
        let told = [
            Some(What::Commanded),
            ended.map(|told| What::Ended(Box::new(told.clone()))),
            collected,
            Some(What::Held {
                n: 1,
                holding: holding.clone(),
            }),
        ];
        for what in told.into_iter().flatten() {
            entry.add(Fact {
                at: now,
                by: by.to_owned(),
                what,
            });
        }
        Some(entry)
    }
}
