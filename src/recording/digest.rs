//! The two digests of a recording's audio: MD5, because CouchDB's attachment stubs contain it, and SHA-256, which serves as evidence of the
//! stored audio.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

/// Both digests, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub md5: String,
    pub sha256: String,
}

impl Digests {
    /// MD5 in the form of CouchDB's stubs: `md5-` and base64.
    pub fn couch(&self) -> Option<String> {
        let bytes = unhex(&self.md5)?;
        Some(format!("md5-{}", STANDARD.encode(bytes)))
    }
}

/// Computes both digests in one pass.
pub struct Hasher {
    md5: Md5,
    sha256: Context,
}

impl Default for Hasher {
    fn default() -> Self {
        Self {
            md5: Md5::new(),
            sha256: Context::new(&SHA256),
        }
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
    }

    pub fn finish(self) -> Digests {
        Digests {
            md5: hex(&self.md5.finalize()),
            sha256: hex(self.sha256.finish().as_ref()),
        }
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// Reverses `hex`. `None` for any other text.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_digests_are_the_known_ones() {
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        let digests = hasher.finish();
        assert_eq!(digests.md5, "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            digests.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digests.couch().unwrap(), "md5-kAFQmDzST7DWlj99KOF/cg==");
    }

    #[test]
    fn hex_that_is_none_is_refused() {
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("012"), None);
        assert_eq!(unhex("é0"), None);
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
    }
}
