use std::path::Path;
use std::sync::Mutex;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Couchdb, HoldKind, Layers};
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Fact, Holding};
use crate::flow::common::Tasks;
use crate::flow::in_flight::{InFlight, Mailbox};
use crate::flow::memory::Peers;
use crate::flow::sweep::Limits;
use crate::kazoo::envelope::Sender;
use crate::kazoo::time::Moment;
use crate::ledger::Record;
use crate::ledger::testing::{self, Log};
use crate::lifecycle::{Case, Hand};
use crate::recording::digest::{Digests, Hasher};

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

/// An entry of a recording that ended, with these facts too.
fn ended(more: &[What]) -> Entry {
    let mut entry = Entry::of_order(lifecycle::tests::order(), "w");
    let told = lifecycle::tests::told(5000);
    for what in [What::Commanded, What::Ended(told)].iter().chain(more) {
        entry.add(Fact {
            at: NOON.minus(Duration::from_secs(86_400)),
            by: "w".into(),
            what: what.clone(),
        });
    }
    entry
}

/// Puts a copy of an entry's audio into a folder, as a worker does that is killed after it. Returns the copy's name.
fn leave(folder: &Path, entry: &Entry, named_for: &[u8], bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.update(named_for);
    let (address, digits) = (ledger::address(entry), hasher.finish().sha256);
    let name = format!("{}-{}.audio", address.key, &digits[..16]);
    let owner = json!({
        "call_id": address.call_id, "month": address.month.to_string(), "key": address.key, "day": "2026-11-20",
        "held_at": "2026-11-20T10:00:00Z",
    });
    std::fs::write(folder.join(&name), bytes).unwrap();
    std::fs::write(folder.join(format!("{name}.owner")), owner.to_string()).unwrap();
    name
}

/// The worker was killed between the copy and the note. The switch has no file any more.
#[tokio::test]
async fn a_copy_in_the_hold_that_the_ledger_does_not_know_is_noted() {
    let parked = What::Parked {
        n: 1,
        cause: Cause::NotCollected,
        ends: Some(1),
    };
    let known = |name: String| What::Held {
        n: 1,
        holding: Holding {
            place: "folder".into(),
            name,
            size: 5,
            digests: Digests {
                md5: "m".into(),
                sha256: "s".into(),
            },
        },
    };
    let discarded = What::Concluded {
        outcome: Outcome::Discarded,
        cause: Cause::DiscardedByOperator,
    };
    for (case, more, bytes, is_known, noted) in [
        ("parked", vec![parked.clone()], &b"audio"[..], false, true),
        ("not collected yet", vec![], b"audio", false, true),
        ("damaged", vec![parked.clone()], b"audit", false, false),
        ("discarded", vec![parked.clone(), discarded], b"audio", false, false),
        ("known", vec![parked.clone()], b"audio", true, false),
        (
            "known and removed",
            vec![parked, What::Unheld { n: 1 }],
            b"audio",
            true,
            false,
        ),
    ] {
        let folder = std::env::temp_dir().join(format!("kz-record-call-noted-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).unwrap();
        let mut entry = ended(&more);
        let name = leave(&folder, &entry, b"audio", bytes);
        if is_known {
            entry.add(Fact {
                at: NOON,
                by: "w".into(),
                what: known(name.clone()),
            });
        }
        let worker = Worker::of(Some(&entry), Some(&folder), "").await;
        worker.retention.tidy_hold().await.unwrap();
        let resumed = std::mem::take(&mut *worker.retention.sweep.drivers.0.lock().unwrap());
        assert_eq!(resumed.len(), usize::from(noted), "{case}");
        for (entry, input) in resumed {
            let mut case = Case {
                entry,
                hand: Hand::Empty,
                informed: false,
            };
            lifecycle::step(&mut case, input, NOON, &testing::policy());
            let held = case.entry.held().unwrap();
            let mut hasher = Hasher::default();
            hasher.update(b"audio");
            assert_eq!((&held.name, held.size, &held.digests), (&name, 5, &hasher.finish()));
        }
        assert!(folder.join(&name).exists(), "{case}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
