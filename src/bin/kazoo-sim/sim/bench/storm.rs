//! A storm: thousands of starts that no switch confirms become due while a few new calls arrive.
//! Their actions must be answered as on an idle worker.

use super::{
    Bench, BenchOptions, actions,
    calls::{Calls, Measured, Plan},
    process,
    report::{Row, Used},
    stand::Stand,
};

pub const PART: &str = "storm";
/// New actions a second.
pub const RATE: f64 = 20.0;
/// Calls that wait at once when the storm comes.
const WINDOW: usize = 200;
/// The default of `flow.start_timeout_ms`, and its least here.
const START_TIMEOUT_MS: f64 = 30_000.0;
const LEAST_TIMEOUT_MS: f64 = 1_000.0;

/// What a storm came to.
struct Stormed {
    idle: Measured,
    starts: Measured,
    /// Messages in the workers' queues when the starts were answered.
    waiting: u32,
    during: Measured,
    used: Used,
    memory: Option<(f64, f64)>,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let options = &bench.options;
    let load = process::load_average();
    let timeout = (START_TIMEOUT_MS * options.scale).clamp(LEAST_TIMEOUT_MS, START_TIMEOUT_MS);
    let settings = [("FLOW__START_TIMEOUT_MS", format!("{timeout:.0}"))];
    let stand = Stand::with(options, 1, &settings).await?;
    // Twice as long as a start waits for the switch: the first starts are due soon after this
    // begins, the last ones before it ends.
    let plan = steady(options, (2.0 * timeout / 1000.0).max(options.sizes.seconds));
    let stormed = measure(&stand, options, &plan).await?;
    stand.end().await?;

    let (count, Stormed { idle, during, .. }) = (options.sizes.storm, &stormed);
    let starts = &stormed.starts;
    let row = Row::new(
        PART,
        format!("starts in the storm, {WINDOW} at once"),
        "a second",
        starts.rate(),
    );
    bench.report.add(actions::latencies(row.load(load), "", starts));
    let row = Row::new(
        PART,
        format!("p99 of actions beside {count} unconfirmed starts"),
        "ms",
        during.ms(0.99),
    );
    let row = row.beside("the same worker, idle", idle.ms(0.99)).load(load);
    let row = row.used(stormed.used).memory(stormed.memory);
    let row = actions::latencies(row, "", during).detail("messages_waiting_at_the_begin", stormed.waiting);
    bench.report.add(actions::latencies(row, "idle_", idle));
    bench.report.expect("starts answered", starts.answered, count);
    bench
        .report
        .expect("actions answered in the storm", during.answered, plan.actions);
    Ok(())
}

async fn measure(stand: &Stand<'_>, options: &BenchOptions, plan: &Plan) -> anyhow::Result<Stormed> {
    let calls = stand.calls().await?;
    calls.run(&actions::warm_up(options)).await?;
    let idle = calls.run(&steady(options, options.sizes.seconds)).await?;
    let storm = Plan {
        actions: options.sizes.storm,
        window: WINDOW,
        rate: None,
        patience: options.patience,
    };
    let starts = calls.run(&storm).await?;
    let (meter, waiting) = (stand.meter(), stand.waiting().await?);
    let before = meter.read();
    let during = calls.run(plan).await?;
    let stormed = Stormed {
        idle,
        starts,
        waiting,
        during,
        used: Used::of_a_core(&meter.read(), &before),
        memory: stand.memory(),
    };
    calls.close().await;
    Ok(stormed)
}

/// Twenty actions a second, for so long.
pub fn steady(options: &BenchOptions, seconds: f64) -> Plan {
    let actions = (RATE * seconds).ceil().max(10.0) as u64;
    Plan {
        actions,
        // An action that waits must not delay the next one.
        window: actions as usize,
        rate: Some(RATE),
        patience: options.patience,
    }
}

/// New actions until they are stopped.
pub async fn until_stopped(
    calls: &Calls,
    options: &BenchOptions,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<Measured> {
    let mut all = Measured::default();
    while !*stopped.borrow_and_update() {
        let measured = calls.run(&steady(options, 1.0)).await?;
        all.answered += measured.answered;
        all.latencies.extend(measured.latencies);
    }
    all.latencies.sort_unstable();
    Ok(all)
}
