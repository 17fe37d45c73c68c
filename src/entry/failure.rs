//! How attempts to collect and to deliver audio fail, as facts have it.

use serde::{Deserialize, Serialize};

use super::cause::Cause;

/// How a collect failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectFailure {
    /// No ecallmgr serves that switch now, or the switch did not answer.
    Unreachable,
    /// The switch says that it has no such file, and the audio is not at its destination either.
    Missing,
    /// This worker could not take the file: no room, no AMQP session, or shutting down.
    NotNow,
    /// The upload broke off, or the switch could not do it. Or another program version used a word that this one does not know.
    #[serde(other)]
    Broken,
}

/// How a delivery failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryFailure {
    /// The target rejects this recording, now and later.
    Refused,
    /// Our own copy is missing.
    Source,
    /// The account's monthly database does not exist yet.
    Database,
    /// The account does not exist, so its databases never will.
    NoAccount,
    /// The action's URL cannot be served.
    Unusable,
    /// The action's URL is not known any more.
    Lost,
    /// No setting says where Kazoo's store proxy is.
    NoProxy,
    /// The signature of the action's URL is not valid any more.
    UrlExpired,
    /// The object store of a storage plan is unavailable.
    Store,
    /// The object store refuses what the storage plan says: credentials, bucket or policy.
    Plan,
    /// The target is unavailable. Or another program version used a word that this one does not know.
    #[serde(other)]
    Target,
}

impl DeliveryFailure {
    /// The cause for which a recording is parked at once, because another attempt would end in the same way.
    pub const fn parks(self) -> Option<Cause> {
        match self {
            Self::Refused => Some(Cause::Refused),
            Self::NoAccount => Some(Cause::UnknownAccount),
            Self::Unusable => Some(Cause::UnusableUrl),
            Self::Lost => Some(Cause::SettingsLost),
            Self::NoProxy => Some(Cause::NoStoreProxy),
            Self::UrlExpired => Some(Cause::UrlExpired),
            Self::Target | Self::Source | Self::Database | Self::Store | Self::Plan => None,
        }
    }

    /// The cause for which a recording is parked when its last attempt failed so; `None`: what the destination's description says.
    pub const fn wears_out(self) -> Option<Cause> {
        match self {
            Self::Plan => Some(Cause::PlanRefused),
            Self::Store => Some(Cause::Unreachable),
            _ => None,
        }
    }
}
