//! The states of a recording, as the ledger, the metrics, the commands and the docs name them, and how one follows another.

use crate::entry::Entry;
use crate::entry::cause::Outcome;

/// Where a recording stands. It follows from the entry alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// An action asked for it.
    Asked,
    /// The switch said that it has begun.
    Recording,
    /// The recording is over, and its audio is still on its switch.
    Ended,
    /// Its audio is in the hold.
    Held,
    /// Nothing more is tried until an operator, or a late event, resumes it.
    Parked,
    /// Kazoo's own recorder is to store it, and had not when a worker last looked.
    Watched,
    /// Kazoo's own recorder did not store it, and no worker has its audio. It is parked.
    Lost,
    /// Its outcome is certain, and not all notices of it are published.
    Announcing,
    /// It is stored, on a server that had too few copies of it when a worker last asked.
    Unverified,
    /// Its outcome is certain and announced. Something must still be done about a file, a held copy or a document.
    Closing,
    Stored,
    Delivered,
    Discarded,
    Failed,
}

use State::{
    Announcing, Asked, Closing, Delivered, Discarded, Ended, Failed, Held, Lost, Parked, Recording, Stored, Unverified,
    Watched,
};

/// Every state, in the order in which a recording passes them.
pub const STATES: [State; 14] = [
    Asked, Recording, Ended, Held, Parked, Watched, Lost, Announcing, Unverified, Closing, Stored, Delivered,
    Discarded, Failed,
];

/// The states that one step leads to from each state. What other workers wrote can lead further at once.
const NEXT: [(State, &[State]); 14] = [
    (Asked, &[Recording, Ended, Parked, Announcing]),
    (Recording, &[Ended, Parked, Announcing]),
    // A switch that begins again under a name whose end was told records again.
    (Ended, &[Recording, Held, Parked, Lost, Announcing]),
    (Held, &[Recording, Ended, Parked, Announcing]),
    // An operator, or a late event, resumes it.
    (Parked, &[Asked, Recording, Ended, Held, Announcing]),
    (Watched, &[Ended, Lost, Announcing]),
    (Lost, &[Ended, Held, Parked, Announcing]),
    // A copy that is lost is delivered again.
    (
        Announcing,
        &[
            Recording, Ended, Held, Parked, Unverified, Closing, Stored, Delivered, Discarded, Failed,
        ],
    ),
    (
        Unverified,
        &[Ended, Held, Parked, Announcing, Closing, Stored, Delivered],
    ),
    (
        Closing,
        &[
            Recording, Ended, Held, Parked, Announcing, Unverified, Stored, Delivered, Discarded, Failed,
        ],
    ),
    // A late event of another part, a file that is there again, or controls that became known.
    (Stored, &[Recording, Ended, Announcing, Unverified, Closing]),
    (Delivered, &[Recording, Ended, Announcing, Unverified, Closing]),
    (Discarded, &[Recording, Ended, Announcing, Closing]),
    (Failed, &[Recording, Ended, Announcing, Closing]),
];

impl State {
    /// The states that one step can lead to.
    pub fn next(self) -> &'static [Self] {
        NEXT.iter()
            .find(|(state, _)| *state == self)
            .map_or(&[], |(_, next)| next)
    }

    pub fn of(entry: &Entry) -> Self {
        match entry.outcome() {
            Some((outcome, _)) if entry.is_closed() => Self::closed(outcome),
            Some(_) if entry.open_announcements().next().is_some() => Announcing,
            Some(_) if entry.is_unverified() => Unverified,
            Some(_) => Closing,
            None if entry.is_lost_by_kazoo() => Lost,
            None if entry.parked().is_some() => Parked,
            None if entry.held().is_some() => Held,
            None if entry.awaits_kazoo() => Watched,
            None if entry.ended().is_some() => Ended,
            None if entry.started().is_some() => Recording,
            None => Asked,
        }
    }

    fn closed(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Stored => Stored,
            Outcome::Delivered => Delivered,
            Outcome::Discarded => Discarded,
            Outcome::Failed => Failed,
            Outcome::Parked => Parked,
        }
    }

    /// Its name in the ledger, in metrics and in commands.
    pub fn name(self) -> &'static str {
        match self {
            Asked => "asked",
            Recording => "recording",
            Ended => "ended",
            Held => "held",
            Parked => "parked",
            Watched => "watched",
            Lost => "lost",
            Announcing => "announcing",
            Unverified => "unverified",
            Closing => "closing",
            Stored => "stored",
            Delivered => "delivered",
            Discarded => "discarded",
            Failed => "failed",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.name() == name)
    }

    /// Whether nothing more is owed.
    pub fn is_final(self) -> bool {
        matches!(self, Stored | Delivered | Discarded | Failed)
    }
}
