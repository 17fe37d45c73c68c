//! The destinations of audio, and the check that it arrived.

mod error;
mod source;

pub mod choose;
pub mod circuit_breaker;
pub mod couchdb_write;
pub mod pending_document;
pub mod servers;
pub mod storage_plan;
pub mod url;

pub use error::{DeliveryError, Failed, Fault};
pub use source::Source;
