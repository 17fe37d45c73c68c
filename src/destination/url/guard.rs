//! SSRF filter for users' URLs. A tenant writes these URLs, and the worker runs inside the operator's network.
//!
//! The filter checks the address of the connection, not the name. `resolve` resolves names, and the connection uses exactly its answers. A
//! name therefore cannot resolve to one address for the check and to another for the connection. An address in a URL is checked before each
//! request. Each redirect is a new request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::config::{self, Allowed, PrivateAddresses};

pub mod resolve;

/// Class of an address that is not a public internet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Unspecified,
    Loopback,
    LinkLocal,
    /// The address of a cloud's metadata service.
    Metadata,
    Multicast,
    /// Broadcast, or a range that is not in use.
    Reserved,
    /// RFC 1918, unique local, carrier-grade NAT and similar ranges.
    Private,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Private => "private",
        }
    }
}

/// Metadata services outside the link-local addresses.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
];

/// Class of an address. `None`: a public address.
pub fn kind(address: IpAddr) -> Option<Kind> {
    match address {
        IpAddr::V4(v4) => kind_v4(v4),
        IpAddr::V6(v6) => kind_v6(v6),
    }
}

fn kind_v4(address: Ipv4Addr) -> Option<Kind> {
    let [a, b, c, _] = address.octets();
    if METADATA_V4.contains(&address) || address == Ipv4Addr::new(169, 254, 169, 254) {
        return Some(Kind::Metadata);
    }
    match (a, b, c) {
        (0, ..) => Some(Kind::Unspecified),
        (127, ..) => Some(Kind::Loopback),
        (169, 254, _) => Some(Kind::LinkLocal),
        (224..=239, ..) => Some(Kind::Multicast),
        (240.., ..) | (192, 0, 0) => Some(Kind::Reserved),
        (10, ..) | (192, 168, _) | (172, 16..=31, _) | (100, 64..=127, _) | (198, 18..=19, _) => Some(Kind::Private),
        _ => None,
    }
}

fn kind_v6(address: Ipv6Addr) -> Option<Kind> {
    if METADATA_V6.contains(&address) {
        return Some(Kind::Metadata);
    }
    let s = address.segments();
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => return Some(Kind::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => return Some(Kind::Loopback),
        _ => {}
    }
    let v4 = |high: u16, low: u16| kind_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        // IPv4 as ::ffff:a.b.c.d, as ::ffff:0:a.b.c.d (translated), and in the old form ::a.b.c.d, which has no valid use.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] => v4(high, low).or(Some(Kind::Reserved)),
        // NAT64: the translator connects to the embedded IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // Local-use NAT64 (RFC 8215): each network decides where it embeds the IPv4 address, so the address cannot be checked.
        [0x64, 0xff9b, 1, ..] => Some(Kind::Reserved),
        // 6to4, and Teredo, which inverts it.
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0, _, _, _, _, high, low] => v4(!high, !low),
        [first, ..] if first & 0xffc0 == 0xfe80 => Some(Kind::LinkLocal),
        [first, ..] if first & 0xff00 == 0xff00 => Some(Kind::Multicast),
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Some(Kind::Private),
        _ => None,
    }
}

/// What may be done with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Allowed, and reported.
    Report(Kind),
    Refuse(Kind),
}

/// An address that the filter refuses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{address} is not connected to: it is a {} address", kind.name())]
pub struct Refused {
    pub address: IpAddr,
    pub kind: Kind,
}

/// The filter's policy.
#[derive(Debug, Clone)]
pub struct Guard {
    private: PrivateAddresses,
    allow: Vec<Allowed>,
}

impl Guard {
    pub fn new(config: &config::Destination) -> Self {
        Self {
            private: config.private_addresses,
            allow: config.allow.clone(),
        }
    }

    /// As `new`, for the servers that accounts' storage plans name.
    pub fn for_stores(config: &config::Destination, storage: &config::Storage) -> Self {
        Self {
            private: storage.private_addresses,
            allow: config.allow.clone(),
        }
    }

    /// Checks an address that `host` leads to. `host` is a name, or the address itself.
    pub fn judge(&self, host: &str, address: IpAddr) -> Verdict {
        let Some(kind) = kind(address) else {
            return Verdict::Pass;
        };
        if self.allows(host, address) {
            return Verdict::Pass;
        }
        match (kind, self.private) {
            (Kind::Private, PrivateAddresses::Allow) => Verdict::Pass,
            (Kind::Private, PrivateAddresses::Report) => Verdict::Report(kind),
            _ => Verdict::Refuse(kind),
        }
    }

    fn allows(&self, host: &str, address: IpAddr) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.allow.iter().any(|allowed| match allowed {
            Allowed::Network(network) => network.contains(address),
            Allowed::Host(name) => *name == host,
            Allowed::Below(name) => host
                .strip_suffix(name.as_str())
                .is_some_and(|front| front.ends_with('.')),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(private: PrivateAddresses, allow: &[&str]) -> Guard {
        Guard {
            private,
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn kind_of(text: &str) -> Option<Kind> {
        kind(text.parse().unwrap())
    }

    #[test]
    fn every_special_address_is_known_in_each_of_its_forms() {
        for (kind, addresses) in [
            (Kind::Unspecified, &["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"][..]),
            (
                Kind::Loopback,
                &[
                    "127.0.0.1",
                    "127.255.255.254",
                    "::1",
                    "::ffff:127.0.0.1",
                    "::ffff:0:127.0.0.1",
                    "::127.0.0.1",
                    "64:ff9b::127.0.0.1",
                    "64:ff9b::7f00:1",
                    "2002:7f00:1::",
                    "2001:0:4136:e378:8000:63bf:80ff:fffe",
                ],
            ),
            (
                Kind::LinkLocal,
                &[
                    "169.254.0.1",
                    "169.254.170.2",
                    "fe80::1",
                    "febf::1",
                    "::ffff:169.254.1.1",
                ],
            ),
            (
                Kind::Metadata,
                &[
                    "169.254.169.254",
                    "::ffff:169.254.169.254",
                    "64:ff9b::a9fe:a9fe",
                    "fd00:ec2::254",
                    "100.100.100.200",
                    "fd20:ce::254",
                ],
            ),
            (Kind::Multicast, &["224.0.0.1", "239.255.255.255", "ff02::1"]),
            (
                Kind::Reserved,
                &[
                    "255.255.255.255",
                    "240.0.0.1",
                    "192.0.0.8",
                    "::8.8.8.8",
                    "64:ff9b:1::8.8.8.8",
                ],
            ),
            (
                Kind::Private,
                &[
                    "10.0.0.1",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.1.1",
                    "100.64.0.1",
                    "198.19.0.1",
                    "fc00::1",
                    "fdab::1",
                    "fec0::1",
                    "::ffff:10.0.0.1",
                    "64:ff9b::10.0.0.1",
                    "2002:a00:1::1",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(kind_of(address), Some(kind), "{address}");
            }
        }
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "172.15.255.255",
            "100.63.0.1",
            "100.128.0.1",
            "169.253.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
            "2002:808:808::",
        ] {
            assert_eq!(kind_of(public), None, "{public}");
        }
    }

    #[test]
    fn private_addresses_are_judged_as_configured_and_the_others_always_refused() {
        let judge = |private, text: &str| guard(private, &[]).judge("h", text.parse().unwrap());
        for (private, verdict) in [
            (PrivateAddresses::Deny, Verdict::Refuse(Kind::Private)),
            (PrivateAddresses::Report, Verdict::Report(Kind::Private)),
            (PrivateAddresses::Allow, Verdict::Pass),
        ] {
            assert_eq!(judge(private, "10.1.2.3"), verdict);
            assert_eq!(judge(private, "8.8.8.8"), Verdict::Pass);
            for text in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"] {
                assert!(matches!(judge(private, text), Verdict::Refuse(_)), "{text}");
            }
        }
    }

    #[test]
    fn what_operators_vouch_for_passes_and_nothing_else() {
        let guard = guard(
            PrivateAddresses::Deny,
            &["127.0.0.1", "10.1.0.0/16", "rec.example.com", "*.in.example.com"],
        );
        let passes = |host: &str, text: &str| guard.judge(host, text.parse().unwrap()) == Verdict::Pass;
        assert!(passes("x", "127.0.0.1") && passes("x", "::ffff:127.0.0.1") && !passes("x", "127.0.0.2"));
        assert!(passes("x", "10.1.9.9") && !passes("x", "10.2.0.1"));
        assert!(passes("Rec.Example.COM.", "192.168.0.1") && !passes("xrec.example.com", "192.168.0.1"));
        assert!(passes("a.in.example.com", "192.168.0.1") && !passes("in.example.com", "192.168.0.1"));
        assert!(!passes("ain.example.com", "192.168.0.1"));
    }

    proptest! {
        #[test]
        fn an_ipv4_address_is_judged_alike_in_whatever_form_it_comes(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            let plain = kind(IpAddr::V4(v4));
            prop_assert_eq!(kind(IpAddr::V6(v4.to_ipv6_mapped())), plain);
            prop_assert_eq!(kind(IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low))), plain);
            prop_assert_eq!(kind(IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1))), plain);
            prop_assert_eq!(kind(IpAddr::V6(Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low))), plain);
        }
    }
}
