//! The file transfer of SSH. The server's key must be in the known_hosts file, and the user logs in with the URL's password.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse as Asked};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::known_hosts::known_host_keys_path;
use russh::keys::ssh_key::{Algorithm, HashAlg, PublicKey};
use russh::{Disconnect, Preferred};
use russh_sftp::client::SftpSession;
use russh_sftp::client::error::Error;
use russh_sftp::protocol::{OpenFlags, StatusCode};
use tokio::io::AsyncWriteExt as _;
use url::Url;

use crate::config::UnknownHosts;
use crate::couch::ByteStream;

use super::super::connect::Connector;
use super::super::failure::Failure;
use super::super::said::words;
use super::super::target::{Protocol, Target};
use super::{Folder, hash};

/// Questions that a server may ask before it has the password: a second factor cannot be answered.
const QUESTIONS: usize = 3;

/// The keys of servers.
#[derive(Clone)]
pub(super) struct KnownHosts {
    /// In the form of OpenSSH. It is read at each connection.
    pub path: Option<PathBuf>,
    /// What to do with a server that the file does not name.
    pub unknown: UnknownHosts,
}

/// Judges the key of one server.
struct Judge {
    known: Vec<PublicKey>,
    unknown: UnknownHosts,
    refused: Arc<OnceLock<String>>,
}

/// A connection, and the folder of the URL.
pub(super) struct Sftp {
    ssh: Handle<Judge>,
    files: SftpSession,
    folder: String,
    silence: Duration,
    url: Url,
}

/// Connects, and logs in.
pub(super) async fn open(
    connector: &Connector,
    target: &Target,
    hosts: &KnownHosts,
    silence: Duration,
) -> Result<Sftp, Failure> {
    let url = target.expose();
    let Some((user, password)) = target.login() else {
        return Err(refuses("the login", "the URL has no user".into()));
    };
    let known = hosts.keys(url)?;
    let mut config = client::Config::default();
    // The server then shows the key that the file has, and not another of its keys. This build cannot check RSA.
    let of_file = |key: &&Algorithm| known.is_empty() || known.iter().any(|known| known.algorithm() == **key);
    let all = Preferred::DEFAULT
        .key
        .iter()
        .filter(|key| !matches!(key, Algorithm::Rsa { .. }))
        .filter(of_file);
    config.preferred.key = all.cloned().collect::<Vec<_>>().into();
    let refused = Arc::<OnceLock<String>>::default();
    let judge = Judge {
        known,
        unknown: hosts.unknown,
        refused: Arc::clone(&refused),
    };
    let stream = connector.connect(url, Protocol::Sftp.port()).await?;
    let connected = client::connect_stream(Arc::new(config), stream, judge).await;
    let mut ssh = connected.map_err(|error| match (refused.get(), &error) {
        (Some(why), _) => Failure::HostKey(why.clone()),
        (None, russh::Error::NoCommonAlgo { .. } | russh::Error::WrongServerSig) => Failure::HostKey(error.to_string()),
        _ => lost(&error),
    })?;
    log_in(&mut ssh, &user, &password).await?;
    let channel = ssh.channel_open_session().await.map_err(|error| lost(&error))?;
    let asked = channel.request_subsystem(true, "sftp").await;
    asked.map_err(|error| lost(&error))?;
    let config = russh_sftp::client::Config {
        request_timeout_secs: silence.as_secs().max(1),
        ..Default::default()
    };
    let files = SftpSession::new_with_config(channel.into_stream(), config).await;
    let files = files.map_err(|error| failure(&error, "SFTP", url))?;
    let (folder, _) = target.folder_and_file();
    let sftp = Sftp {
        ssh,
        files,
        folder,
        silence,
        url: url.clone(),
    };
    let place = if sftp.folder.is_empty() {
        "."
    } else {
        sftp.folder.as_str()
    };
    let found = sftp.files.metadata(place).await;
    if !sftp.told("the folder", found)?.is_dir() {
        return Err(refuses("the folder", "it is none".into()));
    }
    Ok(sftp)
}

async fn log_in(ssh: &mut Handle<Judge>, user: &str, password: &str) -> Result<(), Failure> {
    let answered = ssh.authenticate_password(user, password).await;
    let others = match answered.map_err(|error| lost(&error))? {
        AuthResult::Success => return Ok(()),
        AuthResult::Failure { remaining_methods, .. } => remaining_methods,
    };
    if others.contains(&russh::MethodKind::KeyboardInteractive) {
        let asked = ssh.authenticate_keyboard_interactive_start(user, None).await;
        let mut asked = asked.map_err(|error| lost(&error))?;
        for _ in 0..QUESTIONS {
            let Asked::InfoRequest { prompts, .. } = asked else {
                break;
            };
            let answers = prompts.iter().map(|_| password.to_owned()).collect();
            let answered = ssh.authenticate_keyboard_interactive_respond(answers).await;
            asked = answered.map_err(|error| lost(&error))?;
        }
        if matches!(asked, Asked::Success) {
            return Ok(());
        }
    }
    Err(refuses("the login", "user or password".into()))
}

fn lost(error: &russh::Error) -> Failure {
    Failure::Lost(error.to_string())
}

fn refuses(step: &'static str, said: String) -> Failure {
    Failure::Refuses { step, said }
}

fn failure(error: &Error, step: &'static str, url: &Url) -> Failure {
    match error {
        Error::Status(status) => refuses(step, words(&error_text(status.status_code, &status.error_message), url)),
        error => Failure::Lost(words(&error.to_string(), url)),
    }
}

fn error_text(code: StatusCode, said: &str) -> String {
    let code = code.to_string();
    if said.is_empty() || said.eq_ignore_ascii_case(&code) {
        return code;
    }
    format!("{code}: {said}")
}

impl KnownHosts {
    fn keys(&self, url: &Url) -> Result<Vec<PublicKey>, Failure> {
        let Some(path) = &self.path else {
            return Ok(Vec::new());
        };
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port().unwrap_or(Protocol::Sftp.port());
        // A small local file.
        let keys = known_host_keys_path(host, port, path);
        let keys = keys.map_err(|error| Failure::HostKey(format!("known_hosts cannot be read: {error}")))?;
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }
}

impl client::Handler for Judge {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            let _ = self.refused.set("it shows a certificate".into());
            return Ok(false);
        };
        let is_known = self.known.iter().any(|known| known.key_data() == key.key_data());
        if is_known || (self.known.is_empty() && self.unknown == UnknownHosts::Accept) {
            return Ok(true);
        }
        let print = format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        let why = if self.known.is_empty() {
            format!("destination.known_hosts_file does not name this host, whose key is {print}")
        } else {
            format!("destination.known_hosts_file has another key for this host than {print}")
        };
        let _ = self.refused.set(why);
        Ok(false)
    }
}

impl Sftp {
    fn path(&self, name: &str) -> String {
        match self.folder.as_str() {
            "" => name.to_owned(),
            folder => format!("{}/{name}", folder.trim_end_matches('/')),
        }
    }

    fn told<T>(&self, step: &'static str, result: Result<T, Error>) -> Result<T, Failure> {
        result.map_err(|error| failure(&error, step, &self.url))
    }

    /// A failed write has only the server's words.
    fn written(&self, result: std::io::Result<()>) -> Result<(), Failure> {
        result.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
            match inner {
                Some(inner) => failure(inner, "the file", &self.url),
                None => refuses("the file", words(&error.to_string(), &self.url)),
            }
        })
    }
}

impl Folder for Sftp {
    async fn size(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        match self.files.metadata(self.path(name)).await {
            Ok(found) => Ok(Some(found.len())),
            Err(Error::Status(status)) if status.status_code == StatusCode::NoSuchFile => Ok(None),
            Err(error) => self.told("the question for a file's size", Err(error)),
        }
    }

    async fn sha256(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.files.open(self.path(name)).await {
            Ok(file) => hash(file, self.silence).await.map(Some),
            Err(Error::Status(_)) => Ok(None),
            Err(error) => self.told("to read a file", Err(error)),
        }
    }

    async fn put(&mut self, name: &str, mut body: ByteStream) -> Result<(), Failure> {
        let new = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
        let opened = self.files.open_with_flags(self.path(name), new).await;
        let mut file = self.told("the file", opened)?;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Failure::Source(error.to_string().into()))?;
            self.written(file.write_all(&piece).await)?;
        }
        self.written(file.flush().await)?;
        self.written(file.shutdown().await)
    }

    /// Version 3 of the protocol, and OpenSSH, do not replace a file by that.
    async fn rename(&mut self, from: &str, to: &str) -> Result<(), Failure> {
        let renamed = self.files.rename(self.path(from), self.path(to)).await;
        self.told("the file's own name", renamed)
    }

    async fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let removed = self.files.remove_file(self.path(name)).await;
        self.told("to remove a file", removed)
    }

    async fn close(self) {
        let _ = self.files.close().await;
        let _ = self.ssh.disconnect(Disconnect::ByApplication, "", "").await;
    }
}
