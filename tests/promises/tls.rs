//! TLS to the broker, to the database, and from the switches, with authorities of one's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use kz_record_call::config::{Config, Layers};
use kz_record_call::ingest::{Ingest, Spool, Wanted};
use kz_record_call::kazoo::time::Clock;
use kz_record_call::lifecycle::Answer;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::promises;
use crate::simulator::sim::CallOptions;
use crate::support::tls::{Authority, Issued, TlsFront};
use crate::support::{SOON, Services, TestResult, World};

promises![
    a_recording_is_stored_over_tls_to_broker_and_database,
    an_authority_that_is_not_trusted_is_told_with_the_setting_that_is_missing,
    a_certificate_of_plain_openssl_is_told_with_the_way_to_make_a_right_one,
    a_broker_that_asks_for_a_certificate_gets_ours,
    uploads_come_over_https_and_a_renewed_certificate_needs_no_restart,
    a_hang_up_signal_reloads_and_ends_nothing,
];

/// Broker and database, each behind TLS, and the settings that lead there.
struct Secure {
    broker: TlsFront,
    database: TlsFront,
    vhost: String,
    credentials: String,
}

impl Secure {
    async fn before(world: &World<'_>, authority: &Authority, clients: Option<&Authority>) -> anyhow::Result<Self> {
        Self::showing(world, &authority.issue(&["localhost"])?, clients).await
    }

    async fn showing(world: &World<'_>, shown: &Issued, clients: Option<&Authority>) -> anyhow::Result<Self> {
        let (broker, database) = (
            Url::parse(&world.setting("AMQP__URI"))?,
            Url::parse(&world.setting("COUCHDB__URL"))?,
        );
        let place = |url: &Url, port| format!("127.0.0.1:{}", url.port().unwrap_or(port));
        Ok(Self {
            broker: TlsFront::start(&place(&broker, 5672), shown, clients).await?,
            database: TlsFront::start(&place(&database, 5984), shown, None).await?,
            vhost: broker.path().to_owned(),
            credentials: format!("{}:{}", database.username(), database.password().unwrap_or_default()),
        })
    }

    fn broker(&self) -> (&'static str, String) {
        (
            "AMQP__URI",
            format!("amqps://guest:guest@localhost:{}{}", self.broker.port, self.vhost),
        )
    }

    fn database(&self) -> (&'static str, String) {
        (
            "COUCHDB__URL",
            format!("https://{}@localhost:{}", self.credentials, self.database.port),
        )
    }
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

async fn a_recording_is_stored_over_tls_to_broker_and_database(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let authority = Authority::new("ours")?;
    let secure = Secure::before(&world, &authority, None).await?;
    let ca = authority.file(world.dir(), "ca.pem")?;
    let settings = [
        secure.broker(),
        ("AMQP__CA_FILE", ca.clone()),
        secure.database(),
        ("COUCHDB__CA_FILE", ca),
    ];
    let _worker = world.worker_with(&borrowed(&settings)).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn an_authority_that_is_not_trusted_is_told_with_the_setting_that_is_missing(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let (ours, theirs) = (Authority::new("ours")?, Authority::new("theirs")?);
    let secure = Secure::before(&world, &theirs, None).await?;
    let wrong = ours.file(world.dir(), "ca.pem")?;
    for ca in [String::new(), wrong] {
        let settings = [
            secure.broker(),
            ("AMQP__CA_FILE", ca.clone()),
            secure.database(),
            ("COUCHDB__CA_FILE", ca),
        ];
        let worker = world.start_worker(&borrowed(&settings))?;
        for setting in ["amqp.ca_file", "couchdb.ca_file"] {
            let told = |line: &serde_json::Value| line["why"].as_str().is_some_and(|why| why.contains(setting));
            let line = worker.logged(setting, told, SOON).await?;
            ensure!(
                line["why"].as_str().unwrap_or_default().contains("not trusted"),
                "{line}"
            );
        }
    }
    world.finish().await
}

async fn a_certificate_of_plain_openssl_is_told_with_the_way_to_make_a_right_one(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let shown = Authority::as_server(&["localhost"])?;
    let secure = Secure::showing(&world, &shown, None).await?;
    // The very certificate that the server shows.
    let (ca, _) = shown.files(world.dir(), "itself")?;
    let settings = [
        secure.broker(),
        ("AMQP__CA_FILE", ca.clone()),
        secure.database(),
        ("COUCHDB__CA_FILE", ca),
    ];
    let worker = world.start_worker(&borrowed(&settings))?;
    for setting in ["amqp.ca_file", "couchdb.ca_file"] {
        let told = |line: &serde_json::Value| line["why"].as_str().is_some_and(|why| why.contains(setting));
        let line = worker.logged(setting, told, SOON).await?;
        let why = line["why"].as_str().unwrap_or_default();
        ensure!(why.contains("basicConstraints=critical,CA:FALSE"), "{line}");
    }
    world.finish().await
}

async fn a_broker_that_asks_for_a_certificate_gets_ours(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (servers, clients) = (Authority::new("servers")?, Authority::new("clients")?);
    let secure = Secure::before(&world, &servers, Some(&clients)).await?;
    let ca = servers.file(world.dir(), "ca.pem")?;
    let settings = [secure.broker(), ("AMQP__CA_FILE", ca.clone())];
    let without = world.start_worker(&borrowed(&settings))?;
    let refused = |line: &serde_json::Value| {
        let why = line["why"].as_str().unwrap_or_default();
        line["message"] == "AMQP not connected" && why.contains("amqp.client_certificate")
    };
    without.logged("the refusal", refused, SOON).await?;
    let (certificate, key) = clients.issue(&["worker"])?.files(world.dir(), "client")?;
    let settings = [
        secure.broker(),
        ("AMQP__CA_FILE", ca),
        ("AMQP__CLIENT_CERTIFICATE", certificate),
        ("AMQP__CLIENT_KEY", key),
    ];
    let _worker = world.worker_with(&borrowed(&settings)).await?;
    world.finish().await
}

/// An upload port in this process.
struct Port {
    ingest: Ingest,
    dir: PathBuf,
    stop: CancellationToken,
}

impl Port {
    async fn open(dir: &Path, certificate: &str, key: &str) -> anyhow::Result<Self> {
        let environment = [
            ("INGEST__LISTEN", "127.0.0.1:0"),
            ("INGEST__TLS_CERTIFICATE", certificate),
            ("INGEST__TLS_KEY", key),
            ("SPOOL__MIN_FREE_BYTES", "0"),
        ]
        .map(|(key, value)| (format!("KZ_RECORD_CALL__{key}"), value.to_owned()));
        let layers = Layers::load(None, environment.into_iter());
        let config = layers
            .and_then(Config::of)
            .map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?;
        let (dir, stop) = (dir.join("spool"), CancellationToken::new());
        let ingest = Ingest::start(
            &config.ingest,
            "localhost",
            b"secret",
            Spool::open(&dir, 0)?,
            Clock::system(),
            &TaskTracker::new(),
            stop.clone(),
        )
        .await?;
        Ok(Self { ingest, dir, stop })
    }

    /// Plays a switch that trusts `authority`, and the delivery that says that the audio is safe.
    async fn upload(&self, authority: &Authority, call: &str) -> anyhow::Result<u16> {
        let key = Key::of(call, "action");
        let mut expected = self.ingest.expect(Wanted {
            key,
            media_id: MediaId::derived(key, Clock::system().now()),
            format: Format::Wav,
            told_ms: None,
        });
        let url = expected.url.clone();
        ensure!(url.starts_with("https://localhost:"), "{url}");
        let answering = tokio::spawn(async move {
            if let Some(upload) = expected.upload().await {
                upload.answer(Answer::Release);
            }
            // Expected until the switch has its answer.
            std::future::pending::<()>().await;
        });
        // One connection each: what matters is which certificate the next one gets.
        let client = reqwest::Client::builder()
            .tls_certs_only([authority.as_root()])
            .build()?;
        let sent = client.put(&url).body(vec![0u8; 100_000]).send().await;
        answering.abort();
        Ok(sent?.status().as_u16())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

async fn uploads_come_over_https_and_a_renewed_certificate_needs_no_restart(_: Arc<Services>) -> TestResult {
    let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
    let (first, second) = (Authority::new("first")?, Authority::new("second")?);
    let (certificate, key) = first.issue(&["localhost"])?.files(&dir, "own")?;
    let port = Port::open(&dir, &certificate, &key).await?;
    ensure!(port.upload(&first, "1").await? == 200);
    ensure!(
        port.upload(&second, "2").await.is_err(),
        "it is the first's certificate that is shown"
    );

    // A key that does not fit: the certificate before stays in use.
    second.issue(&["localhost"])?.files(&dir, "other")?;
    std::fs::copy(dir.join("other.pem"), &certificate)?;
    port.ingest.read_certificate_again();
    ensure!(port.upload(&first, "3").await? == 200);

    std::fs::copy(dir.join("other.key"), &key)?;
    port.ingest.read_certificate_again();
    let begun = Instant::now();
    while port.upload(&second, "4").await.is_err() {
        ensure!(begun.elapsed() < SOON, "the renewed certificate is not shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(port.upload(&first, "5").await.is_err());

    // Nothing but TLS is spoken there.
    let plain = port.ingest.base().as_str().replacen("https", "http", 1);
    ensure!(reqwest::get(plain).await.is_err());
    drop(port);
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}

async fn a_hang_up_signal_reloads_and_ends_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let authority = Authority::new("ours")?;
    let (certificate, key) = authority.issue(&["localhost"])?.files(world.dir(), "own")?;
    let settings = [
        ("INGEST__TLS_CERTIFICATE", certificate.as_str()),
        ("INGEST__TLS_KEY", &key),
    ];
    let worker = world.worker_with(&settings).await?;
    let started = |line: &serde_json::Value| line["message"] == "worker started";
    let line = worker.logged("the start", started, SOON).await?;
    ensure!(
        line["ingest"].as_str().is_some_and(|url| url.starts_with("https://")),
        "{line}"
    );
    worker.hang_up()?;
    let read = |line: &serde_json::Value| line["event"] == "upload_certificate_read";
    worker.logged("the reload", read, SOON).await?;
    worker.ready(SOON).await?;
    ensure!(
        worker
            .metrics()
            .await?
            .contains("kz_record_call_certificate_reads_total{result=\"ok\"} 1")
    );
    world.finish().await
}
