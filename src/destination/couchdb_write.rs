//! Stores document and audio in monthly databases on CouchDB and BigCouch, the account's own and the third party's alike. Both are read
//! back afterwards, unless the server is known to have compared the audio with its digest (`Couch::has_compared_digests`).
//!
//! The normal route is the single-request write, which is create-only. Old servers have faults with it, so there is also the
//! attachment-first write: see `attachment_first`. A document of another recording is never overwritten. A document of this recording with other
//! audio is not overwritten either: the new audio gets another id. A document that was meant for this very audio, and lacks it, is written
//! again. A request without an answer is looked up before it counts as failed.

use serde_json::{Map, Value};

use crate::couch::{Attachment, Couch, CouchError, Version};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::document::Subject;
use crate::recording::identity::{Key, MediaId};
use crate::recording::progress::Progress;

use super::{DeliveryError, Source};

mod attachment_first;
pub mod delivery;
mod existing;
pub mod missing_month;
pub mod months;
mod one_request;

use existing::{Found, look_up};
pub use existing::{Kept, ReadBack, find, is_stored_by_kazoo, read_back};
pub(super) use existing::{is_of, rev, told_audio};

/// The route for document and audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// Single-request write: one `multipart/related` request. No document without its audio ever exists.
    First,
    /// Attachment-first write: a document that no view shows, then the audio, then the final document.
    Second,
}

/// Servers before this version lose or mangle attachments of multipart requests under load.
const GOOD_AT_MULTIPART: Version = Version(3, 3, 3);

/// After this many failed single-request writes of one recording, the attachment-first write is used.
const ENOUGH: u32 = 2;

impl Road {
    /// The route for a server and a recording. `version` is `None` when the server reports none. `failures` counts failed attempts at this
    /// destination.
    pub fn choose(version: Option<Version>, failures: u32) -> Self {
        let old = version.is_some_and(|version| version < GOOD_AT_MULTIPART);
        if old || failures >= ENOUGH {
            Self::Second
        } else {
            Self::First
        }
    }
}

/// What to store, and how.
pub struct Job<'a, S> {
    pub audio: &'a Audio,
    pub source: &'a Source,
    /// The ids that the document may have, in order. Another recording may own the first one.
    pub ids: &'a [MediaId],
    /// Builds the document for an id.
    pub subject: S,
    pub progress: Option<Progress<'a>>,
    /// Failed attempts at this destination.
    pub failures: u32,
    /// Whether a document of Kazoo's own recorder gets no more than its audio.
    pub untouched: bool,
    /// Whether to create a missing database. No other program creates a third party's databases, and they have no views.
    pub create_database: bool,
}

/// A stored recording whose digest was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub id: MediaId,
    /// The name that CouchDB uses, without our prefix.
    pub database: String,
    pub rev: String,
    /// The document's `pvt_created`.
    pub created: Moment,
    /// The server had fewer copies than its quorum when it answered. The worker reads the recording back later.
    pub below_quorum: bool,
    /// How this call wrote the document; `None`: the document was there, and this call wrote no more than its audio.
    pub road: Option<Road>,
    /// The recording was stored already, and a user has deleted it since.
    pub deleted: bool,
}

/// The document for one id, and its destination.
struct Place<'a> {
    couch: &'a Couch,
    database: &'a str,
    id: &'a MediaId,
    key: Key,
    /// Kazoo's own recorder may have written a document with this id.
    adopted: bool,
    /// That document gets no more than its audio.
    untouched: bool,
    document: &'a Map<String, Value>,
    /// The attachment's name and content type.
    name: &'a str,
    content_type: &'a str,
    audio: &'a Audio,
    source: &'a Source,
    /// Failed attempts at this destination.
    failures: u32,
}

/// Result for one id.
enum Put {
    Stored {
        rev: String,
        below_quorum: bool,
        road: Option<Road>,
        deleted: bool,
    },
    /// Another recording owns this id.
    Taken,
}

/// Stores document and audio.
///
/// # Errors
/// `Recording` when neither route can store it. `NoDatabase` when the database of the last id is missing. Any other error is the present
/// obstacle.
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
            adopted: subject.order.adopted.is_some()
                && subject.order.continues.is_none()
                && *id == subject.order.media_id,
            untouched: job.untouched,
            document: &document,
            name: &subject.order.media_name,
            content_type: subject.order.format.content_type(),
            audio: job.audio,
            source: job.source,
            failures: job.failures,
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
            // The action chose an id of a month without a database. The next id uses the recording's own month.
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
            Road::Second => attachment_first::put(self).await,
            Road::First => one_request::put(self).await,
        }
    }

    /// The existing-document check found the recording, but this request did not write it. The result counts as safe when enough nodes
    /// confirm it. `below_quorum`: a step of this attempt was answered with 202.
    async fn found(&self, rev: String, deleted: bool, below_quorum: bool) -> Result<Put, DeliveryError> {
        let (database, id) = (self.database, self.id.as_str());
        let counts = match below_quorum {
            _ if deleted => true,
            true => self.couch.keeps(database, id).await?,
            false => self.couch.has_quorum(database, id).await?,
        };
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

    /// Returns the error, or `NoDatabase` if the database turns out to be missing. A server that answers before it has read the body may
    /// close the connection, so that its answer is lost.
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
    use serde_json::json;

    use crate::config;
    use crate::couch::testing;
    use crate::entry::fact::Holding;
    use crate::hold::Hold;
    use crate::recording::digest::Hasher;

    use super::*;

    /// Kazoo's own document got its audio from this attempt, or another worker wrote the document meanwhile.
    #[tokio::test]
    async fn a_found_document_is_below_the_quorum_after_a_202_of_a_server_that_hides_its_nodes() {
        let order = crate::lifecycle::tests::order();
        for (answered, again, below) in [(true, 202, true), (true, 201, false), (false, 202, false)] {
            let (couch, _) = testing::couch(move |asked| match asked.method.as_str() {
                _ if asked.path.contains("_membership") => (404, json!({"error": "not_found", "reason": "missing"})),
                "PUT" => (again, json!({"ok": true, "id": "x", "rev": "3-c"})),
                _ => (200, json!({"_id": "x", "_rev": "2-b"})),
            })
            .await;
            let config = config::Config::of(config::Layers::load(None, std::iter::empty()).unwrap()).unwrap();
            let hold = config::Hold {
                kind: config::HoldKind::None,
                ..config.hold
            };
            let hold = Hold::new(&hold, &config.couchdb, &couch).unwrap();
            let audio = Audio {
                size: 0,
                digests: Hasher::default().finish(),
                duration_ms: None,
                findings: Vec::new(),
                as_written: None,
            };
            let holding = Holding {
                place: "p".into(),
                name: "n".into(),
                size: 0,
                digests: audio.digests.clone(),
            };
            let place = Place {
                couch: &couch,
                database: "db",
                id: &order.media_id,
                key: order.key,
                adopted: true,
                untouched: true,
                document: &Map::new(),
                name: "a.mp3",
                content_type: "audio/mpeg",
                audio: &audio,
                source: &Source::held(hold, holding),
                failures: 0,
            };
            let found = place.found("2-b".into(), false, answered).await.unwrap();
            let Put::Stored { below_quorum, .. } = found else {
                panic!("taken")
            };
            assert_eq!(below_quorum, below, "{answered} {again}");
        }
    }

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
