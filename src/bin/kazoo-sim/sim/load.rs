//! How many actions a worker answers in a second, and how fast; beside it the same messages through a loop that does nothing but answer, which is
//! what the broker and this machine allow.
//!
//! No switch takes part: the commands are taken off the control queue and dropped, so that what is measured is the way from `action.execute`
//! to `action.result`. `bench` measures the rest.

use std::time::Duration;

use super::{
    bench::{
        calls::{Calls, CallsOptions, Length, Measured, Plan},
        limit,
    },
    report::say,
    wire::hex,
};

#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub amqp_uri: String,
    pub account: String,
    pub actions: u64,
    /// Actions that wait for their answers at once: calls that reach the node together.
    pub window: usize,
    /// Do not use a worker: answer here, with as little work as can be.
    pub bare: bool,
    pub patience: Duration,
}

/// Runs, and tells.
pub async fn run(options: LoadOptions) -> anyhow::Result<bool> {
    let measured = measure(&options).await?;
    say(format!(
        "{}: {} of {} actions answered in {:.2} s, {:.0} a second, {} at once; {} commands; ms: p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}",
        if options.bare { "bare loop" } else { "worker" },
        measured.answered,
        options.actions,
        measured.took.as_secs_f64(),
        measured.rate(),
        options.window,
        measured.commands,
        measured.ms(0.5),
        measured.ms(0.95),
        measured.ms(0.99),
        measured.ms(1.0),
    ));
    Ok(measured.answered == options.actions)
}

/// Sends the actions and waits for their answers.
pub async fn measure(options: &LoadOptions) -> anyhow::Result<Measured> {
    let calls = CallsOptions::new(&options.amqp_uri, &options.account);
    let replies = if options.bare { Length::Any } else { Length::Kazoo };
    let calls = Calls::connect(CallsOptions { replies, ..calls }).await?;
    let answering = match options.bare {
        true => Some(
            limit::start(limit::LimitOptions::answers_only(
                &options.amqp_uri,
                &format!("kazoo-sim-bare-{}", hex(8)),
            ))
            .await?,
        ),
        false => None,
    };
    let plan = Plan {
        actions: options.actions,
        window: options.window,
        rate: None,
        patience: options.patience,
    };
    let measured = calls.run(&plan).await;
    if let Some(answering) = answering {
        answering.abort();
    }
    calls.close().await;
    measured
}
