//! One attempt to put audio into an object store: a look at what is there, one streamed PUT, and the proof that it arrived.
//!
//! ```text
//! look   there and equal: nothing is sent
//! put    2xx: proof by ETag, checksum or length · refused: that refusal · no answer: a second look
//! ```
//!
//! A server that refuses a body early can reset the connection before its answer is read. So the first look finds a refusal before any
//! audio is sent, and the second look finds an object whose answer was lost.

use std::collections::BTreeMap;
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
use super::learned::Memory;
use super::name::Usual;
use super::not_ours::NotOurs;
use super::refusal::{judged, unanswered};
use super::s3::{self, S3};
use super::stub::{self, Form};

/// Time limit of the second look. The attempt's own time may be over by then.
const SECOND_LOOK: Duration = Duration::from_secs(30);

/// Headers of an answer that are kept, and the longest value.
const MOST_HEADERS: usize = 40;
const LONGEST_HEADER: usize = 512;

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
    /// Whether the name has the document's id in it. Then no other recording has the name.
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

/// What is there under a name.
#[derive(Debug)]
pub enum Look {
    There(Found),
    Absent,
    /// The credentials may not look.
    Denied,
    Refused(Reply),
}

/// An object as the store describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Bytes.
    pub length: Option<u64>,
    /// Without quotes.
    pub etag: Option<String>,
    /// Base64.
    pub sha256: Option<String>,
    /// Base64.
    pub md5: Option<String>,
    /// The headers that Kazoo writes into the document.
    pub metadata: BTreeMap<String, String>,
}

/// An object that has the audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub metadata: BTreeMap<String, String>,
    pub proof: Proof,
    /// It was there already.
    pub was_there: bool,
}

/// What shows that the object is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A digest that the store computed.
    Digest,
    /// Its length only.
    Length,
}

impl Proof {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Length => "length",
        }
    }
}

/// How an object compares with the audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Same,
    Other,
    /// Its length is the same, and it has no digest that can be compared.
    Perhaps,
}

impl Found {
    /// `length` is that of a HEAD's answer.
    pub fn of(reply: &Reply, sha256: Option<&str>) -> Self {
        let etag = reply.header("etag").map(|etag| etag.replace('"', ""));
        let mut found = Self {
            length: reply.header("content-length").and_then(|length| length.parse().ok()),
            sha256: sha256.map(str::to_owned),
            etag: etag.clone(),
            md5: None,
            metadata: BTreeMap::new(),
        };
        found.keep(reply, |name| name.starts_with("x-amz"));
        if let Some(etag) = etag.filter(|etag| etag.len() <= LONGEST_HEADER) {
            found.metadata.insert("etag".into(), etag);
        }
        found
    }

    /// Kazoo's Azure handler keeps all headers.
    pub fn with_all_headers(mut self, reply: &Reply) -> Self {
        self.metadata.clear();
        self.keep(reply, |_| true);
        self
    }

    fn keep(&mut self, reply: &Reply, is_kept: impl Fn(&str) -> bool) {
        let readable = reply
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let kept = readable.filter(|(name, value)| is_kept(name) && value.len() <= LONGEST_HEADER);
        let owned = kept.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.metadata.extend(owned.take(MOST_HEADERS));
    }
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

    /// Puts the audio into the store, unless it is there. Harmless when it is done twice.
    ///
    /// # Errors
    /// What the store, the plan or our own copy lacks.
    pub async fn deliver(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Receipt, DeliveryError> {
        let before = self.look(client, object).await?;
        if let Look::There(found) = &before {
            match self.compared(client, found, object.audio) {
                Compared::Same => return Ok(receipt(found, Proof::Digest, true)),
                Compared::Other if !object.is_own => {
                    let why = "another object has its name, which does not contain the document's id";
                    return Err(DeliveryError::Recording(format!("{}: {why}", self.host())));
                }
                Compared::Other => StorageOverwritten { host: &self.host() }.emit(),
                Compared::Perhaps => {}
            }
        }
        let failure = match self.put(client, object).await {
            Ok(reply) if reply.is_success() => return self.proven(client, object, &reply).await,
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
                Compared::Same => Ok(receipt(&found, Proof::Digest, false)),
                // It was not there before, and a store shows an object only when it is whole.
                Compared::Perhaps if matches!(before, Look::Absent) => Ok(self.unproved(&found)),
                _ => Err(unanswered(&self.host(), failure)),
            },
            Err(refused) if refused.fault() == Fault::Plan => Err(refused),
            _ => Err(unanswered(&self.host(), failure)),
        }
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

    async fn put(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Reply, Failure> {
        match self {
            Self::S3(s3) => s3.put(client, object).await,
            Self::Azure(azure) => azure.put(client, object).await,
        }
    }

    fn is_same(&self, found: &Found, audio: &Audio) -> Option<bool> {
        match self {
            Self::S3(_) => s3::is_same(found, audio),
            Self::Azure(_) => azure::is_same(found, audio),
        }
    }

    fn compared(&self, client: &Client<'_>, found: &Found, audio: &Audio) -> Compared {
        if found.length.is_some_and(|length| length != audio.size) {
            return Compared::Other;
        }
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
        match self.compared(client, &told, object.audio) {
            Compared::Same => {
                if told.etag.as_ref() == Some(&object.audio.digests.md5) {
                    client.memory.learn(&self.place(), |known| known.has_md5_etags = true);
                }
                return Ok(receipt(&told, Proof::Digest, false));
            }
            Compared::Other => return Err(other()),
            Compared::Perhaps => {}
        }
        match self.look(client, object).await? {
            Look::There(found) => match self.compared(client, &found, object.audio) {
                Compared::Same => Ok(receipt(&told, Proof::Digest, false)),
                Compared::Other => Err(other()),
                Compared::Perhaps => Ok(self.unproved(&told)),
            },
            Look::Absent => Err(DeliveryError::Corrupt(format!(
                "{} took the object, and does not have it",
                self.host()
            ))),
            Look::Denied | Look::Refused(_) => Ok(self.unproved(&told)),
        }
    }

    fn unproved(&self, found: &Found) -> Receipt {
        StorageUnproved { host: &self.host() }.emit();
        receipt(found, Proof::Length, false)
    }
}

fn receipt(found: &Found, proof: Proof, was_there: bool) -> Receipt {
    Receipt {
        metadata: found.metadata.clone(),
        proof,
        was_there,
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
