//! Memory does not grow with the size of a recording. Measured in a process of its own: this program started once more, with the worker's
//! ingest and destinations in it, and the switch, the user's server and the database outside.

use std::io::{Read as _, Write as _};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kz_record_call::destination::couchdb_write::{self, Job, Road};
use kz_record_call::destination::url::Target;
use kz_record_call::destination::{DeliveryError, Source};
use kz_record_call::ingest::{Ingest, Spool, Wanted};
use kz_record_call::kazoo::time::Clock;
use kz_record_call::lifecycle::Answer;
use kz_record_call::recording::digest::Hasher;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::order::Url;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::promises;
use crate::stores::{Plan, config};
use crate::support::file_server::{FileServer, Tls};
use crate::support::object_store::{ObjectStore, Setup};
use crate::support::{
    ACCOUNT, Case, Couchdb, Recording, Reply, Server, TestResult, WAYS, World, files_here, http_here, send, store,
    whole_settings,
};

promises![
    three_hours_of_wav_go_through_to_a_url_in_64_mebibytes,
    three_hours_of_wav_go_through_to_a_database_in_64_mebibytes,
    a_hundred_uploads_at_once_need_a_bounded_memory,
    a_hundred_megabytes_go_into_an_object_store_in_8_mebibytes,
    eight_times_a_hundred_megabytes_at_once_go_into_an_object_store_in_a_bounded_memory,
    a_hundred_megabytes_go_to_a_file_server_in_8_mebibytes,
];

/// What three hours of 16 bit mono at 16 kHz have, and a header: 345,600,044 bytes.
const THREE_HOURS: u64 = 345_600_000 + 44;
const MOST_KIB: u64 = 64 << 10;
/// What three hours of mp3 have.
const MEGABYTES_100: u64 = 100_000_000;

const CALL: &str = "three-hours";

/// Set in the process that is measured: what to do there, as JSON.
const TASK: &str = "KZ_DESTINATIONS_TASK";

/// A WAV file of silence with a counter in it, piece by piece.
fn wav() -> impl futures_util::Stream<Item = Bytes> + Send {
    const PIECE: u64 = 64 << 10;
    let data = u32::try_from(THREE_HOURS - 44).unwrap();
    let mut head = b"RIFF".to_vec();
    head.extend((data + 36).to_le_bytes());
    head.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    head.extend(16_000u32.to_le_bytes());
    head.extend(32_000u32.to_le_bytes());
    head.extend([2, 0, 16, 0]);
    head.extend(b"data");
    head.extend(data.to_le_bytes());
    let pieces = (THREE_HOURS - 44).div_ceil(PIECE);
    let body = stream::iter(0..pieces).map(move |n| {
        let length = PIECE.min(THREE_HOURS - 44 - n * PIECE);
        let mut piece = vec![0; usize::try_from(length).unwrap()];
        piece[..8].copy_from_slice(&n.to_le_bytes());
        Bytes::from(piece)
    });
    stream::once(async move { Bytes::from(head) }).chain(body)
}

/// The measured process, and what it says.
struct Measured {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Measured {
    fn start(task: &Value) -> anyhow::Result<Self> {
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .env(TASK, task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
        })
    }

    async fn says(&mut self, what: &str) -> anyhow::Result<String> {
        while let Some(line) = self.lines.next_line().await? {
            if let Some(rest) = line.strip_prefix(what) {
                return Ok(rest.trim().to_owned());
            }
        }
        anyhow::bail!("it ended without saying {what}: {:?}", self.child.wait().await)
    }

    /// Its peak of memory, when it is through. It ends when its input does: the switch has its answer then.
    async fn peak_kib(&mut self) -> anyhow::Result<u64> {
        drop(self.child.stdin.take());
        let peak = self.says("peak").await?.parse()?;
        ensure!(self.child.wait().await?.success());
        Ok(peak)
    }
}

/// Plays the switch: PUTs three hours of audio to where the measured process wants them.
async fn upload(url: &str) -> anyhow::Result<u16> {
    let body = reqwest::Body::wrap_stream(wav().map(Ok::<_, std::io::Error>));
    let request = reqwest::Client::new()
        .put(url)
        .header("content-length", THREE_HOURS)
        .body(body);
    Ok(request.send().await?.status().as_u16())
}

async fn three_hours_of_wav_go_through_to_a_url_in_64_mebibytes(_: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    let mut measured = Measured::start(&serde_json::json!({"url": server.url("/in")}))?;
    let begun = Instant::now();
    let status = upload(&measured.says("upload").await?).await?;
    let peak = measured.peak_kib().await?;
    println!("345 MB to a URL: {} KiB at most, {:?}", peak, begun.elapsed());
    ensure!(status == 200, "{status}");
    let received = server.received();
    ensure!(received.len() == 1 && received[0].length == THREE_HOURS, "{received:?}");
    let mut hasher = Hasher::default();
    wav()
        .for_each(|piece| {
            hasher.update(&piece);
            std::future::ready(())
        })
        .await;
    ensure!(received[0].digests == hasher.finish(), "other bytes arrived");
    ensure!(received[0].header("content-type") == "audio/x-wav");
    ensure!(peak < MOST_KIB, "{peak} KiB");
    Ok(())
}

async fn three_hours_of_wav_go_through_to_a_database_in_64_mebibytes(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        let case = Case::new(&couchdb, way, &Recording::of_call(CALL, 0)).await?;
        let task = serde_json::json!({"couchdb": case.front.url, "prefix": case.world.prefix});
        let mut measured = Measured::start(&task)?;
        let begun = Instant::now();
        let status = upload(&measured.says("upload").await?).await?;
        let road = measured.says("road").await?;
        let peak = measured.peak_kib().await?;
        println!(
            "345 MB to a database, {way:?}: {peak} KiB at most, {:?}",
            begun.elapsed()
        );
        ensure!(status == 200 && road == format!("{:?}", way.road), "{status} {road}");
        ensure!(peak < MOST_KIB, "{way:?}: {peak} KiB");
        let document = case.world.document(&Recording::of_call(CALL, 0)).await?;
        let stub = document["_attachments"].as_object().and_then(|all| all.values().next());
        ensure!(stub.context("no audio")?["length"] == THREE_HOURS, "{document:#}");
        case.finish().await?;
    }
    Ok(())
}

async fn a_hundred_uploads_at_once_need_a_bounded_memory(_: Arc<Couchdb>) -> TestResult {
    // Slow enough that all are under way together.
    let server = Server::always(Reply::Slow(2_000_000)).await;
    let mut measured = Measured::start(&serde_json::json!({"hundred": server.url("/in")}))?;
    let begun = Instant::now();
    let peak = measured.peak_kib().await?;
    println!(
        "100 uploads of 4 MB at once: {} KiB at most, {:?}",
        peak,
        begun.elapsed()
    );
    ensure!(server.received().len() == 100);
    ensure!(peak < MOST_KIB * 3 / 2, "{peak} KiB");
    Ok(())
}

async fn a_hundred_megabytes_go_into_an_object_store_in_8_mebibytes(_: Arc<Couchdb>) -> TestResult {
    const MOST_MORE_KIB: u64 = 8 << 10;
    let (store, bare) = (
        ObjectStore::start(Setup::default()).await,
        Server::always(Reply::Status(200)).await,
    );
    let task = serde_json::json!({"store": store.s3(), "bare": bare.url("/in")});
    let mut measured = Measured::start(&task)?;
    let (alone, stored) = (measured.says("bare").await?, measured.says("stored").await?);
    let before: u64 = measured.says("before").await?.parse()?;
    let peak = measured.peak_kib().await?;
    println!("100 MB into an object store: {before} KiB before, {peak} KiB at most, {stored}; a bare PUT {alone}");
    let objects: Vec<_> = store.objects().into_values().collect();
    ensure!(objects.len() == 1 && objects[0].length == MEGABYTES_100, "{objects:?}");
    ensure!(
        peak.saturating_sub(before) < MOST_MORE_KIB,
        "{before} KiB, then {peak} KiB"
    );
    Ok(())
}

async fn eight_times_a_hundred_megabytes_at_once_go_into_an_object_store_in_a_bounded_memory(
    _: Arc<Couchdb>,
) -> TestResult {
    const AT_ONCE: u64 = 8;
    const MOST_MORE_KIB: u64 = 8 << 10;
    let (store, bare) = (
        ObjectStore::start(Setup::default()).await,
        Server::always(Reply::Status(200)).await,
    );
    let task = serde_json::json!({"store": store.s3(), "bare": bare.url("/in"), "at_once": AT_ONCE});
    let mut measured = Measured::start(&task)?;
    let (alone, stored) = (measured.says("bare").await?, measured.says("stored").await?);
    let before: u64 = measured.says("before").await?.parse()?;
    let peak = measured.peak_kib().await?;
    println!(
        "8 x 100 MB at once into an object store: {before} KiB before, {peak} KiB at most, {stored}; one bare PUT {alone}"
    );
    let objects: Vec<_> = store.objects().into_values().collect();
    ensure!(
        objects.len() == 8 && objects.iter().all(|object| object.length == MEGABYTES_100),
        "{objects:?}"
    );
    ensure!(
        peak.saturating_sub(before) < MOST_MORE_KIB,
        "{before} KiB, then {peak} KiB"
    );
    Ok(())
}

async fn a_hundred_megabytes_go_to_a_file_server_in_8_mebibytes(_: Arc<Couchdb>) -> TestResult {
    const MOST_MORE_KIB: u64 = 8 << 10;
    for scheme in ["ftp", "sftp"] {
        let server = match scheme {
            "ftp" => FileServer::ftp(Tls::None).await,
            _ => FileServer::ssh().await,
        };
        let task = serde_json::json!({"files": server.url(scheme, "/in")});
        let mut measured = Measured::start(&task)?;
        let stored = measured.says("stored").await?;
        let before: u64 = measured.says("before").await?.parse()?;
        let peak = measured.peak_kib().await?;
        println!("100 MB by {scheme}: {before} KiB before, {peak} KiB at most, {stored}");
        let files: Vec<_> = server.disk.files().into_values().collect();
        ensure!(
            files.len() == 1 && files[0].len() as u64 == MEGABYTES_100,
            "{:?}",
            server.disk.names()
        );
        ensure!(
            peak.saturating_sub(before) < MOST_MORE_KIB,
            "{scheme}: {before} KiB, then {peak} KiB"
        );
    }
    Ok(())
}

/// Runs in the measured process; `None` in any other.
pub fn child(runtime: &tokio::runtime::Runtime) -> Option<ExitCode> {
    let task: Value = serde_json::from_str(&std::env::var(TASK).ok()?).ok()?;
    let outcome = runtime.block_on(async {
        if let Some(url) = task["files"].as_str() {
            return to_file_server(url).await;
        }
        match (task.get("hundred").and_then(Value::as_str), task.get("store")) {
            (Some(url), _) => hundred(url).await,
            (None, Some(settings)) => {
                let at_once = task["at_once"].as_u64().unwrap_or(1);
                into_store(settings, task["bare"].as_str().unwrap_or_default(), at_once).await
            }
            (None, None) => one(&task).await,
        }
    });
    if let Err(error) = outcome {
        eprintln!("{error:?}");
        return Some(ExitCode::FAILURE);
    }
    println!("peak {}", status("VmHWM:"));
    Some(ExitCode::SUCCESS)
}

/// A recording on the disk, and its folder.
fn hundred_megabytes() -> anyhow::Result<(Recording, std::path::PathBuf)> {
    let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
    let (mut file, spooled) = Spool::open(&dir, 0)?.create()?;
    let (mut hasher, mut piece) = (Hasher::default(), vec![0; 100_000]);
    for n in 0..MEGABYTES_100 / 100_000 {
        piece[..8].copy_from_slice(&n.to_le_bytes());
        hasher.update(&piece);
        file.write_all(&piece)?;
    }
    let mut recording = Recording::of_call(CALL, 0);
    recording.audio.size = MEGABYTES_100;
    recording.audio.digests = hasher.finish();
    recording.source = Source::spooled(spooled);
    Ok((recording, dir))
}

/// One recording from the disk to a file server.
async fn to_file_server(url: &str) -> anyhow::Result<()> {
    let (recording, dir) = hundred_megabytes()?;
    let files = files_here(&[("UNKNOWN_HOSTS", "accept")]);
    // The peak counts from here.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:");
    let begun = Instant::now();
    store(&files, url, "recording.mp3", &recording).await?;
    println!("stored {:?}", begun.elapsed());
    println!("before {before}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// One recording from the disk to a plain server, and to an object store, under as many names at once.
async fn into_store(settings: &Value, bare: &str, at_once: u64) -> anyhow::Result<()> {
    let (recording, dir) = hundred_megabytes()?;
    let begun = Instant::now();
    let body = reqwest::Body::wrap_stream(recording.source.open().await?);
    let put = reqwest::Client::new().put(bare).header("content-length", MEGABYTES_100);
    put.body(body).send().await?.error_for_status()?;
    println!("bare {:?}", begun.elapsed());
    let plan = Plan::of("s3", settings, &config(&[]), &[])?;
    // The peak counts from here.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:");
    let begun = Instant::now();
    let (plan, recording) = (&plan, &recording);
    let all = (0..at_once).map(|n| async move { plan.deliver_as(recording, &format!("recording-{n}"), true).await });
    futures_util::future::try_join_all(all).await?;
    println!("stored {:?}", begun.elapsed());
    println!("before {before}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// A value of this process in KiB.
fn status(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").to_owned()
}

/// A worker's way from the switch to the destination.
async fn one(task: &Value) -> anyhow::Result<()> {
    let text = |key: &str| task.get(key).and_then(Value::as_str);
    let mut recording = Recording::of_call(CALL, 0);
    recording.order.format = Format::Wav;
    let changes = [("INGEST__LISTEN", "127.0.0.1:0")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = whole_settings(&changes);
    let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let ingest = Ingest::start(
        &config.ingest,
        "127.0.0.1",
        b"a secret of sixteen",
        Spool::open(&dir, 0)?,
        Clock::system(),
        &tasks,
        stop,
    )
    .await?;
    let wanted = Wanted {
        key: recording.order.key,
        media_id: recording.order.media_id.clone(),
        format: Format::Wav,
        told_ms: Some(10_800_000),
    };
    let mut expected = ingest.expect(wanted);
    println!("upload {}", expected.url);
    let upload = expected.upload().await.context("no upload")?;
    ensure!(upload.audio.findings.is_empty(), "{:?}", upload.audio.findings);
    recording.audio = upload.audio.clone();
    recording.source = Source::spooled(upload.file.clone());
    if let Some(url) = text("url") {
        recording.order.url = Url::Given(url.to_owned());
        let document = recording.subject(recording.id(), "url").document();
        let target = Target::parse(url)?.of_recording(&document, ACCOUNT, "wav", None);
        send(&http_here(&[]), target.expose().as_str(), &recording).await?;
    } else {
        let couchdb = Couchdb::at(text("couchdb").context("no database")?);
        let world = World::with_prefix(&couchdb, text("prefix").context("no prefix")?);
        let job = Job {
            audio: &recording.audio,
            source: &recording.source,
            ids: &recording.ids,
            subject: |id| recording.subject(id, "account"),
            progress: None,
            failures: 0,
            untouched: false,
            create_database: false,
        };
        let stored = couchdb_write::put(&world.couch(), &job).await?;
        let road: Road = stored.road.context("it was there")?;
        println!("road {road:?}");
    }
    upload.answer(Answer::Release);
    // Until the switch has its answer.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn hundred(url: &str) -> anyhow::Result<()> {
    // The bytes are on the disk, as in a spool, and nowhere else.
    let recordings: Vec<Recording> = (0..100)
        .map(|_| {
            let mut recording = Recording::of(4_000_000);
            recording.bytes = Vec::new();
            recording
        })
        .collect();
    let http = http_here(&[]);
    let sending = recordings.iter().map(|recording| send(&http, url, recording));
    for sent in futures_util::future::join_all(sending).await {
        sent.map_err(DeliveryError::from)?;
    }
    Ok(())
}
