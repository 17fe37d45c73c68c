//! TLS for uploads. The certificate is read again when its files change.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{KeyFiles, Unusable};
use crate::telemetry::events::CertificateRead;

/// How often the files are checked. Certificates are renewed days before they expire.
const EVERY: Duration = Duration::from_secs(10);

/// A certificate in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: KeyFiles,
    current: RwLock<Arc<CertifiedKey>>,
    noticed: Notify,
}

impl Certificate {
    /// Reads the certificate's files.
    ///
    /// # Errors
    /// When the files are unusable.
    pub fn open(files: &KeyFiles) -> Result<Self, Unusable> {
        let current = files.load()?;
        Ok(Self(Arc::new(Inner {
            files: files.clone(),
            current: RwLock::new(Arc::new(current)),
            noticed: Notify::new(),
        })))
    }

    /// Accepts TLS connections. Each connection gets the certificate that is current when it starts.
    ///
    /// # Errors
    /// Never with the TLS library in use. Its result is checked all the same.
    pub fn acceptor(&self) -> std::io::Result<TlsAcceptor> {
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// An operator reports that the files changed. They are read at once.
    pub fn notice(&self) {
        self.0.noticed.notify_one();
    }

    /// Checks the files until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let (mut odd, mut told) = (None, None);
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(EVERY) => false,
                () = self.0.noticed.notified() => true,
                () = stop.cancelled() => return,
            };
            let files = self.0.files.clone();
            // A disk that hangs must not delay uploads.
            let Ok(read) = tokio::task::spawn_blocking(move || files.load()).await else {
                continue;
            };
            match read {
                Ok(new) => {
                    (odd, told) = (None, None);
                    if self.replace(new) || asked {
                        CertificateRead { result: Ok(()) }.emit();
                    }
                }
                // An operator may replace the certificate before its key. Until then the two do not match. Only a fault that lasts is
                // logged, and once.
                Err(why) => {
                    if (asked || odd.as_ref() == Some(&why)) && told.as_ref() != Some(&why) {
                        let words = why.to_string();
                        CertificateRead { result: Err(&words) }.emit();
                        told = Some(why.clone());
                    }
                    odd = Some(why);
                }
            }
        }
    }

    /// Whether the new certificate differs from the current one.
    fn replace(&self, new: CertifiedKey) -> bool {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let other = current.cert != new.cert;
        if other {
            *current = Arc::new(new);
        }
        other
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}
