//! Measures workers under load, and beside each number what the same machine allows in the same
//! run: the limit loop, or a bare upload.
//!
//! Starts the workers by itself, on fresh queues and databases for each measurement, and removes
//! them afterwards. The broker must have no other clients.

mod actions;
pub mod calls;
mod catch_up;
pub mod limit;
mod limits;
mod open;
mod process;
mod proxy;
mod puts;
mod recordings;
mod report;
mod stand;
mod storm;
mod switch;
mod workers;

use std::{path::PathBuf, time::Duration};

use anyhow::{anyhow, ensure};
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use super::{report::say, wire::Object};
pub use report::Report;

/// What a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Actions answered in a second, at different numbers of waiting calls.
    Actions,
    /// Whole recordings, from the action to the deletion of the switch's file.
    Recordings,
    /// Answers while starts that no switch confirmed become due.
    Storm,
    /// Recordings that ended while their database was away.
    CatchUp,
    /// Two and four workers.
    Workers,
    /// Open recordings of which nothing is due.
    Open,
}

impl Part {
    pub const ALL: [Self; 6] = [
        Self::Actions,
        Self::Recordings,
        Self::Storm,
        Self::CatchUp,
        Self::Workers,
        Self::Open,
    ];
}

/// How much a run does.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Actions of one measurement. A fifth of them, where they come one at a time.
    pub actions: u64,
    /// Calls that wait at once, one measurement each.
    pub windows: Vec<usize>,
    /// Recordings of the smallest size. Half as many of the next size, and a tenth of the largest.
    pub recordings: u64,
    /// Recordings at once.
    pub at_once: usize,
    /// Bytes of the one long recording.
    pub long_bytes: u64,
    /// Starts that no switch confirms.
    pub storm: u64,
    /// Recordings that end while the database is away.
    pub catch_up: u64,
    /// Recordings that stay open.
    pub open: u64,
    /// Seconds for which a steady state is watched.
    pub seconds: f64,
}

impl Sizes {
    /// All counts, and the bytes of the long recording, times `scale`.
    #[must_use]
    pub fn scaled(mut self, scale: f64) -> Self {
        let times = |n: u64, least: u64| ((n as f64 * scale).round() as u64).max(least);
        self.actions = times(self.actions, 20);
        self.recordings = times(self.recordings, 10);
        self.long_bytes = times(self.long_bytes, 1_000_000);
        self.storm = times(self.storm, 10);
        self.catch_up = times(self.catch_up, 10);
        self.open = times(self.open, 10);
        self.seconds = (self.seconds * scale).max(1.0);
        self
    }
}

#[derive(Clone, Debug)]
pub struct BenchOptions {
    pub amqp_uri: String,
    pub couchdb_url: String,
    pub account: String,
    /// The program `kz-record-call`.
    pub worker: PathBuf,
    /// A folder for files of the run.
    pub scratch: PathBuf,
    /// The first processes of the servers, where they can be read.
    pub rabbitmq_pid: Option<u32>,
    pub couchdb_pid: Option<u32>,
    pub parts: Vec<Part>,
    pub sizes: Sizes,
    pub scale: f64,
    /// What the report says of the run.
    pub label: String,
    pub json: Option<PathBuf>,
    /// The time limit of one action's result.
    pub patience: Duration,
}

/// A run so far.
pub struct Bench {
    pub options: BenchOptions,
    pub report: Report,
    /// An entry of a worker's ledger, for the limit loop's documents.
    entry: Option<Object>,
}

/// Runs all parts, and reports. `false`: an action had no result, or a recording was not stored.
pub async fn run(options: BenchOptions) -> anyhow::Result<bool> {
    ensure!(
        options.worker.is_file(),
        "{} is missing: build the worker, or name it with --worker",
        options.worker.display()
    );
    std::fs::create_dir_all(&options.scratch)?;
    let report = Report::new(&options).await;
    let mut bench = Bench {
        options,
        report,
        entry: None,
    };
    let outcome = tokio::select! {
        done = parts(&mut bench) => done,
        // The workers are killed when the future that waits for them is dropped.
        () = stop_signal() => Err(anyhow!("stopped: databases that begin with bench- can be left")),
    };
    let _ = std::fs::remove_dir_all(&bench.options.scratch);
    bench.report.print();
    outcome?;
    Ok(bench.report.is_complete())
}

/// SIGINT or SIGTERM.
async fn stop_signal() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => drop(terminated.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn parts(bench: &mut Bench) -> anyhow::Result<()> {
    for part in bench.options.parts.clone() {
        say(format!("bench: {}", title(part)));
        match part {
            Part::Actions => actions::run(bench).await?,
            Part::Recordings => recordings::run(bench).await?,
            Part::Storm => storm::run(bench).await?,
            Part::CatchUp => catch_up::run(bench).await?,
            Part::Workers => workers::run(bench).await?,
            Part::Open => open::run(bench).await?,
        }
        if let Some(path) = &bench.options.json {
            // A later part may fail, or be stopped: what was measured before stays.
            std::fs::write(path, serde_json::to_vec_pretty(&bench.report)?)?;
        }
    }
    Ok(())
}

fn title(part: Part) -> &'static str {
    match part {
        Part::Actions => "actions",
        Part::Recordings => "whole recordings",
        Part::Storm => "a storm of starts that no switch confirms",
        Part::CatchUp => "recordings that end while their database is away",
        Part::Workers => "several workers",
        Part::Open => "open recordings",
    }
}
