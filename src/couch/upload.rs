//! Uploads of audio, streamed.
//!
//! The single-request write is one `multipart/related` PUT of document and audio, create-only. No document without its audio ever exists
//! then. Requests always have a Content-Length. CouchDB would compress some content types, so those are never sent. It stores `audio/*`
//! unchanged, so the stub's digest is the MD5 of the bytes that were sent.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, SERVER};
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::{Map, Value, json};

use super::client::{Couch, answer, bounded};
use super::{CouchError, Version, Watch};

/// Bytes as they arrive from a file or another server.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// The longest answer that reports a missing document, in bytes.
const LONGEST_REFUSAL: usize = 64 << 10;

/// An attachment to upload.
pub struct Attachment<'a> {
    pub name: &'a str,
    pub content_type: &'a str,
    /// Bytes.
    pub length: u64,
    /// `md5-` and base64, as in a stub.
    pub digest: String,
    pub body: ByteStream,
}

/// A server's answer about a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Present {
    Document(Value),
    Missing,
    /// The server does not know the database.
    NoDatabase,
}

/// A document that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    pub rev: String,
    /// The server has fewer copies so far than its quorum (202).
    pub below_quorum: bool,
    /// The version of the server that answered, if the answer tells it.
    pub by: Option<Version>,
}

impl Couch {
    /// Creates a document and its one attachment in one request. With a `_rev` in the document, replaces that revision.
    ///
    /// # Errors
    /// `Conflict` when the document exists, or has another revision. After `NoAnswer` the document may exist or not.
    pub async fn create_with_attachment(
        &self,
        database: &str,
        id: &str,
        mut document: Map<String, Value>,
        attachment: Attachment<'_>,
    ) -> Result<Saved, CouchError> {
        // CouchDB compares the digest of the stub with the received bytes, and refuses the whole request when they differ (tested on 3.4).
        let stub = json!({
            "follows": true,
            "content_type": attachment.content_type,
            "length": attachment.length,
            "digest": attachment.digest,
        });
        document.insert("_attachments".into(), json!({ attachment.name: stub }));
        let boundary = uuid::Uuid::new_v4().simple().to_string();
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{}\r\n--{boundary}\r\nContent-Disposition: attachment; filename=\"{}\"\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            Value::Object(document),
            attachment.name,
            attachment.content_type,
            attachment.length,
        );
        let tail = format!("\r\n--{boundary}--");
        let length = head.len() as u64 + attachment.length + tail.len() as u64;
        let whole = stream::once(async move { Ok(Bytes::from(head)) })
            .chain(attachment.body)
            .chain(stream::once(async move { Ok(Bytes::from(tail)) }))
            .boxed();
        let request = self
            .upload(Method::PUT, database, &[id])
            .header(CONTENT_TYPE, format!("multipart/related; boundary=\"{boundary}\""));
        self.send(request, database, whole, length).await
    }

    /// Writes an attachment by itself. When `rev` is `None`, the request creates the document.
    ///
    /// # Errors
    /// As `create_with_attachment`.
    pub async fn put_attachment(
        &self,
        database: &str,
        id: &str,
        rev: Option<&str>,
        attachment: Attachment<'_>,
    ) -> Result<Saved, CouchError> {
        let mut request = self.upload(Method::PUT, database, &[id, attachment.name]);
        if let Some(rev) = rev {
            request = request.query(&[("rev", rev)]);
        }
        let request = request.header(CONTENT_TYPE, attachment.content_type);
        self.send(request, database, attachment.body, attachment.length).await
    }

    /// A document, or why there is none.
    ///
    /// # Errors
    /// Everything except a document or its absence.
    pub async fn present(&self, database: &str, id: &str) -> Result<Present, CouchError> {
        self.send_with(async {
            let response = match self.request(Method::GET, database, &[id]).send().await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => response,
                other => {
                    // A proxy's own page, or an answer that was cut, is no document.
                    return match answer(other, database, self.most).await? {
                        (_, document) if document.is_object() => Ok(Present::Document(document)),
                        _ => Err(CouchError::NoAnswer("what answered is no document".into())),
                    };
                }
            };
            let body = bounded(response, LONGEST_REFUSAL).await?;
            let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let word = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
            match CouchError::of_status(404, word("error"), word("reason"), database) {
                CouchError::DatabaseMissing(_) => Ok(Present::NoDatabase),
                _ if word("error") == "not_found" => Ok(Present::Missing),
                // Not CouchDB's own `error`.
                _ => Err(CouchError::NoAnswer("a 404 that is not CouchDB's".into())),
            }
        })
        .await
    }

    async fn send(
        &self,
        request: RequestBuilder,
        database: &str,
        body: ByteStream,
        length: u64,
    ) -> Result<Saved, CouchError> {
        let (watch, body) = Watch::over(body, length);
        let request = request.header(CONTENT_LENGTH, length).body(Body::wrap_stream(body));
        let answered = watch
            .patiently(self.silence, self.told_by(request, database))
            .await
            .unwrap_or_else(|silent| Err(CouchError::NoAnswer(silent.to_string())));
        match watch.failure() {
            Some(why) if matches!(answered, Err(CouchError::NoAnswer(_))) => Err(CouchError::Body(why.to_string())),
            _ => saved(answered?),
        }
    }

    /// The answer to a request, and the version of the server that gave it.
    async fn told_by(
        &self,
        request: RequestBuilder,
        database: &str,
    ) -> Result<((u16, Value), Option<Version>), CouchError> {
        self.send_with(async {
            let response = request.send().await;
            let server = response
                .as_ref()
                .ok()
                .and_then(|response| response.headers().get(SERVER));
            let by = server.and_then(|server| Version::of_header(server.to_str().ok()?));
            Ok((answer(response, database, self.most).await?, by))
        })
        .await
    }

    /// An attachment's bytes, as they arrive.
    ///
    /// # Errors
    /// When the transfer does not start.
    pub async fn get_attachment(&self, database: &str, id: &str, name: &str) -> Result<ByteStream, CouchError> {
        let response = self
            .send_with(async {
                let response = self.request(Method::GET, database, &[id, name]).send().await;
                match response {
                    Ok(response) if response.status().is_success() => Ok(response),
                    other => Err(answer(other, database, self.most)
                        .await
                        .err()
                        .unwrap_or(CouchError::NotFound)),
                }
            })
            .await?;
        let bytes = response
            .bytes_stream()
            .map(|chunk| chunk.map_err(std::io::Error::other));
        Ok(bytes.boxed())
    }

    /// Writes a document. It creates a new one, unless `_rev` names the revision to replace.
    ///
    /// # Errors
    /// As `create_with_attachment`.
    pub async fn put_document(&self, database: &str, id: &str, document: &Value) -> Result<Saved, CouchError> {
        let request = self
            .request(Method::PUT, database, &[id])
            .header(CONTENT_TYPE, "application/json")
            .body(document.to_string());
        saved(self.told_by(request, database).await?)
    }
}

fn saved(((status, json), by): ((u16, Value), Option<Version>)) -> Result<Saved, CouchError> {
    match json.get("rev").and_then(Value::as_str) {
        Some(rev) => Ok(Saved {
            rev: rev.to_owned(),
            below_quorum: status == 202,
            by,
        }),
        None => Err(CouchError::NoAnswer("the answer names no revision".into())),
    }
}
