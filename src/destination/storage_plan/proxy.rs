//! Stores audio by an account's storage plan (S3, Google, Azure …). The audio goes through Kazoo's own store proxy (`media_store_proxy`),
//! so each of Kazoo's handlers keeps working. The proxy writes into the document where the handler stored the audio.
//!
//! The proxy holds the whole audio in memory. Kazoo causes that, and it is the reason why only storage plans use this route.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::couch::Couch;
use crate::kazoo::term::Term;
use crate::recording::audio::Audio;
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::names;
use crate::recording::settings::Method;
use crate::system_config::Proxy;

use super::super::pending_document::{Placed, is_safe, look};
use super::super::url::Target;
use super::super::url::http::{Http, Upload};
use super::super::{DeliveryError, Source};

/// RFC 3986's unreserved characters stay unescaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What to store.
pub struct Job<'a> {
    pub placed: &'a Placed,
    /// The attachment's name.
    pub name: &'a str,
    pub content_type: &'a str,
    pub audio: &'a Audio,
    pub source: &'a Source,
}

/// Where the handler stored the audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Kazoo's module that reads the audio again, such as `kz_att_s3`. `None`: the audio is an attachment of the document itself.
    pub handler: Option<String>,
    /// The document's revision with the audio.
    pub rev: String,
}

/// Stores through the proxy, unless the audio is stored already. `couch` is the server with the document.
///
/// # Errors
/// When the proxy's address is missing, the proxy refuses the audio, or it reports success and the document does not show the audio.
pub async fn store(couch: &Couch, http: &Http, proxy: &Proxy, job: &Job<'_>) -> Result<Kept, DeliveryError> {
    let placed = job.placed;
    let present = || async {
        let document = look(couch, placed).await.map_err(DeliveryError::of_cluster)?;
        Ok::<_, DeliveryError>(kept(&Value::Object(document), job))
    };
    if let Some(kept) = present().await? {
        return safe(couch, kept, job).await;
    }
    let target = target(proxy, &placed.database, placed.id.as_str(), job.name)?;
    let upload = Upload {
        source: job.source,
        length: job.audio.size,
        content_type: job.content_type,
        method: Method::Put,
        key: &placed.idempotency_key(),
    };
    let sent = http.send(&target, &upload).await;
    // The audio may be stored although the answer was lost, or reports an error.
    match (present().await?, sent) {
        (Some(kept), _) => safe(couch, kept, job).await,
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => Err(DeliveryError::Target(
            "the store proxy says that it has the audio, but the document does not show it".into(),
        )),
    }
}

/// Audio in the document itself: the proxy does not say how many nodes took it.
async fn safe(couch: &Couch, kept: Kept, job: &Job<'_>) -> Result<Kept, DeliveryError> {
    if kept.handler.is_none() {
        is_safe(couch, job.placed).await.map_err(DeliveryError::of_cluster)?;
    }
    Ok(kept)
}

/// The proxy's URL for an attachment (`kz_media_file:proxy_uri`).
///
/// # Errors
/// When the configuration does not name the proxy.
pub fn target(proxy: &Proxy, database: &str, id: &str, name: &str) -> Result<Target, DeliveryError> {
    let nowhere =
        || DeliveryError::Target("system_config/media says nowhere that a store proxy is (proxy_hostname)".into());
    let mut url = proxy.base.clone().ok_or_else(nowhere)?;
    let option = Term::Tuple(vec![Term::atom("doc_type"), Term::binary(DOCUMENT_TYPE)]);
    let request = Term::Tuple(vec![
        Term::binary(&names::encoded(database)),
        Term::binary(id),
        Term::binary(name),
        Term::List(vec![option]),
    ]);
    let blob = request
        .to_base64()
        .map_err(|error| DeliveryError::Recording(error.to_string()))?;
    let segment = |text: &str| utf8_percent_encode(text, SEGMENT).to_string();
    url.set_path(&format!("/store/{}/{}", segment(&blob), segment(name)));
    if !proxy.username.is_empty() {
        // Neither call fails for a URL with a host.
        let _ = url.set_username(&segment(&proxy.username));
        let _ = url.set_password(Some(&segment(proxy.password.expose_secret())));
    }
    Target::parse(url.as_str()).map_err(|_| nowhere())
}

/// Where the document says that the audio is, if the audio is complete.
fn kept(document: &Value, job: &Job<'_>) -> Option<Kept> {
    let rev = super::super::couchdb_write::rev(document);
    let of_name = |attachments: &str| document.get(attachments).and_then(|all| all.get(job.name));
    let length = |stub: &Value| stub.get("length").and_then(Value::as_u64);
    let inside = of_name("_attachments").filter(|stub| {
        length(stub) == Some(job.audio.size)
            && stub.get("digest").and_then(Value::as_str) == job.audio.digests.couch().as_deref()
    });
    let outside = of_name("pvt_attachments").filter(|stub| length(stub) == Some(job.audio.size));
    if let Some(stub) = outside {
        let handlers = stub.get("handler").and_then(Value::as_object);
        let handler = handlers.and_then(|handlers| handlers.keys().next()).cloned();
        return handler.map(|handler| Kept {
            handler: Some(handler),
            rev,
        });
    }
    inside.map(|_| Kept { handler: None, rev })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::system_config::Media;

    use super::*;

    const DATABASE: &str = "account/4b/a1/f7d5a1c54a0fb0d9c9d3e1a2b3c4-202611";

    fn proxy(section: Value) -> Proxy {
        Media::read(&json!({ "default": section }), "local").proxy
    }

    #[test]
    fn the_proxys_url_is_the_one_that_kazoo_makes() {
        let proxy = proxy(json!({"proxy_hostname": "m1", "proxy_username": "3f@", "proxy_password": "9a/"}));
        let target = target(&proxy, DATABASE, "202611-7c9e", "desk.mp3").unwrap();
        let url = target.expose();
        assert_eq!(url.authority(), "3f%40:9a%2F@m1:24517");
        // Kazoo 5.0's own kz_media_url:store/4 gives this result.
        assert_eq!(
            url.path(),
            "/store/g2gEbQAAADdhY2NvdW50JTJGNGIlMkZhMSUyRmY3ZDVhMWM1NGEwZmIwZDljOWQzZTFhMmIzYzQtMjAyNjExbQAAAAsyMDI2MTEtN2M5ZW0AAAAI\
             ZGVzay5tcDNsAAAAAWgCZAAIZG9jX3R5cGVtAAAADmNhbGxfcmVjb3JkaW5nag%3D%3D/desk.mp3"
        );
    }

    #[test]
    fn a_proxy_that_nobody_named_is_told() {
        let error = target(&proxy(json!({})), DATABASE, "202611-7c9e", "desk.mp3").unwrap_err();
        assert!(error.to_string().contains("proxy_hostname"), "{error}");
    }
}
