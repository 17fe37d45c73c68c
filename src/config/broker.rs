//! A broker's URI, as operators and Kazoo write it.

use std::net::Ipv6Addr;

use lapin::uri::AMQPUri;
use thiserror::Error;
use url::{Host, Url};

/// Seconds between heartbeats, for a URI without a value. Kazoo's own file never has one. With RabbitMQ's default of one minute, a dead
/// connection would stay unnoticed for two minutes.
pub const HEARTBEAT_S: u16 = 10;

/// The smallest frame size that RabbitMQ 4.1 and newer accept.
const FRAME_MIN: u32 = 8192;

/// A text that is not a broker's URI. The messages follow "is". They never show the text, which may contain a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoBroker {
    #[error("not an amqp:// or amqps:// URI")]
    NotAUri,
    #[error("not a URI with a host")]
    NoHost,
    #[error(
        "not a URI that can be read: in a user's name and password write %23 for #, %2F for /, %3F for ?, %40 for @, %25 for %"
    )]
    Unencoded,
    #[error("not usable: its path, which is the vhost, has more than one part; write a / in a vhost's name as %2f")]
    Path,
    #[error(
        "not usable: a parameter cannot be read; heartbeat, frame_max, channel_max, connection_timeout are numbers, auth_mechanism is plain, \
         external or amqplain"
    )]
    Parameter,
}

/// Reads a URI such as `amqp://user:password@host:5672/vhost?heartbeat=10`. Without a path the vhost is `/`. An empty path, as in
/// `amqp://host/`, means the vhost with the empty name, as in RabbitMQ's own clients.
///
/// # Errors
/// `NoBroker`.
pub fn broker(text: &str) -> Result<AMQPUri, NoBroker> {
    let text = text.trim();
    let url = match Url::parse(text) {
        Ok(url) if url.fragment().is_none() => url,
        Err(_) if !is_cut(text) => return Err(NoBroker::NotAUri),
        _ => return Err(NoBroker::Unencoded),
    };
    if !matches!(url.scheme(), "amqp" | "amqps") || url.cannot_be_a_base() {
        return Err(NoBroker::NotAUri);
    }
    let Some(host) = url.host().filter(|host| !host.to_string().is_empty()) else {
        return Err(NoBroker::NoHost);
    };
    if url.path().trim_start_matches('/').contains('/') {
        return Err(if is_cut(text) {
            NoBroker::Unencoded
        } else {
            NoBroker::Path
        });
    }
    let mut uri: AMQPUri = text.parse().map_err(|_| NoBroker::Parameter)?;
    // lapin uses localhost for a host that is not a name.
    match host {
        Host::Ipv6(address) => uri.authority.host = address.to_string(),
        Host::Ipv4(address) => uri.authority.host = address.to_string(),
        Host::Domain(_) => {}
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    if let Some(frame_max) = uri.query.frame_max.filter(|max| *max != 0) {
        uri.query.frame_max = Some(frame_max.max(FRAME_MIN));
    }
    Ok(uri)
}

/// Parameters of a URI that are not followed, as texts for the operator.
pub fn remarks(text: &str) -> Vec<&'static str> {
    let Ok(url) = Url::parse(text.trim()) else {
        return Vec::new();
    };
    let value = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value);
    let mut remarks = Vec::new();
    if url.scheme() == "amqps" && value("verify").is_some_and(|verify| verify == "verify_none") {
        remarks.push(
            "verify=verify_none is not followed: the broker's certificate is verified. Set amqp.ca_file to the authority that issued the certificate",
        );
    }
    let frame_max = value("frame_max").and_then(|max| max.parse::<u32>().ok());
    if frame_max.is_some_and(|max| (1..FRAME_MIN).contains(&max)) {
        remarks.push(
            "frame_max is below 8192, which RabbitMQ 4.1 and newer refuse: 8192 is used. Remove frame_max from the URI",
        );
    }
    remarks
}

/// Whether a URI has an @ only after the end of its host. A character of the password has then ended the host.
pub fn is_cut(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, after) = rest.split_at(end);
    !host.contains('@') && after.contains('@')
}

/// Host and port in the usual notation.
pub fn authority(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    if host.parse::<Ipv6Addr>().is_ok() {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use lapin::uri::AMQPScheme;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn brokers_are_read_as_kazoo_writes_them() {
        for (text, place, vhost) in [
            ("amqp://guest:guest@127.0.0.1:5672", "127.0.0.1:5672", "/"),
            ("amqp://h", "h:5672", "/"),
            ("amqps://h/%2f", "h:5671", "/"),
            ("amqp://h/kazoo", "h:5672", "kazoo"),
            ("amqp://h/", "h:5672", ""),
            ("amqp://u:p@[fd00::1]:5673/v", "[fd00::1]:5673", "v"),
        ] {
            let uri = broker(text).unwrap();
            assert_eq!((authority(&uri).as_str(), uri.vhost.as_str()), (place, vhost), "{text}");
            assert_eq!(uri.query.heartbeat, Some(HEARTBEAT_S));
        }
        let uri = broker("amqps://kazoo:p%40ss@h/v?heartbeat=3&verify=verify_peer").unwrap();
        assert_eq!(uri.authority.userinfo.password, "p@ss");
        assert_eq!((uri.scheme, uri.query.heartbeat), (AMQPScheme::AMQPS, Some(3)));
    }

    #[test]
    fn a_frame_is_never_smaller_than_newer_brokers_accept() {
        for (given, used) in [
            ("4096", 8192),
            ("1", 8192),
            ("0", 0),
            ("8192", 8192),
            ("131072", 131_072),
        ] {
            let text = format!("amqp://h?frame_max={given}");
            assert_eq!(broker(&text).unwrap().query.frame_max, Some(used), "{given}");
            assert_eq!(remarks(&text).len(), usize::from(given != used.to_string()), "{given}");
        }
        assert_eq!(broker("amqp://h").unwrap().query.frame_max, None);
    }

    #[test]
    fn a_uri_that_asks_for_no_verification_is_told_that_there_is_one() {
        let told = remarks("amqps://u:p@h/v?verify=verify_none&frame_max=4096");
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("amqp.ca_file"));
        for silent in [
            "amqps://h?verify=verify_peer",
            "amqp://h?verify=verify_none",
            "amqps://h",
            "no uri",
        ] {
            assert!(remarks(silent).is_empty(), "{silent}");
        }
    }

    #[test]
    fn what_names_no_broker_is_refused() {
        for (text, why) in [
            ("", NoBroker::NotAUri),
            ("h:5672", NoBroker::NotAUri),
            ("http://h", NoBroker::NotAUri),
            ("amqp:h", NoBroker::NotAUri),
            ("amqp://", NoBroker::NoHost),
            ("amqp://h//v/w", NoBroker::Path),
            ("amqp://u:p#ss@h", NoBroker::Unencoded),
            ("amqp://u:1#ss@h", NoBroker::Unencoded),
            ("amqp://u:p/ss@h/v", NoBroker::Unencoded),
            ("amqp://u:1/ss@h/v", NoBroker::Unencoded),
            ("amqp://u:p?ss@h/v", NoBroker::Unencoded),
            ("amqp://h?heartbeat=x", NoBroker::Parameter),
            ("amqp://h?auth_mechanism=gssapi", NoBroker::Parameter),
        ] {
            assert_eq!(broker(text).unwrap_err(), why, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_broker_or_none(text in "(amqps?:/?/?)?[ -~\u{e9}]{0,30}") {
            if let Ok(uri) = broker(&text) {
                prop_assert!(!uri.authority.host.is_empty() && uri.query.heartbeat.is_some());
            }
        }
    }
}
