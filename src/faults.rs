//! Faults that tests put back, one at a time, to measure whether `tests/simulation` finds them. Only the feature `faults` has them, which the
//! package turns on for its own tests. In every other build nothing is ever put back.

/// A fault of an earlier version, or one that a change could bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A file that could not be opened three times counts as gone.
    MissingIsGone,
    /// A delivery counts as verified after so many read-backs, whatever they found.
    LooksEnd,
    /// A panic on a recording is noted nowhere.
    PanicUnnoticed,
    /// The union of conflicting entries is written without its timer.
    MergeWithoutDue,
    /// A conflicting revision that could not be read is deleted all the same.
    UnreadDeleted,
    /// An operator's retry counts by time.
    RetryByTime,
    /// An entry with a fact of another version cannot be read.
    OthersUnreadable,
    /// The union of two versions lacks one kind of fact.
    MergeDropsHeld,
    /// A sweep that does not get a recording drops what it was told meanwhile, and leaves a lease that it may have written.
    MailboxDropped,
    /// A recording that waits for a slot of its switch counts as busy.
    WaitersBusy,
    /// A lease of another worker is ignored.
    LeasesIgnored,
    /// The switch may always delete its file.
    AlwaysSafe,
    /// An end that came during the upload is not noticed.
    EndNotCompared,
    /// Bad news is announced without a question to the ledger.
    BadNewsUnasked,
    /// A start counts as durable before ledger or journal have it.
    AcknowledgedEarly,
    /// A file that its writer did not close may be deleted.
    OpenFilesReleased,
    /// The answer to the switch compares no digests.
    DigestsIgnored,
}

#[cfg(feature = "faults")]
mod put_back {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        static BACK: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Puts a fault back on this thread; `None` takes it away.
    pub fn put_back(fault: Option<Fault>) {
        BACK.set(fault);
    }

    pub fn is_back(fault: Fault) -> bool {
        BACK.get() == Some(fault)
    }
}

#[cfg(feature = "faults")]
pub use put_back::{is_back, put_back};

#[cfg(not(feature = "faults"))]
pub(crate) const fn is_back(_: Fault) -> bool {
    false
}
