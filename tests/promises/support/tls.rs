//! Certificates made for one test, and a TLS end before a server that speaks plain TCP.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Somebody who issues certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Issued {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, as a PEM file in `dir`.
    pub fn file(&self, dir: &Path, name: &str) -> anyhow::Result<String> {
        write(dir, name, &pem("CERTIFICATE", self.0.der()))
    }

    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Issued> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.0)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        })
    }

    /// One certificate that is an authority's and a server's at once, as plain `openssl req -x509` makes it.
    pub fn as_server(names: &[&str]) -> anyhow::Result<Issued> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate: params.self_signed(&key)?.der().clone(),
            key: key.serialize_der(),
        })
    }

    pub fn as_root(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_der(self.0.der()).unwrap()
    }
}

impl Issued {
    /// What a server with this certificate does first.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let key = PrivateKeyDer::try_from(self.key.clone()).map_err(|error| anyhow::anyhow!("{error}"))?;
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![self.certificate.clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Two PEM files in `dir`: the certificate and the key.
    pub fn files(&self, dir: &Path, name: &str) -> anyhow::Result<(String, String)> {
        Ok((
            write(dir, &format!("{name}.pem"), &pem("CERTIFICATE", &self.certificate))?,
            write(dir, &format!("{name}.key"), &pem("PRIVATE KEY", &self.key))?,
        ))
    }
}

/// Takes TLS and passes it on as plain TCP.
pub struct TlsFront {
    pub port: u16,
    serving: JoinHandle<()>,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TlsFront {
    /// Stands before `target` (host:port). With `clients`, only those get in who show a certificate of theirs.
    pub async fn start(target: &str, shown: &Issued, clients: Option<&Authority>) -> anyhow::Result<Self> {
        let key = PrivateKeyDer::try_from(shown.key.clone()).map_err(|error| anyhow::anyhow!("{error}"))?;
        let builder = ServerConfig::builder();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone())?;
                builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
            }
        };
        let config = builder.with_single_cert(vec![shown.certificate.clone()], key)?;
        let (acceptor, target) = (TlsAcceptor::from(Arc::new(config)), target.to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let mut onward = TcpStream::connect(&target).await?;
                    copy_bidirectional(&mut stream, &mut onward).await
                });
            }
        });
        Ok(Self { port, serving })
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<String> {
    std::fs::create_dir_all(dir)?;
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}
