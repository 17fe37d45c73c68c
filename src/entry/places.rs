//! The kinds of destinations, and what decisions about recordings depend on. How audio gets there is in the room `destination`.

use serde::{Deserialize, Serialize};

use crate::recording::digest::Digests;

use super::cause::{Cause, Outcome};

/// Where audio can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// The account's own monthly database.
    Account,
    /// The other cluster that `third_party_bigcouch_host` names.
    ThirdParty,
    /// The user's URL.
    Url,
    /// What the account's storage plan names, through Kazoo's store proxy.
    StoragePlan,
}

/// Audio in the hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The hold's database, or folder.
    pub place: String,
    /// The document, or file.
    pub name: String,
    pub size: u64,
    #[serde(flatten)]
    pub digests: Digests,
}

/// What decisions depend on. A value: touches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The name in the ledger, in documents and in metrics.
    pub name: &'static str,
    /// The name for people.
    pub words: &'static str,
    /// The outcome of a delivery there.
    pub outcome: Outcome,
    /// Why a recording is parked when its attempts there are used up.
    pub worn_out: Cause,
    /// Whether this is the cluster's own database, which any later worker can ask for what is stored.
    pub is_own: bool,
    /// Whether the document comes before the audio, and is completed after it, as Kazoo does for destinations outside of the cluster.
    pub documents_first: bool,
    /// Whether the document is in this cluster, so that the cluster's caches and webhooks must be notified.
    pub is_documented_here: bool,
    /// Whether the configuration chooses it. Then an earlier attempt may have gone elsewhere, when the configuration was another one. A URL
    /// is named by the action.
    pub is_configured: bool,
    /// Whether audio that cannot be delivered now goes into the hold. The account's own database needs no hold: while it is down, the
    /// file stays on the switch.
    pub is_held: bool,
}

const ACCOUNT: Description = Description {
    name: "account",
    words: "the account's monthly database",
    outcome: Outcome::Stored,
    worn_out: Cause::Unreachable,
    is_own: true,
    documents_first: false,
    is_documented_here: true,
    is_configured: true,
    is_held: false,
};

const THIRD_PARTY: Description = Description {
    name: "third_party",
    words: "the third party's database",
    outcome: Outcome::Stored,
    worn_out: Cause::Unreachable,
    is_own: false,
    documents_first: false,
    is_documented_here: false,
    is_configured: true,
    is_held: true,
};

const URL: Description = Description {
    name: "url",
    words: "the user's url",
    outcome: Outcome::Delivered,
    worn_out: Cause::Unreachable,
    is_own: false,
    documents_first: true,
    is_documented_here: true,
    is_configured: false,
    is_held: true,
};

const STORAGE_PLAN: Description = Description {
    name: "storage_plan",
    words: "the account's storage plan",
    outcome: Outcome::Stored,
    worn_out: Cause::NoStoreProxy,
    is_own: false,
    documents_first: true,
    is_documented_here: true,
    is_configured: true,
    is_held: true,
};

impl Destination {
    pub const ALL: [Self; 4] = [Self::Account, Self::ThirdParty, Self::Url, Self::StoragePlan];

    pub const fn describe(self) -> &'static Description {
        match self {
            Self::Account => &ACCOUNT,
            Self::ThirdParty => &THIRD_PARTY,
            Self::Url => &URL,
            Self::StoragePlan => &STORAGE_PLAN,
        }
    }

    pub const fn name(self) -> &'static str {
        self.describe().name
    }

    pub const fn documents_first(self) -> bool {
        self.describe().documents_first
    }

    pub const fn is_documented_here(self) -> bool {
        self.describe().is_documented_here
    }

    pub const fn is_held(self) -> bool {
        self.describe().is_held
    }

    pub const fn is_own(self) -> bool {
        self.describe().is_own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_under_the_name_that_the_ledger_has() {
        for (place, destination) in Destination::ALL.into_iter().enumerate() {
            assert_eq!(destination as usize, place, "{destination:?}");
            let stored = serde_json::to_value(destination).unwrap();
            assert_eq!(stored, destination.name());
        }
        // The error names every kind that can be read.
        let error = serde_json::from_str::<Destination>("\"none of them\"").unwrap_err();
        let named = error.to_string().matches('`').count() / 2 - 1;
        assert_eq!(named, Destination::ALL.len(), "{error}");
    }
}
