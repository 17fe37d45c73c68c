//! Azure Blob Storage: the requests of one container. A blob is written by one Put Blob, whose MD5 the server compares and stores.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use url::Url;

use crate::destination::url::http::Failure;
use crate::destination::url::http::exchange::{Reply, Request};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::digest::unhex;
use crate::system_config::Settings;

use super::learned::{Learned, skew_s};
use super::not_ours::NotOurs;
use super::refusal::code;
use super::s3::endpoint::{authority, text};
use super::sign::{self, SharedKey};
use super::store::{Ask, Client, Found, Look, Object, is_key, known_settings};

/// Since this version a single Put Blob may have 5000 MiB.
const VERSION: &str = "2021-12-02";

/// Azure takes no request whose date differs by more than 15 minutes. A server that corrects its clock meanwhile differs by less.
const CLOCKS_DIFFER_S: u64 = 840;

const KNOWN: [&str; 9] = [
    "account",
    "container",
    "key",
    "field_list",
    "field_separator",
    "path",
    "folder_path",
    "folder_base_path",
    "_sig",
];

/// A container, and the key of its account.
pub struct Azure {
    server: Url,
    /// Before the container: the account's name, if the server is not Azure's own.
    base: String,
    account: String,
    container: String,
    key: SecretString,
}

impl Azure {
    /// # Errors
    /// When Kazoo must serve the plan.
    pub fn of(settings: &Settings, endpoint: Option<&Url>) -> Result<Self, NotOurs> {
        known_settings(settings, &KNOWN)?;
        let required = |name| text(settings, name)?.ok_or(NotOurs::Setting(name)).map(str::to_owned);
        let (account, container, key) = (required("account")?, required("container")?, required("key")?);
        let is_account = |account: &str| {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            account.len() <= 63 && account.bytes().all(good)
        };
        let is_container = |name: &str| {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'$';
            name.len() <= 63 && name.bytes().all(good)
        };
        if !is_account(&account) {
            return Err(NotOurs::Setting("account"));
        }
        if !is_container(&container) {
            return Err(NotOurs::Setting("container"));
        }
        // Before a signature shows it, a key that cannot sign is Kazoo's to report.
        if STANDARD.decode(&key).is_err() {
            return Err(NotOurs::Setting("key"));
        }
        let (server, base) = match endpoint {
            Some(endpoint) => (
                endpoint.clone(),
                format!("{}/{account}", endpoint.path().trim_end_matches('/')),
            ),
            None => {
                let own = Url::parse(&format!("https://{account}.blob.core.windows.net/"));
                (own.map_err(|_| NotOurs::Setting("account"))?, String::new())
            }
        };
        Ok(Self {
            server,
            base,
            account,
            container,
            key: SecretString::from(key),
        })
    }

    pub fn host(&self) -> String {
        authority(&self.server)
    }

    /// What tells the container from all others.
    pub fn place(&self) -> String {
        format!("{}{}/{}", self.server, self.account, self.container)
    }

    pub(super) async fn look(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Look, Failure> {
        let head = Ask {
            method: hyper::Method::HEAD,
            key: object.key,
            headers: Vec::new(),
            payload: "",
            body: None,
        };
        let reply = self.ask(client, &head).await?;
        Ok(match (reply.status, code(&reply).as_str()) {
            (200..300, _) => Look::There(found(&reply)),
            (404, "ContainerNotFound" | "ResourceNotFound") => Look::Refused(reply),
            (404, _) => Look::Absent,
            _ => Look::Refused(reply),
        })
    }

    /// Writes the blob, under these conditions.
    pub(super) async fn put(
        &self,
        client: &Client<'_>,
        object: &Object<'_>,
        conditions: Vec<(String, String)>,
    ) -> Result<Reply, Failure> {
        let mut headers = conditions;
        headers.push(("content-type".to_owned(), object.content_type.to_owned()));
        headers.push(("x-ms-blob-type".to_owned(), "BlockBlob".to_owned()));
        if let Some(md5) = unhex(&object.audio.digests.md5) {
            headers.push(("content-md5".to_owned(), STANDARD.encode(md5)));
        }
        let put = Ask {
            method: hyper::Method::PUT,
            key: object.key,
            headers,
            payload: "",
            body: Some((object.source, object.audio.size)),
        };
        self.ask(client, &put).await
    }

    /// A request, once more if the server's clock differs too much. Azure answers the same code to that as to a wrong key.
    async fn ask(&self, client: &Client<'_>, ask: &Ask<'_>) -> Result<Reply, Failure> {
        let learned = client.memory.of(&self.place());
        let reply = self.asked(client, ask, &learned).await?;
        let skew = Some(&reply)
            .filter(|reply| reply.status == 403)
            .and_then(|reply| skew_s(reply, client.http.now()));
        match skew {
            Some(skew) if skew.abs_diff(learned.skew_s) > CLOCKS_DIFFER_S => {
                client.memory.learn(&self.place(), |known| known.skew_s = skew);
                self.asked(client, ask, &client.memory.of(&self.place())).await
            }
            _ => Ok(reply),
        }
    }

    async fn asked(&self, client: &Client<'_>, ask: &Ask<'_>, learned: &Learned) -> Result<Reply, Failure> {
        let mut headers = ask.headers.clone();
        headers.push(("x-ms-date".to_owned(), http_date(learned.corrected(client.http.now()))));
        headers.push(("x-ms-version".to_owned(), VERSION.to_owned()));
        let path = self.path(ask.key);
        let signer = SharedKey {
            account: &self.account,
            key: &self.key,
        };
        let signed = sign::Request {
            method: ask.method.as_str(),
            path: &path,
            query: "",
            headers: &headers,
        };
        let length = ask.body.map_or(0, |(_, length)| length);
        let authorization = signer
            .authorization(&signed, length)
            .map_err(|error| Failure::Unsendable(error.to_string()))?;
        headers.push(("authorization".to_owned(), authorization));
        headers.push(("host".to_owned(), self.host()));
        let request = Request {
            method: ask.method.clone(),
            server: &self.server,
            path_and_query: &path,
            headers: &headers,
            body: ask.body,
            until: client.until,
        };
        client.http.exchange(&request).await
    }

    /// The name stands in the path as Kazoo has it, so the blob's name is the decoded one. Only bytes that no URL has are encoded.
    fn path(&self, key: &str) -> String {
        use std::fmt::Write as _;
        let mut path = format!("{}/{}/", self.base, self.container);
        for byte in key.bytes() {
            if byte.is_ascii_graphic() && !br#""<>^`{|}"#.contains(&byte) {
                path.push(char::from(byte));
            } else {
                let _ = write!(path, "%{byte:02X}");
            }
        }
        path
    }
}

/// Whether a blob's name can be sent as Kazoo sends it.
pub(super) fn is_name(key: &str) -> bool {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    let decoded = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
    is_key(key)
        && is_key(&decoded)
        && key.chars().count() <= 1024
        && !key.contains(['?', '#', '\\'])
        && key.split('%').skip(1).all(is_escape)
}

fn found(reply: &Reply) -> Found {
    let mut found = Found::of(reply, None);
    found.md5 = reply.header("content-md5").map(str::to_owned);
    found.with_all_headers(reply)
}

/// What an answer to Put Blob says.
pub(super) fn put_found(reply: &Reply) -> Found {
    let mut found = found(reply);
    // The length of the answer, not of the blob.
    found.length = None;
    found
}

/// Whether the audio is what the store's digest describes. `None`: the blob has none.
pub(super) fn is_same(found: &Found, audio: &Audio) -> Option<bool> {
    let md5 = unhex(&audio.digests.md5).map(|md5| STANDARD.encode(md5));
    found.md5.as_ref().map(|theirs| Some(theirs) == md5.as_ref())
}

fn http_date(now: Moment) -> String {
    let seconds = u64::try_from(now.unix_seconds()).unwrap_or_default();
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(settings: &Value, endpoint: Option<&str>) -> Result<Azure, NotOurs> {
        let mut all = json!({"account": "acc1", "container": "recs", "key": "a2V5"});
        all.as_object_mut()
            .unwrap()
            .extend(settings.as_object().unwrap().clone());
        let endpoint = endpoint.map(|url| Url::parse(url).unwrap());
        Azure::of(&Settings::of(all.as_object().unwrap().clone()), endpoint.as_ref())
    }

    #[test]
    fn a_blob_is_where_kazoo_puts_it() {
        let azure = of(&json!({}), None).unwrap();
        assert_eq!(azure.server.as_str(), "https://acc1.blob.core.windows.net/");
        assert_eq!(
            azure.path("a/b_call%20recording é.mp3"),
            "/recs/a/b_call%20recording%20%C3%A9.mp3"
        );
        let azure = of(&json!({}), Some("http://127.0.0.1:10000")).unwrap();
        assert_eq!(azure.path("x"), "/acc1/recs/x");
    }

    #[test]
    fn what_is_not_known_exactly_is_kazoos() {
        for settings in [
            json!({"account": "Acc"}),
            json!({"account": "evil.example.com/"}),
            json!({"container": "a/b"}),
            json!({"container": 7}),
            json!({"key": "not base64"}),
            json!({"else": 1}),
        ] {
            assert!(of(&settings, None).is_err(), "{settings}");
        }
        for name in ["", "a?b", "a#b", "a\\b", "a%2", "a%zz", "a/../b", "a/%2e%2e/b"] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_name("a/b%20c.mp3"));
    }
}
