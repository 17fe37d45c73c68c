//! `kz-record-call run`: the worker, from start to drain.

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, warn};

use crate::admin::Instruments;
use crate::config::Config;
use crate::telemetry::{self, TelemetryError};
use crate::worker::Worker;

use super::USAGE;

/// Runs the worker. `notes` lists what is odd about the configuration.
pub fn run(config: Config, notes: &[String]) -> ExitCode {
    match start(config, notes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kz-record-call: {error:#}");
            match error.downcast_ref() {
                // A restart would fail in the same way: a service manager must not restart the
                // worker.
                Some(TelemetryError::Filter(..)) => ExitCode::from(USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn start(config: Config, notes: &[String]) -> anyhow::Result<()> {
    let logs = telemetry::init_logs(&config)?;
    let instruments = Instruments {
        log_level: Some(logs.level.clone()),
        metrics: Some(telemetry::init_metrics()?),
    };
    for note in notes {
        warn!(event = "configuration_note", "{note}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("signals cannot be caught")?;
        let grace = config.flow.drain;
        let worker = Worker::start(config, super::clock(), instruments).await?;
        while signals.next().await == Wanted::Reload {
            worker.reload();
        }
        tokio::select! {
            () = worker.drain(grace) => {}
            () = signals.end() => warn!(event = "second_signal", "second signal, exiting at once"),
        }
        anyhow::Ok(())
    })?;
    // The process does not wait for blocking work, such as a write to a disk that hangs.
    runtime.shutdown_background();
    logs.shut_down();
    Ok(())
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    End,
    Reload,
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wanted {
        let (got, wanted) = tokio::select! {
            got = self.term.recv() => (got, Wanted::End),
            got = self.int.recv() => (got, Wanted::End),
            got = self.hup.recv() => (got, Wanted::Reload),
        };
        if got.is_none() {
            error!(event = "signals_lost", "signal handler stopped");
            return Wanted::End;
        }
        wanted
    }

    /// Waits for a signal that asks for the end.
    async fn end(&mut self) {
        while self.next().await != Wanted::End {}
    }
}
