//! The receiving end of uploads: the HTTP server that media switches PUT their recordings to.
//!
//! The server uses HTTP, or HTTPS when a certificate is configured.
//!
//! A 2xx makes the switch delete its file. The server answers 2xx only when the delivery that waits for this upload reports the audio safe.
//! Any other answer is an error status, and the switch keeps its file. An upload is streamed to a spool file, and is hashed and inspected
//! meanwhile. Memory does not grow with its size.

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

/// Why an upload ended without audio.
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
    /// The HTTP status for the error.
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
