//! Connections to the hosts of URLs, through the SSRF filter, and the TLS of such connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_platform_verifier::{BuilderVerifierExt as _, Verifier};
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::config::Authorities;

use super::failure::{Failure, NoClient};
use super::guard::Guard;
use super::guard::resolve::{Lookup, addresses, admit};

/// Makes connections. Without a filter it reaches any address.
#[derive(Clone)]
pub(super) struct Connector {
    pub guard: Option<Arc<Guard>>,
    pub lookup: Arc<dyn Lookup>,
    /// Time limit of name resolution and connect together.
    pub patience: Duration,
}

impl Connector {
    /// A connection to the host of `url`, within the time limit. `port`: of the URL's scheme.
    pub async fn connect(&self, url: &Url, port: u16) -> Result<TcpStream, Failure> {
        let connecting = async {
            let mut failed = "no address".to_owned();
            let found = self.addresses(url, port).await?;
            let share = self.share(found.len());
            for address in found {
                match tokio::time::timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => {
                        let _ = stream.set_nodelay(true);
                        return Ok(stream);
                    }
                    Ok(Err(error)) => failed = error.to_string(),
                    Err(_) => failed = "no answer".to_owned(),
                }
            }
            Err(Failure::Connect(failed))
        };
        let connected = tokio::time::timeout(self.patience, connecting).await;
        connected.unwrap_or_else(|_| Err(Failure::Connect("no answer".into())))
    }

    /// The addresses that a connection may be made to.
    pub async fn addresses(&self, url: &Url, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let port = url.port().unwrap_or(port);
        let found = self.find(url).await?;
        Ok(found
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect())
    }

    /// The time limit for one of so many addresses.
    pub fn share(&self, addresses: usize) -> Duration {
        self.patience / u32::try_from(addresses.max(1)).unwrap_or(1)
    }

    async fn find(&self, url: &Url) -> Result<Vec<IpAddr>, Failure> {
        // The parser reads the host of an unusual scheme as a mere name, even where it is an address.
        match Host::parse(url.host_str().unwrap_or_default()) {
            // An address in the URL is never resolved, but is checked all the same.
            Ok(Host::Ipv4(v4)) => self.judged(IpAddr::V4(v4)),
            Ok(Host::Ipv6(v6)) => self.judged(IpAddr::V6(v6)),
            Ok(Host::Domain(name)) => addresses(self.guard.as_deref(), self.lookup.as_ref(), &name).await,
            Err(_) => Err(Failure::Unresolved),
        }
    }

    fn judged(&self, address: IpAddr) -> Result<Vec<IpAddr>, Failure> {
        if let Some(guard) = &self.guard {
            admit(guard, &address.to_string(), address).map_err(Failure::Address)?;
        }
        Ok(vec![address])
    }
}

/// TLS that trusts the host's authorities, and `ca` in addition.
pub(super) fn tls(ca: Option<&Authorities>) -> Result<ClientConfig, NoClient> {
    let failed = |error: rustls::Error| NoClient(error.to_string());
    let tls = ClientConfig::builder();
    let Some(ca) = ca else {
        return Ok(tls.with_platform_verifier().map_err(failed)?.with_no_client_auth());
    };
    let provider = Arc::clone(tls.crypto_provider());
    let verifier = Verifier::new_with_extra_roots(ca.certificates(), provider).map_err(failed)?;
    Ok(tls
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}
