//! `kz-record-call run`: the worker, from start to drain.

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, warn};

use crate::admin::Instruments;
use crate::config::Config;
use crate::kazoo::time::Clock;
use crate::telemetry;
use crate::worker::Worker;

pub fn run(config: Config) -> ExitCode {
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kz-record-call: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let instruments = Instruments {
        log_level: Some(telemetry::init_logs(&config.log)?),
        metrics: Some(telemetry::init_metrics()?),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("signals cannot be caught")?;
        let grace = config.flow.drain;
        let worker = Worker::start(config, Clock::system(), instruments).await?;
        signals.next().await;
        tokio::select! {
            () = worker.drain(grace) => {}
            () = signals.next() => warn!("a second signal: ending at once"),
        }
        anyhow::Ok(())
    })?;
    // Blocking work that is left, such as a write to a hanging disk, is not waited for.
    runtime.shutdown_background();
    Ok(())
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        let got = tokio::select! {
            got = self.term.recv() => got,
            got = self.int.recv() => got,
        };
        if got.is_none() {
            error!("signals cannot be received any more");
        }
    }
}
