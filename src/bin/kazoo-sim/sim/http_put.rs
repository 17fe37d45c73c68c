//! A small HTTP/1.1 client that behaves as libcurl does for `kz_http_put`, and, when told to, as a broken network does.

use std::{fmt, io, path::Path, time::Duration};

use tokio::{
    fs::File,
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use url::Url;

use super::options::UploadFault;

/// libcurl asks before it sends anything, and waits so long for the answer.
const PATIENCE_FOR_CONTINUE: Duration = Duration::from_secs(1);
const MOST_REDIRECTS: usize = 10;
const CHUNK: usize = 1 << 16;

pub struct Put<'a> {
    pub url: &'a str,
    pub file: &'a Path,
    pub total: u64,
    pub content_type: &'a str,
    pub bandwidth: Option<u64>,
    pub fault: UploadFault,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers as they came.
    pub headers: Vec<String>,
    location: Option<String>,
}

#[derive(Debug)]
pub enum Failure {
    /// Not an address that this client can speak to.
    Url(String),
    Io(io::Error),
    /// The fault that was asked for has happened.
    Broken(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(why) => write!(f, "bad address: {why}"),
            Self::Io(e) => write!(f, "{e}"),
            Self::Broken(how) => write!(f, "fault: {how}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// Uploads. The status alone decides, whenever it comes: a redirect by 303 is followed by a GET, other redirects by another upload. `progress`
/// hears the bytes of the body sent so far.
pub async fn put(put: &Put<'_>, progress: impl Fn(u64)) -> Result<Answer, Failure> {
    let mut url = Url::parse(put.url).map_err(|e| Failure::Url(e.to_string()))?;
    let mut uploads = true;
    for _ in 0..=MOST_REDIRECTS {
        let answer = once(put, &url, uploads, &progress).await?;
        match (&answer.location, answer.status) {
            (Some(to), 301..=303 | 307 | 308) => {
                uploads &= answer.status != 303;
                url = url.join(to).map_err(|e| Failure::Url(e.to_string()))?;
            }
            _ => return Ok(answer),
        }
    }
    Err(Failure::Url("too many redirects".into()))
}

async fn once(put: &Put<'_>, url: &Url, uploads: bool, progress: &impl Fn(u64)) -> Result<Answer, Failure> {
    if url.scheme() != "http" {
        return Err(Failure::Url(format!("{} is not spoken here", url.scheme())));
    }
    let host = url.host_str().ok_or_else(|| Failure::Url("no host".into()))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    write.write_all(head(put, url, host, uploads).as_bytes()).await?;
    let continues = Notify::new();
    let reading = final_response(&mut read, &continues);
    tokio::pin!(reading);
    if !uploads {
        return Ok(reading.await?);
    }
    if put.total > 0 {
        tokio::select! {
            came = &mut reading => return Ok(came?),
            () = continues.notified() => {}
            () = sleep(PATIENCE_FOR_CONTINUE) => {}
        }
    }
    let sent = tokio::select! {
        // Nothing more is sent then.
        came = &mut reading => return Ok(came?),
        sent = body(put, &mut write, progress) => sent,
    };
    match sent {
        Ok(()) => Ok(reading.await?),
        // The other side may have closed after it said why.
        Err(Failure::Io(e)) => match timeout(Duration::from_millis(200), reading).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(Failure::Io(e)),
        },
        Err(broken) => Err(broken),
    }
}

fn head(put: &Put<'_>, url: &Url, host: &str, uploads: bool) -> String {
    let promised = match put.fault {
        UploadFault::PromiseMore(n) => put.total + n,
        UploadFault::PromiseLess(n) => put.total.saturating_sub(n),
        _ => put.total,
    };
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    let verb = if uploads { "PUT" } else { "GET" };
    let mut head =
        format!("{verb} {path} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: freeswitch-kazoo/1.0\r\nAccept: */*\r\n");
    if uploads {
        let of = put.content_type;
        head.push_str(&format!("Content-Type: {of}\r\nContent-Length: {promised}\r\n"));
    }
    if !url.username().is_empty() {
        use base64::Engine as _;
        let pair = format!("{}:{}", url.username(), url.password().unwrap_or_default());
        let pair = base64::engine::general_purpose::STANDARD.encode(pair);
        head.push_str(&format!("Authorization: Basic {pair}\r\n"));
    }
    if uploads && put.total > 0 {
        head.push_str("Expect: 100-continue\r\n");
    }
    head.push_str("\r\n");
    head
}

/// Streams the file, at the asked pace and with the asked fault.
async fn body(put: &Put<'_>, write: &mut OwnedWriteHalf, progress: &impl Fn(u64)) -> Result<(), Failure> {
    let mut file = File::open(put.file).await?;
    let mut buffer = vec![0; CHUNK];
    let (mut sent, started) = (0_u64, Instant::now());
    // At most twenty steps a second when the pace is limited.
    let step = put
        .bandwidth
        .map_or(CHUNK, |b| usize::try_from(b / 20).unwrap_or(CHUNK).clamp(1, CHUNK));
    loop {
        let allowed = match put.fault {
            UploadFault::CutAfter(n) if sent >= n => return Err(Failure::Broken("the connection was cut")),
            UploadFault::StallAfter(n, pause) if sent >= n => {
                sleep(pause).await;
                return Err(Failure::Broken("the upload stalled"));
            }
            UploadFault::CutAfter(n) | UploadFault::StallAfter(n, _) => usize::try_from(n - sent).unwrap_or(step),
            _ => step,
        };
        // What grows meanwhile is not sent: the length has been promised.
        let left = usize::try_from(put.total - sent).unwrap_or(step);
        let n = file.read(&mut buffer[..step.min(allowed).min(left)]).await?;
        if n == 0 {
            break;
        }
        write.write_all(&buffer[..n]).await?;
        sent += n as u64;
        progress(sent);
        if let Some(bandwidth) = put.bandwidth {
            sleep_until(started + Duration::from_secs_f64(sent as f64 / bandwidth.max(1) as f64)).await;
        }
    }
    write.flush().await?;
    match put.fault {
        _ if sent < put.total => Err(Failure::Broken("the file became shorter")),
        UploadFault::PromiseMore(_) => Err(Failure::Broken("fewer bytes than promised")),
        _ => Ok(()),
    }
}

/// The first response that is not informational.
async fn final_response(read: &mut BufReader<OwnedReadHalf>, continues: &Notify) -> io::Result<Answer> {
    let mut before = Vec::new();
    loop {
        let mut answer = response(read).await?;
        if answer.status >= 200 {
            answer.headers.splice(0..0, before);
            return Ok(answer);
        }
        before.append(&mut answer.headers);
        continues.notify_one();
    }
}

/// Status line and headers; a body is left unread, the connection is not used again.
async fn response(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Answer> {
    let mut answer = Answer {
        status: 0,
        headers: Vec::new(),
        location: None,
    };
    loop {
        let mut line = String::new();
        if read.read_line(&mut line).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(answer);
        }
        if answer.headers.is_empty() {
            let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
            answer.status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not HTTP"))?;
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("location")
        {
            answer.location = Some(value.trim().to_owned());
        }
        answer.headers.push(line.to_owned());
    }
}
