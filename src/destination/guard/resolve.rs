//! Resolves names for the guarded client: only addresses that may be connected to come out.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;

use crate::telemetry::events::{AddressRefused, AddressReported};

use super::{Guard, Refused, Verdict};

/// A name's addresses, to come.
pub type Answer = Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;

/// Who knows the addresses of a name. Tests have one of their own.
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

/// A name that has no address.
#[derive(Debug, Clone, Error)]
#[error("its name cannot be resolved")]
pub struct Unresolved;

/// The resolver of the guarded client.
pub struct Resolver {
    guard: Arc<Guard>,
    lookup: Arc<dyn Lookup>,
}

impl Resolver {
    pub fn new(guard: Arc<Guard>, lookup: Arc<dyn Lookup>) -> Self {
        Self { guard, lookup }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, name) = (Arc::clone(&self.guard), name.as_str().to_owned());
        let lookup = self.lookup.lookup(name.clone());
        Box::pin(async move {
            let found = lookup.await.map_err(|_| Unresolved)?;
            let mut refused = None;
            let mut good: Vec<SocketAddr> = Vec::new();
            for address in found {
                match admit(&guard, &name, address) {
                    // The port is the URL's.
                    Ok(()) => good.push(SocketAddr::new(address, 0)),
                    Err(error) => refused = Some(error),
                }
            }
            match (good.is_empty(), refused) {
                (false, _) => Ok(Box::new(good.into_iter()) as Addrs),
                (true, Some(refused)) => Err(refused.into()),
                (true, None) => Err(Unresolved.into()),
            }
        })
    }
}

/// Judges an address, and tells what is worth telling.
///
/// # Errors
/// When it must not be connected to.
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
