//! `kazoo-sim bench`, at a small size: it must run, and have all its rows. How fast a worker is, no
//! test says.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::promises;
use crate::support::{Services, TestResult};

promises![
    the_bench_measures_actions_beside_the_limit_loop,
    the_bench_measures_whole_recordings_beside_bare_uploads,
    the_bench_measures_actions_in_a_storm_of_unconfirmed_starts,
    the_bench_measures_how_a_worker_catches_up,
    the_bench_measures_several_workers,
    the_bench_measures_open_recordings,
];

/// The rows of a small run of one part, by what they measure.
async fn rows(services: &Services, part: &str, more: &[&str]) -> anyhow::Result<BTreeMap<String, Value>> {
    let lease = services.vhost().await?;
    let folder = std::env::temp_dir().join(format!("kz-record-call-bench-{part}-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let json = folder.join("bench.json");
    // The time of any process shows that it is read.
    let own = std::process::id().to_string();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kazoo-sim"))
        .args(["bench", "--parts", part, "--scale", "0.004", "--label", "a test"])
        .args(["--amqp-uri", &lease.uri, "--couchdb-url", &services.couch_url])
        .args(["--worker", env!("CARGO_BIN_EXE_kz-record-call")])
        .args(["--rabbitmq-pid", &own, "--couchdb-pid", &own])
        .arg("--json")
        .arg(&json)
        .arg("--scratch")
        .arg(&folder)
        .args(more)
        .kill_on_drop(true)
        .output()
        .await?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "{out}\n{err}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    std::fs::remove_dir_all(&folder)?;
    ensure!(
        report["label"] == "a test" && report["failures"] == Value::Array(Vec::new()),
        "{report:#}"
    );
    for version in ["worker_version", "rabbitmq_version", "couchdb_version", "machine"] {
        ensure!(
            report[version].as_str().is_some_and(|text| text != "unknown"),
            "{report:#}"
        );
    }
    let mut rows = BTreeMap::new();
    for row in report["rows"].as_array().context("rows")? {
        let what = row["what"].as_str().context("what")?;
        ensure!(out.contains(what), "the table lacks {what}:\n{out}");
        is_sane(row)?;
        rows.insert(what.to_owned(), row.clone());
    }
    Ok(rows)
}

/// Numbers that cannot be wrong by much, on any machine.
fn is_sane(row: &Value) -> TestResult {
    let worker = row["worker"].as_f64().context("no number")?;
    ensure!(worker.is_finite() && worker >= 0.0, "{row:#}");
    let idle = row["unit"] == "% of a core";
    ensure!(worker > 0.0 || idle, "{row:#}");
    if let Some(beside) = row["beside"].as_f64().filter(|beside| *beside > 0.0) {
        let ratio = row["ratio"].as_f64().context("no ratio")?;
        ensure!((ratio - worker / beside).abs() < 1e-9, "{row:#}");
    }
    if let Some(memory) = row["memory_mib"].as_f64() {
        ensure!((4.0..4_096.0).contains(&memory), "{row:#}");
        ensure!(
            row["peak_memory_mib"].as_f64().is_some_and(|peak| peak >= memory),
            "{row:#}"
        );
    }
    if let Some(cpu) = row["used"]["cpu"].as_object() {
        for name in ["worker", "rabbitmq", "couchdb", "generator"] {
            ensure!(cpu.get(name).is_some_and(|used| used.as_f64() >= Some(0.0)), "{row:#}");
        }
    }
    Ok(())
}

fn has(rows: &BTreeMap<String, Value>, what: &str, against: &str) -> TestResult {
    let row = rows.get(what).with_context(|| format!("no {what} in {rows:#?}"))?;
    ensure!(row["against"] == against, "{row:#}");
    ensure!(against.is_empty() || row["beside"].is_number(), "{row:#}");
    Ok(())
}

async fn the_bench_measures_actions_beside_the_limit_loop(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "actions", &["--windows", "1,50"]).await?;
    for window in [1, 50] {
        has(&rows, &format!("actions, {window} at once"), "limit loop")?;
        has(&rows, &format!("p99 of actions, {window} at once"), "limit loop")?;
        let row = &rows[&format!("actions, {window} at once")];
        ensure!(
            row["used"]["cpu"]["worker"].is_number() && row["memory_mib"].is_number(),
            "{row:#}"
        );
        ensure!(row["used_beside"]["cpu"]["worker"].is_number(), "{row:#}");
    }
    ensure!(rows.len() == 4, "{rows:#?}");
    Ok(())
}

async fn the_bench_measures_whole_recordings_beside_bare_uploads(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "recordings", &["--at-once", "4"]).await?;
    for size in ["20 KB", "320 KB", "3 MB"] {
        has(&rows, &format!("recordings of {size}, 4 at once"), "bare PUT")?;
    }
    has(&rows, "one recording of 1 MB", "bare PUT")?;
    ensure!(rows.len() == 4, "{rows:#?}");
    Ok(())
}

async fn the_bench_measures_actions_in_a_storm_of_unconfirmed_starts(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "storm", &[]).await?;
    has(&rows, "starts in the storm, 200 at once", "")?;
    has(
        &rows,
        "p99 of actions beside 40 unconfirmed starts",
        "the same worker, idle",
    )?;
    ensure!(rows.len() == 2, "{rows:#?}");
    Ok(())
}

async fn the_bench_measures_how_a_worker_catches_up(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "catch-up", &[]).await?;
    has(&rows, "recordings caught up, of 40", "bare PUT")?;
    has(&rows, "p99 of actions during the catch-up", "the same worker, idle")?;
    ensure!(rows.len() == 2, "{rows:#?}");
    Ok(())
}

async fn the_bench_measures_several_workers(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "workers", &[]).await?;
    has(&rows, "actions of 1 worker, 200 at once", "limit loop")?;
    for workers in [2, 4] {
        let what = format!("actions of {workers} workers, 200 at once");
        has(&rows, &what, "1 worker")?;
        ensure!(
            rows[&what]["detail"]["limit_loops_ratio"].is_number(),
            "{:#}",
            rows[&what]
        );
    }
    ensure!(rows.len() == 3, "{rows:#?}");
    Ok(())
}

async fn the_bench_measures_open_recordings(services: Arc<Services>) -> TestResult {
    let rows = rows(&services, "open", &[]).await?;
    has(&rows, "memory, 0 open recordings", "")?;
    for what in ["memory", "CPU of CouchDB", "CPU of RabbitMQ", "CPU of the worker"] {
        has(&rows, &format!("{what}, 40 open recordings"), "none open")?;
    }
    ensure!(rows.len() == 5, "{rows:#?}");
    Ok(())
}
