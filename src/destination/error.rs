//! Why a delivery failed, and whose fault it is.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::couch::CouchError;
use crate::entry::fact::DeliveryFailure;

use super::storage_plan::refusal::PlanRefusal;
use super::url::http::{Failure, SendError};

/// Why a delivery failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeliveryError {
    /// The target will not accept this recording, now or later.
    #[error("the target refuses this recording: {0}")]
    Recording(String),
    /// Target unavailable.
    #[error("target unavailable: {0}")]
    Target(String),
    /// The cluster's database or the ledger is unavailable. The target is not at fault.
    #[error("not yet: {0}")]
    Cluster(String),
    /// The audio at the target differs from the audio that was sent.
    #[error("what arrived is not what was sent: {0}")]
    Corrupt(String),
    /// Our own copy cannot be read.
    #[error("the audio cannot be read: {0}")]
    Source(Arc<str>),
    /// The monthly database does not exist.
    #[error("the database {0} does not exist")]
    NoDatabase(String),
    /// An HTTP server did not accept the audio.
    #[error("{0}")]
    Http(SendError),
    /// An object store is unavailable, or refuses now.
    #[error("object store unavailable: {why}")]
    Store {
        why: String,
        /// How long the store asks to wait.
        retry_after: Option<Duration>,
    },
    /// An object store refuses what the account's storage plan says: only the plan's owner can mend that.
    #[error("{0}")]
    Plan(Box<PlanRefusal>),
    /// There is no destination, and another attempt would fail the same way.
    #[error("{0}")]
    Never(Failed),
}

/// A failure that would repeat at each attempt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct Failed {
    pub kind: DeliveryFailure,
    pub why: String,
}

impl Failed {
    pub fn new(kind: DeliveryFailure, why: impl ToString) -> Self {
        Self {
            kind,
            why: why.to_string(),
        }
    }
}

/// The cause of a failure, which decides the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The target will not accept this recording, now or later. The recording is parked, and its audio is kept.
    Recording,
    /// The target. Attempts follow the retry schedule. The target's circuit breaker opens when different recordings fail alike.
    Target,
    /// The account's storage plan. Attempts follow the retry schedule. The circuit breaker of the plan's handler opens, and not that of the
    /// host: plans of other accounts may have the same host.
    Plan,
    /// The cluster's database or the ledger. Attempts follow the retry schedule. No circuit breaker of the target opens.
    Cluster,
    /// The account's monthly database is missing: see `modb`.
    Database,
    /// Our own copy is missing. The switch, or the hold, has another.
    Source,
}

impl DeliveryError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Recording(_) | Self::Never(_) => Fault::Recording,
            Self::Http(error) if error.is_for_ever() => Fault::Recording,
            Self::NoDatabase(_) => Fault::Database,
            Self::Source(_) => Fault::Source,
            Self::Plan(_) => Fault::Plan,
            Self::Cluster(_) => Fault::Cluster,
            Self::Target(_) | Self::Corrupt(_) | Self::Http(_) | Self::Store { .. } => Fault::Target,
        }
    }

    /// The failure of a step that writes or reads the document, while the audio goes elsewhere.
    #[must_use]
    pub fn of_cluster(self) -> Self {
        match self {
            Self::Target(_) | Self::Corrupt(_) => Self::Cluster(self.to_string()),
            other => other,
        }
    }

    /// How long the target asks to wait, in its `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http(error) => error.retry_after,
            Self::Store { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<SendError> for DeliveryError {
    fn from(error: SendError) -> Self {
        match error.kind {
            Failure::Source(why) => Self::Source(why),
            _ => Self::Http(error),
        }
    }
}

impl DeliveryError {
    /// The failure as the retry schedule classifies it.
    pub fn failure(&self) -> DeliveryFailure {
        match (self, self.fault()) {
            (Self::Never(failed), _) => failed.kind,
            (Self::Http(error), _) if error.is_expired() => DeliveryFailure::UrlExpired,
            (Self::Store { .. }, _) => DeliveryFailure::Store,
            (_, Fault::Plan) => DeliveryFailure::Plan,
            (_, Fault::Recording) => DeliveryFailure::Refused,
            (_, Fault::Target | Fault::Cluster) => DeliveryFailure::Target,
            (_, Fault::Database) => DeliveryFailure::Database,
            (_, Fault::Source) => DeliveryFailure::Source,
        }
    }
}

impl From<CouchError> for DeliveryError {
    fn from(error: CouchError) -> Self {
        match error {
            CouchError::DatabaseMissing(database) => Self::NoDatabase(database),
            CouchError::Body(why) => Self::Source(Arc::from(why)),
            CouchError::Refused {
                status: 400 | 413 | 415,
                ..
            } => Self::Recording(error.to_string()),
            // A document rule of the database.
            CouchError::Forbidden { .. } => Self::Recording(error.to_string()),
            other => Self::Target(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_lacks_is_retried_by_the_same_schedule_and_is_no_fault_of_the_target() {
        for error in [
            DeliveryError::Target("connection lost".into()),
            DeliveryError::Corrupt("its document is gone".into()),
        ] {
            let of_cluster = error.clone().of_cluster();
            assert_eq!((error.fault(), of_cluster.fault()), (Fault::Target, Fault::Cluster));
            assert_eq!(error.failure(), of_cluster.failure());
        }
        let plain = DeliveryError::NoDatabase("account/x-202611".into());
        assert_eq!(plain.clone().of_cluster(), plain);
    }
}
