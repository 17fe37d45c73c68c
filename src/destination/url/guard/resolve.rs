//! Resolves names for the HTTP clients. The client for users' URLs gets only addresses that the SSRF filter admits.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use crate::telemetry::events::{AddressRefused, AddressReported};

use super::super::failure::Failure;
use super::{Guard, Refused, Verdict};

/// A name's addresses, to come.
pub type Answer = Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;

/// A resolver of names. Tests provide their own.
pub trait Lookup: Send + Sync {
    fn lookup(&self, name: String) -> Answer;
}

/// The host's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Lookup for System {
    fn lookup(&self, name: String) -> Answer {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// The addresses of a name that the client may connect to.
///
/// # Errors
/// `Unresolved` when there is no address. `Address` when the filter refuses all addresses.
pub async fn addresses(guard: Option<&Guard>, lookup: &dyn Lookup, name: &str) -> Result<Vec<IpAddr>, Failure> {
    let found = lookup.lookup(name.to_owned()).await;
    let found = found.map_err(|_| Failure::Unresolved)?;
    let mut refused = None;
    let mut good = Vec::new();
    for address in found {
        match guard.map_or(Ok(()), |guard| admit(guard, name, address)) {
            Ok(()) => good.push(address),
            Err(error) => refused = Some(error),
        }
    }
    match (good.is_empty(), refused) {
        (false, _) => Ok(good),
        (true, Some(refused)) => Err(Failure::Address(refused)),
        (true, None) => Err(Failure::Unresolved),
    }
}

/// Checks an address, and reports it where the policy says so.
///
/// # Errors
/// When the client must not connect to the address.
pub fn admit(guard: &Guard, host: &str, address: IpAddr) -> Result<(), Refused> {
    match guard.judge(host, address) {
        Verdict::Pass => Ok(()),
        Verdict::Report(kind) => {
            AddressReported {
                host,
                address: &address.to_string(),
                kind: kind.name(),
            }
            .emit();
            Ok(())
        }
        Verdict::Refuse(kind) => {
            AddressRefused {
                host,
                address: &address.to_string(),
                kind: kind.name(),
            }
            .emit();
            Err(Refused { address, kind })
        }
    }
}
