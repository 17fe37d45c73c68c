//! Signed URLs: by which scheme, how long they are valid, and what their stores answer. Pure functions.
//!
//! The signature covers the method, the path and most of the query, so the worker sends such a URL verbatim. The older schemes of Amazon and
//! Google also cover the header `Content-Type`, and most of their signers leave that header empty.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{ETAG, HeaderMap};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::kazoo::time::Moment;

/// By which scheme a URL is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Amazon's version 4, which many stores understand.
    S3,
    /// Amazon's version 2.
    S3Older,
    /// Google's version 4.
    Google,
    /// Google's version 2.
    GoogleOlder,
    /// Azure's shared access signature (SAS).
    Azure,
    CloudFront,
}

/// A URL with all query parameters of one row is signed.
const SIGNED_BY: [(Scheme, &[&str]); 7] = [
    (Scheme::S3, &["x-amz-signature"]),
    (Scheme::Google, &["x-goog-signature"]),
    (Scheme::Azure, &["sig", "sv"]),
    (Scheme::CloudFront, &["signature", "key-pair-id"]),
    (Scheme::CloudFront, &["signature", "policy"]),
    (Scheme::S3Older, &["signature", "awsaccesskeyid", "expires"]),
    (Scheme::GoogleOlder, &["signature", "googleaccessid", "expires"]),
];

impl Scheme {
    /// The scheme of a URL. `None` when the URL is not signed.
    pub fn of(url: &Url) -> Option<Self> {
        let there = parameters(url);
        let has = |name: &&str| there.iter().any(|(other, value)| other == *name && !value.is_empty());
        SIGNED_BY
            .iter()
            .find(|(_, row)| row.iter().all(has))
            .map(|(scheme, _)| *scheme)
    }

    /// Whether the URL names an object of a store, which only a PUT writes. CloudFront forwards any method to any server.
    pub fn is_put_only(self) -> bool {
        self != Self::CloudFront
    }

    /// Whether the signature covers `Content-Type`, and is valid most often without one.
    pub fn covers_type(self) -> bool {
        matches!(self, Self::S3Older | Self::GoogleOlder)
    }

    /// Headers that the store demands for an upload.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Azure => &[("x-ms-blob-type", "BlockBlob")],
            _ => &[],
        }
    }

    /// When the signature's time is over. `None` when the URL does not say.
    pub fn expires(self, url: &Url) -> Option<Moment> {
        let there = parameters(url);
        let value = |name: &str| there.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        let unix = |text: &String| text.parse().ok().map(Moment::from_unix_seconds);
        let since = |date: &str, lasts: &str| {
            let lasts = value(lasts)?.parse().ok()?;
            Some(Moment::of_utc(value(date)?)?.plus(std::time::Duration::from_secs(lasts)))
        };
        match self {
            Self::S3 => since("x-amz-date", "x-amz-expires"),
            Self::Google => since("x-goog-date", "x-goog-expires"),
            Self::S3Older | Self::GoogleOlder => value("expires").and_then(unix),
            Self::Azure => Moment::of_utc(value("se")?),
            Self::CloudFront => value("expires")
                .and_then(unix)
                .or_else(|| policy_expires(value("policy")?)),
        }
    }
}

/// The query's parameters: names in lower case, both decoded.
fn parameters(url: &Url) -> Vec<(String, String)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = url.query().unwrap_or_default().split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name).to_ascii_lowercase(), decoded(value)))
        .collect()
}

/// The end in a custom policy of CloudFront, which is base64 in characters of its own.
fn policy_expires(policy: &str) -> Option<Moment> {
    let policy = policy.replace('-', "+").replace('_', "=").replace('~', "/");
    let policy: serde_json::Value = serde_json::from_slice(&STANDARD.decode(policy).ok()?).ok()?;
    let end = policy.pointer("/Statement/0/Condition/DateLessThan/AWS:EpochTime")?;
    end.as_i64().map(Moment::from_unix_seconds)
}

/// The MD5 of the object that the store reports, in hexadecimal. `None` where the answer contains no MD5: the ETag of an object that the
/// store encrypts with a key of its own is another digest.
pub(super) fn md5_of_answer(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let of_base64 = |text: &str| {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        (bytes.len() == 16).then(|| crate::recording::digest::hex(&bytes))
    };
    let google = headers
        .get_all("x-goog-hash")
        .iter()
        .filter_map(|value| value.to_str().ok());
    let google = google
        .flat_map(|value| value.split(','))
        .find_map(|part| part.trim().strip_prefix("md5="));
    if let Some(md5) = text("content-md5").or(google).and_then(of_base64) {
        return Some(md5);
    }
    let encrypted = text("x-amz-server-side-encryption").is_some_and(|by| by != "AES256")
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("x-amz-server-side-encryption-customer"));
    let tag = headers.get(ETAG)?.to_str().ok()?.trim().trim_matches('"');
    let is_md5 = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_md5 && !encrypted && google.is_none()).then(|| tag.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn url(query: &str) -> Url {
        Url::parse(&format!("https://h/o?{query}")).unwrap()
    }

    #[test]
    fn each_scheme_is_told_by_its_parameters_and_says_when_its_time_is_over() {
        use Scheme::{Azure, CloudFront, Google, GoogleOlder, S3, S3Older};
        let policy = STANDARD
            .encode(r#"{"Statement":[{"Resource":"https://h/*","Condition":{"DateLessThan":{"AWS:EpochTime":1796040000}}}]}"#)
            .replace('+', "-")
            .replace('=', "_")
            .replace('/', "~");
        let custom = format!("Policy={policy}&Signature=x~_-&Key-Pair-Id=K");
        for (query, scheme, expires) in [
            (
                "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261130T120000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=00ff",
                S3,
                Some(1_796_040_900),
            ),
            ("x-amz-signature=00ff", S3, None),
            (
                "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Date=20261130T120000Z&X-Goog-Expires=60&X-Goog-Signature=00ff",
                Google,
                Some(1_796_040_060),
            ),
            (
                "AWSAccessKeyId=A&Signature=b%3D&Expires=1796040000",
                S3Older,
                Some(1_796_040_000),
            ),
            (
                "GoogleAccessId=a%40b&Expires=1796040000&Signature=b%3D",
                GoogleOlder,
                Some(1_796_040_000),
            ),
            (
                "sv=2021-12-02&sr=b&sp=cw&se=2026-11-30T12%3A00%3A00Z&sig=b%3D",
                Azure,
                Some(1_796_040_000),
            ),
            ("sv=2021-12-02&se=2026-11-30&sig=b%3D", Azure, Some(1_795_996_800)),
            (
                "sv=2021-12-02&se=2026-11-30T12%3A00Z&sig=b%3D",
                Azure,
                Some(1_796_040_000),
            ),
            ("sv=2021-12-02&si=policy&sig=b%3D", Azure, None),
            (
                "Expires=1796040000&Signature=x&Key-Pair-Id=K",
                CloudFront,
                Some(1_796_040_000),
            ),
            (&custom, CloudFront, Some(1_796_040_000)),
        ] {
            let url = url(query);
            assert_eq!(Scheme::of(&url), Some(scheme), "{query}");
            assert_eq!(scheme.expires(&url).map(Moment::unix_seconds), expires, "{query}");
        }
        for query in [
            "",
            "signature=x",
            "sig=x",
            "sv=1&sig=",
            "Expires=1&Signature=2",
            "token=abc",
        ] {
            assert_eq!(Scheme::of(&url(query)), None, "{query}");
        }
    }

    #[test]
    fn the_md5_in_an_answer_is_found_where_there_is_one() {
        const MD5: &str = "5d41402abc4b2a76b9719d911017c592";
        for (headers, md5) in [
            (&[("etag", "\"5d41402abc4b2a76b9719d911017c592\"")][..], Some(MD5)),
            (&[("etag", "5D41402ABC4B2A76B9719D911017C592")], Some(MD5)),
            (
                &[("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="), ("etag", "\"0x8DE\"")],
                Some(MD5),
            ),
            (
                &[
                    ("x-goog-hash", "crc32c=AAAA,md5=XUFAKrxLKna5cZ2REBfFkg=="),
                    ("etag", "\"CJ\""),
                ],
                Some(MD5),
            ),
            (&[("etag", "\"5d41402abc4b2a76b9719d911017c592-3\"")], None),
            (&[("etag", "W/\"5d41402abc4b2a76b9719d911017c592\"")], None),
            (&[("etag", "\"0x8DE\"")], None),
            (
                &[
                    ("etag", "\"5d41402abc4b2a76b9719d911017c592\""),
                    ("x-amz-server-side-encryption", "aws:kms"),
                ],
                None,
            ),
            (
                &[
                    ("etag", "\"5d41402abc4b2a76b9719d911017c592\""),
                    ("x-amz-server-side-encryption", "AES256"),
                ],
                Some(MD5),
            ),
            (&[], None),
        ] {
            let all = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(md5_of_answer(&all.collect()).as_deref(), md5, "{headers:?}");
        }
    }
}
