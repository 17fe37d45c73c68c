//! Faults put back, one at a time: the measure of what the simulation finds. Some are in the product, behind the feature `faults`. The others
//! are in what the simulation supplies: handlers, effects, the balancer before CouchDB.

use std::cell::Cell;

use kz_record_call::faults::{Fault as Product, put_back};

/// A fault in what the simulation supplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An action that could not be answered is neither acknowledged nor given back.
    ActionForgotten,
    /// A node without the list of databases is believed.
    MissingDatabaseTrusted,
    /// A copy in the hold has its recording's name alone.
    HoldOverwrites,
    /// A mask counts as sent whether the broker took it or not.
    MaskPresumed,
    /// A switch waits as long as a user's server takes.
    SlotKept,
    /// A stop that finds no ledger is known to memories alone.
    StopInMemory,
}

#[derive(Debug, Clone, Copy)]
pub enum Any {
    Of(Product),
    World(Fault),
}

thread_local! {
    static BACK: Cell<Option<Fault>> = const { Cell::new(None) };
}

pub fn is_back(fault: Fault) -> bool {
    BACK.get() == Some(fault)
}

/// Puts a fault back on this thread; `None` takes it away.
pub fn put(fault: Option<Any>) {
    let (product, world) = match fault {
        Some(Any::Of(fault)) => (Some(fault), None),
        Some(Any::World(fault)) => (None, Some(fault)),
        None => (None, None),
    };
    put_back(product);
    BACK.set(world);
}

/// All of them: the review's number or a name, what it is, and the fault.
pub const ALL: &[(&str, &str, Any)] = &[
    (
        "A1",
        "an action that cannot be answered is never given back",
        Any::World(Fault::ActionForgotten),
    ),
    (
        "A2",
        "a file that cannot be opened three times counts as gone",
        Any::Of(Product::MissingIsGone),
    ),
    (
        "A3",
        "the hold is emptied after six read-backs that found nothing",
        Any::Of(Product::LooksEnd),
    ),
    (
        "A4",
        "a panic on a recording is noted nowhere",
        Any::Of(Product::PanicUnnoticed),
    ),
    (
        "A5",
        "a node that does not know the databases is believed",
        Any::World(Fault::MissingDatabaseTrusted),
    ),
    (
        "A6",
        "a merge of conflicts writes no timer",
        Any::Of(Product::MergeWithoutDue),
    ),
    (
        "A7",
        "a conflict that could not be read is deleted",
        Any::Of(Product::UnreadDeleted),
    ),
    (
        "A8",
        "other audio replaces what is held",
        Any::World(Fault::HoldOverwrites),
    ),
    (
        "B2",
        "recordings that wait for one switch stop the sweep",
        Any::Of(Product::WaitersBusy),
    ),
    (
        "B3",
        "a user's slow server keeps the slots of a switch",
        Any::World(Fault::SlotKept),
    ),
    (
        "B5",
        "a mask that was not delivered is documented",
        Any::World(Fault::MaskPresumed),
    ),
    (
        "B6",
        "a stop without a ledger is known to memories alone",
        Any::World(Fault::StopInMemory),
    ),
    ("B7", "a retry counts by time", Any::Of(Product::RetryByTime)),
    (
        "B9",
        "an entry with a fact of another version is unreadable",
        Any::Of(Product::OthersUnreadable),
    ),
    (
        "B12",
        "a sweep drops what it was told meanwhile, and leaves a lease",
        Any::Of(Product::MailboxDropped),
    ),
    (
        "hold",
        "a file is released while its leg is on hold",
        Any::Of(Product::OpenFilesReleased),
    ),
    (
        "ack of a start",
        "an action is acknowledged before the ledger has it",
        Any::Of(Product::AcknowledgedEarly),
    ),
    (
        "digests",
        "a file is released without a comparison of digests",
        Any::Of(Product::DigestsIgnored),
    ),
    ("leases", "a sweep ignores leases", Any::Of(Product::LeasesIgnored)),
    (
        "merge",
        "a merge drops the copies in the hold",
        Any::Of(Product::MergeDropsHeld),
    ),
    ("safe", "every file may be deleted", Any::Of(Product::AlwaysSafe)),
    (
        "end",
        "an end that comes during the upload is not noticed",
        Any::Of(Product::EndNotCompared),
    ),
    (
        "bad news",
        "bad news is announced without a question to the ledger",
        Any::Of(Product::BadNewsUnasked),
    ),
];
