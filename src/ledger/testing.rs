//! A test database. The test chooses its answers, and can read its requests.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::config::{Config, Couchdb, Layers};
use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::lifecycle::Policy;
use crate::recording::identity::Key;

use super::record::Record;

/// The policy of the default configuration.
pub fn policy() -> Policy {
    let config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
    Policy::of(&config, "w".into())
}

/// First lines and bodies of the received requests.
pub type Log = Arc<Mutex<Vec<(String, String)>>>;

async fn read(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut all, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some((head.lines().next()?.to_owned(), body.to_owned()));
            }
        }
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => all.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// Answers by a request's first line and body, with a status and JSON.
pub async fn server(answer: impl Fn(&str, &str) -> (&'static str, Value) + Send + Sync + 'static) -> (Couch, Log) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::of(Layers::load(None, std::iter::empty()).unwrap())
        .unwrap()
        .couchdb;
    let couch = Couch::new(&Couchdb {
        url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
        ..config
    });
    let (log, answer) = (Log::default(), Arc::new(answer));
    let seen = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
            tokio::spawn(async move {
                let Some((first, body)) = read(&mut stream).await else {
                    return;
                };
                let (status, answer) = answer(&first, &body);
                seen.lock().unwrap().push((first, body));
                let text = answer.to_string();
                let whole = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
                let _ = stream.write_all(whole.as_bytes()).await;
            });
        }
    });
    (couch.unwrap(), log)
}

/// The answer to requests that neither write nor read entries: design documents, databases, the greeting.
pub fn welcome() -> (&'static str, Value) {
    let ok = json!({"ok": true, "id": "x", "rev": "1-a", "couchdb": "Welcome", "version": "3.3.3", "uuid": "u", "vendor": {"name": "v"}, "features": []});
    ("200 OK", ok)
}

/// An answer of `_all_docs` with one document.
pub fn found(document: &Value) -> (&'static str, Value) {
    let row =
        json!({"id": document["_id"], "key": document["_id"], "value": {"rev": document["_rev"]}, "doc": document});
    ("200 OK", json!({"rows": [row]}))
}

pub fn entry(action: &str, at: i64, whats: &[What]) -> Entry {
    let mut entry = Entry::new(Key::of("call", action), "call");
    for what in whats {
        let (at, what) = (Moment::from_unix_seconds(at), what.clone());
        entry.add(Fact {
            at,
            by: "w".into(),
            what,
        });
    }
    entry
}

/// An entry of November 2026, as the ledger stores it.
pub fn document(whats: &[What], rev: &str) -> Value {
    let entry = entry("action", 1_795_386_262, whats);
    let id = super::address(&entry).id();
    let rev = Some(rev.to_owned());
    let record = Record {
        entry,
        lease: None,
        rev,
    };
    record.document(&id, Some(Moment::from_unix_seconds(1_795_386_300)))
}
