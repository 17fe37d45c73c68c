//! What decisions are made about, and what they are made of.

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{Announcement, Destination, What};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;

/// A recording in hand: its entry, and what only this worker has.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub entry: Entry,
    pub hand: Hand,
}

/// Whether this worker holds the audio of an upload that its switch awaits an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    Empty,
    Received,
    /// Received, and a delivery of it failed.
    Tried,
    /// Received, and the hold would not take it.
    HoldRefused,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Fact(What),
    /// An upload is in hand.
    Received(Audio),
    /// The upload in hand was answered.
    Answered(Answer),
    /// The hold did not take the audio in hand.
    HoldRefused,
    /// What the ledger knows of it, of other workers too.
    Known(Box<Entry>),
    /// Time has passed.
    Due,
    /// Events may have been missed: the channel is to be looked for now.
    Doubt,
}

/// Something to be done. Harmless when done twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the start command.
    Command,
    /// Send the n-th command that stops the recording.
    Control { what: Control, n: u32 },
    /// Look for the call's channels.
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
    /// Bring the audio to its destination, from the hand or the hold.
    Deliver { attempt: u32, destination: Destination },
    /// Complete the document that came before the audio.
    Complete { attempt: u32, destination: Destination },
    /// Read back what a server with too few copies had taken.
    ReadBack { n: u32 },
    /// Write into the document what became known of stops and masks since it was written.
    Amend { n: u32 },
    /// Write into the document that came before the audio that the recording rests.
    Mark { n: u32, cause: Cause },
    /// Put the audio in hand into the hold.
    Hold,
    /// Take the audio out of the hold: it is not needed there any more.
    Unhold,
    /// Tell the switch what becomes of its file.
    Answer(Answer),
    /// Ask the switch once more for a file that it was never told to let go, and let it go if it is the one that is safe.
    Tidy { n: u32, node: String, path: String },
    /// Hand on what was told of parts that are not in this recording's audio.
    Continue,
    /// Make held audio that is not this recording's a recording of its own.
    Separate { name: String },
    /// Publish a notice.
    Announce(Announcement),
}

/// What is to be done about a recording.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// This, now. What comes after it is asked for again.
    Do(Effect),
    /// Nothing before then.
    Wait(Moment),
    /// Nothing until something happens.
    Idle,
}

/// What the switch is told of its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The audio is safe off this host: 200, and the switch deletes its file.
    Release,
    /// It is not: 503, and the file stays.
    Keep,
}
