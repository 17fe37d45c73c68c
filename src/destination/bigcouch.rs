//! Monthly databases on CouchDB and BigCouch, the account's own and the third party's alike: document and audio together, then read back.
//!
//! The first road is one create-only request. Old servers have faults there, so there is a second one: see `second`. What belongs to another
//! recording is never overwritten, nor is other audio of our own: that gets another id. A document that was meant for this very audio, and does
//! not have it, is written again. A request without an answer is looked up before it counts as failed.

use serde_json::{Map, Value};

use crate::couch::{Attachment, Couch, CouchError, Version};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::document::Subject;
use crate::recording::identity::{Key, MediaId};
use crate::recording::progress::Progress;

use super::{DeliveryError, Source};

mod found;
mod second;

use found::{Found, look_up};
pub use found::{Kept, ReadBack, find, read_back};
pub(super) use found::{is_of, rev, told_audio};

/// How document and audio get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// One `multipart/related` request: no document without its audio ever exists.
    First,
    /// A document that no view shows, then the audio, then the document.
    Second,
}

/// Servers before this one lose or mangle attachments of multipart requests under load.
const GOOD_AT_MULTIPART: Version = Version(3, 3, 3);

/// Failures of the first road for one recording, after which the second is tried.
const ENOUGH: u32 = 2;

impl Road {
    /// The road for a server, `None` when it does not tell its version, and a recording that failed there `failures` times.
    pub fn choose(version: Option<Version>, failures: u32) -> Self {
        let old = version.is_some_and(|version| version < GOOD_AT_MULTIPART);
        if old || failures >= ENOUGH {
            Self::Second
        } else {
            Self::First
        }
    }
}

/// What is stored, and how.
pub struct Job<'a, S> {
    pub audio: &'a Audio,
    pub source: &'a Source,
    /// The ids that the document may have, in order: another recording may have the first.
    pub ids: &'a [MediaId],
    /// Makes the document for an id.
    pub subject: S,
    pub progress: Option<Progress<'a>>,
    /// Attempts at this destination that failed.
    pub failures: u32,
    /// Whether a missing database is created there: a third party's has no views and nobody else who would.
    pub create_database: bool,
}

/// A recording that is stored, its digest compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub id: MediaId,
    /// As CouchDB names it, without our prefix.
    pub database: String,
    pub rev: String,
    /// The document's `pvt_created`.
    pub created: Moment,
    /// The server had fewer copies than its quorum when it answered: to be read back later.
    pub below_quorum: bool,
    /// `None`: it was there already.
    pub road: Option<Road>,
    /// It was there already, and a user has deleted it since.
    pub deleted: bool,
}

/// One id's document and where it goes.
struct Place<'a> {
    couch: &'a Couch,
    database: &'a str,
    id: &'a MediaId,
    key: Key,
    document: &'a Map<String, Value>,
    /// The attachment's name and content type.
    name: &'a str,
    content_type: &'a str,
    audio: &'a Audio,
    source: &'a Source,
}

/// What came of one id.
enum Put {
    Stored {
        rev: String,
        below_quorum: bool,
        road: Option<Road>,
        deleted: bool,
    },
    /// Another recording has it.
    Taken,
}

/// Stores document and audio.
///
/// # Errors
/// `Recording` when neither road will take it, `NoDatabase` when the database of the last id is missing; else what is wrong now.
pub async fn put<'a, S>(couch: &Couch, job: &Job<'a, S>) -> Result<Stored, DeliveryError>
where
    S: Fn(&'a MediaId) -> Subject<'a>,
{
    let version = couch.version().await.ok();
    let road = Road::choose(version, job.failures);
    let mut missing = None;
    for id in job.ids {
        let subject = (job.subject)(id);
        let database = subject.database();
        let document = match &job.progress {
            Some(progress) => subject.document_at(progress),
            None => subject.document(),
        };
        let place = Place {
            couch,
            database: &database,
            id,
            key: subject.order.key,
            document: &document,
            name: &subject.order.media_name,
            content_type: subject.order.format.content_type(),
            audio: job.audio,
            source: job.source,
        };
        let mut put = place.put(road).await;
        if job.create_database && matches!(put, Err(DeliveryError::NoDatabase(_))) {
            couch.create_database(&database).await?;
            put = place.put(road).await;
        }
        match put {
            Ok(Put::Stored {
                rev,
                below_quorum,
                road,
                deleted,
            }) => {
                return Ok(Stored {
                    id: id.clone(),
                    rev,
                    created: subject.created(),
                    below_quorum,
                    road,
                    deleted,
                    database,
                });
            }
            Ok(Put::Taken) => {}
            // A month that somebody made up; the next id's is the recording's own.
            Err(error @ DeliveryError::NoDatabase(_)) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(missing
        .unwrap_or_else(|| DeliveryError::Recording("every id that it could have belongs to another recording".into())))
}

impl Place<'_> {
    async fn put(&self, road: Road) -> Result<Put, DeliveryError> {
        match road {
            Road::Second => second::put(self).await,
            Road::First => self.put_together().await,
        }
    }

    /// The first road: for a recording that has no document yet. One that has is gone on from on the second, which keeps what others wrote there.
    async fn put_together(&self) -> Result<Put, DeliveryError> {
        match self.look_up().await? {
            Found::Nothing => {}
            _ => return second::put(self).await,
        }
        let document = self.document.clone();
        let sent = self
            .couch
            .create_with_attachment(self.database, self.id.as_str(), document, self.attachment().await?)
            .await;
        let (below_quorum, failed) = match sent {
            Ok(saved) => (saved.below_quorum, None),
            // The server may have done it all the same; only looking tells.
            Err(
                error @ (CouchError::Conflict
                | CouchError::NoAnswer(_)
                | CouchError::Failed { .. }
                | CouchError::Refused {
                    status: 400 | 413 | 415,
                    ..
                }),
            ) => (false, Some(error)),
            Err(error) => return Err(self.told(error).await),
        };
        match self.look_up().await? {
            Found::Ours { rev, deleted } if failed.is_none() => Ok(Put::Stored {
                rev,
                below_quorum,
                road: Some(Road::First),
                deleted,
            }),
            Found::Ours { rev, deleted } => self.found(rev, deleted).await,
            Found::Taken => Ok(Put::Taken),
            Found::Deleted(why) => Err(DeliveryError::Recording(why)),
            Found::Nothing => match failed {
                // Here these may mean the server's multipart reader rather than the recording.
                Some(CouchError::Refused { .. }) => second::put(self).await,
                Some(error) => Err(self.told(error).await),
                None => Err(DeliveryError::Corrupt("the document is not to be found".into())),
            },
            // A server that mangled it is not fed for ever.
            Found::Incomplete { why, whole: false, .. } if failed.is_none() => Err(DeliveryError::Corrupt(why)),
            Found::Incomplete { .. } => second::put(self).await,
        }
    }

    /// What was found there, and not written by this answer: it counts when enough nodes can tell.
    async fn found(&self, rev: String, deleted: bool) -> Result<Put, DeliveryError> {
        let counts = deleted || self.couch.has_quorum(self.database, self.id.as_str()).await?;
        Ok(Put::Stored {
            rev,
            below_quorum: !counts,
            road: None,
            deleted,
        })
    }

    async fn attachment(&self) -> Result<Attachment<'_>, DeliveryError> {
        Ok(Attachment {
            name: self.name,
            content_type: self.content_type,
            length: self.audio.size,
            digest: self.digest(),
            body: self.source.open().await?,
        })
    }

    fn digest(&self) -> String {
        self.audio.digests.couch().unwrap_or_default()
    }

    async fn look_up(&self) -> Result<Found, DeliveryError> {
        look_up(self).await
    }

    /// The error, after asking whether it is only that the database is missing: a server that answers before it has read the body may
    /// not be heard.
    async fn told(&self, error: CouchError) -> DeliveryError {
        let unclear = matches!(
            error,
            CouchError::NotFound | CouchError::NoAnswer(_) | CouchError::Failed { .. }
        );
        if unclear && matches!(self.couch.has_database(self.database).await, Ok(false)) {
            return DeliveryError::NoDatabase(self.database.to_owned());
        }
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_and_repeated_failures_take_the_second_road() {
        for (version, failures, road) in [
            (Some(Version(3, 4, 3)), 0, Road::First),
            (Some(Version(3, 4, 3)), 1, Road::First),
            (Some(Version(3, 4, 3)), 2, Road::Second),
            (Some(Version(3, 3, 3)), 0, Road::First),
            (Some(Version(3, 3, 2)), 0, Road::Second),
            (Some(Version(2, 3, 1)), 0, Road::Second),
            (Some(Version(1, 1, 1)), 0, Road::Second),
            (None, 0, Road::First),
            (None, 2, Road::Second),
        ] {
            assert_eq!(Road::choose(version, failures), road, "{version:?} {failures}");
        }
    }
}
