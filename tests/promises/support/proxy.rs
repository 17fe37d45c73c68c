//! A TCP proxy that can be told to break.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are closed at once, those that are open too.
    Refuse,
    /// Connections are taken, and nothing is ever said.
    Hang,
    /// Connections are closed after so many bytes from the client.
    After(u64),
}

pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    target: Arc<Mutex<String>>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `target`.
    pub async fn start(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (mode, watching) = watch::channel(Mode::Pass);
        let target = Arc::new(Mutex::new(target.to_owned()));
        let current = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let target = current.lock().unwrap().clone();
                tokio::spawn(serve(stream, target, watching.clone()));
            }
        });
        Ok(Self { port, mode, target })
    }

    /// The target is somewhere else from now on.
    pub fn retarget(&self, target: &str) {
        target.clone_into(&mut self.target.lock().unwrap());
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
        Mode::Pass | Mode::After(_) => {
            let Ok(mut onward) = TcpStream::connect(&target).await else {
                return;
            };
            tokio::select! {
                () = pass(&mut stream, &mut onward, now) => {}
                () = changed(&mut mode, now) => {}
            }
            // Those that are open hang too.
            if *mode.borrow() == Mode::Hang {
                changed(&mut mode, Mode::Hang).await;
            }
        }
    }
}

/// Until one of the two has closed, or the client has said all that it may.
async fn pass(stream: &mut TcpStream, onward: &mut TcpStream, mode: Mode) {
    let Mode::After(bytes) = mode else {
        let _ = copy_bidirectional(stream, onward).await;
        return;
    };
    let ((from, mut to), (mut there, mut back)) = (stream.split(), onward.split());
    let mut said = from.take(bytes);
    tokio::select! {
        _ = copy(&mut said, &mut back) => {}
        _ = copy(&mut there, &mut to) => {}
    }
}

async fn changed(mode: &mut watch::Receiver<Mode>, from: Mode) {
    let _ = mode.wait_for(|mode| *mode != from).await;
}
