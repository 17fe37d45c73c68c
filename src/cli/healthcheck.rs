//! `kz-record-call healthcheck`: asks the worker of this host for its health, at its admin port. Scripts of containers and load
//! balancers need no other client for that. It sends one request on a plain socket, within a time limit.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::config::Config;

use super::plugin::{Answer, Status};

/// What is asked, and the time limit.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Ask only whether the process is alive (/livez), not whether broker, database and spool are available (/readyz).
    ///
    /// Use this where a supervisor restarts unhealthy workers: a restart does not bring a database back.
    #[arg(long)]
    live: bool,
    /// Time limit for the answer, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// Answer as a monitoring plug-in: one line, and exit status 0 (OK), 1 (a target is paused), 2 (not ready, or no answer) or 3 (unknown).
    #[arg(long)]
    pub plugin: bool,
}

/// Longer than any answer of the admin port.
const MAX_ANSWER: u64 = 64 << 10;

/// Prints the worker's answer; `false` when that is not "in order".
pub fn healthcheck(config: &Config, args: &HealthcheckArgs) -> anyhow::Result<bool> {
    let (status, body) = ask(config, args)?;
    // The caller may have closed standard output. The exit status is what counts.
    let _ = std::io::stdout().lock().write_all(body.as_bytes());
    Ok(status == 200)
}

fn ask(config: &Config, args: &HealthcheckArgs) -> anyhow::Result<(u16, String)> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let address = reachable(config.admin.listen);
    get(address, path, Duration::from_secs(args.timeout))
        .with_context(|| format!("no answer from http://{address}{path}"))
}

/// The worker's answer, as the answer of a monitoring plug-in. A worker that does not answer does not work.
pub fn answer(config: &Config, args: &HealthcheckArgs) -> Answer {
    match ask(config, args) {
        Err(error) => Answer::new(Status::Critical, format!("{error:#}")),
        Ok((200, body)) => match paused(&body) {
            text if text.is_empty() => Answer::new(Status::Ok, if args.live { "alive" } else { "ready" }),
            text => Answer::new(Status::Warning, text),
        },
        Ok((_, body)) => {
            let wrong: Vec<&str> = body.lines().filter(|line| !line.ends_with(": ok")).collect();
            Answer::new(Status::Critical, wrong.join("; "))
        }
    }
}

/// Lines about targets whose circuit breaker is open: their recordings wait, and the worker is ready.
fn paused(body: &str) -> String {
    let lines: Vec<&str> = body.lines().filter(|line| line.starts_with("target ")).collect();
    lines.join("; ")
}

/// An address that reaches a listener from the same host: for a listener on all addresses, the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// One GET, from the connection to the last byte within `patience`.
fn get(address: SocketAddr, path: &str, patience: Duration) -> anyhow::Result<(u16, String)> {
    let deadline = Instant::now() + patience;
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_write_timeout(Some(patience))?;
    // HTTP/1.0: the answer has no chunks, and the connection ends with it.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer within {patience:?}");
        }
        stream.set_read_timeout(Some(left))?;
        match (&stream).take(MAX_ANSWER).read(&mut chunk)? {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
        if answer.len() as u64 > MAX_ANSWER {
            bail!("an answer of more than {MAX_ANSWER} bytes: check that admin.listen is a worker's admin port");
        }
    }
    parse(&answer).context("the answer is not HTTP: check that admin.listen is a worker's admin port")
}

/// The status and the body of an answer.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?;
    Some((status.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

    use super::*;
    use crate::config::Layers;

    /// A worker's admin port that answers `answer` once. The thread returns what was asked.
    fn admin(answer: &'static str) -> (Config, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap().to_string();
        let environment = [("KZ_RECORD_CALL__ADMIN__LISTEN".to_owned(), listen)];
        let config = Config::of(Layers::load(None, environment.into_iter()).unwrap()).unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            lines
                .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
                .count();
            stream.write_all(answer.as_bytes()).unwrap();
            first
        });
        (config, asked)
    }

    fn args(live: bool) -> HealthcheckArgs {
        HealthcheckArgs {
            live,
            timeout: 5,
            plugin: false,
        }
    }

    #[test]
    fn a_plug_in_tells_ready_and_paused_and_unready_and_silent_workers_apart() {
        let answer = |answer: &'static str| {
            let (config, asked) = admin(answer);
            let given = super::answer(&config, &args(false));
            asked.join().unwrap();
            // The listener is closed now.
            let silent = super::answer(&config, &args(false));
            assert_eq!(silent.status, Status::Critical);
            assert!(silent.text.contains("no answer from"), "{}", silent.text);
            (given.status, given.text)
        };
        assert_eq!(
            answer("HTTP/1.0 200 OK\r\n\r\nconsuming: ok\n"),
            (Status::Ok, "ready".into())
        );
        assert_eq!(
            answer("HTTP/1.0 200 OK\r\n\r\nconsuming: ok\ntarget h: paused: 503\n"),
            (Status::Warning, "target h: paused: 503".into())
        );
        assert_eq!(
            answer("HTTP/1.0 503 Service Unavailable\r\n\r\nconsuming: ok\ndatabase: no answer\n"),
            (Status::Critical, "database: no answer".into())
        );
    }

    #[test]
    fn a_worker_that_is_ready_is_healthy() {
        let (config, asked) = admin("HTTP/1.0 200 OK\r\ncontent-length: 15\r\n\r\nconsuming: ok\n");
        assert!(healthcheck(&config, &args(false)).unwrap());
        assert_eq!(asked.join().unwrap(), "GET /readyz HTTP/1.0");
    }

    #[test]
    fn a_worker_that_lacks_something_is_not_but_is_alive() {
        let (config, _asked) = admin("HTTP/1.0 503 Service Unavailable\r\n\r\ndatabase: no answer\n");
        assert!(!healthcheck(&config, &args(false)).unwrap());
        let (config, asked) = admin("HTTP/1.1 200 OK\r\n\r\nalive\n");
        assert!(healthcheck(&config, &args(true)).unwrap());
        assert_eq!(asked.join().unwrap(), "GET /livez HTTP/1.0");
    }

    #[test]
    fn nobody_and_strangers_and_silence_are_told_as_such() {
        let (config, asked) = admin("220 mail.example.com ESMTP\r\n");
        let told = format!("{:#}", healthcheck(&config, &args(false)).unwrap_err());
        assert!(told.contains("not HTTP"), "{told}");
        asked.join().unwrap();
        let told = format!("{:#}", healthcheck(&config, &args(false)).unwrap_err());
        assert!(told.contains("no answer from"), "{told}");
        // The listener accepts the connection, and answers nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let began = Instant::now();
        assert!(get(silent.local_addr().unwrap(), "/livez", Duration::from_millis(50)).is_err());
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_at_the_loopback_one() {
        for (listen, asked) in [
            ("0.0.0.0:24531", "127.0.0.1:24531"),
            ("[::]:24531", "[::1]:24531"),
            ("10.1.2.3:24531", "10.1.2.3:24531"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
