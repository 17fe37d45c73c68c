//! Sends audio to file servers: FTP, FTP over TLS, and the file transfer of SSH. All connections pass the SSRF filter.
//!
//! Audio is streamed into a file with a temporary name, whose size is compared before the file gets its own name. A repeat finds the file of
//! the attempt before:
//!
//! ```text
//! worker 1   look, send, rename ✗ (killed, or its answer is lost)
//! worker 2                          look: there, with the same content. Nothing is sent.
//! ```
//!
//! A file that another program, or another recording, has stored under the name is never replaced: the audio then gets a name with a part of
//! its own digest.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use crate::config;
use crate::couch::{ByteStream, Silent, Watch};
use crate::recording::digest::{Digests, Hasher, hex};

use super::super::{DeliveryError, Source};
use super::connect::{Connector, tls};
use super::failure::{Failure, NoClient, SendError};
use super::guard::Guard;
use super::guard::resolve::Lookup;
use super::target::{Protocol, Target};

mod ftp;
mod sftp;

use sftp::KnownHosts;

/// Digits of a digest in a file's name.
const DIGITS: usize = 8;

/// How long a temporary file's removal, or a farewell, may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Sends audio to file servers. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    connector: Connector,
    tls: Arc<rustls::ClientConfig>,
    known_hosts: KnownHosts,
    silence: Duration,
    total: Duration,
    max_bytes: u64,
}

/// What to send.
pub struct Upload<'a> {
    pub source: &'a Source,
    /// Bytes.
    pub length: u64,
    pub digests: &'a Digests,
    /// The same at each attempt of this worker, and different for every recording and worker: two workers may send at once.
    pub writer: &'a str,
}

/// Audio that a file server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub to: Target,
    /// Nothing was sent, because the file was there already.
    pub was_there: bool,
    /// Another file does not have the recording's own name.
    pub has_its_name: bool,
}

/// A folder of a file server, after the login.
trait Folder: Send {
    /// A file's bytes. `None` when there is no such file.
    fn size(&mut self, name: &str) -> impl Future<Output = Result<Option<u64>, Failure>> + Send;

    /// The SHA-256 of a file. `None` when the server does not let the user read the file.
    fn sha256(&mut self, name: &str) -> impl Future<Output = Result<Option<String>, Failure>> + Send;

    /// Writes a file, and replaces one with the same name.
    fn put(&mut self, name: &str, body: ByteStream) -> impl Future<Output = Result<(), Failure>> + Send;

    fn rename(&mut self, from: &str, to: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    fn remove(&mut self, name: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Ends the connection.
    fn close(self) -> impl Future<Output = ()> + Send;
}

impl Files {
    /// # Errors
    /// For example without any root certificate.
    pub fn guarded(config: &config::Destination, guard: Guard, lookup: Arc<dyn Lookup>) -> Result<Self, NoClient> {
        Ok(Self {
            connector: Connector {
                guard: Some(Arc::new(guard)),
                lookup,
                patience: config.connect_timeout,
            },
            tls: Arc::new(tls(config.ca.as_ref())?),
            known_hosts: KnownHosts {
                path: config.known_hosts.clone(),
                unknown: config.unknown_hosts,
            },
            silence: config.silence_timeout,
            total: config.send_timeout,
            max_bytes: config.max_bytes,
        })
    }

    /// Stores `upload` at `target`, unless it is there already.
    ///
    /// # Errors
    /// Any other outcome. `Corrupt` when the server stored another number of bytes.
    pub async fn send(
        &self,
        target: &Target,
        protocol: Protocol,
        upload: &Upload<'_>,
    ) -> Result<Stored, DeliveryError> {
        let failed = |kind: Failure| SendError::of(target, kind);
        if upload.length > self.max_bytes {
            return Err(failed(Failure::TooLarge(upload.length)).into());
        }
        let end = Instant::now() + self.total;
        let sending = async {
            match protocol {
                Protocol::Ftp | Protocol::Ftps => {
                    let secure = (protocol == Protocol::Ftps).then_some(&self.tls);
                    let opening = ftp::open(&self.connector, target, secure, self.silence);
                    self.store(self.soon(opening).await?, target, upload).await
                }
                Protocol::Sftp => {
                    let opening = sftp::open(&self.connector, target, &self.known_hosts, self.silence);
                    self.store(self.soon(opening).await?, target, upload).await
                }
            }
        };
        let sent = tokio::time::timeout_at(end, sending).await;
        let kept = sent.unwrap_or(Err(Failure::TooSlow(self.total))).map_err(failed)?;
        match kept {
            Kept::Whole(stored) => Ok(stored),
            Kept::Other(size) => {
                let length = upload.length;
                let why = format!("{target} stored {size} bytes of {length}");
                Err(DeliveryError::Corrupt(why))
            }
        }
    }

    async fn store<F: Folder>(&self, mut folder: F, target: &Target, upload: &Upload<'_>) -> Result<Kept, Failure> {
        let stored = self.store_in(&mut folder, target, upload).await;
        let _ = tokio::time::timeout(FAREWELL, folder.close()).await;
        stored
    }

    async fn store_in<F: Folder>(&self, folder: &mut F, target: &Target, upload: &Upload<'_>) -> Result<Kept, Failure> {
        let names = Names::of(target.folder_and_file().1, upload);
        let stored = |name: &str, was_there| {
            Kept::Whole(Stored {
                to: target.beside(name),
                was_there,
                has_its_name: name == names.first,
            })
        };
        if let Place::Has(name) = self.place(folder, &names, upload).await? {
            return Ok(stored(name, true));
        }
        let sent = self.put(folder, &names.temporary, upload).await;
        let result = match sent {
            Err(failure) => Err(failure),
            Ok(size) if size != upload.length => Ok(Kept::Other(size)),
            // Meanwhile another worker may have been here.
            Ok(_) => match self.place(folder, &names, upload).await {
                Err(failure) => Err(failure),
                Ok(Place::Has(name)) => Ok(stored(name, true)),
                Ok(Place::Free(name)) => match self.soon(folder.rename(&names.temporary, name)).await {
                    Err(failure) => Err(failure),
                    Ok(()) => return Ok(stored(name, false)),
                },
            },
        };
        // What stays there after a lost connection is replaced by this worker's next attempt.
        let _ = tokio::time::timeout(FAREWELL, folder.remove(&names.temporary)).await;
        result
    }

    /// Where the audio is, or can be.
    async fn place<'a, F: Folder>(
        &self,
        folder: &mut F,
        names: &'a Names,
        upload: &Upload<'_>,
    ) -> Result<Place<'a>, Failure> {
        let Some(size) = self.soon(folder.size(&names.first)).await? else {
            return Ok(Place::Free(&names.first));
        };
        if size == upload.length && folder.sha256(&names.first).await?.as_ref() == Some(&upload.digests.sha256) {
            return Ok(Place::Has(&names.first));
        }
        match self.soon(folder.size(&names.second)).await? {
            None => Ok(Place::Free(&names.second)),
            // The name itself has a part of the digest, so a file that cannot be read is good as well.
            Some(size) if size == upload.length => match folder.sha256(&names.second).await? {
                Some(other) if other != upload.digests.sha256 => Err(taken()),
                _ => Ok(Place::Has(&names.second)),
            },
            Some(_) => Err(taken()),
        }
    }

    /// Writes the file. Returns its size there.
    async fn put<F: Folder>(&self, folder: &mut F, name: &str, upload: &Upload<'_>) -> Result<u64, Failure> {
        let source = |error: DeliveryError| match error {
            DeliveryError::Source(why) => Failure::Source(why),
            other => Failure::Source(Arc::from(other.to_string())),
        };
        let (watch, body) = Watch::over(upload.source.open().await.map_err(source)?, upload.length);
        let put = watch.patiently(self.silence, folder.put(name, body)).await;
        if let Some(why) = watch.failure() {
            return Err(Failure::Source(why));
        }
        put.map_err(Failure::Silent)??;
        let size = self.soon(folder.size(name)).await?;
        size.ok_or_else(|| Failure::Refuses {
            step: "the file",
            said: "it is not there after the transfer".into(),
        })
    }

    /// One exchange with the server, which must not be silent for too long.
    async fn soon<T>(&self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let done = tokio::time::timeout(self.silence, step).await;
        done.unwrap_or(Err(Failure::Silent(Silent(self.silence))))
    }
}

/// The SHA-256 of a file that is read to its end.
async fn hash(mut file: impl AsyncRead + Unpin, silence: Duration) -> Result<String, Failure> {
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 32 << 10]);
    loop {
        match tokio::time::timeout(silence, file.read(&mut buffer)).await {
            Ok(Ok(0)) => return Ok(hasher.finish().sha256),
            Ok(Ok(read)) => hasher.update(buffer.get(..read).unwrap_or_default()),
            Ok(Err(error)) => return Err(Failure::Lost(error.to_string())),
            Err(_) => return Err(Failure::Silent(Silent(silence))),
        }
    }
}

fn taken() -> Failure {
    Failure::Refuses {
        step: "the name",
        said: "other files have both names that the recording can have".into(),
    }
}

/// What became of the audio.
enum Kept {
    Whole(Stored),
    /// The server has another number of bytes.
    Other(u64),
}

/// Where the audio is, or can be.
enum Place<'a> {
    Has(&'a str),
    Free(&'a str),
}

/// The names that a recording's file can have.
struct Names {
    first: String,
    /// For the case that other content has the first one.
    second: String,
    temporary: String,
}

impl Names {
    fn of(file: &str, upload: &Upload<'_>) -> Self {
        let (stem, extension) = file.rsplit_once('.').unwrap_or((file, ""));
        let own = upload.digests.sha256.get(..DIGITS).unwrap_or_default();
        let writer = hex(digest(&SHA256, upload.writer.as_bytes()).as_ref());
        Self {
            first: file.to_owned(),
            second: format!("{stem}-{own}.{extension}"),
            temporary: format!("{file}.{}.part", writer.get(..DIGITS).unwrap_or_default()),
        }
    }
}
