//! `kazoo-sim`: a simulated Kazoo for trying kz-record-call out. All that matters is in [`sim`].

#![forbid(unsafe_code)]

mod sim;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use sim::{couch, demo, load, wire::Clock};

/// Plays the cluster around kz-record-call: callflow, ecallmgr and a FreeSWITCH that really uploads.
///
/// It checks all that the worker sends against Kazoo's contract and exits with 1 when anything is wrong. It is a
/// counterpart for demonstrations and tests: never let it near a broker that serves real calls.
#[derive(Parser)]
#[command(name = "kazoo-sim", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play some calls through a running worker and tell the story of each recording.
    Demo(DemoArgs),
    /// Measure how many actions a running worker answers in a second, and how fast.
    Load(LoadArgs),
    /// Create the databases and documents that a Kazoo cluster has before a worker comes.
    Seed(CouchArgs),
}

#[derive(clap::Args)]
struct CouchArgs {
    /// CouchDB, with credentials if it wants any.
    #[arg(
        long,
        env = "COUCHDB_URL",
        default_value = "http://127.0.0.1:5984",
        hide_env_values = true
    )]
    couchdb_url: String,
    /// Put before every database's name; the worker must be configured with the same.
    #[arg(long, env = "DATABASE_PREFIX", default_value = "", hide_default_value = true)]
    database_prefix: String,
    /// The account on whose calls the recordings are made: 32 hex digits.
    #[arg(long, default_value = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4")]
    account: String,
}

#[derive(clap::Args)]
struct DemoArgs {
    /// RabbitMQ; the path is the virtual host.
    #[arg(
        long,
        env = "AMQP_URI",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f",
        hide_env_values = true
    )]
    amqp_uri: String,
    #[command(flatten)]
    couch: CouchArgs,
    /// How many calls into the account's database; they take turns in MP3 and WAV. One more goes to a user's URL.
    #[arg(long, default_value_t = 2)]
    calls: usize,
    /// Another CouchDB, credentials in it: the last call goes there, by third_party_bigcouch_host.
    #[arg(long, env = "THIRD_PARTY_URL", hide_env_values = true)]
    third_party_url: Option<String>,
    /// The worker's admin address, e.g. http://127.0.0.1:24531; its /readyz is waited for first.
    #[arg(long, env = "WORKER_ADMIN_URL")]
    worker_admin_url: Option<String>,
    /// Where the simulated switch records [default: a temporary folder].
    #[arg(long)]
    recordings: Option<PathBuf>,
    /// The name by which the worker reaches this host: the user's URL names it. Needed when the two are not on one host; the worker's
    /// destination.allow must have it.
    #[arg(long, env = "RECEIVER_HOST", default_value = "127.0.0.1")]
    receiver_host: String,
    /// Declare durable queues, for a RabbitMQ that forbids Kazoo's transient shared ones (4.3).
    #[arg(long)]
    durable_queues: bool,
    /// Seconds to wait for a worker.
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Seconds that people talk; only for the eye.
    #[arg(long, default_value_t = 1.0)]
    talk: f64,
}

#[derive(clap::Args)]
struct LoadArgs {
    /// RabbitMQ; the path is the virtual host.
    #[arg(
        long,
        env = "AMQP_URI",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f",
        hide_env_values = true
    )]
    amqp_uri: String,
    /// The account on whose calls the recordings are asked for: 32 hex digits.
    #[arg(long, default_value = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4")]
    account: String,
    /// How many actions.
    #[arg(long, default_value_t = 5_000)]
    actions: u64,
    /// Actions that wait for their answers at once.
    #[arg(long, default_value_t = 50)]
    window: usize,
    /// Use no worker: answer here, in a loop that does nothing else. What broker and machine allow.
    #[arg(long)]
    bare: bool,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => run_demo(args).await,
        Command::Load(args) => run_load(args).await,
        Command::Seed(args) => run_seed(args).await,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("kazoo-sim: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_demo(args: DemoArgs) -> anyhow::Result<bool> {
    let talk = Duration::try_from_secs_f64(args.talk)?;
    demo::run(demo::DemoOptions {
        amqp_uri: args.amqp_uri,
        couchdb_url: args.couch.couchdb_url,
        database_prefix: args.couch.database_prefix,
        account: args.couch.account,
        calls: args.calls,
        third_party_url: args.third_party_url,
        worker_admin_url: args.worker_admin_url,
        recordings: args.recordings,
        receiver_host: args.receiver_host,
        durable_queues: args.durable_queues,
        patience: Duration::from_secs(args.patience),
        talk,
    })
    .await
}

async fn run_load(args: LoadArgs) -> anyhow::Result<bool> {
    load::run(load::LoadOptions {
        amqp_uri: args.amqp_uri,
        account: args.account,
        actions: args.actions,
        window: args.window.max(1),
        bare: args.bare,
        patience: Duration::from_secs(args.patience),
    })
    .await
}

async fn run_seed(args: CouchArgs) -> anyhow::Result<bool> {
    let seeded = couch::seed(
        &args.couchdb_url,
        &args.database_prefix,
        &args.account,
        Clock::default(),
    )
    .await?;
    sim::report::say(format!("ready: {}, {}", seeded.account_db, seeded.modb));
    Ok(true)
}
