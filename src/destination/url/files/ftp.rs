//! FTP and FTP over TLS, in passive mode.
//!
//! A server tells the address of its data connection. The worker takes only the port from that, because the address could lead past the SSRF
//! filter.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use suppaftp::tokio::{AsyncRustlsConnector, AsyncRustlsFtpStream};
use suppaftp::types::FileType;
use suppaftp::{FtpError, Mode, Status};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::couch::ByteStream;

use super::super::connect::Connector;
use super::super::failure::Failure;
use super::super::said::words;
use super::super::target::{Protocol, Target};
use super::{FAREWELL, Folder, hash};

/// The port where TLS begins with the first byte. At any other port the worker asks for it (`AUTH TLS`).
const IMPLICIT: u16 = 990;

/// Kazoo's user where a URL names none (`kz_att_ftp:ftp_anonymous_user_pass`).
const ANONYMOUS: (&str, &str) = ("anonymous", "kz-record-call@");

/// Answers after the last byte of a file.
const THROUGH: [Status; 2] = [Status::ClosingDataConnection, Status::RequestedFileActionOk];

/// A connection, in the folder of the URL.
pub(super) struct Ftp {
    stream: AsyncRustlsFtpStream,
    silence: Duration,
    url: Url,
}

/// Connects, and logs in. `secure`: the TLS of the connections.
pub(super) async fn open(
    connector: &Connector,
    target: &Target,
    secure: Option<&Arc<rustls::ClientConfig>>,
    silence: Duration,
) -> Result<Ftp, Failure> {
    let url = target.expose();
    let stream = match secure {
        None => plain(connector, url).await?,
        Some(tls) => secured(connector, url, tls).await?,
    };
    let mut ftp = Ftp {
        stream,
        silence,
        url: url.clone(),
    };
    let is_v6 = {
        let control = ftp.stream.get_ref().await;
        control.peer_addr().is_ok_and(|peer| peer.is_ipv6())
    };
    ftp.stream
        .set_mode(if is_v6 { Mode::ExtendedPassive } else { Mode::Passive });
    ftp.stream.set_passive_nat_workaround(true);
    let login = target.login();
    let (user, password) = login
        .as_ref()
        .map_or(ANONYMOUS, |(user, password)| (user.as_str(), password.as_str()));
    let logged_in = ftp.stream.login(user, password).await;
    ftp.told("the login", logged_in)?;
    let typed = ftp.stream.transfer_type(FileType::Binary).await;
    ftp.told("binary files", typed)?;
    let (folder, _) = target.folder_and_file();
    if !folder.is_empty() {
        let entered = ftp.stream.cwd(&folder).await;
        ftp.told("the folder", entered)?;
    }
    Ok(ftp)
}

async fn plain(connector: &Connector, url: &Url) -> Result<AsyncRustlsFtpStream, Failure> {
    let stream = connector.connect(url, Protocol::Ftp.port()).await?;
    let connected = AsyncRustlsFtpStream::connect_with_stream(stream).await;
    connected.map_err(|error| failure(error, "the connection", url))
}

async fn secured(
    connector: &Connector,
    url: &Url,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<AsyncRustlsFtpStream, Failure> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let tls = || AsyncRustlsConnector::from(TlsConnector::from(Arc::clone(tls)));
    if url.port().is_some_and(|port| port != IMPLICIT) {
        let stream = plain(connector, url).await?;
        let secured = stream.into_secure(tls(), host).await;
        return secured.map_err(|error| failure(error, "TLS", url));
    }
    let beginning = async {
        let mut failed = Failure::Connect("no address".into());
        let found = connector.addresses(url, IMPLICIT).await?;
        let share = connector.share(found.len());
        for address in found {
            // RFC 4217 has only the explicit way, and servers at this port know only the implicit one.
            #[allow(deprecated)]
            let beginning = AsyncRustlsFtpStream::connect_secure_implicit(address, tls(), host);
            match tokio::time::timeout(share, beginning).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(FtpError::ConnectionError(error))) => failed = Failure::Connect(error.to_string()),
                Ok(Err(error)) => return Err(failure(error, "the connection", url)),
                Err(_) => failed = Failure::Connect("no answer".into()),
            }
        }
        Err(failed)
    };
    let begun = tokio::time::timeout(connector.patience, beginning).await;
    let mut stream = begun.unwrap_or_else(|_| Err(Failure::Connect("no answer".into())))?;
    for command in ["PBSZ 0", "PROT P"] {
        let protected = stream.custom_command(command, &[Status::CommandOk]).await;
        protected.map_err(|error| failure(error, "TLS", url))?;
    }
    Ok(stream)
}

fn failure(error: FtpError, step: &'static str, url: &Url) -> Failure {
    match error {
        FtpError::UnexpectedResponse(answer) => Failure::Refuses {
            step,
            said: words(&String::from_utf8_lossy(&answer.body), url),
        },
        // The library says that of its own errors once more.
        FtpError::SecureError(why) => Failure::Tls(why.trim_start_matches("Secure error: ").to_owned()),
        FtpError::ConnectionError(error) => Failure::Lost(error.to_string()),
        FtpError::BadResponse | FtpError::InvalidAddress(_) | FtpError::DataConnectionAlreadyOpen => {
            Failure::Lost("its answer cannot be read".into())
        }
    }
}

/// Whether the server answers so to a request that it understands, and does not follow.
fn is_refusal(error: &FtpError, of: &[Status]) -> bool {
    matches!(error, FtpError::UnexpectedResponse(answer) if of.contains(&answer.status))
}

impl Ftp {
    fn told<T>(&self, step: &'static str, result: Result<T, FtpError>) -> Result<T, Failure> {
        result.map_err(|error| failure(error, step, &self.url))
    }
}

impl Folder for Ftp {
    async fn size(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        match self.stream.size(name).await {
            Ok(size) => Ok(u64::try_from(size).ok()),
            Err(error) if is_refusal(&error, &[Status::FileUnavailable, Status::RequestFileActionIgnored]) => Ok(None),
            Err(error) => self.told("the question for a file's size", Err(error)),
        }
    }

    async fn sha256(&mut self, name: &str) -> Result<Option<String>, Failure> {
        const OF_THE_FILE: [Status; 5] = [
            Status::FileUnavailable,
            Status::RequestFileActionIgnored,
            Status::BadFilename,
            Status::NotImplemented,
            Status::NotLoggedIn,
        ];
        let mut data = match self.stream.retr_as_stream(name).await {
            Err(error) if is_refusal(&error, &OF_THE_FILE) => return Ok(None),
            opened => self.told("to read a file", opened)?,
        };
        let sha256 = hash(&mut data, self.silence).await?;
        let finished = data.finish().await;
        self.told("to read a file", finished)?;
        Ok(Some(sha256))
    }

    async fn put(&mut self, name: &str, mut body: ByteStream) -> Result<(), Failure> {
        let opened = self.stream.put_with_stream(name).await;
        let mut data = self.told("the file", opened)?;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Failure::Source(error.to_string().into()))?;
            if let Err(error) = data.write_all(&piece).await {
                // The server ends the transfer, and says why on the other connection.
                let reason = tokio::time::timeout(FAREWELL, self.stream.read_response_in(&THROUGH)).await;
                let lost = FtpError::ConnectionError(error);
                // The answer is read: without that, the next command would wait for it.
                let _ = tokio::time::timeout(FAREWELL, self.stream.abort(data)).await;
                return match reason {
                    Ok(Err(refusal @ FtpError::UnexpectedResponse(_))) => self.told("the file", Err(refusal)),
                    _ => self.told("the file", Err(lost)),
                };
            }
        }
        let finished = data.finish().await;
        self.told("the file", finished)
    }

    async fn rename(&mut self, from: &str, to: &str) -> Result<(), Failure> {
        let renamed = self.stream.rename(from, to).await;
        self.told("the file's own name", renamed)
    }

    async fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let removed = self.stream.rm(name).await;
        self.told("to remove a file", removed)
    }

    async fn close(mut self) {
        let _ = self.stream.quit().await;
    }
}
