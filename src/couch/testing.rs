//! A server for unit tests, whose answers the test chooses.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::config::{Config, Couchdb, Layers};

use super::Couch;

/// A request that the server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub method: String,
    /// Path and query, as sent.
    pub path: String,
    pub authorization: Option<String>,
    pub body: String,
}

pub(crate) type Log = Arc<Mutex<Vec<Asked>>>;

/// The answer of a node that has not yet received the list of databases from the other nodes.
pub(crate) fn no_database() -> (u16, Value) {
    let body = serde_json::json!({"error": "not_found", "reason": "Database does not exist."});
    (404, body)
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let (mut all, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |wanted: &str| {
                head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
                })
            };
            let length = header("content-length").map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                let mut first = head.split(' ').map(str::to_owned);
                return Some(Asked {
                    method: first.next()?,
                    path: first.next()?,
                    authorization: header("authorization"),
                    body: body.to_owned(),
                });
            }
        }
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => all.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// Serves `answer`, a status and a body. A text body is sent unchanged. Returns the address, and the log of requests.
pub(crate) async fn serve(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (log, answer) = (Log::default(), Arc::new(answer));
    let seen = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
            tokio::spawn(async move {
                let Some(asked) = read(&mut stream).await else { return };
                let (status, body) = answer(&asked);
                seen.lock().unwrap().push(asked);
                let (kind, body) = match body {
                    Value::String(text) => ("text/html", text),
                    other => ("application/json", other.to_string()),
                };
                let whole = format!(
                    "HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(whole.as_bytes()).await;
            });
        }
    });
    (address, log)
}

/// The settings of a worker that has its database at `url`.
pub(crate) fn config(url: &str) -> Couchdb {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let environment = [("KZ_RECORD_CALL__COUCHDB__URL".to_owned(), url.to_owned())];
    let layers = Layers::load(None, environment.into_iter()).unwrap();
    Config::of(layers).unwrap().couchdb
}

/// A client of such a server, without credentials.
pub(crate) async fn couch(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> (Couch, Log) {
    let (address, log) = serve(answer).await;
    (Couch::new(&config(&format!("http://{address}"))).unwrap(), log)
}
