//! `[storage]`: which handlers of storage plans the worker serves itself, and how.

use std::str::FromStr;

use thiserror::Error;
use url::Url;

use super::reader::Reader;
use super::{Authorities, PrivateAddresses};

/// The section.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The kinds of handlers that the worker serves itself. Kazoo's store proxy serves all others.
    pub drivers: Vec<StorageDriver>,
    pub private_addresses: PrivateAddresses,
    /// For `https`: authorities trusted in addition to the host's.
    pub ca: Option<Authorities>,
    pub checksum: Checksum,
    /// In place of each account's own server at Azure.
    pub azure_endpoint: Option<Url>,
}

/// A kind of handler that the worker can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageDriver {
    S3,
    Azure,
}

/// A text that names no driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("neither s3 nor azure")]
pub struct NoDriver;

impl FromStr for StorageDriver {
    type Err = NoDriver;

    fn from_str(text: &str) -> Result<Self, NoDriver> {
        match text {
            "s3" => Ok(Self::S3),
            "azure" => Ok(Self::Azure),
            _ => Err(NoDriver),
        }
    }
}

/// When to send `x-amz-checksum-sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// To AWS.
    Auto,
    Always,
    Never,
}

impl Storage {
    pub(super) fn read(r: &mut Reader) -> Self {
        Self {
            drivers: r.list_of("storage.drivers"),
            private_addresses: r.one_of(
                "storage.private_addresses",
                &[
                    ("report", PrivateAddresses::Report),
                    ("deny", PrivateAddresses::Deny),
                    ("allow", PrivateAddresses::Allow),
                ],
            ),
            ca: r.authorities("storage.ca_file"),
            checksum: r.one_of(
                "storage.checksum",
                &[
                    ("auto", Checksum::Auto),
                    ("always", Checksum::Always),
                    ("never", Checksum::Never),
                ],
            ),
            azure_endpoint: r.optional_url("storage.azure_endpoint"),
        }
    }
}
