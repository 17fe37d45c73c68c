//! Signatures of requests to object stores: AWS Signature Version 4 in the `Authorization` header, and Azure's SharedKey. Pure functions.
//!
//! Own code instead of a library: the libraries sign only in a query (`rusty-s3`), need a newer compiler than this project
//! (`aws-sigv4`, `opendal`), or give no way to send one streamed PUT with Kazoo's exact key (`object_store`). What remains is one HMAC chain over a
//! text that both providers have published, with `aws-lc-rs`, which computes this project's digests already. The tests compare with signatures
//! that Kazoo made, and with those that AWS published.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::kazoo::time::Moment;
use crate::recording::digest::hex;

/// SHA-256 of no bytes, for requests without a body.
pub const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const AMZ_DATE: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A request as it is signed. The path and the query are signed as they are sent.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Encoded once, with its leading slash.
    pub path: &'a str,
    /// Sorted and encoded, without its question mark.
    pub query: &'a str,
    /// The signed headers: names in lower case.
    pub headers: &'a [(String, String)],
}

/// AWS credentials, and what they are used for.
#[derive(Debug)]
pub struct SigV4<'a> {
    pub key: &'a str,
    pub secret: &'a SecretString,
    pub region: &'a str,
    pub service: &'a str,
    pub now: Moment,
}

impl SigV4<'_> {
    /// The value of the header `Authorization`. `payload` is the SHA-256 of the body in hex, as `x-amz-content-sha256` has it.
    pub fn authorization(&self, request: &Request<'_>, payload: &str) -> String {
        let names = signed_names(request.headers);
        let scope = format!("{}/{}/{}/aws4_request", self.day(), self.region, self.service);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            amz_date(self.now),
            hex(digest(&SHA256, canonical(request, &names, payload).as_bytes()).as_ref())
        );
        let signature = hex(&self.mac(to_sign.as_bytes()));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.key
        )
    }

    fn mac(&self, to_sign: &[u8]) -> Vec<u8> {
        let first = format!("AWS4{}", self.secret.expose_secret());
        let mut key = hmac_sha256(first.as_bytes(), self.day().as_bytes());
        for part in [self.region, self.service, "aws4_request"] {
            key = hmac_sha256(&key, part.as_bytes());
        }
        hmac_sha256(&key, to_sign)
    }

    fn day(&self) -> String {
        self.now.day()
    }
}

/// The value of the header `x-amz-date`.
pub fn amz_date(now: Moment) -> String {
    let at = OffsetDateTime::from_unix_timestamp(now.unix_seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // Formatting fails only for fields that a format lacks.
    at.format(AMZ_DATE).unwrap_or_default()
}

fn signed_names(headers: &[(String, String)]) -> String {
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.join(";")
}

fn canonical(request: &Request<'_>, names: &str, payload: &str) -> String {
    let mut headers: Vec<&(String, String)> = request.headers.iter().collect();
    headers.sort();
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", single_spaces(value)))
        .collect();
    format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{payload}",
        request.method, request.path, request.query
    )
}

fn single_spaces(value: &str) -> String {
    value
        .split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(HMAC_SHA256, key), data).as_ref().to_vec()
}

/// The account and the key of an Azure storage account.
#[derive(Debug)]
pub struct SharedKey<'a> {
    pub account: &'a str,
    /// Base64.
    pub key: &'a SecretString,
}

/// The key of an Azure storage account is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the account's key is not base64")]
pub struct BadKey;

impl SharedKey<'_> {
    /// The value of the header `Authorization`. `path` is the request's path as it is sent, and `length` the number of bytes in its body.
    ///
    /// # Errors
    /// When the key is not base64.
    pub fn authorization(&self, request: &Request<'_>, length: u64) -> Result<String, BadKey> {
        let key = STANDARD.decode(self.key.expose_secret().trim()).map_err(|_| BadKey)?;
        let of = |name: &str| {
            let found = request.headers.iter().find(|(header, _)| header == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        // An empty body has an empty text here, since version 2015-02-21.
        let length = if length == 0 { String::new() } else { length.to_string() };
        let mut to_sign = format!(
            "{}\n\n\n{length}\n{}\n{}\n\n{}\n{}\n{}\n{}\n{}\n",
            request.method,
            of("content-md5"),
            of("content-type"),
            of("if-modified-since"),
            of("if-match"),
            of("if-none-match"),
            of("if-unmodified-since"),
            of("range"),
        );
        let mut own: Vec<&(String, String)> = request
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("x-ms-"))
            .collect();
        own.sort();
        for (name, value) in own {
            to_sign += &format!("{name}:{value}\n");
        }
        to_sign += &format!("/{}{}", self.account, request.path);
        let signature = STANDARD.encode(hmac_sha256(&key, to_sign.as_bytes()));
        Ok(format!("SharedKey {}:{signature}", self.account))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    fn at(text: &str) -> Moment {
        let at = time::PrimitiveDateTime::parse(text, AMZ_DATE).unwrap();
        Moment::from_unix_seconds(at.assume_utc().unix_timestamp())
    }

    fn signature(authorization: &str) -> &str {
        authorization.rsplit("Signature=").next().unwrap()
    }

    /// A request of `kz_att_s3`, captured.
    #[test]
    fn a_signature_is_the_one_that_kazoo_makes() {
        let secret = SecretString::from("secretsecretsecret".to_owned());
        let signer = SigV4 {
            key: "AKIAIOSFODNN7EXAMPLE",
            secret: &secret,
            region: "us-east-1",
            service: "s3",
            now: at("20261129T094944Z"),
        };
        let payload = hex(digest(&SHA256, b"hello").as_ref());
        let request = Request {
            method: "PUT",
            path: "/kazoo-bucket/account%252F4b%252Fa1%252Ff7d5a1c54a0fb0d9c9d3e1a2b3c4-202611/\
                   202611-7c9e0f1a2b3c4d5e6f708192a3b4c5d6_call%2520recording.mp3",
            query: "",
            headers: &headers(&[
                ("content-type", "audio/mpeg"),
                ("host", "127.0.0.1"),
                ("x-amz-content-sha256", &payload),
                ("x-amz-date", "20261129T094944Z"),
            ]),
        };
        let authorization = signer.authorization(&request, &payload);
        assert_eq!(
            signature(&authorization),
            "8feeebe015569dd6f79f2115a14ecf6af789ffbb3295bc63e70f17d724b626a1"
        );
    }

    /// The examples of AWS's documentation of the signature for S3, and of its test suite.
    #[test]
    fn a_signature_is_the_one_that_aws_published() {
        let secret = SecretString::from("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned());
        let s3 = SigV4 {
            key: "AKIAIOSFODNN7EXAMPLE",
            secret: &secret,
            region: "us-east-1",
            service: "s3",
            now: at("20130524T000000Z"),
        };
        let body = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
        let put = Request {
            method: "PUT",
            path: "/test%24file.text",
            query: "",
            headers: &headers(&[
                ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                ("host", "examplebucket.s3.amazonaws.com"),
                ("x-amz-content-sha256", body),
                ("x-amz-date", "20130524T000000Z"),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ]),
        };
        assert_eq!(
            s3.authorization(&put, body),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class, \
             Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        let get = Request {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &headers(&[
                ("host", "examplebucket.s3.amazonaws.com"),
                ("range", "bytes=0-9"),
                ("x-amz-content-sha256", OF_NOTHING),
                ("x-amz-date", "20130524T000000Z"),
            ]),
        };
        assert_eq!(
            signature(&s3.authorization(&get, OF_NOTHING)),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let secret = SecretString::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned());
        let suite = SigV4 {
            key: "AKIDEXAMPLE",
            secret: &secret,
            region: "us-east-1",
            service: "service",
            now: at("20150830T123600Z"),
        };
        let vanilla = headers(&[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]);
        for (method, query, expected) in [
            (
                "GET",
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "POST",
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "GET",
                "Param1=value1&Param2=value2",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
        ] {
            let request = Request {
                method,
                path: "/",
                query,
                headers: &vanilla,
            };
            assert_eq!(
                signature(&suite.authorization(&request, OF_NOTHING)),
                expected,
                "{method} {query}"
            );
        }
    }

    /// A request of `kz_att_azure`, captured at an emulator, whose account and key are public.
    #[test]
    fn an_azure_signature_is_the_one_that_kazoo_makes() {
        let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
        let key = SecretString::from(key.to_owned());
        let request = Request {
            method: "PUT",
            path: "/recs/a/b/202611-7c9e0f1a2b3c4d5e6f708192a3b4c5d6_call%20recording.mp3",
            query: "",
            headers: &headers(&[
                ("content-type", "audio/mpeg"),
                ("x-ms-blob-type", "BlockBlob"),
                ("x-ms-date", "Sun, 29 Nov 2026 09:50:37 GMT"),
                ("x-ms-version", "2014-02-14"),
            ]),
        };
        let signer = SharedKey {
            account: "devstoreaccount1",
            key: &key,
        };
        assert_eq!(
            signer.authorization(&request, 5).unwrap(),
            "SharedKey devstoreaccount1:EKlOh5LbYYGtj+vi4eCQrOB1fGpqxN0M0K/Bdrax9jY="
        );
        let bad = SecretString::from("not base64!".to_owned());
        let signer = SharedKey {
            account: "a",
            key: &bad,
        };
        assert_eq!(signer.authorization(&request, 5), Err(BadKey));
        assert!(!format!("{signer:?}").contains("base64"));
    }
}
