//! The inputs of decisions, and their results.

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{Announcement, Destination, What};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;

/// A recording in flight: its entry, and what only this worker has.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub entry: Entry,
    pub hand: Hand,
    /// The entry has what the ledger knows now. Otherwise nothing is concluded from silence: another worker may have heard of the recording.
    pub informed: bool,
}

/// Whether this worker holds the audio of an upload whose switch waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    Empty,
    Received,
    /// Received, and a delivery of it failed.
    Tried,
    /// Received, and the hold did not take it.
    HoldRefused,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Fact(What),
    /// An upload is complete, and this worker holds it.
    Received(Audio),
    /// The upload was answered.
    Answered(Answer),
    /// The hold did not take the audio.
    HoldRefused,
    /// What the ledger, or another worker, knows of the recording.
    Known(Box<Entry>),
    /// A timer is due.
    Due,
    /// The time is over for which the hold keeps the audio of a parked recording, by a clock that is right.
    Outlived,
    /// Events may have been missed: the channel must be queried now.
    Doubt,
}

/// Something that must be done. It is harmless when it is done twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the start command.
    Command,
    /// Send the n-th command that stops, masks or unmasks the recording.
    Control { what: Control, n: u32 },
    /// Query the call's channels.
    LookForChannel { n: u32 },
    /// Ask the switch for the file, and leave it there.
    Probe {
        n: u32,
        attempt: u32,
        node: String,
        path: String,
    },
    /// Ask the switch for the file.
    Collect { attempt: u32, node: String, path: String },
    /// Decide where the audio goes, from the configuration as it is now.
    Decide,
    /// Write the document that comes before the audio.
    Document { attempt: u32, destination: Destination },
    /// Deliver the audio to its destination, from the upload in flight or from the hold.
    Deliver { attempt: u32, destination: Destination },
    /// Complete the document that came before the audio.
    Complete { attempt: u32, destination: Destination },
    /// Read back a delivery that a server with too few copies took.
    ReadBack { n: u32 },
    /// Write into the document what became known of stops and masks since it was written.
    Amend { n: u32 },
    /// Write into the document that came before the audio that the recording is parked.
    Mark { n: u32, cause: Cause },
    /// Put the audio of the upload into the hold.
    Hold,
    /// Remove the audio from the hold: it is not needed there any more.
    Unhold,
    /// Look whether Kazoo's own recorder has stored the recording. `last`: it tries no more.
    SeekCopy { n: u32, last: bool },
    /// Answer the switch whether it must keep its file.
    Answer(Answer),
    /// Ask the switch once more for a file that was never released, and release it if it is the safe audio.
    Tidy { n: u32, node: String, path: String },
    /// Hand on the events of parts that are not in this recording's audio.
    Continue,
    /// Split misattributed audio in the hold off into a recording of its own.
    Separate { name: String },
    /// Publish a notice.
    Announce(Announcement),
}

/// What must be done about a recording.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// This, now. Afterwards the next step is decided again.
    Do(Effect),
    /// Ask the ledger what other workers know, because this worker would conclude something from silence.
    Ask,
    /// Nothing before then.
    Wait(Moment),
    /// Nothing until something happens.
    Idle,
}

/// The answer to the switch for its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The audio is safe off this host: 200, and the switch deletes its file.
    Release,
    /// It is not: 503, and the file stays.
    Keep,
}
