//! The recording context (sealed): the part of a recording's order that is needed to handle its end. It passes through the switch.
//!
//! The switch returns it in `Recording.Carry` of each event. Any client of the broker can read and forge events, so the field is encrypted
//! and authenticated with the cluster's secret. It is unpadded base64url, whose alphabet is safe on the switch's command line, and has at
//! most 1 KiB.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kazoo::call::{Parties, clip};
use crate::kazoo::time::Moment;

use super::format::Format;
use super::identity::{Key, MediaId};
use super::order::{Order, Url};
use super::settings::Method;

/// Longest sealed field, in bytes.
pub const MAX_BYTES: usize = 1024;

const NONCE: usize = 12;
const VERSION: u8 = 1;

/// Derives a key for one purpose from the cluster's secret.
pub fn derive_key(secret: &[u8], purpose: &str) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), purpose.as_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(tag.as_ref());
    key
}

/// Seals and opens the recording context.
pub struct Seal {
    cipher: LessSafeKey,
    nonces: hmac::Key,
}

/// Why a field could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    #[error("the recording carries nothing of ours")]
    Absent,
    #[error("the carried field is not one that we write")]
    Malformed,
    #[error("the carried field was not sealed with this cluster's secret")]
    NotOurs,
}

/// Field names have one letter, because the whole must fit into 1 KiB.
#[derive(Serialize, Deserialize)]
struct Carried {
    k: Key,
    i: MediaId,
    c: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    z: String,
    /// The document's name, if it differs from the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    f: Format,
    o: String,
    #[serde(default, skip_serializing_if = "is_put")]
    m: Method,
    #[serde(default, skip_serializing_if = "is_none")]
    u: Url,
    #[serde(default, skip_serializing_if = "is_zero")]
    s: u32,
    t: Moment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    w: Option<String>,
}

fn is_put(method: &Method) -> bool {
    *method == Method::Put
}

fn is_none(url: &Url) -> bool {
    *url == Url::None
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Seal {
    pub fn new(secret: &[u8]) -> Self {
        let key = derive_key(secret, "kz_record_call carry 1");
        let nonces = hmac::Key::new(hmac::HMAC_SHA256, &derive_key(secret, "kz_record_call carry nonce 1"));
        #[allow(clippy::expect_used)] // the key has the length that the cipher asks for
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("a key of 32 bytes"));
        Self { cipher, nonces }
    }

    /// The sealed recording context of an order. If the context is too long, the URL is left out first (and marked as lost), then most of
    /// the origin. The nonce is derived from the content, so the same order always gives the same field.
    pub fn seal(&self, order: &Order) -> String {
        let mut carried = Carried {
            k: order.key,
            i: order.media_id.clone(),
            c: order.call_id.clone(),
            a: order.account_id.clone(),
            z: order.zone.clone(),
            n: (order.media_name != order.file_name).then(|| order.media_name.clone()),
            f: order.format,
            o: order.origin.clone(),
            m: order.method,
            u: order.url.clone(),
            s: order.min_sec,
            t: order.asked_at,
            w: order.parties.owner_id.clone(),
        };
        let mut sealed = self.seal_carried(&carried);
        if sealed.len() > MAX_BYTES && carried.u != Url::None {
            carried.u = Url::Lost;
            sealed = self.seal_carried(&carried);
        }
        if sealed.len() > MAX_BYTES {
            carried.o = clip(&carried.o, 32).to_owned();
            carried.w = None;
            sealed = self.seal_carried(&carried);
        }
        if sealed.len() > MAX_BYTES {
            // Only a call id of many hundred bytes leads here. The ledger has the missing parts.
            carried.n = None;
            carried.c = clip(&carried.c, 255).to_owned();
            sealed = self.seal_carried(&carried);
        }
        sealed
    }

    fn seal_carried(&self, carried: &Carried) -> String {
        let mut body = serde_json::to_vec(carried).unwrap_or_default();
        let tag = hmac::sign(&self.nonces, &body);
        let mut nonce = [0; NONCE];
        nonce.copy_from_slice(&tag.as_ref()[..NONCE]);
        let sealed =
            self.cipher
                .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from([VERSION]), &mut body);
        if sealed.is_err() {
            return String::new();
        }
        let mut out = Vec::with_capacity(1 + NONCE + body.len());
        out.push(VERSION);
        out.extend(nonce);
        out.extend(body);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Opens the field of an event.
    ///
    /// # Errors
    /// When the field is missing, is damaged, or was sealed with another secret.
    pub fn open(&self, field: Option<&str>) -> Result<Order, OpenError> {
        let field = field.ok_or(OpenError::Absent)?;
        if field.len() > 2 * MAX_BYTES {
            return Err(OpenError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(field).map_err(|_| OpenError::Malformed)?;
        let (version, rest) = bytes.split_first().ok_or(OpenError::Malformed)?;
        if *version != VERSION {
            return Err(OpenError::Malformed);
        }
        let (nonce, body) = rest.split_at_checked(NONCE).ok_or(OpenError::Malformed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Malformed)?;
        let mut body = body.to_vec();
        let plain = self
            .cipher
            .open_in_place(nonce, Aad::from([VERSION]), &mut body)
            .map_err(|_| OpenError::NotOurs)?;
        let carried: Carried = serde_json::from_slice(plain).map_err(|_| OpenError::Malformed)?;
        let file_name = super::names::file_name(carried.k, carried.f);
        Ok(Order {
            key: carried.k,
            media_id: carried.i,
            call_id: carried.c,
            account_id: carried.a,
            zone: carried.z,
            media_name: carried.n.unwrap_or_else(|| file_name.clone()),
            file_name,
            format: carried.f,
            origin: carried.o,
            method: carried.m,
            url: carried.u,
            min_sec: carried.s,
            asked_at: carried.t,
            parties: Parties {
                owner_id: carried.w,
                ..Parties::default()
            },
            continues: None,
            trace: None,
            command: None,
            adopted: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(url: Url) -> Order {
        let key = Key::of("call", "action");
        Order {
            key,
            media_id: MediaId::derived(key, Moment::from_unix_seconds(1_795_386_262)),
            call_id: "f3c1f1a2-4c0e-4d2b-9a51-8f2f8b7a1c01".into(),
            account_id: Some("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4".into()),
            zone: "local".into(),
            file_name: format!("{key}.mp3"),
            media_name: "front-desk-0001.mp3".into(),
            format: Format::Mp3,
            origin: "callflow : Empfang – Café".into(),
            method: Method::Post,
            url,
            min_sec: 3,
            asked_at: Moment::from_unix_seconds(1_795_386_262),
            parties: Parties {
                owner_id: Some("9d8c7b6a5f4e3d2c1b0a998877665544".into()),
                ..Parties::default()
            },
            continues: None,
            trace: None,
            command: None,
            adopted: None,
        }
    }

    #[test]
    fn an_order_comes_back_from_the_switch_as_it_went() {
        let seal = Seal::new(b"secret");
        let order = order(Url::Given(format!(
            "https://user:pass@rec.example.com/in?token={}",
            "x".repeat(100)
        )));
        let field = seal.seal(&order);
        assert!(field.len() <= MAX_BYTES, "{}", field.len());
        assert!(
            field
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        );
        assert_eq!(seal.open(Some(&field)), Ok(order.clone()));
        assert_eq!(
            seal.seal(&order),
            field,
            "a redelivered action commands the same recording"
        );
    }

    #[test]
    fn a_url_that_does_not_fit_is_known_to_be_lost() {
        let seal = Seal::new(b"secret");
        let field = seal.seal(&order(Url::Given(format!("https://h/{}", "x".repeat(2000)))));
        assert!(field.len() <= MAX_BYTES);
        assert_eq!(seal.open(Some(&field)).unwrap().url, Url::Lost);
    }

    #[test]
    fn a_forged_or_foreign_field_does_not_open() {
        let seal = Seal::new(b"secret");
        let field = seal.seal(&order(Url::None));
        assert_eq!(Seal::new(b"other").open(Some(&field)), Err(OpenError::NotOurs));
        assert_eq!(seal.open(None), Err(OpenError::Absent));
        for bad in ["", "!", "AQ", "AgAAAAAAAAAAAAAAAA", &"A".repeat(5000)] {
            assert!(seal.open(Some(bad)).is_err(), "{bad}");
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&field).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(seal.open(Some(&URL_SAFE_NO_PAD.encode(bytes))), Err(OpenError::NotOurs));
    }

    proptest! {
        #[test]
        fn any_order_fits_and_comes_back(call_id in ".{1,600}", origin in ".{0,160}", url in prop::option::of(".{1,2048}")) {
            let seal = Seal::new(b"secret");
            let mut order = order(url.map_or(Url::None, Url::Given));
            order.call_id = call_id;
            order.origin = origin;
            let field = seal.seal(&order);
            prop_assert!(field.len() <= MAX_BYTES, "{}", field.len());
            let back = seal.open(Some(&field)).unwrap();
            prop_assert_eq!(back.key, order.key);
            prop_assert_eq!(back.account_id, order.account_id);
            prop_assert_eq!(back.url == Url::None, order.url == Url::None);
        }

        #[test]
        fn any_field_opens_or_does_not(field in ".{0,200}") {
            let _ = Seal::new(b"secret").open(Some(&field));
        }
    }
}
