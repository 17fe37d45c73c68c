//! A TCP proxy that can be told to break.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are closed at once, those that are open too.
    Refuse,
    /// Connections are taken, and nothing is ever said.
    Hang,
}

pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `target`.
    pub async fn start(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (mode, watching) = watch::channel(Mode::Pass);
        let target = target.to_owned();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, target.clone(), watching.clone()));
            }
        });
        Ok(Self { port, mode })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(mut stream: TcpStream, target: String, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow_and_update();
    match now {
        Mode::Refuse => {}
        Mode::Hang => {
            // Held open until something else is wanted.
            changed(&mut mode, Mode::Hang).await;
        }
        Mode::Pass => {
            let Ok(mut onward) = TcpStream::connect(&target).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut stream, &mut onward) => {}
                () = changed(&mut mode, Mode::Pass) => {}
            }
            // Those that are open hang too.
            if *mode.borrow() == Mode::Hang {
                changed(&mut mode, Mode::Hang).await;
            }
        }
    }
}

async fn changed(mode: &mut watch::Receiver<Mode>, from: Mode) {
    let _ = mode.wait_for(|mode| *mode != from).await;
}
