//! A recording on its way to a destination.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{Delivery, DeliveryFailure, Destination as Kind, Document, What};
use crate::kazoo::time::{Clock, Moment};
use crate::recording::audio::Audio;
use crate::recording::document::Subject;
use crate::recording::ending::Told;
use crate::recording::identity::MediaId;
use crate::recording::order::Order;
use crate::recording::progress::{Progress, State};

use super::ids::{ids, ids_with_other};
use super::{DeliveryError, Source};

/// A recording as its document describes it. Touches nothing.
pub struct Parcel<'a> {
    pub entry: &'a Entry,
    pub order: &'a Order,
    pub account_id: &'a str,
    ended: &'a Told,
    pub audio: Audio,
    pub to: Kind,
    writer: Writer<'a>,
}

/// What documents say of their writer, and how.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// This worker's name on the wire.
    pub node: &'a str,
    /// This process, as leases and facts name it. Two workers of one host have the same `node`.
    pub worker: &'a str,
    pub clock: &'a Clock,
    /// See `Subject`.
    pub url_credentials: bool,
}

impl Writer<'_> {
    /// See `Parcel::writer_of`.
    fn of(&self, key: &str) -> String {
        format!("{key} {}", self.worker)
    }
}

impl<'a> Parcel<'a> {
    /// A recording with the audio that a worker received.
    ///
    /// # Errors
    /// When the recording has no order, end or account.
    pub fn of(entry: &'a Entry, audio: Audio, to: Kind, writer: Writer<'a>) -> Result<Self, DeliveryError> {
        let source = |why: &str| DeliveryError::Source(Arc::from(why));
        let order = entry.order().ok_or_else(|| source("the order is unknown"))?;
        let (Some(ended), Some(account_id)) = (entry.ended(), entry.account_id()) else {
            return Err(source("the recording has no order, end or account"));
        };
        Ok(Self {
            entry,
            order,
            account_id,
            ended,
            audio,
            to,
            writer,
        })
    }

    /// Builds the document for any of its possible ids.
    pub fn subject<'b>(&'b self, id: &'b MediaId) -> Subject<'b> {
        Subject {
            order: self.order,
            id,
            account_id: self.account_id,
            started: self.entry.started(),
            ended: self.ended,
            presumed: self.entry.told_end().is_none(),
            first_peer: self.entry.first_peer().filter(|_| self.order.adopted.is_none()),
            told_ms: self.entry.told_ms(),
            audio: Some(&self.audio),
            destination: self.to.name(),
            node: self.writer.node,
            url_credentials: self.writer.url_credentials,
            now: self.writer.clock.now(),
            controls: self.entry.controls(),
        }
    }

    /// What tells this worker's attempts from those of other workers.
    pub fn writer_of(&self, key: &str) -> String {
        self.writer.of(key)
    }

    pub fn now(&self) -> Moment {
        self.writer.clock.now()
    }

    /// The ids that its document may have. The last one is for other audio of the same recording.
    pub fn ids(&self) -> Vec<MediaId> {
        ids_with_other(self.order, &self.audio)
    }

    /// The state of the document after this attempt.
    pub fn delivered_by(&self, attempt: u32) -> Progress<'static> {
        let cause = if self.audio.is_suspect() {
            Cause::SuspectAudio
        } else {
            Cause::Complete
        };
        Progress {
            state: State::Complete,
            attempts: attempt,
            cause: Some(cause.name()),
        }
    }

    /// How often the destination failed to take the recording.
    pub fn failures_there(&self) -> u32 {
        let there = self.entry.failures().filter(|fact| {
            matches!(
                fact.what,
                What::DeliveryFailed {
                    destination,
                    failure: DeliveryFailure::Target
                        | DeliveryFailure::Store
                        | DeliveryFailure::Plan
                        | DeliveryFailure::Refused,
                    ..
                } if destination == self.to
            )
        });
        u32::try_from(there.count()).unwrap_or(u32::MAX)
    }

    /// A delivery that this worker made now, as a fact.
    pub fn delivery(&self, document: Document) -> Delivery {
        Delivery {
            destination: self.to,
            document,
            sha256: Some(self.audio.digests.sha256.clone()),
            below_quorum: false,
            audio: None,
            deleted: false,
            edit_told: false,
            controls: None,
            again: 0,
        }
    }
}

/// One attempt to deliver a recording. Touches its audio, to read it.
pub struct Attempt<'a> {
    pub parcel: Parcel<'a>,
    pub source: Source,
    /// Counted from 1.
    pub number: u32,
    /// What tells the recording's file from the files of the call's other recordings at the same URL.
    pub own: Option<&'a str>,
    pub places: &'a dyn Places,
}

/// Gives a place to one recording at a time.
pub trait Places: Send + Sync {
    /// Claims a place for a recording. `place` identifies it.
    ///
    /// Fails while another recording has the place, and is not settled.
    fn claim<'a>(&'a self, entry: &'a Entry, place: &'a str) -> BoxFuture<'a, Result<(), DeliveryError>>;
}

impl Attempt<'_> {
    /// The state of the document after this attempt.
    pub fn progress(&self) -> Progress<'static> {
        self.parcel.delivered_by(self.number)
    }
}

/// A recording that is looked for, without its audio at hand. Touches nothing.
pub struct Search<'a> {
    pub entry: &'a Entry,
    pub order: &'a Order,
    pub account_id: &'a str,
    pub now: Moment,
}

impl Search<'_> {
    /// The ids that its document may have.
    pub fn ids(&self) -> Vec<MediaId> {
        match self.entry.last_audio() {
            Some(audio) => ids_with_other(self.order, audio),
            None => ids(self.order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of them would give its name to the file into which the other still writes.
    #[test]
    fn two_workers_of_one_host_never_write_into_one_temporary_file() {
        let clock = Clock::fixed(Moment::from_unix_seconds(0));
        let of = |worker| {
            let writer = Writer {
                node: "kz_record_call@rec1",
                worker,
                clock: &clock,
                url_credentials: false,
            };
            writer.of("key")
        };
        assert_ne!(of("rec1#7-a1b2c3"), of("rec1#7-d4e5f6"));
        assert_eq!(
            of("rec1#7-a1b2c3"),
            of("rec1#7-a1b2c3"),
            "a repeat replaces its own file"
        );
    }
}
