use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::config::{Config, Couchdb, Layers};
use crate::couch::Couch;
use crate::entry::fact::What;
use crate::kazoo::time::Clock;
use crate::ledger::testing::{self, Log, document, found, server, welcome};
use crate::recording::identity::Key;

use super::settle::is_too_large;
use super::*;

/// Reads one request, and returns whether it writes entries.
async fn is_write(stream: &mut TcpStream) -> bool {
    let (mut head, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let text = String::from_utf8_lossy(&head).into_owned();
        if let Some((first, body)) = text.split_once("\r\n\r\n") {
            let length = first.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return first.lines().next().is_some_and(|line| line.contains("/_bulk_docs"));
            }
        }
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
            _ => return false,
        }
    }
}

/// A database that answers everything, but refuses entries, and sends the refusal only after it counts as down.
async fn refuse_late(listener: TcpListener, up: watch::Receiver<bool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut up = up.clone();
        tokio::spawn(async move {
            let (status, body) = if is_write(&mut stream).await {
                let _ = up.wait_for(|up| !up).await;
                ("400 Bad Request", r#"{"error":"bad_request","reason":"no"}"#)
            } else {
                (
                    "200 OK",
                    r#"{"ok":true,"couchdb":"Welcome","version":"3.3.3","uuid":"u","vendor":{"name":"v"},"features":[]}"#,
                )
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

async fn writer() -> (Writer, mpsc::Sender<Note>, watch::Receiver<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::of(Layers::load(None, std::iter::empty()).unwrap())
        .unwrap()
        .couchdb;
    let couch = Couch::new(&Couchdb {
        url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
        ..config
    });
    let (notes, receiver) = mpsc::channel(8);
    let (sender, up) = watch::channel(true);
    tokio::spawn(refuse_late(listener, up.clone()));
    (writer_of(couch.unwrap(), receiver, sender), notes, up)
}

fn writer_of(couch: Couch, notes: mpsc::Receiver<Note>, up: watch::Sender<bool>) -> Writer {
    let store = Arc::new(Store::new(Arc::new(couch), Clock::system(), testing::policy()));
    Writer::new(store, notes, up)
}

fn note(action: &str) -> (Note, oneshot::Receiver<Result<(), String>>) {
    let (done, receipt) = oneshot::channel();
    let note = Note {
        entry: Entry::new(Key::of("call", action), "call"),
        lease: None,
        linger: Duration::ZERO,
        done,
    };
    (note, receipt)
}

#[tokio::test]
async fn a_database_that_refuses_late_counts_as_up_again_without_another_note() {
    for actions in [&["a"][..], &["a", "b"]] {
        let (mut writer, _notes, mut up) = writer().await;
        let (noted, receipts): (Vec<Note>, Vec<_>) = actions.iter().map(|action| note(action)).unzip();
        noted.into_iter().for_each(|note| writer.take(note));
        let stop = CancellationToken::new();
        let running = tokio::spawn(writer.run(stop.clone()));
        up.wait_for(|up| !up).await.unwrap();
        let back = tokio::time::timeout(LATE, up.wait_for(|up| *up)).await.is_ok();
        assert!(back, "{actions:?}");
        for receipt in receipts {
            assert!(!matches!(receipt.await, Ok(Ok(()))), "what was refused is not promised");
        }
        stop.cancel();
        running.await.unwrap();
    }
}

#[tokio::test]
async fn a_database_that_counts_as_down_is_always_looked_for_again() {
    let (mut writer, _notes, mut up) = writer().await;
    writer.rest("it does not answer");
    assert!(!*up.borrow() && writer.next_write().is_some());
    let stop = CancellationToken::new();
    let running = tokio::spawn(writer.run(stop.clone()));
    assert!(tokio::time::timeout(LATE, up.wait_for(|up| *up)).await.is_ok());
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn a_refusal_of_a_documents_size_is_known_in_a_row_and_as_a_whole() {
    let whole = |status, error: &str| CouchError::of_status(status, error, "", "db").to_string();
    assert!(is_too_large("document_too_large: c1!k"));
    assert!(is_too_large(&whole(413, "document_too_large")) && is_too_large(&whole(413, "")));
    assert!(!is_too_large(&whole(400, "bad_request")) && !is_too_large("forbidden: 413"));
}

/// A running writer that has received these entries.
fn writing(
    couch: Couch,
    entries: Vec<Entry>,
) -> (
    Vec<oneshot::Receiver<Told>>,
    tokio::task::JoinHandle<()>,
    mpsc::Sender<Note>,
) {
    let (notes, receiver) = mpsc::channel(8);
    let (sender, _up) = watch::channel(true);
    let mut writer = writer_of(couch, receiver, sender);
    let mut receipts = Vec::new();
    for entry in entries {
        let (done, receipt) = oneshot::channel();
        receipts.push(receipt);
        let linger = Duration::ZERO;
        writer.take(Note {
            entry,
            lease: None,
            linger,
            done,
        });
    }
    (receipts, tokio::spawn(writer.run(CancellationToken::new())), notes)
}

async fn is_written(receipt: &mut oneshot::Receiver<Told>) -> bool {
    tokio::time::timeout(Duration::from_secs(20), receipt).await == Ok(Ok(Ok(())))
}

/// Whether the writer wrote this entry within some seconds.
async fn written(couch: Couch, entry: Entry) -> bool {
    let (mut receipts, running, _notes) = writing(couch, vec![entry]);
    let written = is_written(&mut receipts[0]).await;
    running.abort();
    written
}

fn writes(log: &Log) -> Vec<Value> {
    let log = log.lock().unwrap();
    let writes = log.iter().filter(|(first, _)| first.contains("_bulk_docs"));
    writes.map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
}

fn november(action: &str) -> Entry {
    testing::entry(action, 1_795_386_262, &[What::Commanded])
}

fn conflict() -> Value {
    serde_json::json!({"id": "x", "error": "conflict", "reason": "Document update conflict."})
}

#[tokio::test]
async fn an_entry_of_the_next_version_is_written_with_what_it_knows() {
    let mut newer = document(&[What::StopUnconfirmed], "4-z");
    let fact = serde_json::json!({"at": 1, "by": "w2", "fact": "of_the_next_version", "of": {"n": 1}});
    newer["facts"].as_array_mut().unwrap().push(fact.clone());
    let (couch, log) = server(move |first, body| match first {
        _ if first.contains("_bulk_docs") && body.contains("4-z") => (
            "201 Created",
            serde_json::json!([{"ok": true, "id": "x", "rev": "5-a"}]),
        ),
        _ if first.contains("_bulk_docs") => ("201 Created", serde_json::json!([conflict()])),
        _ if first.contains("_all_docs") => found(&newer),
        _ => welcome(),
    })
    .await;
    assert!(written(couch, november("action")).await);
    let writes = writes(&log);
    assert_eq!(writes.len(), 2);
    let facts = writes[1]["docs"][0]["facts"].as_array().unwrap();
    assert!(facts.len() == 3 && facts.contains(&fact), "{facts:?}");
}

/// A document that is not an entry causes only conflicts. Other entries of its month, and of another month, must still be written.
#[tokio::test]
async fn an_entry_that_is_never_taken_holds_up_neither_its_month_nor_another() {
    let (couch, log) = server(|first, body| {
        let rows = |document: &Value| match document["key"] == serde_json::json!(Key::of("call", "bad")) {
            true => conflict(),
            false => serde_json::json!({"ok": true, "id": "x", "rev": "1-a"}),
        };
        match first {
            _ if first.contains("_bulk_docs") => {
                let sent: Value = serde_json::from_str(body).unwrap();
                let rows: Vec<Value> = sent["docs"].as_array().unwrap().iter().map(rows).collect();
                ("201 Created", serde_json::json!(rows))
            }
            _ if first.contains("_all_docs") => found(&serde_json::json!({"_id": "x", "_rev": "1-a", "key": "none"})),
            _ => welcome(),
        }
    })
    .await;
    let december = testing::entry("december", 1_796_500_000, &[What::Commanded]);
    let all = vec![november("bad"), november("good"), december];
    let (mut receipts, running, _notes) = writing(couch, all);
    for good in &mut receipts[1..] {
        assert!(is_written(good).await);
    }
    // The entry is retried with a growing backoff: 20 ms, 40 ms … so this many attempts take that long.
    let begun = Instant::now();
    while writes(&log).len() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed();
    running.abort();
    assert!(receipts[0].try_recv().is_err());
    assert!(
        took > Duration::from_millis(200),
        "8 writes of one entry within {took:?}"
    );
}

#[tokio::test]
async fn what_one_node_alone_has_is_written_once_more_before_it_counts() {
    for rows_say in [true, false] {
        let (couch, log) = server(move |first, body| match first {
            _ if first.contains("_bulk_docs") && body.contains("1-a") => (
                "201 Created",
                serde_json::json!([{"ok": true, "id": "x", "rev": "2-b"}]),
            ),
            _ if first.contains("_bulk_docs") && rows_say => (
                "202 Accepted",
                serde_json::json!([{"ok": true, "id": "x", "rev": "1-a", "accepted": true}]),
            ),
            _ if first.contains("_bulk_docs") => (
                "202 Accepted",
                serde_json::json!([{"ok": true, "id": "x", "rev": "1-a"}]),
            ),
            _ => welcome(),
        })
        .await;
        assert!(written(couch, november("action")).await);
        assert_eq!(writes(&log).len(), 2, "{rows_say}");
    }
}

#[tokio::test]
async fn a_row_that_a_shard_could_not_take_is_written_again() {
    let (couch, log) = server(|first, _| match first {
        _ if first.contains("_bulk_docs") => {
            static TRIES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let row = match TRIES.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0 | 1 => serde_json::json!({"id": "x", "error": "internal_server_error", "reason": "timeout"}),
                _ => serde_json::json!({"ok": true, "id": "x", "rev": "1-a"}),
            };
            ("201 Created", serde_json::json!([row]))
        }
        _ => welcome(),
    })
    .await;
    assert!(written(couch, november("action")).await);
    assert_eq!(writes(&log).len(), 3);
}

#[tokio::test]
async fn an_entry_that_the_server_fails_on_holds_up_no_other() {
    let bad = Key::of("call", "bad").to_string();
    let (couch, _) = server(move |first, body| match first {
        _ if first.contains("_bulk_docs") && body.contains(&bad) => {
            ("500 Internal Server Error", serde_json::json!({"error": "case_clause"}))
        }
        _ if first.contains("_bulk_docs") => {
            let sent: Value = serde_json::from_str(body).unwrap();
            let rows = sent["docs"].as_array().unwrap().iter();
            let rows: Vec<Value> = rows
                .map(|_| serde_json::json!({"ok": true, "id": "x", "rev": "1-a"}))
                .collect();
            ("201 Created", serde_json::json!(rows))
        }
        _ => welcome(),
    })
    .await;
    let all = ["bad", "one", "two", "three"].map(november).to_vec();
    let (mut receipts, running, _notes) = writing(couch, all);
    for good in &mut receipts[1..] {
        assert!(is_written(good).await);
    }
    assert!(receipts[0].try_recv().is_err(), "nor is it promised");
    running.abort();
}

#[tokio::test]
async fn as_many_notes_as_can_wait_are_taken_at_once_without_a_deep_stack() {
    let (couch, _log) = server(|_, _| welcome()).await;
    let (notes, receiver) = mpsc::channel(crate::ledger::WAITING);
    let mut writer = writer_of(couch, receiver, watch::channel(true).0);
    let (first, _receipt) = note("a");
    let mut receipts = Vec::new();
    for _ in 0..crate::ledger::WAITING {
        let (noted, receipt) = note("a");
        notes.try_send(noted).unwrap();
        receipts.push(receipt);
    }
    writer.take(first);
    let waiting: usize = writer.pending.values().map(|pending| pending.waiters.len()).sum();
    assert_eq!(waiting, crate::ledger::WAITING, "the last one comes with the next");
}
