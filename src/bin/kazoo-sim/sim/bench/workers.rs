//! Two and four workers on one broker and one database, and as many limit loops.

use super::{Bench, actions, limits, process, report::Row, stand::Stand};

const PART: &str = "workers";
const WINDOW: usize = 200;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let plan = actions::plan(&bench.options, WINDOW);
    let (mut of_one, mut of_one_loop) = (None, None);
    for workers in [1, 2, 4] {
        let load = process::load_average();
        let (measured, used, memory) = actions::measure(bench, workers, &plan).await?;
        let stand = Stand::new(&bench.options).await?;
        let (limit, used_beside) = limits::measure(bench, &stand, workers, &plan).await?;
        stand.end().await?;
        bench.report.expect(
            &format!("actions of {workers} workers"),
            measured.answered,
            plan.actions,
        );
        let what = match workers {
            1 => format!("actions of 1 worker, {WINDOW} at once"),
            _ => format!("actions of {workers} workers, {WINDOW} at once"),
        };
        let row = Row::new(PART, what, "a second", measured.rate())
            .used(used)
            .memory(memory)
            .load(load);
        let mut row = actions::latencies(row, "", &measured)
            .detail("limit_loops_a_second", limit.rate())
            .detail(
                "limit_loops_ratio",
                limit.rate() / *of_one_loop.get_or_insert(limit.rate()),
            );
        row.used_beside = Some(used_beside);
        let row = match of_one {
            Some(one) => row.beside("1 worker", one),
            None => row.beside(actions::LIMIT, limit.rate()),
        };
        of_one.get_or_insert(measured.rate());
        bench.report.add(row);
    }
    Ok(())
}
