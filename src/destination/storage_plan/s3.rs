//! S3: the requests of one bucket. AWS, and servers with the same protocol (MinIO, Ceph, Wasabi, R2, B2, Google's interoperable API).
//!
//! An object is written by one streamed PUT. Its SHA-256 is a part of the signature, and its MD5 a header, so the server compares both. A
//! wrong region, a clock that is off, and a redirect to another region of AWS are corrected once each within an attempt. What was learned
//! is remembered for the bucket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde_json::Value;

use crate::config::Checksum;
use crate::destination::url::http::Failure;
use crate::destination::url::http::exchange::{Reply, Request};
use crate::kazoo::json::{boolean, integer};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::digest::unhex;
use crate::system_config::Settings;
use crate::telemetry::events::StorageRegionCorrected;

use super::learned::{Learned, Lessons, skew_s};
use super::not_ours::NotOurs;
use super::refusal::{code, region};
use super::sign::{self, OF_NOTHING, SigV4, amz_date};
use super::store::{Ask, Client, Found, Look, Object, is_key, known_settings};

pub mod endpoint;

use endpoint::{Endpoint, authority, encoded, text};

/// Settings of Kazoo's handler, and our own, which Kazoo ignores.
const KNOWN: [&str; 24] = [
    "bucket",
    "key",
    "secret",
    "host",
    "port",
    "scheme",
    "region",
    "bucket_access_method",
    "bucket_after_host",
    "upload_timeout",
    "http_client",
    "field_list",
    "field_separator",
    "path",
    "folder_path",
    "folder_base_path",
    "storage_class",
    "server_side_encryption",
    "server_side_encryption_kms_key_id",
    "object_lock_mode",
    "object_lock_days",
    "legal_hold",
    "tags",
    "_sig",
];

/// A bucket, and the credentials for it.
pub struct S3 {
    endpoint: Endpoint,
    key: String,
    secret: SecretString,
    /// Headers that the plan asks for, apart from those that depend on the time.
    wished: Vec<(String, String)>,
    /// How long a lock keeps an object.
    lock_days: Option<u32>,
    sends_checksum: bool,
}

impl S3 {
    /// # Errors
    /// When Kazoo must serve the plan.
    pub fn of(settings: &Settings, checksum: Checksum) -> Result<Self, NotOurs> {
        known_settings(settings, &KNOWN)?;
        let endpoint = Endpoint::of(settings)?;
        let credential = |name| text(settings, name)?.ok_or(NotOurs::Setting(name)).map(str::to_owned);
        let (key, secret) = (credential("key")?, credential("secret")?);
        if !key.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b',')) {
            return Err(NotOurs::Setting("key"));
        }
        if !matches!(
            text(settings, "http_client")?,
            None | Some("lhttpc" | "httpc" | "hackney")
        ) {
            return Err(NotOurs::Setting("http_client"));
        }
        let (wished, lock_days) = wished(settings)?;
        let sends_checksum = match checksum {
            Checksum::Auto => endpoint.is_aws(),
            Checksum::Always => true,
            Checksum::Never => false,
        };
        Ok(Self {
            endpoint,
            key,
            secret: SecretString::from(secret),
            wished,
            lock_days,
            sends_checksum,
        })
    }

    pub fn host(&self) -> String {
        authority(&self.endpoint.server)
    }

    /// What tells the bucket from all others.
    pub fn place(&self) -> String {
        format!("{}{}", self.endpoint.server, self.endpoint.bucket)
    }

    /// What is there under the object's name.
    pub(super) async fn look(&self, client: &Client<'_>, object: &Object<'_>) -> Result<Look, Failure> {
        let head = self.ask(client, &self.head(object)).await?;
        if let Some(look) = looked(&head) {
            return Ok(look);
        }
        if !matches!(head.status, 301 | 307 | 400 | 401 | 403) {
            return Ok(Look::Refused(head));
        }
        // The answer to HEAD has no body, and so no code.
        let probe = Ask {
            method: hyper::Method::GET,
            headers: vec![("range".to_owned(), "bytes=0-0".to_owned())],
            ..self.head(object)
        };
        let probed = self.ask(client, &probe).await?;
        match (probed.status, code(&probed).as_str()) {
            (404, "NoSuchBucket") => Ok(Look::Refused(probed)),
            (404, _) => Ok(Look::Absent),
            // Without the right to list, a missing object is denied.
            (403, "AccessDenied" | "") => Ok(Look::Denied),
            (200..300 | 416, _) => {
                let again = self.ask(client, &self.head(object)).await?;
                Ok(looked(&again).unwrap_or(Look::Denied))
            }
            _ => Ok(Look::Refused(probed)),
        }
    }

    fn head<'a>(&self, object: &Object<'a>) -> Ask<'a> {
        let mode = ("x-amz-checksum-mode".to_owned(), "ENABLED".to_owned());
        Ask {
            method: hyper::Method::HEAD,
            key: object.key,
            headers: Some(mode).filter(|_| self.sends_checksum).into_iter().collect(),
            payload: OF_NOTHING,
            body: None,
        }
    }

    /// Writes the object, under these conditions.
    pub(super) async fn put(
        &self,
        client: &Client<'_>,
        object: &Object<'_>,
        conditions: Vec<(String, String)>,
    ) -> Result<Reply, Failure> {
        let mut headers = conditions;
        headers.extend_from_slice(&self.wished);
        let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
        add("content-type", object.content_type.to_owned());
        if let Some(md5) = base64_of(&object.audio.digests.md5) {
            add("content-md5", md5);
        }
        if let Some(sha256) = base64_of(&object.audio.digests.sha256).filter(|_| self.sends_checksum) {
            add("x-amz-checksum-sha256", sha256);
        }
        if let Some(days) = self.lock_days {
            let until = client
                .http
                .now()
                .plus(std::time::Duration::from_secs(u64::from(days) * 86_400));
            add("x-amz-object-lock-retain-until-date", whole_seconds(until).rfc3339());
        }
        let put = Ask {
            method: hyper::Method::PUT,
            key: object.key,
            headers,
            payload: &object.audio.digests.sha256,
            body: Some((object.source, object.audio.size)),
        };
        self.ask(client, &put).await
    }

    /// A request, and what it takes to correct it.
    async fn ask(&self, client: &Client<'_>, ask: &Ask<'_>) -> Result<Reply, Failure> {
        let mut lessons = Lessons::default();
        loop {
            let learned = client.memory.of(&self.place());
            let reply = self.asked(client, ask, &learned).await?;
            let present = learned.region.as_deref().unwrap_or(&self.endpoint.region);
            let hint = region(&reply)
                .or_else(|| self.endpoint.redirected(reply.header("location")?))
                .filter(|hint| hint != present);
            if let Some(region) = hint
                .filter(|_| matches!(reply.status, 301 | 307 | 400 | 403))
                .filter(|_| lessons.region())
            {
                self.tell_region(&region);
                client.memory.learn(&self.place(), |known| known.region = Some(region));
                continue;
            }
            let is_skewed = matches!(code(&reply).as_str(), "RequestTimeTooSkewed" | "RequestExpired");
            if is_skewed
                && lessons.clock()
                && let Some(skew) = skew_s(&reply, client.http.now())
            {
                client.memory.learn(&self.place(), |known| known.skew_s = skew);
                continue;
            }
            return Ok(reply);
        }
    }

    fn tell_region(&self, region: &str) {
        StorageRegionCorrected {
            host: &self.host(),
            bucket: &self.endpoint.bucket,
            region,
            kazoo_reads: self.endpoint.kazoos_region() == region,
        }
        .emit();
    }

    async fn asked(&self, client: &Client<'_>, ask: &Ask<'_>, learned: &Learned) -> Result<Reply, Failure> {
        let mut endpoint = self.endpoint.clone();
        if let Some(region) = &learned.region {
            endpoint.moved(region);
        }
        let now = learned.corrected(client.http.now());
        let mut headers = ask.headers.clone();
        for (name, value) in [
            ("host", endpoint.host()),
            ("x-amz-content-sha256", ask.payload.to_owned()),
            ("x-amz-date", amz_date(now)),
        ] {
            headers.push((name.to_owned(), value));
        }
        let path = endpoint.path(ask.key);
        let signer = SigV4 {
            key: &self.key,
            secret: &self.secret,
            region: &endpoint.region,
            service: "s3",
            now,
        };
        let signed = sign::Request {
            method: ask.method.as_str(),
            path: &path,
            query: "",
            headers: &headers,
        };
        let authorization = signer.authorization(&signed, ask.payload);
        headers.push(("authorization".to_owned(), authorization));
        let request = Request {
            method: ask.method.clone(),
            server: &endpoint.server,
            path_and_query: &path,
            headers: &headers,
            body: ask.body,
            until: client.until,
        };
        client.http.exchange(&request).await
    }
}

/// `None`: the answer tells neither that the object is there nor that it is missing.
fn looked(head: &Reply) -> Option<Look> {
    match head.status {
        200..300 => Some(Look::There(Found::of(head, head.header("x-amz-checksum-sha256")))),
        404 => Some(Look::Absent),
        _ => None,
    }
}

fn base64_of(hex: &str) -> Option<String> {
    Some(STANDARD.encode(unhex(hex)?))
}

fn whole_seconds(at: Moment) -> Moment {
    Moment::from_unix_seconds(at.unix_seconds())
}

/// Whether the audio is what the store's digests describe. `None`: the store gives none that can be compared.
pub(super) fn is_same(found: &Found, audio: &Audio) -> Option<bool> {
    if found.etag.as_deref() == Some(&audio.digests.md5) {
        return Some(true);
    }
    let sha256 = base64_of(&audio.digests.sha256);
    found.sha256.as_ref().map(|theirs| Some(theirs) == sha256.as_ref())
}

/// Headers, and the days of a lock.
type Wished = (Vec<(String, String)>, Option<u32>);

/// The headers that a plan asks for by settings that Kazoo does not know, and the days of its lock.
fn wished(settings: &Settings) -> Result<Wished, NotOurs> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
    if let Some(class) = text(settings, "storage_class")? {
        // Kazoo could not read an archived object back.
        let is_archive = matches!(class, "GLACIER" | "DEEP_ARCHIVE");
        let is_name = class
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        if is_archive || !is_name {
            return Err(NotOurs::Setting("storage_class"));
        }
        add("x-amz-storage-class", class);
    }
    let encryption = text(settings, "server_side_encryption")?;
    if let Some(encryption) = encryption {
        if !matches!(encryption, "AES256" | "aws:kms" | "aws:kms:dsse") {
            return Err(NotOurs::Setting("server_side_encryption"));
        }
        add("x-amz-server-side-encryption", encryption);
    }
    if let Some(id) = text(settings, "server_side_encryption_kms_key_id")? {
        let is_kms = encryption.is_some_and(|encryption| encryption.starts_with("aws:kms"));
        if !is_kms || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(NotOurs::Setting("server_side_encryption_kms_key_id"));
        }
        add("x-amz-server-side-encryption-aws-kms-key-id", id);
    }
    let days = match settings.get("object_lock_days") {
        None => None,
        Some(days) => {
            let days = integer(days).and_then(|days| u32::try_from(days).ok());
            Some(
                days.filter(|days| (1..=36_500).contains(days))
                    .ok_or(NotOurs::Setting("object_lock_days"))?,
            )
        }
    };
    match (text(settings, "object_lock_mode")?, days) {
        (None, None) => {}
        (Some(mode @ ("GOVERNANCE" | "COMPLIANCE")), Some(_)) => add("x-amz-object-lock-mode", mode),
        _ => return Err(NotOurs::Setting("object_lock_mode")),
    }
    match settings.get("legal_hold").map(boolean) {
        None | Some(Some(false)) => {}
        Some(Some(true)) => add("x-amz-object-lock-legal-hold", "ON"),
        Some(None) => return Err(NotOurs::Setting("legal_hold")),
    }
    match settings.get("tags") {
        None => {}
        Some(Value::Object(tags)) if !tags.is_empty() && tags.len() <= 10 => {
            let pair = |(key, value): (&String, &Value)| {
                let value = value.as_str().ok_or(NotOurs::Setting("tags"))?;
                Ok(format!("{}={}", encoded(key, false), encoded(value, false)))
            };
            let pairs: Vec<String> = tags.iter().map(pair).collect::<Result<_, NotOurs>>()?;
            add("x-amz-tagging", &pairs.join("&"));
        }
        Some(_) => return Err(NotOurs::Setting("tags")),
    }
    Ok((headers, days))
}

/// Whether an object's name can be sent as it is.
pub(super) fn is_name(key: &str) -> bool {
    is_key(key) && key.len() <= 1024
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(settings: Value) -> Result<S3, NotOurs> {
        let mut all = json!({"bucket": "buck", "key": "AKIAEXAMPLE", "secret": "SK"});
        all.as_object_mut()
            .unwrap()
            .extend(settings.as_object().unwrap().clone());
        S3::of(&Settings::of(all.as_object().unwrap().clone()), Checksum::Auto)
    }

    #[test]
    fn what_a_plan_wishes_is_a_header_each() {
        let s3 = of(json!({
            "storage_class": "STANDARD_IA", "server_side_encryption": "aws:kms", "server_side_encryption_kms_key_id": "arn:aws:kms:x",
            "object_lock_mode": "COMPLIANCE", "object_lock_days": 30, "legal_hold": true, "tags": {"a b": "c/d", "e": ""},
        }))
        .unwrap();
        let header = |name: &str| {
            s3.wished
                .iter()
                .find(|(header, _)| header == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(header("x-amz-storage-class"), Some("STANDARD_IA"));
        assert_eq!(
            header("x-amz-server-side-encryption-aws-kms-key-id"),
            Some("arn:aws:kms:x")
        );
        assert_eq!(header("x-amz-object-lock-mode"), Some("COMPLIANCE"));
        assert_eq!(header("x-amz-object-lock-legal-hold"), Some("ON"));
        assert_eq!(header("x-amz-tagging"), Some("a%20b=c%2Fd&e="));
        assert_eq!(s3.lock_days, Some(30));
        assert!(s3.sends_checksum);
    }

    #[test]
    fn what_is_not_known_exactly_is_kazoos() {
        for settings in [
            json!({"storage_class": "GLACIER"}),
            json!({"storage_class": "DEEP_ARCHIVE"}),
            json!({"sse_customer_key": "x"}),
            json!({"tags_key_path": ["a"]}),
            json!({"server_side_encryption": "customer"}),
            json!({"server_side_encryption_kms_key_id": "x"}),
            json!({"object_lock_mode": "COMPLIANCE"}),
            json!({"object_lock_days": 3}),
            json!({"legal_hold": "perhaps"}),
            json!({"tags": {"a": 1}}),
            json!({"http_client": "other"}),
            json!({"key": null}),
            json!({"key": "a b"}),
            json!({"secret": ""}),
            json!({"secret": 7}),
        ] {
            assert!(of(settings.clone()).is_err(), "{settings}");
        }
    }
}
