//! The limit loop as a process of its own, as a worker is.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    super::wire::{Object, hex},
    Bench,
    calls::{Calls, CallsOptions, Length, Measured, Plan},
    limit::READY,
    process::Meter,
    report::Used,
    stand::Stand,
};

/// The routing key of actions that only limit loops consume.
const KEY: &str = "callflow.action.limit";

/// One limit loop. It is killed when this is dropped.
struct Limit(Child);

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures a plan with so many limit loops, on the stand's servers.
pub async fn measure(bench: &Bench, stand: &Stand<'_>, loops: usize, plan: &Plan) -> anyhow::Result<(Measured, Used)> {
    let options = &bench.options;
    stand.seeded.couch.create_database("limit").await?;
    let template = options.scratch.join(format!("template-{}.json", hex(8)));
    let entry = bench.entry.clone().unwrap_or_else(usual_entry);
    std::fs::write(&template, serde_json::to_vec(&entry)?)?;
    let queue = format!("kazoo-sim-limit-{}", hex(8));
    let mut running = Vec::new();
    for _ in 0..loops {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("limit")
            .args(["--amqp-uri", &options.amqp_uri, "--queue", &queue, "--key", KEY])
            .args(["--database-url", &stand.database_url("limit")])
            .arg("--template")
            .arg(&template)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the limit loop")?;
        let stdout = child.stdout.take().context("its output")?;
        running.push(Limit(child));
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        ensure!(first.await??.trim() == READY, "the limit loop does not start");
    }
    let calls = CallsOptions {
        key: KEY.to_owned(),
        // The loop does not look whether its answers have room.
        replies: Length::Any,
        ..CallsOptions::new(&options.amqp_uri, &options.account)
    };
    let calls = Calls::connect(calls).await?;
    calls.run(&super::actions::warm_up(options)).await?;
    let meter = Meter {
        workers: running.iter().map(|limit| limit.0.id()).collect(),
        ..stand.meter()
    };
    let before = meter.read();
    let measured = calls.run(plan).await?;
    let used = Used::each(&meter.read(), &before, measured.answered);
    calls.close().await;
    Ok((measured, used))
}

/// About as large as an entry of a recording that has begun, for a run that measures no worker
/// before.
fn usual_entry() -> Object {
    let order = json!({"key": hex(32), "carry": hex(1_000), "parties": {"from": "1000", "to": "2000"}});
    let entry = json!({"call_id": hex(36), "state": "asked", "facts": [{"fact": "asked", "of": order}]});
    entry.as_object().cloned().unwrap_or_default()
}
