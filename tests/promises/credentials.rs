//! A worker with a wrong password for CouchDB does not lock the account that others use; and nobody but CouchDB gets the password.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::net::TcpListener;

use crate::promises;
use crate::support::{SOON, Services, TestResult, World};

promises![
    a_couchdb_account_stays_usable_for_others_while_five_workers_have_a_wrong_password_for_it,
    no_proxy_of_the_environment_gets_what_is_for_couchdb,
];

/// Basic credentials: `kazoo`, and the right password.
const RIGHT: &str = "Basic a2F6b286cmlnaHQ=";

/// CouchDB's rule (3.4): so many failures of a user from an address within this time, and the user is refused there until it is over.
const THRESHOLD: usize = 5;
const WINDOW: Duration = Duration::from_secs(300);

/// A server that counts failed log-ins as CouchDB 3.4 does. All its clients have one address.
#[derive(Clone, Default)]
struct Lockout(Arc<Mutex<HashMap<String, Failures>>>);

/// How many, and until when the account is locked.
type Failures = (usize, Option<Instant>);

impl Lockout {
    fn failures(&self) -> usize {
        self.0.lock().unwrap().values().map(|(failures, _)| failures).sum()
    }

    fn judge(&self, authorization: &str) -> Option<Response> {
        let refused = |status, error: &str, reason: &str| {
            let body = json!({"error": error, "reason": reason}).to_string();
            Some((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
        };
        let mut users = self.0.lock().unwrap();
        let (failures, first) = users.entry("kazoo".into()).or_default();
        if first.is_some_and(|first| first.elapsed() > WINDOW) {
            (*failures, *first) = (0, None);
        }
        if *failures >= THRESHOLD {
            let reason = "Account is temporarily locked due to multiple authentication failures";
            return refused(StatusCode::FORBIDDEN, "forbidden", reason);
        }
        if authorization == RIGHT {
            return None;
        }
        *failures += 1;
        first.get_or_insert_with(Instant::now);
        refused(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Name or password is incorrect.",
        )
    }
}

async fn answer(State(lockout): State<Lockout>, headers: HeaderMap, _: Uri) -> Response {
    let sent = headers.get(header::AUTHORIZATION).and_then(|sent| sent.to_str().ok());
    lockout.judge(sent.unwrap_or_default()).unwrap_or_else(|| {
        let welcome = json!({"couchdb": "Welcome", "version": "3.4.3"}).to_string();
        ([(header::CONTENT_TYPE, "application/json")], welcome).into_response()
    })
}

async fn a_couchdb_account_stays_usable_for_others_while_five_workers_have_a_wrong_password_for_it(
    services: Arc<Services>,
) -> TestResult {
    let lockout = Lockout::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(answer).with_state(lockout.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let world = World::new(&services).await?;
    let url = format!("http://kazoo:wrong@{address}");
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(world.start_worker(&[("COUCHDB__URL", url.as_str())])?);
    }
    // Each knows of it, by itself or from another, and says why: where people look, and in numbers.
    for worker in &workers {
        let admin = worker.admin().await?;
        let begun = Instant::now();
        loop {
            let ready = reqwest::get(format!("{admin}/readyz")).await?.text().await?;
            let database = ready
                .lines()
                .find(|line| line.starts_with("database:"))
                .context("no check of the database")?;
            if database.contains("refused our credentials") && database.contains("not asked again before") {
                ensure!(
                    database.contains("Name or password is incorrect") || database.contains("another worker"),
                    "{database}"
                );
                break;
            }
            ensure!(begun.elapsed() < SOON, "{ready}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let metrics = worker.metrics().await?;
        ensure!(metrics.contains("kz_record_call_credentials_refused 1"), "{metrics}");
        worker
            .logged("the refusal", |line| line["event"] == "credentials_refused", SOON)
            .await?;
    }
    // What asks every second, or more often, goes on asking: nothing of it reaches the server.
    let first = lockout.failures();
    ensure!(first == 1, "{first} failures of {THRESHOLD} that lock the account");
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(lockout.failures() == first, "{first}, then {}", lockout.failures());
    // Kazoo itself is let in, from the same address.
    let kazoo = reqwest::Client::new().get(format!("http://kazoo:right@{address}/"));
    let kazoo = kazoo.send().await?;
    ensure!(kazoo.status().is_success(), "{}", kazoo.text().await?);
    drop(workers);
    serving.abort();
    world.finish().await
}

async fn no_proxy_of_the_environment_gets_what_is_for_couchdb(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let proxy = TcpListener::bind("127.0.0.1:0").await?;
    let at = format!("http://{}", proxy.local_addr()?);
    let asked = tokio::spawn(async move { proxy.accept().await });
    let variables = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, at.as_str()));
    let worker = world.worker_with(&variables).await?;
    let line = worker
        .logged("the proxy", |line| line["event"] == "proxies_ignored", SOON)
        .await?;
    ensure!(
        line.to_string().contains("HTTP_PROXY") && !line.to_string().contains(&at),
        "{line}"
    );
    let checked = world.command_with(&["check"], &variables).await?;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(checked.contains("HTTP_PROXY"), "{checked}");
    ensure!(!asked.is_finished(), "the proxy was asked");
    asked.abort();
    drop(worker);
    world.finish().await
}
