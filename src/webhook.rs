//! Sends notices to endpoints of operators, signed by the Standard Webhooks scheme (<https://www.standardwebhooks.com>).
//!
//! The client sends one request, and retries nothing. It follows no redirect: the signed body goes only to the endpoint that the operator
//! named.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use secrecy::ExposeSecret as _;
use thiserror::Error;

use crate::config::Endpoint;
use crate::kazoo::time::Moment;

/// Bytes of an endpoint's answer that are read, and that are kept.
const READ_AT_MOST: usize = 16 << 10;
const LONGEST: usize = 200;

/// An endpoint.
pub struct Client {
    http: reqwest::Client,
    url: url::Url,
    keys: Vec<hmac::Key>,
    headers: HeaderMap,
}

/// An endpoint accepted the notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub status: u16,
    /// The answer's text: one line, at most 200 bytes.
    pub said: String,
}

/// An endpoint did not accept the notice. The text has no secret of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct Refused {
    pub why: String,
    /// The delay that the endpoint asks for, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Client {
    /// # Errors
    /// For example without any root certificate.
    pub fn new(endpoint: &Endpoint, timeout: Duration) -> Result<Self, String> {
        let pem = endpoint.ca.as_ref().map(|ca| ca.pem.as_bytes());
        let authorities = pem.map(reqwest::Certificate::from_pem_bundle).transpose();
        let authorities = authorities.map_err(|error| error.to_string())?.unwrap_or_default();
        let http = reqwest::Client::builder()
            .tls_certs_merge(authorities)
            .timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(4))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("kz-record-call/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        let headers = endpoint.headers.iter();
        Ok(Self {
            http,
            url: endpoint.url.clone(),
            keys: endpoint
                .secrets
                .iter()
                .map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.0.expose_secret()))
                .collect(),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    /// Sends a notice. Any 2xx is success.
    ///
    /// # Errors
    /// Any other answer, or none.
    pub async fn send(&self, id: &str, now: Moment, body: &[u8]) -> Result<Accepted, Refused> {
        let timestamp = now.unix_seconds();
        let request = self
            .http
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signatures(&self.keys, id, timestamp, body))
            .body(body.to_vec());
        let lost = |error: reqwest::Error| Refused {
            why: words(&error.without_url()),
            retry_after_s: None,
        };
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status().as_u16();
        let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after_s = asked.and_then(|value| value.trim().parse().ok());
        let mut text = Vec::new();
        // The status is the answer. A text that breaks off changes nothing.
        while let Ok(Some(piece)) = answer.chunk().await
            && text.len() < READ_AT_MOST
        {
            text.extend_from_slice(&piece);
        }
        let said = self.readable(&text);
        if (200..300).contains(&status) {
            return Ok(Accepted { status, said });
        }
        let reason = if said.is_empty() { said } else { format!(": {said}") };
        Err(Refused {
            why: format!("answered {status}{reason}"),
            retry_after_s,
        })
    }

    /// An answer's text on one line, without the secrets of our own headers and of the URL.
    fn readable(&self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = printable.split_whitespace().collect::<Vec<_>>().join(" ");
        let headers = self.headers.values().filter_map(|value| value.to_str().ok());
        let line = crate::telemetry::masked(line, &self.url, headers);
        crate::kazoo::call::clip(&line, LONGEST).to_owned()
    }
}

/// The signatures by all keys, as in the header.
fn signatures(keys: &[hmac::Key], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(body);
    let one = |key: &hmac::Key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &signed).as_ref()));
    keys.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// An error with its causes, which reqwest leaves out.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    crate::kazoo::call::clip(&text, LONGEST).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the scheme's own documentation, reproduced with an independent tool.
    #[test]
    fn a_signature_is_the_schemes_own() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let signed = signatures(std::slice::from_ref(&key), id, 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let both = signatures(&[key, other], id, 1_614_265_330, body);
        assert!(both.starts_with(&format!("{signed} v1,")), "{both}");
    }
}
