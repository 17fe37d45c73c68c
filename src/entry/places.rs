//! Properties of each kind of destination.

use super::fact::Destination;

impl Destination {
    pub const ALL: [Self; 4] = [Self::Account, Self::ThirdParty, Self::Url, Self::StoragePlan];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::ThirdParty => "third_party",
            Self::Url => "url",
            Self::StoragePlan => "storage_plan",
        }
    }

    /// Whether the document comes before the audio, and is completed after it, as Kazoo does for destinations outside of the cluster.
    pub const fn documents_first(self) -> bool {
        matches!(self, Self::Url | Self::StoragePlan)
    }

    /// Whether the document is in this cluster, so that the cluster's caches and webhooks must be notified.
    pub const fn is_documented_here(self) -> bool {
        !matches!(self, Self::ThirdParty)
    }

    /// Whether audio that cannot be delivered now goes into the hold. The account's own database needs no hold: while it is down, the
    /// file stays on the switch.
    pub const fn is_held(self) -> bool {
        !matches!(self, Self::Account)
    }
}
