//! A server of SSH with the file transfer, and nothing else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{Auth, ChannelOpenHandle, Msg, Response, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet, server};
use russh_sftp::protocol::{Attrs, Data, FileAttributes, Handle, OpenFlags, Status, StatusCode};
use tokio::net::TcpListener;

use super::{Disk, PASSWORD, Trouble, USER};

pub fn new_key() -> PrivateKey {
    let mut seed = [0; 32];
    fastrand::fill(&mut seed);
    PrivateKey::from(Ed25519Keypair::from_seed(&seed))
}

pub fn known_hosts_line(address: SocketAddr, key: &PrivateKey) -> String {
    let public = key.public_key().to_openssh().unwrap();
    format!("[{}]:{} {public}\n", address.ip(), address.port())
}

pub async fn serve(listener: TcpListener, disk: Arc<Disk>, key: PrivateKey) {
    let config = Arc::new(server::Config {
        keys: vec![key],
        auth_rejection_time: std::time::Duration::ZERO,
        methods: MethodSet::from(&[MethodKind::Password, MethodKind::KeyboardInteractive][..]),
        ..Default::default()
    });
    while let Ok((mut stream, _)) = listener.accept().await {
        let (config, disk) = (Arc::clone(&config), Arc::clone(&disk));
        tokio::spawn(async move {
            let ssh = Ssh {
                disk: Arc::clone(&disk),
                channels: HashMap::new(),
            };
            // The library keeps what it is given, so the connection itself must stay here to be cut.
            let (mut outside, inside) = tokio::io::duplex(64 << 10);
            let bytes = tokio::io::copy_bidirectional(&mut stream, &mut outside);
            let session = async {
                let running = server::run_stream(config, inside, ssh).await?;
                running.await
            };
            tokio::select! {
                _ = async { tokio::join!(bytes, session) } => {}
                () = disk.cut.notified() => {}
            }
        });
    }
}

struct Ssh {
    disk: Arc<Disk>,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl server::Handler for Ssh {
    type Error = anyhow::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        // A server may take the password by questions only.
        let good = user == USER && password == PASSWORD && self.disk.trouble() != Trouble::NoRead;
        Ok(if good { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let Some(mut answers) = response else {
            return Ok(Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![("Password: ".into(), false)].into(),
            });
        };
        let good = user == USER
            && answers
                .next()
                .is_some_and(|answer| answer.as_ref() == PASSWORD.as_bytes());
        Ok(if good { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        let Some(channel) = self.channels.remove(&id).filter(|_| name == "sftp") else {
            session.channel_failure(id)?;
            return Ok(());
        };
        session.channel_success(id)?;
        let sftp = Sftp(Arc::clone(&self.disk));
        russh_sftp::server::run(channel.into_stream(), sftp).await;
        Ok(())
    }
}

/// Handles are paths.
struct Sftp(Arc<Disk>);

impl Sftp {
    /// Ends the connection.
    async fn cut<T>(&self) -> T {
        self.0.cut.notify_one();
        std::future::pending().await
    }
}

fn fine(id: u32) -> Result<Status, StatusCode> {
    Ok(Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Ok".into(),
        language_tag: "en-US".into(),
    })
}

/// Relative paths are in the folder of the login.
fn whole(path: &str) -> String {
    match path {
        "." => "/home/rec".into(),
        path if path.starts_with('/') => path.into(),
        path => format!("/home/rec/{path}"),
    }
}

impl russh_sftp::server::Handler for Sftp {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn open(&mut self, id: u32, path: String, flags: OpenFlags, _: FileAttributes) -> Result<Handle, StatusCode> {
        let path = whole(&path);
        if flags.contains(OpenFlags::WRITE) {
            self.0.note("store", &path);
            self.0.put(&path, &[]);
        } else if self.0.trouble() == Trouble::NoRead {
            return Err(StatusCode::PermissionDenied);
        } else {
            self.0.note("read", &path);
        }
        Ok(Handle { id, handle: path })
    }

    async fn close(&mut self, id: u32, path: String) -> Result<Status, StatusCode> {
        if path.ends_with(".part") {
            self.0.closed(&path);
            self.0.race(&path);
        }
        fine(id)
    }

    async fn read(&mut self, id: u32, path: String, at: u64, length: u32) -> Result<Data, StatusCode> {
        let bytes = self.0.read(&path).ok_or(StatusCode::NoSuchFile)?;
        let from = usize::try_from(at).unwrap().min(bytes.len());
        let to = (from + length as usize).min(bytes.len());
        if from == to {
            return Err(StatusCode::Eof);
        }
        Ok(Data {
            id,
            data: bytes[from..to].to_vec(),
        })
    }

    async fn write(&mut self, id: u32, path: String, at: u64, bytes: Vec<u8>) -> Result<Status, StatusCode> {
        let at = usize::try_from(at).unwrap();
        if !self.0.write(&path, at, &bytes) {
            return Err(StatusCode::Failure);
        }
        match self.0.trouble() {
            Trouble::Cut(after) if at >= after => self.cut().await,
            Trouble::Silent(after) if at >= after => std::future::pending().await,
            _ => fine(id),
        }
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let path = whole(&path);
        let mut attrs = FileAttributes::empty();
        if Disk::is_folder(&path) {
            attrs.set_dir(true);
        } else {
            let bytes = self.0.read(&path).ok_or(StatusCode::NoSuchFile)?;
            attrs.size = Some(bytes.len() as u64);
            attrs.set_regular(true);
        }
        Ok(Attrs { id, attrs })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, StatusCode> {
        let (from, to) = (whole(&from), whole(&to));
        if self.0.read(&to).is_some() {
            return Err(StatusCode::Failure);
        }
        self.0.rename(&from, &to);
        if self.0.trouble() == Trouble::LostAnswer {
            return self.cut().await;
        }
        fine(id)
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, StatusCode> {
        self.0.note("remove", &path);
        let removed = self.0.files.lock().unwrap().remove(&whole(&path));
        if removed.is_none() {
            return Err(StatusCode::NoSuchFile);
        }
        fine(id)
    }
}
