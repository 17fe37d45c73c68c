//! Where a bucket is, and in which region requests are signed, as Kazoo decides it (`kz_att_s3`, `erlcloud_s3`). Pure functions.

use serde_json::Value;
use url::{Host, Url};

use crate::kazoo::json::{boolean, integer};
use crate::system_config::Settings;

use super::super::not_ours::NotOurs;
use super::super::refusal::is_region;

const AWS: [&str; 2] = [".amazonaws.com", ".amazonaws.com.cn"];

/// The region of servers that name none.
const USUAL_REGION: &str = "us-east-1";

/// A bucket at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and port.
    pub server: Url,
    pub bucket: String,
    /// The bucket is a part of the header `Host`, and not of the path. The connection is to the server's own host in any case.
    pub in_host: bool,
    /// For signatures.
    pub region: String,
}

impl Endpoint {
    /// # Errors
    /// When a setting is missing, or its meaning for Kazoo is not certain.
    pub fn of(settings: &Settings) -> Result<Self, NotOurs> {
        let bucket = text(settings, "bucket")?.ok_or(NotOurs::Setting("bucket"))?;
        let region = text(settings, "region")?;
        if region.is_some_and(|region| !is_region(region)) {
            return Err(NotOurs::Setting("region"));
        }
        let host = match (text(settings, "host")?, region) {
            (Some(host), _) => host.to_owned(),
            (None, Some(region)) => format!("s3.{region}.amazonaws.com"),
            (None, None) => "s3.amazonaws.com".to_owned(),
        };
        let scheme = match text(settings, "scheme")? {
            None | Some("https" | "https://") => "https",
            Some("http" | "http://") => "http",
            Some(_) => return Err(NotOurs::Setting("scheme")),
        };
        let port = match settings.get("port") {
            None => None,
            Some(port) => {
                let port = integer(port).and_then(|port| u16::try_from(port).ok());
                Some(port.filter(|port| *port > 0).ok_or(NotOurs::Setting("port"))?)
            }
        };
        if !is_in_paths(bucket) {
            return Err(NotOurs::Setting("bucket"));
        }
        let in_host = match text(settings, "bucket_access_method")? {
            // Kazoo's default depends on the region.
            None => region.is_some() && is_host_label(bucket),
            Some("auto") => is_host_label(bucket),
            Some("vhost") if is_host_label(bucket) => true,
            Some("path") => false,
            Some(_) => return Err(NotOurs::Setting("bucket_access_method")),
        };
        if settings
            .get("bucket_after_host")
            .is_some_and(|after| boolean(after).is_none())
        {
            return Err(NotOurs::Setting("bucket_after_host"));
        }
        let server = server(scheme, &host, port).ok_or(NotOurs::Setting("host"))?;
        let region = aws_region(&host)
            .or_else(|| region.map(str::to_owned))
            .unwrap_or_else(|| USUAL_REGION.to_owned());
        Ok(Self {
            server,
            bucket: bucket.to_owned(),
            in_host,
            region,
        })
    }

    /// Whether the server is AWS's.
    pub fn is_aws(&self) -> bool {
        self.server.host_str().is_some_and(is_aws)
    }

    /// The same bucket in another region of AWS.
    pub fn moved(&mut self, region: &str) {
        let host = self.server.host_str().unwrap_or_default();
        if let Some(suffix) = AWS.iter().find(|suffix| host.ends_with(*suffix)) {
            let moved = format!("s3.{region}{suffix}");
            // A region's name is a valid part of a host's name.
            let _ = self.server.set_host(Some(&moved));
        }
        region.clone_into(&mut self.region);
    }

    /// The region that a redirect leads to. Only AWS's own redirects are followed.
    pub fn redirected(&self, location: &str) -> Option<String> {
        let url = self.server.join(location).ok()?;
        let host = url.host_str()?;
        let host = host.strip_prefix(&format!("{}.", self.bucket)).unwrap_or(host);
        aws_region(host).filter(|_| self.is_aws())
    }

    /// The value of the header `Host`.
    pub fn host(&self) -> String {
        let host = authority(&self.server);
        if self.in_host {
            format!("{}.{host}", self.bucket)
        } else {
            host
        }
    }

    /// The path of an object: its key, encoded once more. Slashes stay.
    pub fn path(&self, key: &str) -> String {
        let key = encoded(key, true);
        if self.in_host {
            format!("/{key}")
        } else {
            format!("/{}/{key}", self.bucket)
        }
    }

    /// The region that Kazoo signs for. It takes the region from the host's name only.
    pub fn kazoos_region(&self) -> String {
        let host = self.server.host_str().unwrap_or_default();
        let labels: Vec<&str> = host.split('.').collect();
        match labels[..] {
            _ if !matches!(self.server.host(), Some(Host::Domain(_))) => USUAL_REGION.to_owned(),
            ["s3", "amazonaws", "com"] => USUAL_REGION.to_owned(),
            ["s3", region, _, _, ..] => region.to_owned(),
            [first, _, _] => first.get(3..).unwrap_or_default().to_owned(),
            _ => USUAL_REGION.to_owned(),
        }
    }
}

/// Host and port, as the header `Host` has them.
pub fn authority(server: &Url) -> String {
    let host = server.host_str().unwrap_or_default();
    match server.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// A text. An empty one is odd.
pub fn text<'a>(settings: &'a Settings, key: &'static str) -> Result<Option<&'a str>, NotOurs> {
    match settings.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(NotOurs::Setting(key)),
    }
}

fn server(scheme: &str, host: &str, port: Option<u16>) -> Option<Url> {
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let url = Url::parse(&format!("{scheme}://{host}{port}/")).ok()?;
    // The host is signed and sent as it is written, so it must survive the parsing.
    (url.host_str() == Some(host) && url.username().is_empty() && url.password().is_none() && url.path() == "/")
        .then_some(url)
}

fn is_aws(host: &str) -> bool {
    AWS.iter().any(|suffix| host.ends_with(suffix))
}

/// The region in the name of AWS's host. `None`: another server, or a name for all regions.
fn aws_region(host: &str) -> Option<String> {
    let rest = AWS.iter().find_map(|suffix| host.strip_suffix(suffix))?;
    let region = match rest.split('.').collect::<Vec<_>>()[..] {
        ["s3"] => USUAL_REGION,
        ["s3", "dualstack", region] | ["s3", region] => region,
        [first] => first
            .strip_prefix("s3-")
            .filter(|region| region.contains('-') && !region.starts_with("accelerate"))?,
        _ => return None,
    };
    is_region(region).then(|| region.to_owned())
}

fn is_in_paths(bucket: &str) -> bool {
    bucket.len() <= 255
        && bucket
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !matches!(bucket, "." | "..")
}

/// Whether a bucket's name can be a part of a host's name.
fn is_host_label(bucket: &str) -> bool {
    let label = |label: &str| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(good) && !label.starts_with('-') && !label.ends_with('-')
    };
    (3..=63).contains(&bucket.len()) && bucket.split('.').all(label)
}

/// Percent-encoded as AWS does it: all bytes but the unreserved ones of RFC 3986.
pub fn encoded(text: &str, with_slashes: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if is_plain || with_slashes && byte == b'/' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(settings: Value) -> Result<Endpoint, NotOurs> {
        let mut all = json!({"bucket": "buck", "key": "AK", "secret": "SK"});
        all.as_object_mut()
            .unwrap()
            .extend(settings.as_object().unwrap().clone());
        Endpoint::of(&Settings::of(all.as_object().unwrap().clone()))
    }

    #[test]
    fn a_bucket_is_where_kazoo_looks_for_it() {
        for (settings, url, host, region) in [
            (
                json!({}),
                "https://s3.amazonaws.com/buck/k",
                "s3.amazonaws.com",
                "us-east-1",
            ),
            (
                json!({"region": "eu-west-3"}),
                "https://s3.eu-west-3.amazonaws.com/k",
                "buck.s3.eu-west-3.amazonaws.com",
                "eu-west-3",
            ),
            (
                json!({"region": "eu-west-3", "bucket": "Buck"}),
                "https://s3.eu-west-3.amazonaws.com/Buck/k",
                "s3.eu-west-3.amazonaws.com",
                "eu-west-3",
            ),
            (
                json!({"host": "minio.example.com", "port": 9000, "scheme": "http", "region": "garage"}),
                "http://minio.example.com:9000/k",
                "buck.minio.example.com:9000",
                "garage",
            ),
            (
                json!({"host": "10.0.0.1", "port": "443"}),
                "https://10.0.0.1/buck/k",
                "10.0.0.1",
                "us-east-1",
            ),
            (
                json!({"host": "s3-us-west-2.amazonaws.com", "scheme": "https://"}),
                "https://s3-us-west-2.amazonaws.com/buck/k",
                "s3-us-west-2.amazonaws.com",
                "us-west-2",
            ),
            (
                json!({"host": "s3.cn-north-1.amazonaws.com.cn", "bucket_access_method": "vhost"}),
                "https://s3.cn-north-1.amazonaws.com.cn/k",
                "buck.s3.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
            ),
            (
                json!({"host": "s3-accelerate.amazonaws.com", "region": "eu-west-1", "bucket_access_method": "path"}),
                "https://s3-accelerate.amazonaws.com/buck/k",
                "s3-accelerate.amazonaws.com",
                "eu-west-1",
            ),
        ] {
            let endpoint = of(settings.clone()).unwrap();
            let shown = format!(
                "{}{}",
                endpoint.server.as_str().trim_end_matches('/'),
                endpoint.path("k")
            );
            assert_eq!((shown.as_str(), endpoint.host().as_str()), (url, host), "{settings}");
            assert_eq!(endpoint.region, region, "{settings}");
        }
    }

    #[test]
    fn settings_that_are_not_understood_are_kazoos() {
        for settings in [
            json!({"bucket": ""}),
            json!({"bucket": "a/b"}),
            json!({"bucket": ".."}),
            json!({"bucket": 7}),
            json!({"host": "user@h"}),
            json!({"host": "h/path"}),
            json!({"host": "h:9000"}),
            json!({"host": "H.example.com"}),
            json!({"host": "0x7f.1"}),
            json!({"scheme": "ftp"}),
            json!({"port": 70_000}),
            json!({"port": 0}),
            json!({"region": "eu west"}),
            json!({"bucket_access_method": "other"}),
            json!({"bucket_access_method": "vhost", "bucket": "Buck_et"}),
            json!({"bucket_after_host": "perhaps"}),
        ] {
            assert!(of(settings.clone()).is_err(), "{settings}");
        }
    }

    #[test]
    fn a_key_is_encoded_once_more_and_its_slashes_stay() {
        let endpoint = of(json!({})).unwrap();
        assert_eq!(
            endpoint.path("account%2F4b/202611-7c_call%20recording.mp3"),
            "/buck/account%252F4b/202611-7c_call%2520recording.mp3"
        );
        assert_eq!(endpoint.path("/a//é"), "/buck//a//%C3%A9");
    }

    #[test]
    fn the_region_of_kazoo_follows_from_the_host_alone() {
        for (host, region) in [
            ("s3.amazonaws.com", "us-east-1"),
            ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
            ("minio.example.com", "io"),
            ("127.0.0.1", "us-east-1"),
            ("minio", "us-east-1"),
        ] {
            assert_eq!(of(json!({"host": host})).unwrap().kazoos_region(), region, "{host}");
        }
    }

    #[test]
    fn only_awss_own_hosts_move_with_a_region() {
        let mut aws = of(json!({})).unwrap();
        aws.moved("eu-central-1");
        assert_eq!(aws.host(), "s3.eu-central-1.amazonaws.com");
        assert_eq!(
            aws.redirected("https://buck.s3.eu-west-2.amazonaws.com/k").as_deref(),
            Some("eu-west-2")
        );
        assert_eq!(aws.redirected("http://127.0.0.1/k"), None);
        let mut other = of(json!({"host": "minio.example.com"})).unwrap();
        assert_eq!(other.redirected("https://buck.s3.eu-west-2.amazonaws.com/k"), None);
        other.moved("garage");
        assert_eq!(
            (other.host().as_str(), other.region.as_str()),
            ("minio.example.com", "garage")
        );
    }
}
