//! The permission to upload. It is a signed part of the URL that expires, and is valid for one attempt at one worker.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::kazoo::time::Moment;
use crate::recording::identity::Key;

const VERSION: u8 = 1;
const BODY: usize = 1 + 8 + 16 + 8 + 8;
const MAC: usize = 16;

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The worker that asked for the upload.
    pub instance: u64,
    pub key: Key,
    /// Distinguishes the attempts.
    pub attempt: u64,
    pub expires: Moment,
}

/// Why a token is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("this is no permission to upload")]
    Forged,
    #[error("the permission to upload has run out")]
    Expired,
}

impl Token {
    /// The token as text: base64url, safe for a URL and for the switch's command line.
    pub fn sign(&self, key: &hmac::Key) -> String {
        let mut bytes = Vec::with_capacity(BODY + MAC);
        bytes.push(VERSION);
        bytes.extend(self.instance.to_be_bytes());
        bytes.extend(self.key.bytes());
        bytes.extend(self.attempt.to_be_bytes());
        bytes.extend(self.expires.unix_seconds().to_be_bytes());
        let tag = hmac::sign(key, &bytes);
        bytes.extend(&tag.as_ref()[..MAC]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Parses and checks a token's text.
    ///
    /// # Errors
    /// `Forged` for anything that `sign` did not make with this key.
    pub fn verify(text: &str, key: &hmac::Key, now: Moment) -> Result<Self, TokenError> {
        if text.len() > 200 {
            return Err(TokenError::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Forged)?;
        let (body, mac) = bytes.split_at_checked(BODY).ok_or(TokenError::Forged)?;
        let tag = hmac::sign(key, body);
        aws_lc_rs::constant_time::verify_slices_are_equal(mac, &tag.as_ref()[..MAC]).map_err(|_| TokenError::Forged)?;
        if body[0] != VERSION {
            return Err(TokenError::Forged);
        }
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&body[at..at + 8]);
            bytes
        };
        let mut id = [0; 16];
        id.copy_from_slice(&body[9..25]);
        let token = Self {
            instance: u64::from_be_bytes(long(1)),
            key: Key::from_bytes(id),
            attempt: u64::from_be_bytes(long(25)),
            expires: Moment::from_unix_seconds(i64::from_be_bytes(long(33))),
        };
        if token.expires < now {
            Err(TokenError::Expired)
        } else {
            Ok(token)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(secret: &[u8]) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, secret)
    }

    fn token() -> Token {
        Token {
            instance: 7,
            key: Key::of("call", "action"),
            attempt: 3,
            expires: Moment::from_unix_seconds(1000),
        }
    }

    #[test]
    fn a_token_is_good_until_it_runs_out_and_only_with_the_right_secret() {
        let text = token().sign(&key(b"secret"));
        let at = Moment::from_unix_seconds;
        assert_eq!(Token::verify(&text, &key(b"secret"), at(1000)), Ok(token()));
        assert_eq!(
            Token::verify(&text, &key(b"secret"), at(1001)),
            Err(TokenError::Expired)
        );
        assert_eq!(Token::verify(&text, &key(b"other"), at(0)), Err(TokenError::Forged));
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        );
    }

    proptest! {
        #[test]
        fn no_changed_or_made_up_token_is_good(text in ".{0,220}", at in 0usize..76, to in "[A-Za-z0-9_-]") {
            let key = key(b"secret");
            prop_assert_eq!(Token::verify(&text, &key, Moment::from_unix_seconds(0)), Err(TokenError::Forged));
            let good = token().sign(&key);
            let mut bad = good.clone();
            if at < bad.len() {
                bad.replace_range(at..=at, &to);
            }
            if bad != good {
                prop_assert_eq!(Token::verify(&bad, &key, Moment::from_unix_seconds(0)), Err(TokenError::Forged));
            }
        }
    }
}
