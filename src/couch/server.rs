//! The address of a CouchDB-compatible server, in the forms that operators write into Kazoo's configuration.

use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;
use url::Url;

/// A server's address, and our credentials for it. Neither `Debug` nor `Display` prints the password.
#[derive(Clone)]
pub struct Server {
    /// Without credentials.
    pub url: Url,
    /// Empty: no user.
    pub username: String,
    pub password: SecretString,
}

/// Why a text is not a server's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoServer {
    #[error("it is neither a host, nor host:port, nor an http or https URL")]
    NotAnAddress,
    #[error("it has a path; databases are expected right under the host")]
    HasPath,
}

impl Server {
    /// Reads `host`, `host:port`, or `http(s)://user:password@host:port`. `port` applies to `host` only. A URL without a port has the
    /// default port of its scheme.
    ///
    /// # Errors
    /// When the text has none of these forms.
    pub fn parse(text: &str, port: u16) -> Result<Self, NoServer> {
        let text = text.trim();
        let mut url = if text.contains("://") {
            Url::parse(text).map_err(|_| NoServer::NotAnAddress)?
        } else if text.contains(['/', '?', '#', '@', ' ']) {
            return Err(NoServer::NotAnAddress);
        } else if text.parse::<Ipv6Addr>().is_ok() {
            plain(&format!("[{text}]:{port}"))?
        } else if text.ends_with(']') || !text.contains(':') {
            plain(&format!("{text}:{port}"))?
        } else {
            plain(text)?
        };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(NoServer::NotAnAddress);
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(NoServer::HasPath);
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let username = decoded(url.username());
        let password = SecretString::from(url.password().map(decoded).unwrap_or_default());
        // Neither call fails for a URL with a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Self {
            url,
            username,
            password,
        })
    }

    /// Host and port. Logs and metrics name the server by these.
    pub fn authority(&self) -> String {
        self.url.authority().to_owned()
    }
}

fn plain(authority: &str) -> Result<Url, NoServer> {
    Url::parse(&format!("http://{authority}")).map_err(|_| NoServer::NotAnAddress)
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
            && self.username == other.username
            && self.password.expose_secret() == other.password.expose_secret()
    }
}

impl Eq for Server {}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.authority())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.url.authority())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_that_operators_write_is_read() {
        for (text, url, username, password) in [
            ("rec.example.com", "http://rec.example.com:5984/", "", ""),
            (" rec.example.com ", "http://rec.example.com:5984/", "", ""),
            ("rec.example.com:6984", "http://rec.example.com:6984/", "", ""),
            ("10.1.2.3", "http://10.1.2.3:5984/", "", ""),
            ("::1", "http://[::1]:5984/", "", ""),
            ("[::1]", "http://[::1]:5984/", "", ""),
            ("[::1]:6984", "http://[::1]:6984/", "", ""),
            ("http://rec.example.com", "http://rec.example.com/", "", ""),
            (
                "https://user:p%40ss@rec.example.com:6984/",
                "https://rec.example.com:6984/",
                "user",
                "p@ss",
            ),
        ] {
            let server = Server::parse(text, 5984).unwrap();
            assert_eq!(server.url.as_str(), url, "{text}");
            assert_eq!(
                (server.username.as_str(), server.password.expose_secret()),
                (username, password)
            );
            assert!(!format!("{server:?} {server}").contains("p@ss"));
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for text in [
            "", "a b", "ftp://h", "h/x", "user@h", "http://", "h:port", "h:99999", "[::1",
        ] {
            assert_eq!(Server::parse(text, 5984), Err(NoServer::NotAnAddress), "{text}");
        }
        for text in ["http://h/couch", "http://h/?x", "http://h/#x"] {
            assert_eq!(Server::parse(text, 5984), Err(NoServer::HasPath), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_server_or_none(text in any::<String>()) {
            if let Ok(server) = Server::parse(&text, 5984) {
                prop_assert!(server.url.username().is_empty() && server.url.password().is_none());
            }
        }
    }
}
