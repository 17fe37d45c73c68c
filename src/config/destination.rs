//! `[destination]`: how the worker sends audio to users' URLs, and what it does when a monthly database is missing.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use thiserror::Error;

use super::Authorities;
use super::reader::Reader;

/// The section.
#[derive(Debug, Clone)]
pub struct Destination {
    pub private_addresses: PrivateAddresses,
    /// Addresses that users' URLs may lead to, in spite of all other rules.
    pub allow: Vec<Allowed>,
    pub connect_timeout: Duration,
    pub silence_timeout: Duration,
    pub send_timeout: Duration,
    /// How long the worker lets a switch wait for a delivery whose audio could go into the hold instead.
    pub switch_waits: Duration,
    pub max_bytes: u64,
    pub create_databases: bool,
    pub create_databases_after: Duration,
    /// Concurrent uploads to one host.
    pub per_host: usize,
    pub first_pause: Duration,
    pub longest_pause: Duration,
    pub read_back_after: Duration,
    /// One more header for uploads to a host.
    pub headers: Vec<HostHeader>,
    /// For `https` and `ftps`: authorities trusted in addition to the host's.
    pub ca: Option<Authorities>,
    /// For `sftp`: keys of servers, in the form of OpenSSH.
    pub known_hosts: Option<PathBuf>,
    pub unknown_hosts: UnknownHosts,
    /// Whether a document's public field has the URL with its credentials and signature.
    pub url_credentials: bool,
}

/// A header for uploads to one host, written `host name: value`. Without `http://` before the host it is sent by https only. `Debug` leaves
/// out the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct HostHeader {
    /// `https` or `http`.
    pub scheme: &'static str,
    /// In lower case; with the port, unless the port is the scheme's default.
    pub host: String,
    pub name: HeaderName,
    pub value: HeaderValue,
}

/// A text that is no header for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a host, a header's name and its value, such as \"rec.example.com X-Api-Key: abc\"")]
pub struct NotAHeader;

/// Headers of the request that the worker sets itself.
const OWN: [&str; 7] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "expect",
    "idempotency-key",
];

/// What to do with a user's URL that leads to a private network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateAddresses {
    Deny,
    /// Allowed, and reported.
    Report,
    Allow,
}

/// What to do with an `sftp` server that `known_hosts` does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownHosts {
    Refuse,
    Accept,
}

/// An entry of the allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    Network(Network),
    /// A host name, in lower case.
    Host(String),
    /// All names below this one, written `*.example.com`.
    Below(String),
}

/// A range of addresses, such as `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A text that is not an entry of the allow-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("neither an address, nor a network such as 10.1.0.0/16, nor a host's name")]
pub struct NotAllowed;

impl Destination {
    pub(super) fn read(r: &mut Reader) -> Self {
        Self {
            private_addresses: r.one_of(
                "destination.private_addresses",
                &[
                    ("deny", PrivateAddresses::Deny),
                    ("report", PrivateAddresses::Report),
                    ("allow", PrivateAddresses::Allow),
                ],
            ),
            allow: r.list_of("destination.allow"),
            connect_timeout: r.millis("destination.connect_timeout_ms", 10, 60_000),
            silence_timeout: r.millis("destination.silence_timeout_ms", 100, 600_000),
            send_timeout: r.seconds("destination.send_timeout_s", 1, 86_400),
            switch_waits: r.millis("destination.switch_waits_ms", 100, 3_600_000),
            max_bytes: r.number("destination.max_bytes", 1024, u64::MAX / 4),
            create_databases: r.flag("destination.create_databases"),
            create_databases_after: r.seconds("destination.create_databases_after_s", 0, 604_800),
            per_host: r.number("destination.per_host", 1, 1000),
            first_pause: r.millis("destination.first_pause_ms", 1, 3_600_000),
            longest_pause: r.millis("destination.longest_pause_ms", 1, 86_400_000),
            read_back_after: r.millis("destination.read_back_after_ms", 1, 86_400_000),
            headers: r.list_of_secrets("destination.headers"),
            ca: r.authorities("destination.ca_file"),
            known_hosts: r.file("destination.known_hosts_file"),
            unknown_hosts: r.one_of(
                "destination.unknown_hosts",
                &[("refuse", UnknownHosts::Refuse), ("accept", UnknownHosts::Accept)],
            ),
            url_credentials: r.flag("destination.url_credentials_in_documents"),
        }
    }
}

impl FromStr for HostHeader {
    type Err = NotAHeader;

    fn from_str(text: &str) -> Result<Self, NotAHeader> {
        let (host, header) = text.trim().split_once(char::is_whitespace).ok_or(NotAHeader)?;
        let (name, value) = header.split_once(':').ok_or(NotAHeader)?;
        let name: HeaderName = name.trim().parse().map_err(|_| NotAHeader)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| NotAHeader)?;
        value.set_sensitive(true);
        let (scheme, host) = match host.strip_prefix("http://") {
            Some(host) => ("http", host),
            None => ("https", host.strip_prefix("https://").unwrap_or(host)),
        };
        let is_host = !host.contains(['/', '@', '?', '#']) && ::url::Url::parse(&format!("http://{host}/")).is_ok();
        if !is_host || value.is_empty() || OWN.contains(&name.as_str()) {
            return Err(NotAHeader);
        }
        Ok(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            name,
            value,
        })
    }
}

impl fmt::Debug for HostHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ***", self.host, self.name)
    }
}

impl Network {
    /// Whether the network contains `address`. An IPv4 address in IPv6 form counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, theirs) = (bits(self.address), bits(address.to_canonical()));
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => same(mine, theirs, self.prefix + 96),
            (IpAddr::V6(_), IpAddr::V6(_)) => same(mine, theirs, self.prefix),
            _ => false,
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Whether the first `prefix` of 128 bits are equal.
fn same(a: u128, b: u128, prefix: u8) -> bool {
    (a ^ b).checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<Self, NotAllowed> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| NotAllowed)?)),
            None => (text, None),
        };
        let address: IpAddr = address
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(|_| NotAllowed)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        (prefix <= most).then_some(Self { address, prefix }).ok_or(NotAllowed)
    }
}

impl FromStr for Allowed {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<Self, NotAllowed> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let (plain, below) = match name.strip_prefix("*.") {
            Some(rest) => (rest.to_owned(), true),
            None => (name, false),
        };
        let good = !plain.is_empty()
            && plain.parse::<Ipv6Addr>().is_err()
            && plain.split('.').all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            });
        match (good, below) {
            (true, true) => Ok(Self::Below(plain)),
            (true, false) => Ok(Self::Host(plain)),
            (false, _) => Err(NotAllowed),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "{}/{}", network.address, network.prefix),
            Self::Host(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_allow_list_are_read() {
        for (text, read) in [
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("::1", "::1/128"),
            ("[::1]", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("Rec.Example.com.", "rec.example.com"),
            ("*.example.com", "*.example.com"),
            ("rec_1", "rec_1"),
        ] {
            assert_eq!(text.parse::<Allowed>().unwrap().to_string(), read, "{text}");
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/x",
            "a b",
            "http://h",
            "*.",
            "a..b",
            "*",
            "fd00::/129",
        ] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_header_for_a_host_is_read_and_its_value_is_not_shown() {
        let header: HostHeader = "Rec.example.com:8443  X-Api-Key:  Bearer a:b ".parse().unwrap();
        assert_eq!(
            (header.host.as_str(), header.name.as_str()),
            ("rec.example.com:8443", "x-api-key")
        );
        assert_eq!(header.value, "Bearer a:b");
        for (given, scheme) in [("h", "https"), ("https://h", "https"), ("http://h", "http")] {
            let header: HostHeader = format!("{given} X-Key: v").parse().unwrap();
            assert_eq!((header.scheme, header.host.as_str()), (scheme, "h"), "{given}");
        }
        assert_eq!(format!("{header:?}"), "rec.example.com:8443 x-api-key: ***");
        for bad in [
            "",
            "h",
            "h X-Key",
            "h X-Key:",
            "h : v",
            "h Host: v",
            "h Content-Type: v",
            "ftp://h X-Key: v",
            "h/p X-Key: v",
            "h X Key: v",
            "h X-Key: v\nw",
        ] {
            assert_eq!(bad.parse::<HostHeader>(), Err(NotAHeader), "{bad}");
        }
    }

    #[test]
    fn a_network_contains_what_begins_like_it() {
        let contains =
            |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(contains("10.1.0.0/16", "10.1.255.3") && !contains("10.1.0.0/16", "10.2.0.0"));
        assert!(contains("10.1.0.0/16", "::ffff:10.1.2.3"));
        assert!(contains("0.0.0.0/0", "9.9.9.9") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("fd00::/8", "fdab::1") && !contains("fd00::/8", "fc00::1"));
        assert!(contains("::/0", "2001:db8::1") && contains("127.0.0.1", "127.0.0.1"));
        assert!(!contains("127.0.0.1", "127.0.0.2"));
    }
}
