//! Our end of a recording's upload: the HTTP server that media switches PUT their files to.
//!
//! It speaks HTTP, or HTTPS where a certificate is configured.
//!
//! A 2xx makes the switch delete its file, so it is given only when somebody answers for the audio: the delivery that waits for this very
//! upload. Everything else is an error status, and the file stays where it is. An upload is streamed to a spool file, hashed and inspected
//! on the way; memory does not grow with its size.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

mod connections;
mod inspect;
mod receive;
mod repair;
mod server;
mod slots;
mod spool;
mod tls;
mod token;

pub use inspect::Inspector;
pub use server::{Ingest, advertised};
pub use slots::{Expected, Progress, Upload, Wanted};
pub use spool::{Spool, SpoolFile, SpoolState};
pub use tls::Certificate;

/// What ends an upload without audio.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UploadError {
    #[error("the upload broke off after {0} bytes")]
    BrokenOff(u64),
    #[error("the upload sent nothing for {0:?}")]
    Stalled(Duration),
    #[error("the upload was not through in {0:?}")]
    TooSlow(Duration),
    #[error("the upload has more than {0} bytes")]
    TooLarge(u64),
    #[error("the upload has {got} bytes instead of the {told} that it told")]
    WrongLength { told: u64, got: u64 },
    #[error("the spool cannot be written: {0}")]
    Spool(Arc<str>),
    #[error("the spool's disk has too little room")]
    NoRoom,
}

impl UploadError {
    /// The HTTP status that tells it.
    const fn status(&self) -> u16 {
        match self {
            Self::BrokenOff(_) | Self::WrongLength { .. } => 400,
            Self::Stalled(_) | Self::TooSlow(_) => 408,
            Self::TooLarge(_) => 413,
            Self::Spool(_) => 503,
            Self::NoRoom => 507,
        }
    }
}
