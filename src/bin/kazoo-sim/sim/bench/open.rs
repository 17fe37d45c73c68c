//! Open recordings: what they cost a worker and its servers while nothing is due.

use std::time::Duration;

use super::{
    Bench, actions,
    calls::Plan,
    process, recordings,
    report::{Row, Used},
    stand::Stand,
    switch::AudioFile,
};

const PART: &str = "open";
const WINDOW: usize = 100;
/// For what is still being written after the queues are empty.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let options = &bench.options;
    let load = process::load_average();
    let file = AudioFile::write(options.scratch.join("recording.wav"), 20_000).await?;
    let stand = Stand::with(options, 1, &[]).await?;
    let (switch, calls) = recordings::connect(options, &file, false).await?;
    let seconds = Duration::from_secs_f64(options.sizes.seconds);
    let idle = watched(&stand, seconds).await;
    let memory = stand.memory();

    let count = options.sizes.open;
    let plan = Plan {
        actions: count,
        window: WINDOW,
        rate: None,
        patience: options.patience,
    };
    let started = calls.run(&plan).await?;
    stand.settled(PATIENCE).await?;
    let open = watched(&stand, seconds).await;
    let (memory_open, begun) = (stand.memory(), switch.progress().started);
    switch.close().await;
    calls.close().await;
    stand.end().await?;

    let row =
        |what: String, unit, number: Option<f64>| number.map(|number| Row::new(PART, what, unit, number).load(load));
    let mib = |memory: Option<(f64, f64)>| memory.map(|(now, _)| now);
    let (none, some) = ("0 open recordings".to_owned(), format!("{count} open recordings"));
    let rows = [
        row(format!("memory, {none}"), "MiB", mib(memory)).map(|row| row.memory(memory).used(idle)),
        row(format!("memory, {some}"), "MiB", mib(memory_open)).map(|row| {
            let row = actions::latencies(row.memory(memory_open).used(open), "start_", &started);
            beside(row, mib(memory))
        }),
        row(format!("CPU of CouchDB, {some}"), "% of a core", open.cpu.couchdb)
            .map(|row| beside(row, idle.cpu.couchdb)),
        row(format!("CPU of RabbitMQ, {some}"), "% of a core", open.cpu.rabbitmq)
            .map(|row| beside(row, idle.cpu.rabbitmq)),
        row(format!("CPU of the worker, {some}"), "% of a core", open.cpu.worker)
            .map(|row| beside(row, idle.cpu.worker)),
    ];
    for row in rows.into_iter().flatten() {
        bench.report.add(row);
    }
    bench.report.expect("open recordings", begun, count);
    Ok(())
}

fn beside(row: Row, number: Option<f64>) -> Row {
    match number {
        Some(number) => row.beside("none open", number),
        None => row,
    }
}

/// The CPU time that all use while nothing happens.
async fn watched(stand: &Stand<'_>, seconds: Duration) -> Used {
    let meter = stand.meter();
    let before = meter.read();
    tokio::time::sleep(seconds).await;
    Used::of_a_core(&meter.read(), &before)
}
