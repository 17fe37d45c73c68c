//! Actions: from `action.execute` to `action.result`. No switch takes part; the commands are taken
//! off the control queue, and dropped.

use super::{
    Bench, BenchOptions,
    calls::{Measured, Plan},
    limits, process,
    report::{Row, Used},
    stand::Stand,
};

pub const PART: &str = "actions";
/// What the numbers beside the worker's are from.
pub const LIMIT: &str = "limit loop";

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    for window in bench.options.sizes.windows.clone() {
        let plan = plan(&bench.options, window);
        let load = process::load_average();
        let (measured, used, memory) = measure(bench, 1, &plan).await?;
        let stand = Stand::new(&bench.options).await?;
        let (limit, used_beside) = limits::measure(bench, &stand, 1, &plan).await?;
        stand.end().await?;
        let row = Row::new(PART, format!("actions, {window} at once"), "a second", measured.rate());
        let mut row = row.beside(LIMIT, limit.rate()).used(used).memory(memory).load(load);
        row.used_beside = Some(used_beside);
        let row = latencies(row, "", &measured);
        bench.report.add(latencies(row, "limit_", &limit));
        let what = format!("p99 of actions, {window} at once");
        let row = Row::new(PART, what, "ms", measured.ms(0.99)).load(load);
        bench.report.add(row.beside(LIMIT, limit.ms(0.99)));
        let what = format!("actions answered, {window} at once");
        bench.report.expect(&what, measured.answered, plan.actions);
    }
    Ok(())
}

/// The plan of one window.
pub fn plan(options: &BenchOptions, window: usize) -> Plan {
    let actions = options.sizes.actions;
    Plan {
        actions: if window == 1 { actions.div_ceil(5) } else { actions },
        window,
        rate: None,
        patience: options.patience,
    }
}

/// A few actions before a measurement, for connections and databases that are made at the first
/// use.
pub fn warm_up(options: &BenchOptions) -> Plan {
    Plan {
        actions: 20,
        window: 5,
        rate: None,
        patience: options.patience,
    }
}

/// Measures so many workers on a fresh stand: the results, the CPU time, the memory.
pub async fn measure(
    bench: &mut Bench,
    workers: usize,
    plan: &Plan,
) -> anyhow::Result<(Measured, Used, Option<(f64, f64)>)> {
    let stand = Stand::with(&bench.options, workers, &[]).await?;
    let calls = stand.calls().await?;
    calls.run(&warm_up(&bench.options)).await?;
    let meter = stand.meter();
    let before = meter.read();
    let measured = calls.run(plan).await?;
    let used = Used::each(&meter.read(), &before, measured.answered);
    let memory = stand.memory();
    calls.close().await;
    let entry = stand.document("kz_record_call-").await?;
    stand.end().await?;
    bench.entry = entry.or(bench.entry.take());
    Ok((measured, used, memory))
}

/// Adds a run's latencies to a row's details.
pub fn latencies(row: Row, prefix: &str, measured: &Measured) -> Row {
    row.detail(&format!("{prefix}answered"), measured.answered)
        .detail(&format!("{prefix}p50_ms"), measured.ms(0.5))
        .detail(&format!("{prefix}p95_ms"), measured.ms(0.95))
        .detail(&format!("{prefix}p99_ms"), measured.ms(0.99))
        .detail(&format!("{prefix}max_ms"), measured.ms(1.0))
}
