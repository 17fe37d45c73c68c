//! Why an upload to a URL failed.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::couch::Silent;

use super::guard::Refused;
use super::target::Target;

/// Redirects that are followed, as in Kazoo (`kz_att_http`).
pub(super) const MAX_REDIRECTS: usize = 10;

/// The client cannot be built, for example without any root certificate.
#[derive(Debug, Error)]
#[error("the client cannot be built: {0}")]
pub struct NoClient(pub(super) String);

/// A failed upload. Its text names only the host of the URL.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{host}: {kind}{}", said.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
pub struct SendError {
    pub host: String,
    pub kind: Failure,
    /// The server's reason, printable and without secrets.
    pub said: Option<String>,
    /// The URL contains a signature, and the server rejects it.
    pub bad_signature: bool,
    /// How long the server asks to wait.
    pub retry_after: Option<Duration>,
}

/// How the upload failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    #[error("answered {0}")]
    Status(u16),
    #[error("{0}")]
    Address(Refused),
    #[error("its name cannot be resolved")]
    Unresolved,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("its certificate or its TLS is not good: {0}")]
    Tls(String),
    #[error("{0}")]
    Silent(Silent),
    #[error("not through within {0:?}")]
    TooSlow(Duration),
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("redirected {MAX_REDIRECTS} times")]
    TooManyRedirects,
    #[error("the request cannot be made: {0}")]
    Unsendable(String),
    #[error("answered {0}, which leads nowhere that audio is sent to")]
    Redirect(u16),
    #[error("the recording has {0} bytes, more than destination.max_bytes")]
    TooLarge(u64),
    /// A file server's own reason, printable and without secrets.
    #[error("refuses {step}: {said}")]
    Refuses { step: &'static str, said: String },
    #[error("its host key is not good: {0}")]
    HostKey(String),
    #[error("the audio cannot be read: {0}")]
    Source(Arc<str>),
}

impl SendError {
    /// A failure without an answer.
    pub(super) fn of(target: &Target, kind: Failure) -> Self {
        Self {
            host: target.host(),
            kind,
            said: None,
            bad_signature: false,
            retry_after: None,
        }
    }

    /// Whether a retry is of no use, because the recording or the URL is at fault.
    pub fn is_for_ever(&self) -> bool {
        match self.kind {
            Failure::Status(status) => (is_for_ever(status) && !self.may_pass()) || self.bad_signature,
            Failure::Address(_) | Failure::TooLarge(_) => true,
            _ => false,
        }
    }

    /// Whether an object store refuses the transfer, and not the recording: it answers 400 to that as well.
    fn may_pass(&self) -> bool {
        const WORDS: [&str; 4] = ["RequestTimeout", "IncompleteBody", "BadDigest", "InternalError"];
        let said = self.said.as_deref().unwrap_or_default();
        WORDS.iter().any(|word| said.contains(word))
    }

    /// Whether the store rejects the URL because its time is over.
    pub fn is_expired(&self) -> bool {
        let said = self.said.as_deref().unwrap_or_default().to_ascii_lowercase();
        self.bad_signature && (said.contains("expired") || said.contains("expiry"))
    }

    /// The status of the answer, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            Failure::Status(status) | Failure::Redirect(status) => Some(status),
            _ => None,
        }
    }
}

/// Whether a status means that the server will not accept this recording, now or later.
const fn is_for_ever(status: u16) -> bool {
    matches!(status, 400 | 405 | 410 | 413 | 414 | 415 | 422)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_use_to_try_again_is_known() {
        for status in [400, 405, 410, 413, 414, 415, 422] {
            assert!(is_for_ever(status), "{status}");
        }
        // A deployment at night causes these. It needs no operator.
        for status in [303, 401, 403, 404, 408, 409, 423, 429, 500, 501, 502, 503, 504, 507] {
            assert!(!is_for_ever(status), "{status}");
        }
    }
}
