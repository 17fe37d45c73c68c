//! How audio arrives: the upload port and its advertised URL. Also the worker that runs on this host already.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, lookup_host};
use tokio::task::JoinHandle;
use url::{Host, Url};

use crate::config::{Config, TlsFault, without_credentials};
use crate::ingest::{Certificate, advertised};

use super::report::Rows;
use super::{disk, switch};

const LIMIT: Duration = Duration::from_secs(5);

/// What a worker's upload port answers to a GET, and the path that is asked for.
const PLACE: &str = "recordings/check";
const WORKER_SAYS: &str = "only PUT is served here";

pub async fn look(config: &Config) -> Vec<Rows> {
    let mut rows = Rows::of("worker");
    let runs = worker(&mut rows, config).await;
    let mut uploads = Rows::of("uploads");
    port(&mut uploads, config).await;
    vec![rows, uploads, disk::look(config, runs).await]
}

/// Whether a worker runs on this host, according to its admin port.
async fn worker(rows: &mut Rows, config: &Config) -> bool {
    const NAME: &str = "on this host";
    let address = config.admin.listen;
    if address.port() == 0 {
        rows.note(NAME, "not checked: admin.listen has no port");
        return false;
    }
    let asked = async {
        let url = format!("http://{}/readyz", near(address));
        let answer = client()?.get(url).send().await?;
        let ready = answer.status().is_success();
        Ok::<_, reqwest::Error>((ready, beginning(answer).await?))
    };
    match asked.await {
        Ok((true, _)) => rows.good(NAME, format!("a worker runs and is ready ({address})")),
        Ok((false, text)) if text.contains("consuming:") => {
            let faults: Vec<&str> = text.lines().filter(|line| !line.ends_with(": ok")).collect();
            rows.warn(
                NAME,
                format!("a worker runs and is not ready: {}", faults.join("; ")),
                "correct the failures of broker and database, and read the worker's log",
            );
        }
        Ok(_) => {
            rows.fail(
                NAME,
                format!("another program answers at admin.listen, {address}"),
                "set another port in admin.listen",
            );
            return false;
        }
        Err(_) => {
            rows.note(NAME, format!("no worker runs (no answer at {address})"));
            return false;
        }
    }
    true
}

/// The upload port: a worker serves it, or it is free. Also whether the advertised URL leads there.
async fn port(rows: &mut Rows, config: &Config) {
    let (listen, secure) = (config.ingest.listen, config.ingest.tls.is_some());
    // The stand-in serves as long as its URL is tested.
    let mut stand_in = None;
    let port = match TcpListener::bind(listen).await {
        Ok(listener) => {
            let port = listener.local_addr().map_or(listen.port(), |address| address.port());
            match StandIn::serve(listener, config) {
                Ok(serving) => stand_in = Some(serving),
                Err(error) => return rows.fail("certificate", error.to_string(), "check ingest.tls_certificate"),
            }
            rows.good("port", format!("{listen} is free for a worker"));
            port
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let scheme = if secure { "https" } else { "http" };
            let url = Url::parse(&format!("{scheme}://{}/", near(listen)));
            match url {
                Ok(url) if ask(&url).await.is_ok_and(|said| said.contains(WORKER_SAYS)) => {
                    rows.good("port", format!("{listen} is used by the running worker"));
                }
                _ => rows.fail(
                    "port",
                    format!("{listen} is in use by another program, or by a worker with other settings"),
                    "set another port in ingest.listen, or stop that program (`ss -ltnp` shows it)",
                ),
            }
            listen.port()
        }
        Err(error) => {
            return rows.fail(
                "port",
                format!("{listen} cannot be listened on: {error}"),
                "set ingest.listen to an address of this host, and a port that this user may use",
            );
        }
    };
    match advertised(&config.ingest, &config.kazoo.host, port) {
        Ok(url) => leads_here(rows, &url, stand_in.as_ref()).await,
        Err(why) => rows.fail("advertised URL", why, "set ingest.advertised_url"),
    }
}

/// Whether switches can reach the advertised URL, as far as this host can check.
async fn leads_here(rows: &mut Rows, url: &Url, stand_in: Option<&StandIn>) {
    let name = "advertised URL";
    let (asked, host) = (url, url.host_str().unwrap_or_default().to_owned());
    let url = without_credentials(asked.as_str());
    let addresses = match resolve(asked).await {
        Ok(addresses) => addresses,
        Err(why) => {
            return rows.fail(
                name,
                format!("{url}: {host} does not resolve ({why})"),
                "set ingest.advertised_url to a name or address of this host that all media switches resolve",
            );
        }
    };
    if addresses.iter().any(IpAddr::is_unspecified) {
        return rows.fail(
            name,
            format!("{url} is not an address that a switch can connect to"),
            "set ingest.advertised_url to a name or address of this host that all media switches resolve",
        );
    }
    let answered = ask(asked).await;
    let expected = stand_in.map_or(WORKER_SAYS, |serving| serving.says.as_str());
    match answered {
        Ok(said) if said.contains(expected) => {}
        Ok(_) => {
            return rows.fail(
                name,
                format!("{url} reaches another server than this worker"),
                "check ingest.advertised_url, and the proxy between: it must forward path and PUT",
            );
        }
        Err(why) => {
            return rows.fail(
                name,
                format!("{url} cannot be reached from here: {why}"),
                "check host and port in ingest.advertised_url, the firewall, and ingest.listen",
            );
        }
    }
    if addresses.iter().all(IpAddr::is_loopback) {
        rows.warn(
            name,
            format!("{url} is a loopback address: only switches on this host reach it"),
            "set ingest.advertised_url to a name or address that all media switches reach",
        );
    } else {
        rows.good(
            name,
            format!("{url} reaches this worker from this host; not checked from the switches"),
        );
    }
}

async fn resolve(url: &Url) -> Result<Vec<IpAddr>, String> {
    let port = url.port_or_known_default().unwrap_or(80);
    let name = match url.host() {
        Some(Host::Ipv4(address)) => return Ok(vec![address.into()]),
        Some(Host::Ipv6(address)) => return Ok(vec![address.into()]),
        Some(Host::Domain(name)) => name.to_owned(),
        None => return Err("no host".to_owned()),
    };
    match tokio::time::timeout(LIMIT, lookup_host((name, port))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

/// The beginning of a server's answer. The server may belong to a stranger, so the rest is not read.
async fn beginning(mut answer: reqwest::Response) -> reqwest::Result<String> {
    const READ_AT_MOST: usize = 64 << 10;
    let mut read = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        read.extend_from_slice(&piece);
        if read.len() > READ_AT_MOST {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// What the upload port behind a URL answers to a GET, requested as a switch does.
async fn ask(base: &Url) -> Result<String, String> {
    let place = format!("{}/{PLACE}", base.as_str().trim_end_matches('/'));
    let asked = async { beginning(client()?.get(&place).send().await?).await };
    asked.await.map_err(|error: reqwest::Error| match TlsFault::of(&error) {
        Some(TlsFault::Certificate(why)) => {
            format!("the certificate is not for that host ({why}): correct ingest.tls_certificate")
        }
        Some(fault) => fault.words("ingest.tls_certificate"),
        None => words(&error),
    })
}

/// An error without its URL, with its innermost cause.
fn words(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if error.is_timeout() {
        format!("no answer within {} s", LIMIT.as_secs())
    } else {
        cause.to_string()
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .timeout(LIMIT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    match switch::tls() {
        Ok(tls) => client.tls_backend_preconfigured(tls).build(),
        Err(_) => client.build(),
    }
}

/// An address to connect to, for an address to listen on.
fn near(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Stands in for a worker at its port, and answers a word that no other server knows. It takes no audio.
struct StandIn {
    says: String,
    serving: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl StandIn {
    fn serve(listener: TcpListener, config: &Config) -> std::io::Result<Self> {
        let acceptor = match &config.ingest.tls {
            Some(files) => Some(Certificate::open(files).map_err(std::io::Error::other)?.acceptor()?),
            None => None,
        };
        let says = format!("check {}", uuid::Uuid::new_v4().simple());
        let word = says.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, word) = (acceptor.clone(), word.clone());
                tokio::spawn(tokio::time::timeout(LIMIT, async move {
                    match acceptor {
                        Some(acceptor) => answer(acceptor.accept(stream).await?, &word).await,
                        None => answer(stream, &word).await,
                    }
                }));
            }
        });
        Ok(Self { says, serving })
    }
}

/// Answers 503 to every request: a switch that happens to upload keeps its file.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, word: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 16_384 {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{word}",
        word.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connects_to_what_listens_everywhere_by_the_loopback() {
        let to = |listen: &str| near(listen.parse().unwrap()).to_string();
        assert_eq!(to("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(to("[::]:1"), "[::1]:1");
        assert_eq!(to("10.0.0.1:1"), "10.0.0.1:1");
    }
}
