//! One attempt to put audio into an object store: a look at what is there, one streamed PUT, and the proof that it arrived.
//!
//! ```text
//! look   there and equal: nothing is sent
//! put    2xx: proof by ETag, checksum or length · refused: that refusal · no answer: a second look
//! ```
//!
//! Each PUT is conditional on what the look found: nothing (`If-None-Match: *`), or the object that is replaced (`If-Match`). So a worker that
//! was frozen within its PUT replaces nothing that another worker stored meanwhile:
//!
//! ```text
//! worker A   look: nothing   PUT of one bridge, half sent ..... frozen ..... the rest   412
//! worker B                                look: nothing   PUT of both bridges   stored
//! ```
//!
//! A plan can give one name to several recordings. Such a name is never used if an object has it.
//!
//! A server that refuses a body early can reset the connection before its answer is read. So the first look finds a refusal before any
//! audio is sent, and the second look finds an object whose answer was lost.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::config::StorageDriver;
use crate::destination::url::http::exchange::Reply;
use crate::destination::url::http::{Failure, Http};
use crate::destination::{DeliveryError, Fault, Source};
use crate::recording::audio::Audio;
use crate::system_config::{Handler, Settings};
use crate::telemetry::events::{StorageOverwritten, StorageUnproved};

use super::azure::{self, Azure};
use super::found::{Compared, Condition};
pub use super::found::{Found, Look, Proof, Receipt};
use super::learned::Memory;
use super::name::Usual;
use super::not_ours::NotOurs;
use super::refusal::{is_stores_answer, is_taken, judged, knows_no_condition, refused, unanswered};
use super::s3::{self, S3};
use super::stub::{self, Form};

/// Time limit of the second look. The attempt's own time may be over by then.
const SECOND_LOOK: Duration = Duration::from_secs(30);

/// A handler that the worker serves itself.
pub enum Driver {
    S3(S3),
    Azure(Azure),
}

/// What an attempt may use.
pub struct Client<'a> {
    pub http: &'a Http,
    pub memory: &'a Memory,
    /// When the attempt must be through.
    pub until: Instant,
}

/// The audio, and the object that it becomes.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    /// The object's name, as Kazoo builds it.
    pub key: &'a str,
    /// Whether no other recording can have the name. Only then is an object with other content replaced: the one that the look found.
    pub is_own: bool,
    pub audio: &'a Audio,
    pub source: &'a Source,
    pub content_type: &'a str,
}

/// One request, before it is signed.
pub struct Ask<'a> {
    pub method: hyper::Method,
    pub key: &'a str,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The SHA-256 of the body.
    pub payload: &'a str,
    pub body: Option<(&'a Source, u64)>,
}

impl Driver {
    /// # Errors
    /// Why Kazoo's store proxy must serve the handler.
    pub fn of(handler: &Handler, config: &config::Storage) -> Result<Self, NotOurs> {
        let is_on = |driver| config.drivers.contains(&driver);
        let driver = match handler.kind.as_str() {
            "s3" if is_on(StorageDriver::S3) => StorageDriver::S3,
            "azure" if is_on(StorageDriver::Azure) => StorageDriver::Azure,
            _ => return Err(NotOurs::Kind),
        };
        if handler.stub {
            return Err(NotOurs::Stub);
        }
        let settings = handler.settings.as_ref().ok_or(NotOurs::Undescribed)?;
        Ok(match driver {
            StorageDriver::S3 => Self::S3(S3::of(settings, config.checksum)?),
            StorageDriver::Azure => Self::Azure(Azure::of(settings, config.azure_endpoint.as_ref())?),
        })
    }

    /// The kind, as metrics have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::Azure(_) => "azure",
        }
    }

    /// Host and port, without credentials.
    pub fn host(&self) -> String {
        match self {
            Self::S3(s3) => s3.host(),
            Self::Azure(azure) => azure.host(),
        }
    }

    /// What tells the bucket or container from all others. Contains no secret.
    pub fn place(&self) -> String {
        match self {
            Self::S3(s3) => s3.place(),
            Self::Azure(azure) => azure.place(),
        }
    }

    /// The fields of an object's name, if the plan has none.
    pub const fn usual(&self) -> Usual {
        match self {
            Self::S3(_) => Usual::S3,
            Self::Azure(_) => Usual::Azure,
        }
    }

    /// The form of the document's entry.
    pub const fn form(&self) -> Form {
        match self {
            Self::S3(_) => stub::S3,
            Self::Azure(_) => stub::AZURE,
        }
    }

    /// Whether an object's name can be sent exactly.
    pub fn can_name(&self, key: &str) -> bool {
        match self {
            Self::S3(_) => s3::is_name(key),
            Self::Azure(_) => azure::is_name(key),
        }
    }

    /// Puts the audio into the store, unless it is there. Harmless when two workers do it at once.
    ///
    /// # Errors
    /// What the store, the plan or our own copy lacks.
    pub async fn deliver(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Receipt, DeliveryError> {
        let before = self.look(client, object).await?;
        match &before {
            Look::There(found) => match self.compared(client, found, object.audio) {
                Compared::Same => return Ok(Receipt::of(found, Proof::Digest, true)),
                _ if !object.is_own => return Err(self.taken()),
                Compared::Other => StorageOverwritten { host: &self.host() }.emit(),
                Compared::Perhaps | Compared::Unknown => {}
            },
            Look::Denied if !object.is_own => return Err(self.may_not_look()),
            _ => {}
        }
        let condition = before.condition();
        let failure = match self.put(client, object, condition.as_ref()).await {
            Ok(reply) if reply.is_success() => return self.proven(client, object, &reply).await,
            Ok(reply) if condition.is_some_and(|(name, _)| is_taken(&reply, name)) => {
                return self.who_came_first(client, object, &before).await;
            }
            Ok(reply) => return Err(judged(&self.host(), &reply)),
            Err(failure) => failure,
        };
        if !matches!(failure, Failure::Lost(_) | Failure::Silent(_) | Failure::TooSlow(_)) {
            return Err(unanswered(&self.host(), failure));
        }
        let again = Client {
            until: Instant::now() + SECOND_LOOK,
            ..*client
        };
        match self.look(&again, object).await {
            Ok(Look::There(found)) => match self.compared(client, &found, object.audio) {
                Compared::Same => Ok(Receipt::of(&found, Proof::Digest, false)),
                // It was not there before, no other recording has the name, and a store shows an object only when it is whole.
                Compared::Perhaps if object.is_own && matches!(before, Look::Absent) => {
                    Ok(self.unproved(&found, Proof::Length))
                }
                _ => Err(unanswered(&self.host(), failure)),
            },
            Err(refused) if refused.fault() == Fault::Plan => Err(refused),
            _ => Err(unanswered(&self.host(), failure)),
        }
    }

    /// An object came between the look and the PUT, as the store says. An earlier attempt can have written it.
    async fn who_came_first(
        &self,
        client: &Client<'_>,
        object: &Object<'_>,
        before: &Look,
    ) -> Result<Receipt, DeliveryError> {
        let unchanged = |found: &Found| match before {
            Look::There(before) if before.etag == found.etag => before.etag.clone(),
            _ => None,
        };
        match self.look(client, object).await? {
            Look::There(found) if self.compared(client, &found, object.audio) == Compared::Same => {
                Ok(Receipt::of(&found, Proof::Digest, true))
            }
            Look::There(found) if object.is_own => match unchanged(&found) {
                Some(etag) => self.put_bare(client, object, etag).await,
                None => Err(self.changed()),
            },
            // Another worker stores the recording too. The next attempt looks at the document first, and may choose another one.
            _ if object.is_own => Err(self.changed()),
            _ => Err(self.taken()),
        }
    }

    /// Ceph's gateway compares the quotes of a PUT's ETag with its own, which has none, and so finds every object changed. It gets the ETag
    /// without quotes: another worker's object must not be replaced there either.
    async fn put_bare(&self, client: &Client<'_>, object: &Object<'_>, etag: String) -> Result<Receipt, DeliveryError> {
        let bare: Condition = ("if-match", etag);
        match self.put_once(client, object, Some(&bare)).await {
            Ok(reply) if reply.is_success() => self.proven(client, object, &reply).await,
            Ok(reply) if is_taken(&reply, bare.0) => Err(self.changed()),
            Ok(reply) => Err(judged(&self.host(), &reply)),
            Err(failure) => Err(unanswered(&self.host(), failure)),
        }
    }

    fn changed(&self) -> DeliveryError {
        DeliveryError::Store {
            why: format!("{}: the object changed during the upload", self.host()),
            retry_after: None,
        }
    }

    fn taken(&self) -> DeliveryError {
        let why = "another object has its name, which is not this recording's own";
        DeliveryError::Recording(format!("{}: {why}", self.host()))
    }

    /// The plan gives the name to other recordings too, and its credentials cannot show whose the object is.
    fn may_not_look(&self) -> DeliveryError {
        refused(self.host(), "SharedNameCannotBeRead")
    }

    async fn look(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Look, DeliveryError> {
        let looked = match self {
            Self::S3(s3) => s3.look(client, object).await,
            Self::Azure(azure) => azure.look(client, object).await,
        };
        match looked.map_err(|failure| unanswered(&self.host(), failure))? {
            Look::Refused(reply) => match judged(&self.host(), &reply) {
                // A server that knows no HEAD says nothing about the recording.
                error if error.fault() == Fault::Recording => Ok(Look::Denied),
                error => Err(error),
            },
            look => Ok(look),
        }
    }

    async fn put(
        &self,
        client: &Client<'_>,
        object: &Object<'_>,
        condition: Option<&Condition>,
    ) -> Result<Reply, Failure> {
        let condition = condition.filter(|_| !client.memory.of(&self.place()).takes_no_conditions);
        let reply = self.put_once(client, object, condition).await?;
        if condition.is_none() || !knows_no_condition(&reply, object.is_own) {
            return Ok(reply);
        }
        // The ledger and the look before are what protects another recording's object there.
        let refused = reply.status;
        let reply = self.put_once(client, object, None).await?;
        // A server that answers the same without the condition has another reason for it.
        if reply.status != refused {
            let place = self.place();
            client.memory.learn(&place, |known| known.takes_no_conditions = true);
        }
        Ok(reply)
    }

    async fn put_once(
        &self,
        client: &Client<'_>,
        object: &Object<'_>,
        condition: Option<&Condition>,
    ) -> Result<Reply, Failure> {
        let condition = condition.map(|(name, value)| ((*name).to_owned(), value.clone()));
        let conditions = condition.into_iter().collect();
        match self {
            Self::S3(s3) => s3.put(client, object, conditions).await,
            Self::Azure(azure) => azure.put(client, object, conditions).await,
        }
    }

    fn is_same(&self, found: &Found, audio: &Audio) -> Option<bool> {
        match self {
            Self::S3(_) => s3::is_same(found, audio),
            Self::Azure(_) => azure::is_same(found, audio),
        }
    }

    /// How an object that a look found compares with the audio.
    fn compared(&self, client: &Client<'_>, found: &Found, audio: &Audio) -> Compared {
        if found.length.is_some_and(|length| length != audio.size) {
            return Compared::Other;
        }
        match self.compared_by_digest(client, found, audio) {
            Compared::Perhaps if found.length.is_none() => Compared::Unknown,
            compared => compared,
        }
    }

    fn compared_by_digest(&self, client: &Client<'_>, found: &Found, audio: &Audio) -> Compared {
        match self.is_same(found, audio) {
            Some(true) => Compared::Same,
            Some(false) => Compared::Other,
            None if self.has_md5_etag(client, found) => Compared::Other,
            None => Compared::Perhaps,
        }
    }

    /// Whether the object's ETag must be an MD5: ETags of the bucket were MD5s before, and the object is not encrypted with a key.
    fn has_md5_etag(&self, client: &Client<'_>, found: &Found) -> bool {
        let is_md5 = |etag: &String| etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let encryption = found.metadata.get("x-amz-server-side-encryption");
        matches!(self, Self::S3(_))
            && found.etag.as_ref().is_some_and(is_md5)
            && encryption.is_none_or(|encryption| encryption == "AES256")
            && client.memory.of(&self.place()).has_md5_etags
    }

    /// The proof that the store has what was sent, after it said so.
    async fn proven(&self, client: &Client<'_>, object: &Object<'_>, reply: &Reply) -> Result<Receipt, DeliveryError> {
        let told = match self {
            Self::S3(_) => Found {
                length: None,
                ..Found::of(reply, reply.header("x-amz-checksum-sha256"))
            },
            Self::Azure(_) => azure::put_found(reply),
        };
        let other = || DeliveryError::Corrupt(format!("{} describes another object than was sent", self.host()));
        match self.compared_by_digest(client, &told, object.audio) {
            Compared::Same => {
                if told.etag.as_ref() == Some(&object.audio.digests.md5) {
                    client.memory.learn(&self.place(), |known| known.has_md5_etags = true);
                }
                return Ok(Receipt::of(&told, Proof::Digest, false));
            }
            Compared::Other => return Err(other()),
            Compared::Perhaps | Compared::Unknown => {}
        }
        match self.look(client, object).await? {
            Look::There(found) => match self.compared(client, &found, object.audio) {
                Compared::Same => Ok(Receipt::of(&told, Proof::Digest, false)),
                Compared::Other => Err(other()),
                Compared::Perhaps => Ok(self.unproved(&told, Proof::Length)),
                Compared::Unknown => Err(DeliveryError::Corrupt(format!(
                    "{} says neither the digest nor the length of the object",
                    self.host()
                ))),
            },
            Look::Absent => Err(DeliveryError::Corrupt(format!(
                "{} took the object, and does not have it",
                self.host()
            ))),
            Look::Denied | Look::Refused(_) if is_stores_answer(reply) => Ok(self.unproved(&told, Proof::Answer)),
            Look::Denied | Look::Refused(_) => Err(DeliveryError::Corrupt(format!(
                "{} does not answer as an object store does, and the object cannot be read",
                self.host()
            ))),
        }
    }

    fn unproved(&self, found: &Found, proof: Proof) -> Receipt {
        StorageUnproved {
            host: &self.host(),
            proof: proof.name(),
        }
        .emit();
        Receipt::of(found, proof, false)
    }
}

/// # Errors
/// When a setting's name is not known: Kazoo may know what it means.
pub fn known_settings(settings: &Settings, known: &[&str]) -> Result<(), NotOurs> {
    match settings.expose().keys().find(|key| !known.contains(&key.as_str())) {
        // A name is not a value, but an odd one may be anything.
        Some(odd) => Err(NotOurs::UnknownSetting(
            odd.chars()
                .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
                .take(40)
                .collect(),
        )),
        None => Ok(()),
    }
}

/// Whether HTTP clients and servers leave a name's segments as they are.
pub fn is_key(key: &str) -> bool {
    !key.is_empty() && !key.split('/').any(|segment| matches!(segment, "." | ".."))
}
