//! `[webhooks]`: endpoints of operators that get the outcomes of recordings.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderName, HeaderValue};
use secrecy::SecretSlice;
use thiserror::Error;
use url::Url;

use super::reader::Reader;
use super::tls::Authorities;

/// The section.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// Time limit of one request.
    pub timeout: Duration,
    /// At least one.
    pub retry: Vec<Duration>,
    /// Concurrent requests to one endpoint.
    pub per_endpoint: usize,
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint, `[webhooks.endpoint.<name>]`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub name: String,
    pub url: Url,
    /// At least one. Each request has a signature by each of them.
    pub secrets: Vec<Secret>,
    /// Empty: all.
    pub outcomes: Vec<String>,
    /// Empty: all.
    pub accounts: Vec<String>,
    pub headers: Vec<Header>,
    pub ca: Option<Authorities>,
}

/// A secret of the Standard Webhooks scheme.
#[derive(Debug, Clone)]
pub struct Secret(pub SecretSlice<u8>);

/// A further header. `Debug` leaves out the value, which may be a secret.
#[derive(Clone)]
pub struct Header {
    pub name: HeaderName,
    pub value: HeaderValue,
}

/// A text that is no secret of the scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not whsec_ and 24 to 64 bytes in base64")]
pub struct NotASecret;

/// A text that is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a header's name and its value, such as \"Authorization: Bearer abc\"")]
pub struct NotAHeader;

/// A text that is no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not stored, delivered, discarded, failed or parked")]
pub struct NoOutcome;

/// A text that is no account's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not 32 hexadecimal digits")]
pub struct NoAccount;

/// The tables of the endpoints.
const TABLES: &str = "webhooks.endpoint";

/// Endpoints at most. See `entry::webhooks`.
const MOST: usize = 8;

/// Headers of the request that the worker sets itself.
const OWN: [&str; 5] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
];

impl Webhooks {
    pub(super) fn read(r: &mut Reader) -> Self {
        let names = r.tables(TABLES);
        if names.len() > MOST {
            r.mistake(TABLES, format!("has more than {MOST} endpoints"));
        }
        Self {
            timeout: r.millis("webhooks.timeout_ms", 100, 60_000),
            retry: r.millis_list("webhooks.retry_ms"),
            per_endpoint: r.number("webhooks.per_endpoint", 1, 64),
            endpoints: names.into_iter().filter_map(|name| Endpoint::read(r, name)).collect(),
        }
    }
}

impl Endpoint {
    /// `None` after a mistake.
    fn read(r: &mut Reader, name: String) -> Option<Self> {
        let key = |what: &str| format!("{TABLES}.{name}.{what}");
        let is_name = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-');
        if name.is_empty() || name.len() > 40 || !name.bytes().all(is_name) {
            r.mistake(
                &key("url"),
                "has an endpoint's name that is not 1 to 40 lower-case letters, digits, _ and -",
            );
        }
        let url = r.optional_url(&key("url"));
        if url.is_none() && r.text(&key("url")).is_empty() {
            r.mistake(&key("url"), "is missing");
        }
        let secrets: Vec<Secret> = r.several_secrets(&key("secret"));
        if secrets.is_empty() && !r.has(&key("secret")) {
            r.mistake(&key("secret"), "is missing");
        }
        let outcomes: Vec<Named> = if r.has(&key("outcomes")) {
            r.list_of(&key("outcomes"))
        } else {
            Vec::new()
        };
        let accounts: Vec<Account> = if r.has(&key("accounts")) {
            r.list_of(&key("accounts"))
        } else {
            Vec::new()
        };
        let headers = if r.has(&key("headers")) {
            r.list_of_secrets(&key("headers"))
        } else {
            Vec::new()
        };
        let ca = r.authorities(&key("ca_file"));
        Some(Self {
            url: url?,
            secrets,
            outcomes: outcomes.into_iter().map(|Named(outcome)| outcome).collect(),
            accounts: accounts.into_iter().map(|Account(account)| account).collect(),
            headers,
            ca,
            name,
        })
    }
}

struct Named(String);

impl FromStr for Named {
    type Err = NoOutcome;

    fn from_str(text: &str) -> Result<Self, NoOutcome> {
        let known = ["stored", "delivered", "discarded", "failed", "parked"];
        known.contains(&text).then(|| Self(text.to_owned())).ok_or(NoOutcome)
    }
}

struct Account(String);

impl FromStr for Account {
    type Err = NoAccount;

    fn from_str(text: &str) -> Result<Self, NoAccount> {
        let good = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| Self(text.to_ascii_lowercase())).ok_or(NoAccount)
    }
}

impl FromStr for Secret {
    type Err = NotASecret;

    fn from_str(text: &str) -> Result<Self, NotASecret> {
        let encoded = text.trim().strip_prefix("whsec_").ok_or(NotASecret)?;
        let key = STANDARD.decode(encoded).map_err(|_| NotASecret)?;
        let fits = (24..=64).contains(&key.len());
        fits.then(|| Self(key.into())).ok_or(NotASecret)
    }
}

impl FromStr for Header {
    type Err = NotAHeader;

    fn from_str(text: &str) -> Result<Self, NotAHeader> {
        let (name, value) = text.split_once(':').ok_or(NotAHeader)?;
        let name: HeaderName = name.trim().parse().map_err(|_| NotAHeader)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| NotAHeader)?;
        value.set_sensitive(true);
        let is_own = OWN.contains(&name.as_str()) || name.as_str().starts_with("webhook-");
        (!is_own && !value.is_empty())
            .then_some(Self { name, value })
            .ok_or(NotAHeader)
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ***", self.name)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use crate::config::{Config, ConfigError, Layers};

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn with(env: &[(&str, &str)]) -> Result<Webhooks, Vec<ConfigError>> {
        let env = env
            .iter()
            .map(|(key, value)| (format!("KZ_RECORD_CALL__WEBHOOKS__{key}"), (*value).to_owned()));
        Ok(Config::of(Layers::load(None, env)?)?.webhooks)
    }

    #[test]
    fn endpoints_are_read_by_their_names() {
        assert!(with(&[]).unwrap().endpoints.is_empty());
        let webhooks = with(&[
            ("ENDPOINT__ARCHIVE__URL", "https://archive.example.com/in"),
            ("ENDPOINT__ARCHIVE__SECRET", SECRET),
            ("ENDPOINT__BOTH__URL", "http://h:8080/"),
            (
                "ENDPOINT__BOTH__SECRET",
                &format!("{SECRET}, whsec_{}", STANDARD.encode([7; 32])),
            ),
            ("ENDPOINT__BOTH__OUTCOMES", "stored, parked"),
            ("ENDPOINT__BOTH__ACCOUNTS", "4BA1F7D5A1C54A0FB0D9C9D3E1A2B3C4"),
            ("ENDPOINT__BOTH__HEADERS", "Authorization: Bearer abc"),
        ])
        .unwrap();
        let [archive, both] = &webhooks.endpoints[..] else {
            panic!("{webhooks:?}")
        };
        assert_eq!((archive.name.as_str(), archive.secrets.len()), ("archive", 1));
        assert_eq!(archive.secrets[0].0.expose_secret().len(), 24);
        assert!(archive.outcomes.is_empty() && archive.accounts.is_empty() && archive.headers.is_empty());
        assert_eq!((both.secrets.len(), both.outcomes.len()), (2, 2));
        assert_eq!(both.accounts, ["4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4"]);
        assert_eq!(both.headers[0].value, "Bearer abc");
        let shown = format!("{webhooks:?}");
        assert!(!shown.contains("abc") && !shown.contains("MfKQ"), "{shown}");
    }

    #[test]
    fn every_mistake_is_told_and_no_secret_is() {
        let mistakes = with(&[
            ("ENDPOINT__A__URL", "ftp://h"),
            ("ENDPOINT__A__SECRET", "whsec_c2hvcnQ="),
            ("ENDPOINT__A__OUTCOMES", "stored, lost"),
            ("ENDPOINT__A__ACCOUNTS", "4ba1"),
            ("ENDPOINT__A__HEADERS", "webhook-id: s3cr3t"),
            ("ENDPOINT__A__COLOUR", "red"),
            ("ENDPOINT__B__OUTCOMES", "stored"),
        ])
        .unwrap_err();
        let mut keys: Vec<&str> = mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        let wrong = [
            "webhooks.endpoint.a.accounts",
            "webhooks.endpoint.a.colour",
            "webhooks.endpoint.a.headers",
            "webhooks.endpoint.a.outcomes",
            "webhooks.endpoint.a.secret",
            "webhooks.endpoint.a.url",
            "webhooks.endpoint.b.secret",
            "webhooks.endpoint.b.url",
        ];
        assert_eq!(keys, wrong, "{mistakes:#?}");
        let told = format!("{mistakes:?}");
        assert!(!told.contains("c2hvcnQ") && !told.contains("s3cr3t"), "{told}");
    }
}
