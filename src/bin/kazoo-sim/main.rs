//! `kazoo-sim`: a simulated Kazoo for trying kz-record-call out. All that matters is in [`sim`].

#![forbid(unsafe_code)]

mod sim;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use sim::{bench, couch, demo, load, wire::Clock};

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
    /// Measure workers under load, beside what the same machine allows; starts the workers, on a broker without other clients.
    Bench(BenchArgs),
    /// Run the limit loop of a measurement: answer, write one document each, and nothing else.
    #[command(hide = true)]
    Limit(LimitArgs),
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

#[derive(clap::Args)]
struct BenchArgs {
    /// RabbitMQ; the path is the virtual host. Its queues kz_record_call.* are removed.
    #[arg(
        long,
        env = "AMQP_URI",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f",
        hide_env_values = true
    )]
    amqp_uri: String,
    /// CouchDB, with credentials if it wants any. Databases are made and removed whose names begin with bench-.
    #[arg(
        long,
        env = "COUCHDB_URL",
        default_value = "http://127.0.0.1:5984",
        hide_env_values = true
    )]
    couchdb_url: String,
    /// The account on whose calls the recordings are made: 32 hex digits.
    #[arg(long, default_value = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4")]
    account: String,
    /// The worker's program [default: kz-record-call beside this program].
    #[arg(long)]
    worker: Option<PathBuf>,
    /// A folder for spools and audio [default: a temporary folder].
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The first process of RabbitMQ, whose CPU time is then reported.
    #[arg(long)]
    rabbitmq_pid: Option<u32>,
    /// The first process of CouchDB, whose CPU time is then reported.
    #[arg(long)]
    couchdb_pid: Option<u32>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = bench::Part::ALL)]
    parts: Vec<bench::Part>,
    /// Multiplies all the counts below, and the bytes of the long recording.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Actions of one measurement.
    #[arg(long, default_value_t = 5_000)]
    actions: u64,
    /// Actions that wait for their results at once, one measurement each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 200, 1_000])]
    windows: Vec<usize>,
    /// Recordings of 20 KB; half as many of 320 KB, and a tenth of 3 MB.
    #[arg(long, default_value_t = 1_000)]
    recordings: u64,
    /// Recordings at once.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// Bytes of the one long recording. Three hours of stereo by default.
    #[arg(long, default_value_t = 345_600_044)]
    long_bytes: u64,
    /// Starts that no switch confirms.
    #[arg(long, default_value_t = 10_000)]
    storm: u64,
    /// Recordings that end while the database is away.
    #[arg(long, default_value_t = 10_000)]
    catch_up: u64,
    /// Recordings that stay open.
    #[arg(long, default_value_t = 10_000)]
    open: u64,
    /// Seconds for which a steady state is watched.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// What the report says of the run, such as the commit.
    #[arg(long, default_value = "")]
    label: String,
    /// Write the results into this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

#[derive(clap::Args)]
struct LimitArgs {
    /// RabbitMQ; the path is the virtual host.
    #[arg(long)]
    amqp_uri: String,
    /// The quorum queue; several loops share it.
    #[arg(long)]
    queue: String,
    /// The routing key of the actions.
    #[arg(long)]
    key: String,
    /// The database of the documents.
    #[arg(long)]
    database_url: String,
    /// A file with what each document has besides its id.
    #[arg(long)]
    template: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => run_demo(args).await,
        Command::Load(args) => run_load(args).await,
        Command::Bench(args) => run_bench(args).await,
        Command::Limit(args) => run_limit(args).await,
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

async fn run_bench(args: BenchArgs) -> anyhow::Result<bool> {
    let beside = std::env::current_exe()?.with_file_name("kz-record-call");
    let own = format!("kazoo-sim-bench-{}", std::process::id());
    let sizes = bench::Sizes {
        actions: args.actions,
        windows: args.windows,
        recordings: args.recordings,
        at_once: args.at_once.max(1),
        long_bytes: args.long_bytes,
        storm: args.storm,
        catch_up: args.catch_up,
        open: args.open,
        seconds: args.seconds,
    };
    bench::run(bench::BenchOptions {
        amqp_uri: args.amqp_uri,
        couchdb_url: args.couchdb_url.trim_end_matches('/').to_owned(),
        account: args.account,
        worker: args.worker.unwrap_or(beside),
        scratch: args.scratch.unwrap_or_else(std::env::temp_dir).join(own),
        rabbitmq_pid: args.rabbitmq_pid,
        couchdb_pid: args.couchdb_pid,
        parts: args.parts,
        sizes: sizes.scaled(args.scale),
        scale: args.scale,
        label: args.label,
        json: args.json,
        patience: Duration::from_secs(args.patience),
    })
    .await
}

async fn run_limit(args: LimitArgs) -> anyhow::Result<bool> {
    let template = serde_json::from_slice(&std::fs::read(&args.template)?)?;
    bench::limit::run(bench::limit::LimitOptions {
        amqp_uri: args.amqp_uri,
        queue: args.queue,
        key: args.key,
        documents: Some(bench::limit::Documents {
            database_url: args.database_url,
            template,
        }),
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
