//! Certificates that settings name. They are read together with the configuration, so that a wrong one is reported with all other mistakes.
//! Also the texts for TLS faults that occur later.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;

/// Certificates of authorities that are trusted in addition to the host's.
#[derive(Clone)]
pub struct Authorities {
    pub path: PathBuf,
    /// At least one certificate.
    pub pem: Arc<str>,
}

/// A certificate of our own, for servers that request one, and its key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: Arc<str>,
    pub key: Arc<str>,
}

/// Files with a listener's certificate and its chain, and with its key. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why files are unusable. The messages name the file, never its content.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unusable {
    #[error("{path} cannot be read: {why}")]
    Unreadable { path: String, why: String },
    #[error("{0} has no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate(String),
    #[error("{path} has a certificate that cannot be used: {why}")]
    BadCertificate { path: String, why: String },
    #[error("{0} has no private key in PEM form, or one with a pass phrase")]
    NoKey(String),
    #[error("the key in {key} does not belong to the certificate in {certificate}: {why}")]
    Mismatch {
        certificate: String,
        key: String,
        why: String,
    },
}

impl Authorities {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file has no certificate, or one that cannot serve to check a server.
    pub fn read(path: &Path) -> Result<Self, Unusable> {
        let pem = text(path)?;
        let mut store = RootCertStore::empty();
        for certificate in certificates(path, &pem)? {
            store.add(certificate).map_err(|error| bad_certificate(path, &error))?;
        }
        Ok(Self {
            path: path.to_owned(),
            pem: pem.into(),
        })
    }

    /// The certificates. They were checked when the file was read.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        certificates(&self.path, &self.pem).unwrap_or_default()
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.path.display())
    }
}

impl Identity {
    /// Reads a certificate with its chain, and its key.
    ///
    /// # Errors
    /// When a file is missing, or the files do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Unusable> {
        let files = KeyFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        files.load()?;
        Ok(Self {
            certificate: text(certificate)?.into(),
            key: text(key)?.into(),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl KeyFiles {
    /// Reads the files as they are now.
    ///
    /// # Errors
    /// When a file is missing, or the files do not belong together.
    pub fn load(&self) -> Result<CertifiedKey, Unusable> {
        let shown = |path: &Path| path.display().to_string();
        let chain = certificates(&self.certificate, &text(&self.certificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(text(&self.key)?.as_bytes())
            .map_err(|_| Unusable::NoKey(shown(&self.key)))?;
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| match error {
            rustls::Error::InvalidCertificate(_) => bad_certificate(&self.certificate, &error),
            other => Unusable::Mismatch {
                certificate: shown(&self.certificate),
                key: shown(&self.key),
                why: other.to_string(),
            },
        })
    }
}

fn text(path: &Path) -> Result<String, Unusable> {
    std::fs::read_to_string(path).map_err(|error| Unusable::Unreadable {
        path: path.display().to_string(),
        why: error.to_string(),
    })
}

fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(Unusable::NoCertificate(path.display().to_string())),
    }
}

fn bad_certificate(path: &Path, error: &rustls::Error) -> Unusable {
    Unusable::BadCertificate {
        path: path.display().to_string(),
        why: error.to_string(),
    }
}

/// A fault between two TLS peers, if that is the cause of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFault {
    /// The peer's certificate is not accepted.
    Certificate(String),
    /// The peer shows an authority's certificate as its own. A certificate made with plain `openssl req -x509` declares itself an
    /// authority.
    Authority,
    /// The peer rejects our certificate, or our TLS parameters.
    Refused(String),
    /// The peer does not speak TLS.
    Protocol(String),
}

impl TlsFault {
    /// Finds the fault among an error's causes.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<rustls::Error>() {
                return Some(match fault {
                    // rustls gives its certificate library's reason only as text.
                    rustls::Error::InvalidCertificate(why) if format!("{why:?}").contains("CaUsedAsEndEntity") => {
                        Self::Authority
                    }
                    rustls::Error::InvalidCertificate(why) => Self::Certificate(why.to_string()),
                    rustls::Error::AlertReceived(why) => Self::Refused(format!("{why:?}")),
                    other => Self::Protocol(other.to_string()),
                });
            }
            // The content of an I/O error is not among its causes.
            next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// The fault as a text for the operator. `setting` names the file with the authorities.
    pub fn words(&self, setting: &str) -> String {
        match self {
            Self::Certificate(why) => format!(
                "its TLS certificate is not trusted ({why}); {setting} names a file with the authority that issued it, and the certificate must \
                 be for the name in the address"
            ),
            Self::Authority => format!(
                "its TLS certificate says that it is an authority's (CA:TRUE), as `openssl req -x509` makes it, and no server's; {setting} does not \
                 help there. Make the server a new certificate with `-addext basicConstraints=critical,CA:FALSE`, and name that one in {setting}"
            ),
            Self::Refused(why) if setting.starts_with("amqp.") => format!(
                "it broke TLS off ({why}): it may ask for a certificate of ours that it trusts, amqp.client_certificate"
            ),
            Self::Refused(why) => format!("it broke TLS off ({why})"),
            Self::Protocol(why) => {
                format!("TLS was spoken, and something else, or nothing, came back ({why}): is this a TLS port?")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    struct Folder(PathBuf);

    fn pem(label: &str, der: &[u8]) -> String {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            STANDARD.encode(der)
        )
    }

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("kz-record-call-tls-{}", uuid::Uuid::new_v4().simple()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_that_are_of_no_use_are_told_with_their_names() {
        let folder = Folder::new();
        let one = rcgen::generate_simple_self_signed(vec!["rec".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(vec!["rec".to_owned()]).unwrap();
        let written = pem("CERTIFICATE", one.cert.der());
        let certificate = folder.file("cert.pem", &written);
        let key = folder.file("key.pem", &pem("PRIVATE KEY", &one.signing_key.serialize_der()));
        let other = folder.file("other.pem", &pem("PRIVATE KEY", &two.signing_key.serialize_der()));
        let junk = folder.file("junk.pem", "hunter2");
        let broken = folder.file(
            "broken.pem",
            "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n",
        );
        let gone = folder.0.join("gone.pem");

        assert_eq!(&*Authorities::read(&certificate).unwrap().pem, written);
        assert!(Identity::read(&certificate, &key).is_ok());
        let identity = format!("{:?}", Identity::read(&certificate, &key).unwrap());
        assert!(!identity.contains("PRIVATE"), "{identity}");

        let authorities = |path: &Path| Authorities::read(path).unwrap_err();
        assert!(matches!(authorities(&gone), Unusable::Unreadable { .. }));
        assert!(matches!(authorities(&junk), Unusable::NoCertificate(_)));
        assert!(matches!(authorities(&key), Unusable::NoCertificate(_)));
        assert!(matches!(authorities(&broken), Unusable::BadCertificate { .. }));
        let pair = |certificate: &PathBuf, key: &PathBuf| {
            let files = KeyFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            };
            files.load().unwrap_err()
        };
        assert!(matches!(pair(&certificate, &other), Unusable::Mismatch { .. }));
        assert!(matches!(pair(&certificate, &certificate), Unusable::NoKey(_)));
        assert!(matches!(pair(&gone, &key), Unusable::Unreadable { .. }));
        assert!(
            matches!(pair(&broken, &key), Unusable::BadCertificate { .. }),
            "{:?}",
            pair(&broken, &key)
        );
        assert!(authorities(&junk).to_string().contains("junk.pem"));
    }

    #[test]
    fn a_fault_is_found_however_deep_it_lies() {
        let fault = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = std::io::Error::other(std::io::Error::other(fault));
        let found = TlsFault::of(&error).unwrap();
        assert_eq!(found, TlsFault::Certificate("UnknownIssuer".into()));
        assert!(found.words("couchdb.ca_file").contains("couchdb.ca_file"));
        assert_eq!(TlsFault::of(&std::io::Error::other("else")), None);
        // The form in which rustls passes on its certificate library's error.
        #[derive(Debug, thiserror::Error)]
        #[error("CaUsedAsEndEntity")]
        struct CaUsedAsEndEntity;
        let other = rustls::OtherError(Arc::new(CaUsedAsEndEntity));
        let fault = rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other));
        let words = TlsFault::of(&fault).unwrap().words("couchdb.ca_file");
        assert!(
            words.contains("CA:TRUE") && words.contains("basicConstraints=critical,CA:FALSE"),
            "{words}"
        );
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let words = TlsFault::of(&alert).unwrap().words("amqp.ca_file");
        assert!(
            words.contains("CertificateRequired") && words.contains("amqp.client_certificate"),
            "{words}"
        );
    }
}
