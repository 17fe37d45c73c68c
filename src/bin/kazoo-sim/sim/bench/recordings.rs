//! Whole recordings: from `action.execute` to the moment when the switch deletes its file. Document
//! and audio are in the database then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot};

use super::{
    super::wire::uuid,
    Bench, BenchOptions,
    calls::{Calls, CallsOptions},
    process, puts,
    report::{Row, Used},
    stand::Stand,
    switch::{AudioFile, Switch, SwitchOptions},
};

const PART: &str = "recordings";
const LIMIT: &str = "bare PUT";
/// A worker takes `ingest.per_switch` (4) uploads of a switch at once: with so many switches, that
/// is not what limits it.
const SWITCHES: usize = 16;
/// The time limit of one recording.
const PATIENCE: Duration = Duration::from_secs(180);

/// Recordings of one size.
struct Kind {
    what: String,
    bytes: u64,
    count: u64,
    at_once: usize,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let sizes = &bench.options.sizes;
    let (all, at_once) = (sizes.recordings, sizes.at_once);
    let several = [
        ("20 KB", 20_000, all),
        ("320 KB", 320_000, all.div_ceil(2)),
        ("3 MB", 3_000_000, all.div_ceil(10)),
    ];
    let mut kinds: Vec<Kind> = several
        .map(|(name, bytes, count)| Kind {
            what: format!("recordings of {name}, {at_once} at once"),
            bytes,
            count,
            at_once,
        })
        .into();
    kinds.push(Kind {
        what: format!("one recording of {:.0} MB", sizes.long_bytes as f64 / 1e6),
        bytes: sizes.long_bytes,
        count: 1,
        at_once: 1,
    });
    for kind in kinds {
        measure(bench, &kind).await?;
    }
    Ok(())
}

async fn measure(bench: &mut Bench, kind: &Kind) -> anyhow::Result<()> {
    let options = &bench.options;
    let load = process::load_average();
    let file = AudioFile::write(options.scratch.join("recording.wav"), kind.bytes).await?;
    let mut stand = Stand::with(options, 1, &[]).await?;
    let (switch, calls) = connect(options, &file, true).await?;
    if kind.count > 1 {
        // A few before, for connections that are made at the first use.
        whole(&calls, &switch, kind.count.min(4), 1).await?;
    }
    let meter = stand.meter();
    let before = meter.read();
    let (stored, took) = whole(&calls, &switch, kind.count, kind.at_once).await?;
    let used = Used::each(&meter.read(), &before, kind.count);
    let (memory, progress) = (stand.memory(), switch.progress());
    switch.close().await;
    calls.close().await;
    stand.stop();

    let document = stand.document(&stand.seeded.modb).await?.unwrap_or_default();
    let meter = stand.meter();
    let before = meter.read();
    let url = stand.database_url(&stand.seeded.modb);
    let bare = puts::measure(url, document, &file, kind.count, kind.at_once).await?;
    let used_beside = Used::each(&meter.read(), &before, kind.count);
    stand.end().await?;

    // A long one is not many.
    let (unit, amount) = match kind.count {
        1 => ("MB a second", file.bytes as f64 / 1e6),
        count => ("a second", count as f64),
    };
    let share = stored as f64 / kind.count.max(1) as f64;
    let rate = |took: Duration| amount / took.as_secs_f64().max(1e-6);
    let row = Row::new(PART, kind.what.as_str(), unit, rate(took) * share);
    let mut row = row.beside(LIMIT, rate(bare)).used(used).memory(memory).load(load);
    row.used_beside = Some(used_beside);
    let row = row.detail("recordings", kind.count).detail("bytes", file.bytes);
    bench.report.add(row.detail("refused_uploads", progress.refused));
    bench.report.expect(&kind.what, stored, kind.count);
    Ok(())
}

/// Simulated switches, and calls on them.
pub async fn connect(options: &BenchOptions, file: &AudioFile, ends: bool) -> anyhow::Result<(Switch, Calls)> {
    let switch = Switch::start(SwitchOptions {
        amqp_uri: options.amqp_uri.clone(),
        account: options.account.clone(),
        switches: SWITCHES,
        file: file.clone(),
        ends,
    })
    .await?;
    let calls = Calls::connect(CallsOptions {
        format: "wav",
        control: Some(switch.control.clone()),
        switches: SWITCHES,
        ..CallsOptions::new(&options.amqp_uri, &options.account)
    })
    .await?;
    Ok((switch, calls))
}

/// Makes so many recordings, so many at once. Returns how many were stored, and the time until the
/// last of them was.
async fn whole(calls: &Calls, switch: &Switch, count: u64, at_once: usize) -> anyhow::Result<(u64, Duration)> {
    let window = Arc::new(Semaphore::new(at_once.max(1)));
    let begun = Instant::now();
    let mut recordings = tokio::task::JoinSet::new();
    for _ in 0..count {
        let permit = window.clone().acquire_owned().await?;
        let stored = begin(calls, switch).await?.1;
        recordings.spawn(async move {
            let _permit = permit;
            let stored = tokio::time::timeout(PATIENCE, stored).await;
            matches!(stored, Ok(Ok(()))).then(|| begun.elapsed())
        });
    }
    let ends: Vec<Duration> = recordings.join_all().await.into_iter().flatten().collect();
    Ok((ends.len() as u64, ends.into_iter().max().unwrap_or_default()))
}

/// Begins one recording: receivers of its action's result, and of its end.
pub async fn begin(
    calls: &Calls,
    switch: &Switch,
) -> anyhow::Result<(oneshot::Receiver<Duration>, oneshot::Receiver<()>)> {
    let call_id = uuid();
    let stored = switch.stored(&call_id);
    Ok((calls.act(&call_id).await?, stored))
}
