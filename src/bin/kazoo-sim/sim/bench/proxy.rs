//! A TCP proxy between a worker and its database, which can be closed.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use url::Url;

/// The proxy, until it is dropped.
pub struct Proxy {
    /// The URL of the server behind the proxy.
    pub url: String,
    open: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start(server: &str) -> anyhow::Result<Self> {
        let mut url = Url::parse(server)?;
        let host = url.host_str().unwrap_or("127.0.0.1").to_owned();
        let target = format!("{host}:{}", url.port_or_known_default().unwrap_or(5984));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let _ = (url.set_host(Some("127.0.0.1")), url.set_port(Some(port)));
        let (open, watching) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, target.clone(), watching.clone()));
            }
        });
        Ok(Self {
            url: url.to_string(),
            open,
        })
    }

    /// A closed proxy ends all connections, and each new one at once.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

async fn pass(mut stream: TcpStream, target: String, mut open: watch::Receiver<bool>) {
    if !*open.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(&target).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut stream, &mut server) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
