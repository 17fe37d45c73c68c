//! `kz-record-call check`: finds before the first call what would go wrong.
//!
//! It uses everything that a worker needs as a worker would use it. It leaves nothing behind: no queue, no database, no file. It takes no
//! message from a queue, and every step has a time limit.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::config::{Config, Layers};
use crate::kazoo::time::Clock;

mod adopt;
mod broker;
mod database;
mod disk;
mod policies;
mod report;
mod settings;
mod switch;
mod uploads;

use report::{Report, Rows};

/// Time limit for all checks, so that the command takes less than half a minute.
const LIMIT: Duration = Duration::from_secs(25);

/// How the report is printed.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Answer as a monitoring plug-in: one line, and exit status 0 (OK), 1 (warnings), 2 (failures) or 3 (unknown).
    #[arg(long, conflicts_with = "json")]
    pub plugin: bool,
}

pub fn run(layers: Layers, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    report.add(settings::sources(&layers));
    let set_by = SetBy {
        broker: settings::set_by(&layers, &["amqp.uri"]),
        database: settings::set_by(&layers, &["couchdb.url", "couchdb.username", "couchdb.password"]),
    };
    match Config::of(layers) {
        Err(mistakes) => report.add(settings::mistakes(&mistakes)),
        Ok(config) => {
            report.add(settings::meaning(&config));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("no runtime")?;
            for rows in runtime.block_on(look(&config, &set_by)) {
                report.add(rows);
            }
            // A name server that does not answer blocks a thread. The command does not wait for that thread.
            runtime.shutdown_background();
        }
    }
    if args.plugin {
        return Ok(report.answer().give());
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", report.as_json())?;
    } else {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = std::io::stdout().is_terminal() && !no_colour;
        report.write(&mut out, colours, super::terminal::width())?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The sources of the settings that a server may refuse.
struct SetBy {
    broker: String,
    database: String,
}

/// The groups of checks run concurrently.
async fn look(config: &Config, set_by: &SetBy) -> Vec<Rows> {
    let clock = Clock::system();
    let (broker, database, uploads) = tokio::join!(
        bounded("broker", broker::look(config, &set_by.broker)),
        bounded("database", database::look(config, &clock, &set_by.database)),
        bounded("uploads", uploads::look(config)),
    );
    [broker, database, uploads].into_iter().flatten().collect()
}

async fn bounded(group: &'static str, looking: impl Future<Output = Vec<Rows>>) -> Vec<Rows> {
    match tokio::time::timeout(LIMIT, looking).await {
        Ok(rows) => rows,
        Err(_) => {
            let mut rows = Rows::of(group);
            rows.fail(
                "all checks",
                format!("not finished within {} s", LIMIT.as_secs()),
                "repeat the command, and check the load of that server",
            );
            vec![rows]
        }
    }
}
