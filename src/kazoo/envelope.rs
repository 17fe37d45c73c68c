//! The default headers of each message (`kz_api`: `DEFAULT_HEADERS`), read and written.

use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::call::shown;
use super::json::{self, owned_text, text};
use super::names::{APP_NAME, APP_VERSION, CONTENT_TYPE};

/// Longer bodies, after inflation, are refused.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// Longer ids, in bytes, are refused. Each recording keeps its ids, and a database limits the size of its documents.
pub const MAX_ID_BYTES: usize = 1024;

/// Why a body is not a Kazoo message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is JSON, but not an object")]
    NotAnObject,
    #[error("the header {0} is missing, empty or not text")]
    Missing(&'static str),
    #[error("the header {0} has more than {MAX_ID_BYTES} bytes")]
    TooLong(&'static str),
    #[error("the header {header} is not usable: {why}")]
    Unusable { header: &'static str, why: String },
    #[error("the message is {category}/{name}, which does not belong here")]
    Unexpected { category: String, name: String },
    #[error("content type {0:?} with encoding {1:?} is not one that we read")]
    ContentType(String, String),
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
}

/// A received message: its default headers, and the whole body.
#[derive(Debug, Clone)]
pub struct Envelope {
    pub category: String,
    pub name: String,
    pub msg_id: Option<String>,
    /// The address for replies, as written; see `Address::parse`.
    pub server_id: Option<String>,
    pub app_name: Option<String>,
    pub node: Option<String>,
    pub body: Value,
}

impl Envelope {
    /// Decodes a message as Kazoo's listeners would (`gen_listener:decode`): JSON, optionally gzipped. Kazoo always sets a content type. A
    /// missing content type, or one with a parameter, is accepted as well.
    ///
    /// # Errors
    /// Another content type or encoding, a body that does not inflate or is longer than `MAX_BODY_BYTES`, and all errors of `read`.
    pub fn decode(kind: &str, encoding: &str, bytes: &[u8]) -> Result<Self, MessageError> {
        let plain = kind.split(';').next().unwrap_or_default().trim();
        let is_json = kind.is_empty() || plain.eq_ignore_ascii_case(CONTENT_TYPE);
        match (is_json, encoding) {
            (true, "") if bytes.len() > MAX_BODY_BYTES => Err(MessageError::TooLarge(MAX_BODY_BYTES)),
            (true, "") => Self::read(bytes),
            (true, "gzip") => Self::read(&inflate(bytes)?),
            _ => Err(MessageError::ContentType(kind.to_owned(), encoding.to_owned())),
        }
    }

    /// Reads the envelope of a JSON body.
    ///
    /// # Errors
    /// `NotJson`, `NotAnObject`, or a missing category or name. Other default headers may be missing: this code accepts more than Kazoo's
    /// validators do.
    pub fn read(bytes: &[u8]) -> Result<Self, MessageError> {
        let body = json::read(bytes).map_err(|error| MessageError::NotJson(error.to_string()))?;
        Self::of(body)
    }

    /// As `read`, for JSON that is parsed already.
    ///
    /// # Errors
    /// As `read`.
    pub fn of(body: Value) -> Result<Self, MessageError> {
        if !body.is_object() {
            return Err(MessageError::NotAnObject);
        }
        Ok(Self {
            category: required(&body, "Event-Category")?.to_owned(),
            name: required(&body, "Event-Name")?.to_owned(),
            msg_id: owned_text(&body, "Msg-ID"),
            server_id: owned_text(&body, "Server-ID"),
            app_name: owned_text(&body, "App-Name"),
            node: owned_text(&body, "Node"),
            body,
        })
    }

    pub fn is(&self, category: &str, name: &str) -> bool {
        self.category == category && self.name == name
    }

    /// The error for a message of a kind that this queue should not receive.
    pub fn unexpected(&self) -> MessageError {
        MessageError::Unexpected {
            category: shown(&self.category).to_owned(),
            name: shown(&self.name).to_owned(),
        }
    }
}

/// Whether a gzipped body has more than `limit` bytes after inflation. The check buffers nothing. A body that is damaged before that point
/// counts as shorter.
pub fn is_longer_than(gzipped: &[u8], limit: usize) -> bool {
    let limit = limit as u64;
    let mut beginning = GzDecoder::new(gzipped).take(limit + 1);
    std::io::copy(&mut beginning, &mut std::io::sink()).is_ok_and(|length| length > limit)
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, MessageError> {
    let mut out = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    GzDecoder::new(bytes)
        .take(limit)
        .read_to_end(&mut out)
        .map_err(|error| MessageError::NotJson(format!("gzip: {error}")))?;
    if out.len() > MAX_BODY_BYTES {
        return Err(MessageError::TooLarge(MAX_BODY_BYTES));
    }
    Ok(out)
}

/// Checks the length of ids.
///
/// # Errors
/// `TooLong`.
pub fn check_ids(ids: &[(&'static str, Option<&str>)]) -> Result<(), MessageError> {
    let long = |(_, id): &&(&str, Option<&str>)| id.is_some_and(|id| id.len() > MAX_ID_BYTES);
    ids.iter()
        .find(long)
        .map_or(Ok(()), |(header, _)| Err(MessageError::TooLong(header)))
}

/// The text of a required header.
///
/// # Errors
/// `Missing`.
pub fn required<'a>(body: &'a Value, header: &'static str) -> Result<&'a str, MessageError> {
    text(body, header).ok_or(MessageError::Missing(header))
}

/// Our name on the wire: the default headers of each message that we send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// `kz_record_call@<host>`.
    pub node: String,
}

impl Sender {
    /// All five default headers, with our node. `msg_id` is 32 lower-case hex digits, or in a reply the request's id.
    pub fn headers(&self, category: &str, name: &str, msg_id: &str) -> Map<String, Value> {
        object(json!({
            "App-Name": APP_NAME,
            "App-Version": APP_VERSION,
            "Event-Category": category,
            "Event-Name": name,
            "Msg-ID": msg_id,
            "Node": self.node,
        }))
    }

    /// A whole message: the default headers and those of `body`. Null and empty text count as missing (`kz_api:remove_empty_values`).
    pub fn message(&self, category: &str, name: &str, msg_id: &str, body: Value) -> Value {
        let mut headers = self.headers(category, name, msg_id);
        for (key, value) in object(body) {
            if !(value.is_null() || value.as_str() == Some("")) {
                headers.insert(key, value);
            }
        }
        Value::Object(headers)
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_sent_has_the_five_default_headers_and_nothing_empty() {
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let message = sender.message(
            "call",
            "command",
            "0f",
            json!({"Call-ID": "c", "Media-Name": "", "Url": null}),
        );
        for header in [
            "App-Name",
            "App-Version",
            "Event-Category",
            "Event-Name",
            "Msg-ID",
            "Node",
            "Call-ID",
        ] {
            assert!(text(&message, header).is_some(), "{header}");
        }
        assert!(message.get("Media-Name").is_none() && message.get("Url").is_none());
    }

    #[test]
    fn a_body_that_is_no_message_is_refused_with_its_reason() {
        assert!(matches!(Envelope::read(b"{"), Err(MessageError::NotJson(_))));
        assert!(matches!(Envelope::read(b""), Err(MessageError::NotJson(_))));
        assert_eq!(Envelope::read(b"[1]").unwrap_err(), MessageError::NotAnObject);
        assert_eq!(
            Envelope::read(b"{}").unwrap_err(),
            MessageError::Missing("Event-Category")
        );
        assert_eq!(
            Envelope::read(br#"{"Event-Category":"callflow","Event-Name":7}"#).unwrap_err(),
            MessageError::Missing("Event-Name")
        );
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const BODY: &[u8] = br#"{"Event-Category":"callflow","Event-Name":"action.execute"}"#;

    #[test]
    fn json_is_read_plain_and_gzipped() {
        for kind in ["application/json", "", "application/json; charset=utf-8"] {
            assert!(Envelope::decode(kind, "", BODY).is_ok(), "{kind}");
            assert!(Envelope::decode(kind, "gzip", &gzipped(BODY)).is_ok(), "{kind}");
        }
    }

    #[test]
    fn other_types_broken_and_swollen_bodies_are_refused() {
        let refused = |kind, encoding, body: &[u8]| Envelope::decode(kind, encoding, body).unwrap_err();
        for (kind, encoding) in [("application/erlang", ""), ("application/json", "br"), ("", "GZIP")] {
            assert!(matches!(refused(kind, encoding, BODY), MessageError::ContentType(..)));
        }
        assert!(matches!(refused("", "gzip", BODY), MessageError::NotJson(_)));
        let swollen = vec![b' '; MAX_BODY_BYTES + 10];
        let bomb = gzipped(&swollen);
        assert!(bomb.len() < 1 << 20);
        for (encoding, body) in [("gzip", &bomb), ("", &swollen)] {
            assert_eq!(refused("", encoding, body), MessageError::TooLarge(MAX_BODY_BYTES));
        }
    }
}
