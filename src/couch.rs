//! A client of CouchDB and BigCouch. `couch_rs` provides the types of the answers. The requests are our own.
//!
//! `couch_rs`'s client cannot be used. It sends credentials to the proxy that HTTP_PROXY names, and trusts only the host's authorities. Its
//! one time-out covers a whole request, which would cut a healthy long upload. It has no attachments. This client limits the connect time
//! and the silence on a connection, but not the length of a transfer. Audio is never buffered whole. Only this module percent-encodes names
//! of databases and documents.

use std::fmt::Write as _;

use serde_json::Value;
use thiserror::Error;

mod bulk;
mod client;
mod databases;
mod documents;
mod erase;
mod login;
mod pages;
mod peers;
mod probe;
mod proxies;
mod quorum;
mod server;
#[cfg(test)]
pub(crate) mod testing;
mod upload;
mod watch;

pub use bulk::{Branched, Held, Row, ViewRow};
pub use client::Couch;
pub use databases::Version;
pub use documents::{Answer, Documents, IdPage};
pub use erase::Erased;
pub use login::{heard, refused};
pub use pages::{Pages, Range};
pub use peers::{News, Turn, Turns, Verdict, join};
pub use probe::{Session, Welcome};
pub use proxies::ignored;
pub use server::{NoServer, Server};
pub use upload::{Attachment, ByteStream, Present, Saved};
pub use watch::{Silent, Watch};

/// How a request to a database server failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CouchError {
    #[error("the database {0} does not exist")]
    DatabaseMissing(String),
    #[error("not found")]
    NotFound,
    #[error("the document exists already, in another revision")]
    Conflict,
    /// A 401, or a 403 about the user: the credentials are wrong, or the user lacks a permission.
    #[error("the server refused our credentials ({status}{})", detail(.reason))]
    Unauthorized { status: u16, reason: String },
    /// CouchDB counts failed log-ins by user and address, and refuses that user from that address for some minutes.
    #[error("the server refused our credentials (403: {0})")]
    Locked(String),
    /// A 403 from the database's document rule (`validate_doc_update`). This document is at fault, and neither the credentials nor the
    /// server are. The reason is the rule's own text, with all other fields of the answer.
    #[error("a rule of the database forbids the document: {reason}")]
    Forbidden { reason: String },
    /// Another 4xx: the request is at fault.
    #[error("the server refused it: {status} {error}: {reason}")]
    Refused { status: u16, error: String, reason: String },
    /// A 5xx: the server is at fault.
    #[error("the server failed: {status} {error}: {reason}")]
    Failed { status: u16, error: String, reason: String },
    /// No answer, or an answer that cannot be decoded. The server may have processed the request or not.
    #[error("no answer from the server: {0}")]
    NoAnswer(String),
    /// The request body could not be read. The server was not at fault.
    #[error("the body cannot be read: {0}")]
    Body(String),
}

impl CouchError {
    /// The error for an HTTP status that is not a success, with CouchDB's `error` and `reason`.
    pub(crate) fn of_status(status: u16, error: &str, reason: &str, database: &str) -> Self {
        let (error, reason) = (clip(error), clip(reason));
        match status {
            // CouchDB 3 answers the first text, BigCouch, CouchDB 1 and PouchDB the second.
            404 if reason.starts_with("Database does not exist") || reason == "no_db_file" => {
                Self::DatabaseMissing(database.to_owned())
            }
            404 if error == "not_found" => Self::NotFound,
            // This is the page of a proxy, or of another server at that address. It says nothing about any document.
            404 => Self::NoAnswer(
                "404 came back, and not from CouchDB: is a proxy, or another server, at this address?".into(),
            ),
            409 => Self::Conflict,
            403 if is_lockout(&reason) => Self::Locked(reason),
            // CouchDB uses the same `error` for a user who has no access to the database at all.
            403 if error == "forbidden" && !is_about_us(&reason) => Self::Forbidden { reason },
            401 | 403 => Self::Unauthorized { status, reason },
            400..=499 => Self::Refused { status, error, reason },
            _ => Self::Failed { status, error, reason },
        }
    }

    /// The error for an answer that is not a success. Fields beside `error` and `reason` are kept for the operator: the rules of newer
    /// servers list their `failures`.
    pub(crate) fn of_answer(status: u16, answer: &Value, database: &str) -> Self {
        let word = |key: &str| match answer.get(key) {
            Some(Value::String(word)) => word.clone(),
            None | Some(Value::Null) => String::new(),
            // A rule may throw a value of any type.
            Some(other) => other.to_string(),
        };
        let mut failed = Self::of_status(status, &word("error"), &word("reason"), database);
        if let Self::Forbidden { reason } = &mut failed {
            for (key, value) in answer.as_object().into_iter().flatten() {
                if !matches!(key.as_str(), "error" | "reason") {
                    let _ = write!(reason, "; {key}: {value}");
                }
            }
            *reason = clip(reason);
        }
        failed
    }

    /// Whether the server rejects the log-in itself, for now or for good. A user without a permission does not count.
    pub fn is_about_credentials(&self) -> bool {
        match self {
            Self::Locked(_) => true,
            Self::Unauthorized { status: 401, reason } => !reason.starts_with("You are not "),
            _ => false,
        }
    }

    /// The same error with another reason.
    fn with_reason(&self, change: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Locked(reason) => Self::Locked(change(reason)),
            Self::Unauthorized { status, reason } => Self::Unauthorized {
                status: *status,
                reason: change(reason),
            },
            other => other.clone(),
        }
    }

    /// The HTTP status, if the server sent one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::DatabaseMissing(_) | Self::NotFound => Some(404),
            Self::Conflict => Some(409),
            Self::Locked(_) | Self::Forbidden { .. } => Some(403),
            Self::Unauthorized { status, .. } | Self::Refused { status, .. } | Self::Failed { status, .. } => {
                Some(*status)
            }
            Self::NoAnswer(_) | Self::Body(_) => None,
        }
    }
}

/// The text that CouchDB 3.4 sends while an account is locked (`chttpd_auth_lockout`).
fn is_lockout(reason: &str) -> bool {
    reason.to_ascii_lowercase().contains("temporarily locked")
}

/// A 403 without a reason, or with the reason of a database's `_security`.
fn is_about_us(reason: &str) -> bool {
    reason.is_empty() || reason.starts_with("You are not ")
}

fn detail(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

fn clip(text: &str) -> String {
    crate::kazoo::call::clip(text, 200).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_for_documents_is_not_taken_for_refused_credentials() {
        let of = |status, answer: Value| CouchError::of_answer(status, &answer, "db");
        let forbidden = |reason: &str| json!({"error": "forbidden", "reason": reason});
        assert_eq!(
            of(403, forbidden("recordings need owner_id")),
            CouchError::Forbidden {
                reason: "recordings need owner_id".into()
            }
        );
        let CouchError::Forbidden { reason } = of(
            403,
            json!({"error": "forbidden", "reason": {"field": "owner_id"}, "failures": [{"ddoc": "_design/rules"}]}),
        ) else {
            panic!("not a rule");
        };
        assert!(
            reason.contains(r#"{"field":"owner_id"}"#) && reason.contains("_design/rules"),
            "{reason}"
        );
        for (status, answer) in [
            (
                401,
                json!({"error": "unauthorized", "reason": "Name or password is incorrect."}),
            ),
            (403, forbidden("You are not allowed to access this db.")),
            (403, forbidden("")),
            (403, Value::Null),
        ] {
            let failed = of(status, answer.clone());
            assert!(matches!(failed, CouchError::Unauthorized { .. }), "{answer}: {failed}");
        }
        let locked = of(
            403,
            forbidden("Account is temporarily locked due to multiple authentication failures"),
        );
        assert!(locked.to_string().contains("Account is temporarily locked"), "{locked}");
        assert!(matches!(locked, CouchError::Locked(_)));
    }
}
