//! The address of Kazoo's store proxy (`kz_media_util:proxy_base_url`). Pure functions.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use url::Url;

use crate::kazoo::json::{boolean_at, integer_at, owned_text};

use super::media::Sections;

/// The proxy's default port.
const PORT: u16 = 24_517;

/// The store proxy's address, and our credentials for it.
#[derive(Clone)]
pub struct Proxy {
    /// Without credentials. `None`: the configuration does not name it. Kazoo then uses each node's own name, which is not ours.
    pub base: Option<Url>,
    /// Empty: no credentials are sent.
    pub username: String,
    pub password: SecretString,
}

impl Proxy {
    pub(super) fn read(sections: &Sections<'_>) -> Self {
        let scheme = if sections.flag("use_https", false) {
            "https"
        } else {
            "http"
        };
        let host = sections.text("proxy_hostname");
        let port = sections
            .number(&["proxy_port"])
            .filter(|port| *port > 0)
            .unwrap_or(PORT);
        let distributed = sections
            .find(&["distributed_proxy"])
            .filter(|distributed| boolean_at(distributed, "enabled") == Some(true));
        let base = match distributed {
            Some(distributed) => spread(distributed, host.as_deref()),
            None => host.and_then(|host| base(scheme, &host, port)),
        };
        let (mut username, mut password) = (String::new(), String::new());
        if sections.flag("authenticated_store", true) {
            username = sections.text("proxy_username").unwrap_or_default();
            password = sections.text("proxy_password").unwrap_or_default();
        }
        Self {
            base,
            username,
            password: SecretString::from(password),
        }
    }
}

/// `distributed_proxy`: one address in front of the proxies of all nodes.
fn spread(settings: &Value, host: Option<&str>) -> Option<Url> {
    let scheme = owned_text(settings, "scheme").unwrap_or_else(|| "http".to_owned());
    let standard = if scheme == "https" { 443 } else { 80 };
    let port = integer_at(settings, "port")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .unwrap_or(standard);
    let own = owned_text(settings, "hostname");
    base(&scheme, own.as_deref().or(host)?, port)
}

fn base(scheme: &str, host: &str, port: u16) -> Option<Url> {
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let url = Url::parse(&format!("{scheme}://{host}:{port}")).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.username().is_empty();
    plain.then_some(url)
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Self) -> bool {
        self.base == other.base
            && self.username == other.username
            && self.password.expose_secret() == other.password.expose_secret()
    }
}

impl Eq for Proxy {}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            Some(base) => write!(f, "Proxy({base})"),
            None => f.write_str("Proxy(nowhere)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(section: &Value) -> Proxy {
        Proxy::read(&Sections::of(&json!({ "default": section }), "local"))
    }

    #[test]
    fn the_address_is_put_together_as_kazoo_does_it() {
        let spread = json!({"enabled": true, "hostname": "lb", "scheme": "https"});
        for (section, base) in [
            (json!({"proxy_hostname": "m1"}), "http://m1:24517/"),
            (json!({"proxy_hostname": "m1", "proxy_port": "80"}), "http://m1/"),
            (
                json!({"proxy_hostname": "m1", "use_https": true, "proxy_port": 443}),
                "https://m1/",
            ),
            (json!({"proxy_hostname": "::1"}), "http://[::1]:24517/"),
            (
                json!({"proxy_hostname": "m1", "distributed_proxy": spread}),
                "https://lb/",
            ),
            (
                json!({"proxy_hostname": "m1", "use_https": true, "distributed_proxy": {"enabled": "true", "port": 8080}}),
                "http://m1:8080/",
            ),
            (
                json!({"proxy_hostname": "m1", "distributed_proxy": {"enabled": false, "hostname": "lb"}}),
                "http://m1:24517/",
            ),
        ] {
            let read = read(&section).base.map(|base| base.to_string());
            assert_eq!(read.as_deref(), Some(base), "{section}");
        }
        for host in ["", "undefined", "a/b", "u@h"] {
            assert_eq!(read(&json!({ "proxy_hostname": host })).base, None, "{host}");
        }
    }

    #[test]
    fn credentials_are_sent_unless_they_are_switched_off() {
        let mut section = json!({"proxy_hostname": "m1", "proxy_username": "3f", "proxy_password": "9a"});
        let proxy = read(&section);
        assert_eq!((proxy.username.as_str(), proxy.password.expose_secret()), ("3f", "9a"));
        section["authenticated_store"] = json!(false);
        assert_eq!(read(&section).username, "");
    }
}
