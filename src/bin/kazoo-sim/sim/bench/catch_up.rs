//! Catch-up: recordings begin and end while the worker's database is away. When it is back, the
//! worker collects and stores all of them, and answers new actions meanwhile.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::{oneshot, watch};

use super::{
    Bench, BenchOptions, actions,
    calls::{Calls, Measured},
    process,
    proxy::Proxy,
    puts, recordings,
    report::{Row, Used},
    stand::Stand,
    storm,
    switch::{AudioFile, Switch},
};

const PART: &str = "catch-up";
const BYTES: u64 = 20_000;
/// Calls that wait at once while the database is away.
const WINDOW: usize = 100;
/// The time limit of one recording, at full size.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// Bare uploads beside them, at most.
const MOST_PUTS: u64 = 1_000;
/// From the last end to the return of the database.
const AWAY: Duration = Duration::from_secs(5);

/// What a catch-up came to.
struct CaughtUp {
    idle: Measured,
    /// Actions answered while the database was away.
    answered: u64,
    /// When each recording was stored, after the return of the database. Sorted.
    ends: Vec<Duration>,
    /// Actions while the worker caught up.
    during: Measured,
    used: Used,
    memory: Option<(f64, f64)>,
    refused: u64,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let options = &bench.options;
    let load = process::load_average();
    let proxy = Proxy::start(&options.couchdb_url).await?;
    let file = AudioFile::write(options.scratch.join("recording.wav"), BYTES).await?;
    let mut stand = Stand::with(options, 1, &[("COUCHDB__URL", proxy.url.clone())]).await?;
    let caught_up = measure(&stand, &proxy, &file, options).await?;
    stand.stop();
    let document = stand.document(&stand.seeded.modb).await?.unwrap_or_default();
    let count = options.sizes.catch_up;
    let bare = count.clamp(1, MOST_PUTS);
    let url = stand.database_url(&stand.seeded.modb);
    let took = puts::measure(url, document, &file, bare, options.sizes.at_once).await?;
    stand.end().await?;

    let done = caught_up.ends.len() as u64;
    let at = |share: f64| after(&caught_up.ends, share).as_secs_f64();
    let rate = done as f64 / at(1.0).max(1e-6);
    let row = Row::new(PART, format!("recordings caught up, of {count}"), "a second", rate);
    let row = row.beside("bare PUT", bare as f64 / took.as_secs_f64().max(1e-6));
    let row = row.used(caught_up.used).memory(caught_up.memory).load(load);
    let row = row
        .detail("half_after_s", at(0.5))
        .detail("95_percent_after_s", at(0.95));
    let row = row
        .detail("all_after_s", at(1.0))
        .detail("refused_uploads", caught_up.refused);
    bench.report.add(row);
    let (during, idle) = (&caught_up.during, &caught_up.idle);
    let row = Row::new(PART, "p99 of actions during the catch-up", "ms", during.ms(0.99));
    let row = row.beside("the same worker, idle", idle.ms(0.99)).load(load);
    let row = actions::latencies(row, "", during);
    bench.report.add(actions::latencies(row, "idle_", idle));
    let report = &mut bench.report;
    report.expect("actions answered while the database is away", caught_up.answered, count);
    report.expect("recordings caught up", done, count);
    Ok(())
}

async fn measure(
    stand: &Stand<'_>,
    proxy: &Proxy,
    file: &AudioFile,
    options: &BenchOptions,
) -> anyhow::Result<CaughtUp> {
    let (switch, calls) = recordings::connect(options, file, true).await?;
    calls.run(&actions::warm_up(options)).await?;
    let idle = calls.run(&storm::steady(options, options.sizes.seconds)).await?;

    proxy.set_open(false);
    let (answered, stored) = begin(&calls, &switch, options, options.sizes.catch_up).await?;
    tokio::time::sleep(AWAY.mul_f64(options.scale.min(1.0)).max(Duration::from_secs(1))).await;

    let meter = stand.meter();
    let (before, begun) = (meter.read(), Instant::now());
    proxy.set_open(true);
    let (stop, stopped) = watch::channel(false);
    let stored = async {
        let ends = ends(stored, begun, PATIENCE).await;
        stop.send_replace(true);
        (ends, meter.read())
    };
    let ((ends, after), during) = tokio::join!(stored, storm::until_stopped(&calls, options, stopped));
    let caught_up = CaughtUp {
        idle,
        answered,
        used: Used::each(&after, &before, ends.len() as u64),
        ends,
        during: during?,
        memory: stand.memory(),
        refused: switch.progress().refused,
    };
    switch.close().await;
    calls.close().await;
    Ok(caught_up)
}

/// When this share of them had come.
fn after(ends: &[Duration], share: f64) -> Duration {
    let n = ((ends.len() as f64 * share).ceil() as usize).max(1);
    ends.get(n - 1).copied().unwrap_or_default()
}

/// Begins the recordings. Returns how many actions were answered, and receivers of the recordings'
/// ends.
async fn begin(
    calls: &Calls,
    switch: &Switch,
    options: &BenchOptions,
    count: u64,
) -> anyhow::Result<(u64, Vec<oneshot::Receiver<()>>)> {
    let (mut answers, mut stored, mut answered) = (FuturesUnordered::new(), Vec::new(), 0);
    for _ in 0..count {
        let (answer, end) = recordings::begin(calls, switch).await?;
        answers.push(tokio::time::timeout(options.patience, answer));
        stored.push(end);
        if answers.len() >= WINDOW {
            answered += u64::from(matches!(answers.next().await, Some(Ok(Ok(_)))));
        }
    }
    while let Some(answer) = answers.next().await {
        answered += u64::from(matches!(answer, Ok(Ok(_))));
    }
    Ok((answered, stored))
}

/// When each recording was stored, sorted. Those that are not stored in time are missing.
async fn ends(stored: Vec<oneshot::Receiver<()>>, begun: Instant, patience: Duration) -> Vec<Duration> {
    let mut waiting: FuturesUnordered<_> = stored.into_iter().collect();
    let mut ends = Vec::with_capacity(waiting.len());
    let deadline = tokio::time::Instant::now() + patience;
    while let Ok(Some(end)) = tokio::time::timeout_at(deadline, waiting.next()).await {
        if end.is_ok() {
            ends.push(begun.elapsed());
        }
    }
    ends
}
