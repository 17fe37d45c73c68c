//! A server of FTP. It tells a wrong address for its data connections: a client must not follow it.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Disk, PASSWORD, Trouble, USER};

/// Whether the server speaks TLS, and since when.
#[derive(Clone)]
pub enum Tls {
    None,
    /// After AUTH TLS, which it demands.
    Explicit(TlsAcceptor),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
type Control = BufReader<Box<dyn Stream>>;

pub async fn serve(listener: TcpListener, disk: Arc<Disk>, tls: Tls) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut session = Session {
            disk: Arc::clone(&disk),
            tls: tls.clone(),
            is_secure: false,
            user: String::new(),
            is_in: false,
            folder: "/home/rec".into(),
            data: None,
            from: String::new(),
        };
        tokio::spawn(async move {
            let _ = session.run(stream).await;
        });
    }
}

struct Session {
    disk: Arc<Disk>,
    tls: Tls,
    is_secure: bool,
    user: String,
    is_in: bool,
    folder: String,
    data: Option<TcpListener>,
    from: String,
}

/// The connection ends without another answer.
struct Gone;

async fn say(control: &mut Control, line: &str) -> std::io::Result<()> {
    control.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
    control.get_mut().flush().await
}

impl Session {
    async fn run(&mut self, stream: TcpStream) -> std::io::Result<()> {
        let mut control: Control = BufReader::new(Box::new(stream));
        say(&mut control, "220-Hello\r\n220 there").await?;
        let mut line = String::new();
        loop {
            line.clear();
            if control.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end_matches(['\r', '\n']);
            let (verb, value) = line.split_once(' ').unwrap_or((line, ""));
            if let (Tls::Explicit(acceptor), "AUTH") = (&self.tls, verb) {
                say(&mut control, "234 now").await?;
                let secure = acceptor.accept(control.into_inner()).await?;
                control = BufReader::new(Box::new(secure));
                self.is_secure = true;
                continue;
            }
            match self.answer(verb, value, &mut control).await? {
                Ok(answer) => say(&mut control, &answer).await?,
                Err(Gone) => return Ok(()),
            }
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.trim_end_matches('/'))
    }

    async fn answer(
        &mut self,
        verb: &str,
        value: &str,
        control: &mut Control,
    ) -> std::io::Result<Result<String, Gone>> {
        let demands = matches!(self.tls, Tls::Explicit(_)) && !self.is_secure;
        Ok(Ok(match verb {
            "USER" if demands => "530 use AUTH TLS".into(),
            "USER" => {
                value.clone_into(&mut self.user);
                "331 and the password?".into()
            }
            "PASS" if self.user == USER && value == PASSWORD => {
                self.is_in = true;
                "230 in".into()
            }
            "PASS" => format!("530 Login incorrect for {} with {value}.", self.user),
            "PBSZ" | "PROT" => "200 so be it".into(),
            "QUIT" => "221 bye".into(),
            _ if !self.is_in => "530 log in first".into(),
            "TYPE" if value == "I" => "200 binary".into(),
            "CWD" if Disk::is_folder(value) => {
                value.clone_into(&mut self.folder);
                "250 there".into()
            }
            "CWD" => "550 No such directory.".into(),
            "PASV" => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let port = listener.local_addr()?.port();
                self.data = Some(listener);
                format!("227 Entering Passive Mode (127,9,8,7,{},{})", port / 256, port % 256)
            }
            "SIZE" => match self.disk.read(&self.path(value)) {
                Some(bytes) => format!("213 {}", bytes.len()),
                None => "550 No such file.".into(),
            },
            "DELE" => {
                self.disk.note("remove", value);
                let removed = self.disk.files.lock().unwrap().remove(&self.path(value));
                if removed.is_some() {
                    "250 gone"
                } else {
                    "550 No such file."
                }
                .into()
            }
            "RNFR" => {
                self.from = self.path(value);
                "350 to what?".into()
            }
            "RNTO" => {
                self.disk.rename(&self.from, &self.path(value));
                if self.disk.trouble() == Trouble::LostAnswer {
                    return Ok(Err(Gone));
                }
                "250 renamed".into()
            }
            "RETR" if self.disk.trouble() == Trouble::NoRead => "550 Permission denied.".into(),
            "RETR" => {
                let bytes = self.disk.read(&self.path(value)).unwrap_or_default();
                self.disk.note("read", value);
                let mut data = self.data(control).await?;
                data.write_all(&bytes).await?;
                data.shutdown().await?;
                "226 that was it".into()
            }
            "STOR" => return self.store(value, control).await,
            _ => "502 not here".into(),
        }))
    }

    async fn data(&mut self, control: &mut Control) -> std::io::Result<Box<dyn Stream>> {
        let listener = self.data.take().ok_or(std::io::ErrorKind::NotConnected)?;
        let (stream, _) = listener.accept().await?;
        say(control, "150 go on").await?;
        Ok(match &self.tls {
            Tls::Explicit(acceptor) => Box::new(acceptor.accept(stream).await?),
            Tls::None => Box::new(stream),
        })
    }

    async fn store(&mut self, name: &str, control: &mut Control) -> std::io::Result<Result<String, Gone>> {
        let path = self.path(name);
        self.disk.note("store", &path);
        let mut data = self.data(control).await?;
        self.disk.put(&path, &[]);
        let (mut at, mut buffer) = (0, vec![0; 32 << 10]);
        loop {
            let read = data.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            if !self.disk.write(&path, at, &buffer[..read]) {
                drop(data);
                return Ok(Ok("552 No space left on device.".into()));
            }
            at += read;
            match self.disk.trouble() {
                Trouble::Cut(after) if at >= after => return Ok(Err(Gone)),
                Trouble::Silent(after) if at >= after => return std::future::pending().await,
                _ => {}
            }
        }
        self.disk.closed(&path);
        self.disk.race(&path);
        Ok(Ok("226 thanks".into()))
    }
}
