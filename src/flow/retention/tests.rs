use std::path::Path;
use std::sync::Mutex;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Couchdb, HoldKind, Layers};
use crate::flow::common::Tasks;
use crate::flow::in_flight::{InFlight, Mailbox};
use crate::flow::memory::Peers;
use crate::flow::sweep::Limits;
use crate::kazoo::envelope::Sender;
use crate::kazoo::time::Moment;
use crate::ledger::Record;
use crate::ledger::testing::{self, Log};

use super::*;

/// A server with this `Date`.
async fn greeting(date: &'static str) -> Couch {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
    let couch = Couch::new(&Couchdb {
        url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
        ..config.couchdb
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let body = r#"{"couchdb":"Welcome","version":"3.5.0"}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\n{date}Content-Length: {}\r\nConnection: close",
                body.len()
            );
            let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
        }
    });
    couch.unwrap()
}

/// What a host finds whose clock is so many seconds ahead of a server with this `Date`.
async fn found(ahead: i64, date: &'static str) -> Option<String> {
    let couch = greeting(date).await;
    // What `date` says, in seconds.
    let server = 1_795_386_262;
    let clock = Clock::fixed(Moment::from_unix_seconds(server + ahead));
    clock_fault(&couch, &clock).await.unwrap()
}

/// The audio of all parked recordings would be dropped otherwise, within seconds of a start.
#[tokio::test]
async fn nothing_is_taken_for_old_by_a_clock_that_the_database_server_does_not_share() {
    const DATE: &str = "Date: Sun, 22 Nov 2026 22:24:22 GMT\r\n";
    for ahead in [0, 5, -5, 3500, -3500] {
        assert_eq!(found(ahead, DATE).await, None, "{ahead}");
    }
    let day = 86_400;
    let ahead = found(400 * day, DATE).await.unwrap();
    assert_eq!(
        ahead,
        "this host's clock is 34559999 s ahead of the database server's clock"
    );
    assert!(found(-day, DATE).await.unwrap().contains("behind"));
    let silent = found(0, "").await;
    assert_eq!(silent.as_deref(), Some("the database server does not tell its time"));
}

/// What a worker would drive, and with which input.
#[derive(Default)]
struct Resumed(Mutex<Vec<(Entry, Input)>>);

impl Resume for Resumed {
    fn begin(self: &Arc<Self>, entry: Entry, input: Input, _: Mailbox) {
        self.0.lock().unwrap().push((entry, input));
    }

    fn ledger_is_back(&self) {}
}

/// Midday of 22 November 2026, and what a server answers then.
const NOON: Moment = Moment::from_unix_seconds(1_795_348_800);
const DATE_OF_NOON: &str = "Date: Sun, 22 Nov 2026 12:00:00 GMT\r\n";

/// A worker whose ledger has this entry.
struct Worker {
    retention: Arc<Retention<Resumed>>,
    /// What the database with ledger and hold was asked for.
    log: Log,
}

impl Worker {
    /// `hold`: the folder, or else the database. `date`: what the server says of the time.
    async fn of(entry: Option<&Entry>, hold: Option<&Path>, date: &'static str) -> Self {
        let document = entry.map(|entry| {
            let record = Record {
                entry: entry.clone(),
                lease: None,
                rev: Some("1-a".into()),
            };
            record.document(&ledger::address(entry).id(), None)
        });
        let (database, log) = testing::server(move |first, _| match &document {
            _ if first.contains("kz_record_call_hold") && first.starts_with("GET") => {
                ("200 OK", json!({"doc_count": 0}))
            }
            _ if first.contains("_all_dbs") => ("200 OK", json!(["kz_record_call_hold-2026-11-01", "_users"])),
            Some(document) if first.contains("_all_docs") => testing::found(document),
            _ if first.contains("_all_docs") => ("200 OK", json!({"rows": []})),
            Some(document) if first.contains("_bulk_docs") => (
                "201 Created",
                json!([{"ok": true, "id": document["_id"], "rev": "2-b"}]),
            ),
            _ => testing::welcome(),
        })
        .await;
        let mut config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
        config.hold.kind = hold.map_or(HoldKind::Couchdb, |_| HoldKind::Folder);
        config.hold.folder = hold.map(Path::to_owned).unwrap_or_default();
        let (stop, clock) = (CancellationToken::new(), Clock::fixed(NOON));
        let (ledger, writing) = Ledger::over(
            Arc::new(database.clone()),
            clock.clone(),
            &testing::policy(),
            stop.clone(),
        );
        tokio::spawn(writing);
        let hold = Hold::new(&config.hold, &config.couchdb, &database).unwrap();
        config.kazoo.zone = "local".into();
        config.amqp.dead_letters_retention = None;
        let common = Arc::new(Common {
            config,
            sender: Sender { node: "w".into() },
            clock,
            policy: testing::policy(),
            tasks: Tasks::new(TaskTracker::new(), stop),
        });
        let sweep = Sweep {
            common: Arc::clone(&common),
            ledger: ledger.clone(),
            memory: Arc::default(),
            in_flight: InFlight::default(),
            peers: Arc::new(Peers::new("w")),
            drivers: Arc::new(Resumed::default()),
            limits: Limits::default(),
        };
        let retention = Arc::new(Retention {
            common,
            couch: greeting(date).await,
            ledger,
            hold,
            sweep: Arc::new(sweep),
        });
        Self { retention, log }
    }

    fn asked_of_hold(&self) -> usize {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|(first, _)| first.contains("kz_record_call_hold"))
            .count()
    }
}

/// The empty database of today, into which other workers put audio, would be dropped otherwise.
#[tokio::test]
async fn the_hold_is_not_tidied_by_a_clock_that_the_database_server_does_not_share() {
    let day = Duration::from_secs(86_400);
    for (date, clock, may) in [
        (DATE_OF_NOON, NOON, true),
        (DATE_OF_NOON, NOON.plus(5 * day), false),
        (DATE_OF_NOON, NOON.minus(day), false),
        ("", NOON, false),
    ] {
        let worker = Worker::of(None, None, date).await;
        worker.retention.examine(&Clock::fixed(clock)).await;
        assert_eq!(worker.asked_of_hold() > 0, may, "{date} {clock:?}");
    }
}
