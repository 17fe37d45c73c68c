//! Recordings that Kazoo's own recorder is to store, and that a worker watches (`adopt.mode` `watch` and `rescue`). Only those are in the
//! ledger whose document lacked its audio at the first look.

use serde::{Deserialize, Serialize};

use crate::kazoo::time::Moment;

use super::Entry;
use super::fact::{Destination, What};

/// What Kazoo's own recorder has left of a recording that it has not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KazooCopy {
    /// A document without audio, whose audio belongs into the same database.
    NoAudio,
    /// The same, in another database than the one of the month of the recording's id. The worker writes no document there.
    NoAudioElsewhere,
    /// A document without audio, whose audio belongs to the URL that the document names.
    NoAudioForUrl,
    /// Kazoo's databases did not answer.
    Unanswered,
    /// No document. Or another program version used a word that this one does not know.
    #[serde(other)]
    Missing,
}

impl KazooCopy {
    pub const ALL: [Self; 5] = [
        Self::NoAudio,
        Self::NoAudioElsewhere,
        Self::NoAudioForUrl,
        Self::Unanswered,
        Self::Missing,
    ];

    /// What it is, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoAudio => "document without audio",
            Self::NoAudioElsewhere => "document without audio, in another database",
            Self::NoAudioForUrl => "document without audio, for a URL",
            Self::Unanswered => "unknown, because a database did not answer",
            Self::Missing => "no document",
        }
    }

    /// Whether Kazoo's document shows that its audio belongs into a database.
    pub const fn is_without_url(self) -> bool {
        matches!(self, Self::NoAudio | Self::NoAudioElsewhere)
    }
}

impl Entry {
    /// When a worker began to watch the recording, and when Kazoo's own recorder tries no more. `None`: the recording is the worker's to
    /// store.
    pub fn watched(&self) -> Option<(Moment, Moment)> {
        self.facts().find_map(|fact| match fact.what {
            What::Watched { due } => Some((fact.at, due)),
            _ => None,
        })
    }

    /// Whether Kazoo's own recorder may still store the recording. An operator's retry ends that, and so does a worker that has received the
    /// audio: it stored in place of Kazoo's own recorder when its `adopt.mode` was another one.
    pub fn awaits_kazoo(&self) -> bool {
        let is_over = self.is_given_up_by_kazoo() || self.has(|what| matches!(what, What::Collected(_)));
        let is_over = is_over || self.is_retried();
        self.watched().is_some() && !is_over
    }

    /// Whether the last look was made, because Kazoo's own recorder tries no more.
    pub fn is_given_up_by_kazoo(&self) -> bool {
        self.given_up_at().is_some()
    }

    pub(super) fn given_up_at(&self) -> Option<Moment> {
        let is_last = |what: &What| matches!(what, What::Sought { last: true, .. });
        self.facts().find(|fact| is_last(&fact.what)).map(|fact| fact.at)
    }

    /// What Kazoo's own recorder had left at the last look.
    pub fn kazoo_copy(&self) -> Option<KazooCopy> {
        let found = self.facts().filter_map(|fact| match fact.what {
            What::Sought { n, found, .. } => Some((n, found)),
            _ => None,
        });
        found.max_by_key(|(n, _)| *n).map(|(_, found)| found)
    }

    /// Whether Kazoo's own recorder did not store the recording, and no worker has its audio either.
    pub fn is_lost_by_kazoo(&self) -> bool {
        let collected = self.has(|what| matches!(what, What::Collected(_)));
        self.watched().is_some() && self.parked().is_some() && !collected && self.held().is_none()
    }

    /// Whether the recording's document is Kazoo's own, and the worker adds no more than the audio.
    pub(super) fn completes_kazoos(&self) -> bool {
        let is_one = |found| matches!(found, KazooCopy::NoAudio | KazooCopy::NoAudioForUrl);
        let has_document = self.kazoo_copy().is_some_and(is_one);
        let is_here = |to: Destination| !to.documents_first();
        has_document && self.delivery().is_some_and(|delivery| is_here(delivery.destination))
    }

    fn is_retried(&self) -> bool {
        self.next_number("retried") > 1
    }
}
