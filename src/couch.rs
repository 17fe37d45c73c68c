//! A client of CouchDB and BigCouch: small JSON through `couch_rs`, audio through our own streaming requests.
//!
//! `couch_rs` has one time-out for a whole request, which would cut a healthy long upload, and no attachments; so audio takes its own road:
//! connect and silence are bounded, the length of the transfer is not. Nothing is ever buffered whole. Databases' and documents' names are
//! percent-encoded here and nowhere else.

use thiserror::Error;

mod bulk;
mod client;
mod databases;
mod probe;
mod server;
mod upload;
mod watch;

pub use bulk::{Row, ViewRow};
pub use client::Couch;
pub use databases::Version;
pub use probe::{Session, Welcome};
pub use server::{NoServer, Server};
pub use upload::{Attachment, ByteStream, Saved};
pub use watch::{Silent, Watch};

/// What a database server did instead of what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CouchError {
    #[error("the database {0} does not exist")]
    DatabaseMissing(String),
    #[error("not found")]
    NotFound,
    #[error("the document exists already, in another revision")]
    Conflict,
    #[error("the server refused our credentials ({0})")]
    Unauthorized(u16),
    /// Another 4xx: what was asked is at fault.
    #[error("the server refused it: {status} {error}: {reason}")]
    Refused { status: u16, error: String, reason: String },
    /// A 5xx: the server is at fault.
    #[error("the server failed: {status} {error}: {reason}")]
    Failed { status: u16, error: String, reason: String },
    /// No answer, or none that can be read. Whether it was done is open.
    #[error("no answer from the server: {0}")]
    NoAnswer(String),
    /// What was to be sent cannot be read; the server had no say.
    #[error("the body cannot be read: {0}")]
    Body(String),
}

impl CouchError {
    /// The error of an HTTP status that is not a success, with CouchDB's two words on it.
    pub(crate) fn of_status(status: u16, error: &str, reason: &str, database: &str) -> Self {
        let (error, reason) = (clip(error), clip(reason));
        match status {
            // CouchDB 3 says the first, its older relatives and PouchDB the second.
            404 if reason.starts_with("Database does not exist") || reason == "no_db_file" => {
                Self::DatabaseMissing(database.to_owned())
            }
            404 => Self::NotFound,
            409 => Self::Conflict,
            401 | 403 => Self::Unauthorized(status),
            400..=499 => Self::Refused { status, error, reason },
            _ => Self::Failed { status, error, reason },
        }
    }

    /// The HTTP status, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::DatabaseMissing(_) | Self::NotFound => Some(404),
            Self::Conflict => Some(409),
            Self::Unauthorized(status) | Self::Refused { status, .. } | Self::Failed { status, .. } => Some(*status),
            Self::NoAnswer(_) | Self::Body(_) => None,
        }
    }
}

fn clip(text: &str) -> String {
    crate::kazoo::call::clip(text, 200).to_owned()
}
