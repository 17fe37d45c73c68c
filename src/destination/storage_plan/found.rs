//! What an object store says of an object, and how that compares with the audio. Pure.

use std::collections::BTreeMap;

use crate::destination::url::http::exchange::Reply;

/// Headers of an answer that are kept, and the longest value.
const MOST_HEADERS: usize = 40;
const LONGEST_HEADER: usize = 512;

/// What is there under a name.
#[derive(Debug)]
pub enum Look {
    There(Found),
    Absent,
    /// The credentials may not look.
    Denied,
    Refused(Reply),
}

/// A condition of a PUT, as a header.
pub(super) type Condition = (&'static str, String);

impl Look {
    /// What must hold for a PUT after this look, so that it replaces nothing else than what the look found. `None`: the look does not tell.
    pub(super) fn condition(&self) -> Option<Condition> {
        match self {
            Self::Absent => Some(("if-none-match", "*".to_owned())),
            // Servers compare a weak ETag with nothing.
            Self::There(found) => {
                let strong = found.etag.as_ref().filter(|etag| !etag.starts_with("W/"));
                strong.map(|etag| ("if-match", format!("\"{etag}\"")))
            }
            Self::Denied | Self::Refused(_) => None,
        }
    }
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
    /// Nothing was compared: the store's answer is all that there is.
    Answer,
}

impl Proof {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Length => "length",
            Self::Answer => "answer",
        }
    }
}

/// How an object compares with the audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    Same,
    Other,
    /// Its length is the same, and it has no digest that can be compared.
    Perhaps,
    /// It has neither a digest that can be compared nor a length.
    Unknown,
}

impl Receipt {
    pub(super) fn of(found: &Found, proof: Proof, was_there: bool) -> Self {
        Self {
            metadata: found.metadata.clone(),
            proof,
            was_there,
        }
    }
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
