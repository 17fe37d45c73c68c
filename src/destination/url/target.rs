//! The user's URL: the checks on it, and the URL for each recording. Pure functions.
//!
//! File name and query follow Kazoo (`media_recording:handler_fields_for_protocol`, `kz_att_http`), with three differences. There is one
//! dot before the extension, percent-encoding is correct, and the parameters of 4.3 and later are at the end. Kazoo's rule gives an
//! unusable URL for some inputs: `/in?`, a trailing `&`, a fragment in the middle. Our rule then gives the URL that the author most likely
//! meant.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};
use serde_json::{Map, Value};
use thiserror::Error;
use url::{Host, Position, Url};

use crate::kazoo::time::Moment;
use crate::recording::digest::hex;
use crate::recording::settings::Method;

use super::signed::Scheme;

/// RFC 3986's unreserved characters stay unescaped.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The query's parameters, in order. All but the account's are fields of the document. A parameter without its field stays empty.
const KAZOOS: [&str; 7] = [
    "from",
    "to",
    "caller_id_name",
    "caller_id_number",
    "call_id",
    "cdr_id",
    "interaction_id",
];
/// The parameters after `account_id`.
const LATER: [&str; 3] = ["owner_id", "start", "duration_ms"];

/// Why a URL cannot be used, now or later.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unusable {
    #[error("it is not a URL with a host")]
    NotAUrl,
    #[error("its scheme {0} is not served; http, https, ftp, ftps and sftp are")]
    Scheme(String),
    /// A file server reads one command a line.
    #[error("its user, password or path has a control character, or is not UTF-8")]
    Characters,
}

/// How a file server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Ftp,
    /// FTP over TLS.
    Ftps,
    /// The file transfer of SSH.
    Sftp,
}

impl Protocol {
    fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "ftp" => Some(Self::Ftp),
            "ftps" => Some(Self::Ftps),
            "sftp" => Some(Self::Sftp),
            _ => None,
        }
    }

    /// The port of a URL without one.
    pub const fn port(self) -> u16 {
        match self {
            Self::Ftp => 21,
            Self::Ftps => 990,
            Self::Sftp => 22,
        }
    }
}

/// A URL that audio can be sent to. `Debug` and `Display` print only the host, because users put keys into paths and queries.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
    signed: Option<Signed>,
}

/// A URL that is signed.
#[derive(Clone, PartialEq, Eq)]
struct Signed {
    by: Scheme,
    /// Path and query, exactly as given, because the signature covers them.
    verbatim: String,
}

/// How long after its end a signature is still tried: the clocks of this host and of the store differ. By this much stores let them differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(15 * 60);

impl Target {
    /// Parses the URL of an action.
    ///
    /// # Errors
    /// When the URL can never be used.
    pub fn parse(given: &str) -> Result<Self, Unusable> {
        let mut url = Url::parse(given.trim()).map_err(|_| Unusable::NotAUrl)?;
        if let Some(protocol) = Protocol::of(url.scheme()) {
            return Self::of_file_server(url, protocol);
        }
        if !matches!(url.scheme(), "http" | "https") {
            let scheme = crate::kazoo::call::clip(url.scheme(), 16).to_owned();
            // `host:8080/x` parses with `host` as its scheme.
            return Err(if url.has_host() {
                Unusable::Scheme(scheme)
            } else {
                Unusable::NotAUrl
            });
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(Unusable::NotAUrl);
        }
        url.set_fragment(None);
        let signed = Signed::of(&url, given.trim());
        Ok(Self { url, signed })
    }

    /// The parser knows neither the hosts nor the ports of unusual schemes.
    fn of_file_server(mut url: Url, protocol: Protocol) -> Result<Self, Unusable> {
        let given = url.host_str().filter(|host| !host.is_empty());
        let host = Host::parse(given.ok_or(Unusable::NotAUrl)?).map_err(|_| Unusable::NotAUrl)?;
        url.set_host(Some(&host.to_string())).map_err(|_| Unusable::NotAUrl)?;
        if url.port() == Some(protocol.port()) {
            url.set_port(None).map_err(|()| Unusable::NotAUrl)?;
        }
        url.set_query(None);
        url.set_fragment(None);
        for part in [url.username(), url.password().unwrap_or_default(), url.path()] {
            let plain = String::from_utf8(unescaped(part)).map_err(|_| Unusable::Characters)?;
            if plain.contains(char::is_control) {
                return Err(Unusable::Characters);
            }
        }
        Ok(Self { url, signed: None })
    }

    /// How the file server of the URL is spoken to. `None` for http and https.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::of(self.url.scheme())
    }

    /// The user and the password for a file server, without escapes.
    pub(super) fn login(&self) -> Option<(String, String)> {
        let plain = |text: &str| String::from_utf8_lossy(&unescaped(text)).into_owned();
        let user = Some(self.url.username()).filter(|user| !user.is_empty())?;
        Some((plain(user), plain(self.url.password().unwrap_or_default())))
    }

    /// The folder and the file on a file server. The folder has no escapes, and begins with a slash, unless it is in the folder of the login
    /// (`/~/`). The file's name keeps the escapes, as in Kazoo (`kz_att_ftp`), so it has no slash.
    pub(super) fn folder_and_file(&self) -> (String, &str) {
        let (folder, file) = self.url.path().rsplit_once('/').unwrap_or_default();
        let folder = String::from_utf8_lossy(&unescaped(folder)).into_owned();
        let folder = match folder.strip_prefix("/~") {
            Some(own) if own.is_empty() || own.starts_with('/') => own.trim_matches('/').to_owned(),
            _ if folder.is_empty() => "/".to_owned(),
            _ => folder,
        };
        (folder, file)
    }

    /// The name of the file on a file server.
    pub fn file(&self) -> &str {
        self.folder_and_file().1
    }

    /// The same URL without credentials.
    #[must_use]
    pub fn without_credentials(&self) -> Self {
        let mut plain = self.clone();
        let _ = plain.url.set_username("");
        let _ = plain.url.set_password(None);
        plain
    }

    /// The URL of the file with this name, which is in the same folder.
    pub(super) fn beside(&self, name: &str) -> Self {
        let mut other = self.clone();
        let folder = self.url.path().rsplit_once('/').unwrap_or_default().0;
        other.url.set_path(&format!("{folder}/{name}"));
        other
    }

    /// Whether the URL is signed.
    pub fn is_signed(&self) -> bool {
        self.signed.is_some()
    }

    /// By which scheme the URL is signed.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        self.signed.as_ref().map(|signed| signed.by)
    }

    /// Whether the URL's signature is not valid any more.
    pub fn is_expired(&self, now: Moment) -> bool {
        let expires = self.scheme().and_then(|scheme| scheme.expires(&self.url));
        expires.is_some_and(|at| at.plus(CLOCKS_DIFFER) < now)
    }

    /// The method of the request. An object store takes only a PUT.
    pub fn method(&self, asked: Method) -> Method {
        match self.scheme() {
            Some(scheme) if scheme.is_put_only() => Method::Put,
            _ => asked,
        }
    }

    /// Identifies what the URL names for one call, or for all calls. Contains no part of the URL in clear.
    pub fn place(&self, call_id: &str) -> String {
        let whole = format!(
            "{}\n{}\n{call_id}",
            &self.url[..Position::BeforePath],
            self.path_and_query()
        );
        hex(digest(&SHA256, whole.as_bytes()).as_ref())
    }

    /// Path and query as they are sent.
    pub(super) fn path_and_query(&self) -> &str {
        match &self.signed {
            Some(signed) => &signed.verbatim,
            None => &self.url[Position::BeforePath..Position::AfterQuery],
        }
    }

    /// The URL for one recording: this URL with the recording's name and the fields of its document. `extension` has no dot. A signed URL
    /// stays unchanged, because any change invalidates its signature. `own` tells the recording from others of its call.
    #[must_use]
    pub fn of_recording(
        &self,
        document: &Map<String, Value>,
        account_id: &str,
        extension: &str,
        own: Option<&str>,
    ) -> Self {
        if self.is_signed() {
            return self.clone();
        }
        let own = own.map(|own| format!("-{}", encoded(own))).unwrap_or_default();
        let name = format!("call_recording_{}{own}.{extension}", field(document, "call_id"));
        let mut url = self.url.clone();
        if self.protocol().is_some() {
            url.set_path(&format!("{}/{name}", url.path().trim_end_matches('/')));
            return Self { url, signed: None };
        }
        let parameters = parameters(document, account_id);
        match asked(url.query()) {
            None => {
                let path = format!("{}/{name}", url.path().trim_end_matches('/'));
                url.set_path(&path);
                url.set_query(Some(&parameters));
            }
            Some(query) => {
                let last = query.rsplit('&').next().unwrap_or_default();
                let joint = match last.split_once('=') {
                    None => "=",
                    Some((_, "")) => "",
                    Some(_) => "&recording=",
                };
                let query = format!("{query}{joint}{name}&{parameters}");
                url.set_query(Some(&query));
            }
        }
        Self { url, signed: None }
    }

    /// The whole URL, with credentials. Use it for the request and the document, never for a text that people read.
    pub fn expose(&self) -> &Url {
        &self.url
    }

    /// The host, with the port unless it is the scheme's default.
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// The target of a redirect. `None` when audio cannot be sent there, or when it leads from https to http.
    /// Bytes that are not ASCII are percent-encoded one by one, as curl and browsers do.
    pub(super) fn redirected(&self, location: &[u8]) -> Option<Self> {
        let location = percent_encode(location, AS_THEY_ARE).to_string();
        let mut next = self.url.join(&location).ok()?;
        next.set_fragment(None);
        if !matches!(next.scheme(), "http" | "https") || (self.url.scheme() == "https" && next.scheme() != "https") {
            return None;
        }
        // `join` keeps credentials only for a relative path. Another origin must not receive them.
        let same = next.origin() == self.url.origin();
        if same && next.username().is_empty() && next.password().is_none() {
            let _ = next.set_username(self.url.username());
            let _ = next.set_password(self.url.password());
        }
        let signed = Signed::of(&next, &location);
        Some(Self { url: next, signed })
    }
}

/// Escapes only characters that are not ASCII.
const AS_THEY_ARE: &AsciiSet = &AsciiSet::EMPTY;

/// The bytes that a percent-encoded part of a URL encodes.
pub(super) fn unescaped(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

impl Signed {
    /// `given` was parsed as `url`.
    fn of(url: &Url, given: &str) -> Option<Self> {
        let verbatim = || verbatim(given, url);
        Scheme::of(url).map(|by| Self {
            by,
            verbatim: verbatim(),
        })
    }
}

/// Path and query of `given`, which was parsed as `url`, without any normalisation. Returns the normalised form where the original cannot
/// be sent.
fn verbatim(given: &str, url: &Url) -> String {
    let read = || url[Position::BeforePath..Position::AfterQuery].to_owned();
    let after_authority = match given.split_once("://") {
        Some((_, rest)) => rest.find('/').map(|at| &rest[at..]),
        // The URL of a redirect, which may be relative.
        None => None,
    };
    let Some(path) = after_authority.and_then(|path| path.split('#').next()) else {
        return read();
    };
    let is_sendable = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\'));
    if is_sendable { path.to_owned() } else { read() }
}

/// The query to extend, without empty parameters. Slashes at its end are dropped, as Kazoo does for the whole URL.
fn asked(query: Option<&str>) -> Option<&str> {
    query
        .map(|query| query.trim_end_matches('/').trim_end_matches('&'))
        .filter(|query| !query.is_empty())
}

fn parameters(document: &Map<String, Value>, account_id: &str) -> String {
    let of_document = |name: &&str| format!("{name}={}", field(document, name));
    KAZOOS
        .iter()
        .map(of_document)
        .chain(std::iter::once(format!("account_id={}", encoded(account_id))))
        .chain(LATER.iter().map(of_document))
        .chain(std::iter::once(format!("recording_id={}", field(document, "_id"))))
        .collect::<Vec<_>>()
        .join("&")
}

fn field(document: &Map<String, Value>, name: &str) -> String {
    match document.get(name) {
        Some(Value::String(text)) => encoded(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({}://{})", self.url.scheme(), self.host())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

    fn document() -> Map<String, Value> {
        let document = json!({
            "_id": "202611-7c9e", "from": "1001@acme.example.com", "to": "2000@acme.example.com", "caller_id_name": "Zoë & Co",
            "call_id": "a84b@pc33", "cdr_id": "202611-a84b@pc33", "start": 63_962_610_332_i64, "duration_ms": 59_840,
        });
        document.as_object().unwrap().clone()
    }

    fn sent(given: &str) -> String {
        let target = Target::parse(given).unwrap();
        target
            .of_recording(&document(), ACCOUNT, "mp3", None)
            .expose()
            .to_string()
    }

    const QUERY: &str = "from=1001%40acme.example.com&to=2000%40acme.example.com&caller_id_name=Zo%C3%AB%20%26%20Co&caller_id_number=\
                         &call_id=a84b%40pc33&cdr_id=202611-a84b%40pc33&interaction_id=&account_id=4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4\
                         &owner_id=&start=63962610332&duration_ms=59840&recording_id=202611-7c9e";

    #[test]
    fn name_and_query_are_put_where_kazoo_puts_them() {
        const NAME: &str = "call_recording_a84b%40pc33.mp3";
        for (given, sent_to) in [
            ("https://h/in", format!("https://h/in/{NAME}?{QUERY}")),
            ("https://h/in///", format!("https://h/in/{NAME}?{QUERY}")),
            ("https://h", format!("https://h/{NAME}?{QUERY}")),
            ("https://h/in?f=", format!("https://h/in?f={NAME}&{QUERY}")),
            ("https://h/in?a=b&f=", format!("https://h/in?a=b&f={NAME}&{QUERY}")),
            ("https://h/in?k=v", format!("https://h/in?k=v&recording={NAME}&{QUERY}")),
            ("https://h/in?raw", format!("https://h/in?raw={NAME}&{QUERY}")),
            ("https://h/in?k=v&raw", format!("https://h/in?k=v&raw={NAME}&{QUERY}")),
            ("https://h/in?d=/", format!("https://h/in?d={NAME}&{QUERY}")),
            // Kazoo builds unusable URLs from these.
            ("https://h/in?", format!("https://h/in/{NAME}?{QUERY}")),
            (
                "https://h/in?k=v&",
                format!("https://h/in?k=v&recording={NAME}&{QUERY}"),
            ),
            ("https://h/in#top", format!("https://h/in/{NAME}?{QUERY}")),
            ("HTTPS://H/in", format!("https://h/in/{NAME}?{QUERY}")),
            (
                "https://u:p@h/a b/é",
                format!("https://u:p@h/a%20b/%C3%A9/{NAME}?{QUERY}"),
            ),
            ("https://h/a%2Fb", format!("https://h/a%2Fb/{NAME}?{QUERY}")),
        ] {
            assert_eq!(sent(given), sent_to, "{given}");
        }
    }

    #[test]
    fn a_later_recording_of_a_call_has_a_name_of_its_own() {
        let target = Target::parse("https://h/in?k=v").unwrap();
        let later = target.of_recording(&document(), ACCOUNT, "mp3", Some("0badcafe"));
        let name = "call_recording_a84b%40pc33-0badcafe.mp3";
        assert_eq!(
            later.expose().as_str(),
            format!("https://h/in?k=v&recording={name}&{QUERY}")
        );
        let plain = Target::parse("https://h/in").unwrap();
        let later = plain.of_recording(&document(), ACCOUNT, "mp3", Some("0badcafe"));
        assert_eq!(later.expose().path(), format!("/in/{name}"));
    }

    #[test]
    fn a_scheme_that_is_not_served_is_told_from_what_is_no_url() {
        for (given, error) in [
            ("gopher://h/in", Unusable::Scheme("gopher".into())),
            ("TFTP://h/in", Unusable::Scheme("tftp".into())),
            ("s3://bucket/x", Unusable::Scheme("s3".into())),
            ("h/in", Unusable::NotAUrl),
            ("host:8080/in", Unusable::NotAUrl),
            ("mailto:a@b", Unusable::NotAUrl),
            ("http://", Unusable::NotAUrl),
            ("https://h:99999/", Unusable::NotAUrl),
            ("ftp://", Unusable::NotAUrl),
            ("sftp:///in", Unusable::NotAUrl),
            ("ftps://h h/in", Unusable::NotAUrl),
            ("sftp:h/in", Unusable::NotAUrl),
            ("ftp://u:p%0D%0ADELE%20x@h/in", Unusable::Characters),
            ("sftp://u:p@h/in%00", Unusable::Characters),
            ("ftps://h/%FF", Unusable::Characters),
            ("", Unusable::NotAUrl),
        ] {
            assert_eq!(Target::parse(given), Err(error), "{given}");
        }
    }

    #[test]
    fn a_file_server_gets_kazoos_name_in_the_folder_of_the_url() {
        let name = "call_recording_a84b%40pc33.mp3";
        for (given, url, folder, host) in [
            ("ftp://h", format!("ftp://h/{name}"), "/", "h"),
            ("ftp://h/a%20b/c/", format!("ftp://h/a%20b/c/{name}"), "/a b/c", "h"),
            ("ftp://h:21/in?k=v#f", format!("ftp://h/in/{name}"), "/in", "h"),
            ("FTPS://H:990/in", format!("ftps://h/in/{name}"), "/in", "h"),
            ("ftps://h:2121/in", format!("ftps://h:2121/in/{name}"), "/in", "h:2121"),
            ("sftp://h:22/~/in/a", format!("sftp://h/~/in/a/{name}"), "in/a", "h"),
            ("sftp://h/~", format!("sftp://h/~/{name}"), "", "h"),
            ("sftp://h/~root", format!("sftp://h/~root/{name}"), "/~root", "h"),
            // Any notation of an address, for the filter.
            (
                "sftp://0x7f.1/in",
                format!("sftp://127.0.0.1/in/{name}"),
                "/in",
                "127.0.0.1",
            ),
            ("sftp://[::1]/in", format!("sftp://[::1]/in/{name}"), "/in", "[::1]"),
            ("ftp://h/a/../../b", format!("ftp://h/b/{name}"), "/b", "h"),
        ] {
            let target = Target::parse(given)
                .unwrap()
                .of_recording(&document(), ACCOUNT, "mp3", None);
            assert_eq!(target.expose().as_str(), url, "{given}");
            assert_eq!(target.folder_and_file(), (folder.to_owned(), name), "{given}");
            assert_eq!(target.host(), host, "{given}");
        }
        let login = |given: &str| Target::parse(given).unwrap().login();
        let of = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(login("sftp://us%40er:p%3Ass@h/"), of("us@er", "p:ss"));
        assert_eq!(login("ftp://user@h/"), of("user", ""));
        assert_eq!(login("ftp://h/"), None);
        let target = Target::parse("sftp://u:p@h/in").unwrap().without_credentials();
        assert_eq!(target.expose().as_str(), "sftp://h/in");
    }

    #[test]
    fn nobody_reads_credentials_or_keys_in_a_log() {
        let target = Target::parse("https://user:pass@h:8443/key123?token=abc").unwrap();
        for text in [format!("{target:?}"), target.to_string()] {
            assert!(text.contains("h:8443"), "{text}");
            for secret in ["user", "pass", "key123", "abc"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }

    #[test]
    fn a_redirect_keeps_credentials_at_home_and_does_not_give_up_tls() {
        let target = Target::parse("https://user:pass@h/in?x=1").unwrap();
        let to = |location: &str| {
            target
                .redirected(location.as_bytes())
                .map(|next| next.expose().to_string())
        };
        assert_eq!(to("/other").unwrap(), "https://user:pass@h/other");
        assert_eq!(to("https://h/other#f").unwrap(), "https://user:pass@h/other");
        assert_eq!(to("https://else/other").unwrap(), "https://else/other");
        assert_eq!(to("https://h:8443/other").unwrap(), "https://h:8443/other");
        assert_eq!(to("//else/x").unwrap(), "https://else/x");
        assert_eq!(to("https://a:b@else/x").unwrap(), "https://a:b@else/x");
        for nowhere in ["http://h/other", "ftp://h/", "https://", "javascript:1"] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
        let plain = Target::parse("http://h/in").unwrap();
        assert!(plain.redirected(b"https://h/in").is_some());
    }

    proptest! {
        #[test]
        fn any_call_and_names_come_back_from_the_url_as_they_were(call_id in ".{1,80}", name in ".{0,80}", path in "[a-z/]{0,20}") {
            let mut document = document();
            document.insert("call_id".into(), json!(call_id));
            document.insert("caller_id_name".into(), json!(name));
            let target = Target::parse(&format!("https://h/{path}")).unwrap().of_recording(&document, ACCOUNT, "wav", None);
            let url = target.expose();
            let last = url.path().rsplit('/').next().unwrap();
            let decoded = percent_encoding::percent_decode_str(last).decode_utf8().unwrap();
            prop_assert_eq!(decoded.as_ref(), format!("call_recording_{call_id}.wav"));
            let pairs: std::collections::HashMap<_, _> = url.query_pairs().into_owned().collect();
            prop_assert_eq!(&pairs["call_id"], &call_id);
            prop_assert_eq!(&pairs["caller_id_name"], &name);
            prop_assert_eq!(url.host_str(), Some("h"));
        }

        #[test]
        fn any_text_is_a_target_or_none(given in ".{0,100}") {
            if let Ok(target) = Target::parse(&given) {
                let sent = target.of_recording(&document(), ACCOUNT, "mp3", None);
                prop_assert_eq!(sent.expose().host(), target.expose().host());
                prop_assert!(sent.expose().as_str().contains("call_recording_a84b%40pc33.mp3"));
            }
        }
    }
}
