//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueHint};

use crate::config::{self as settings, Config, ConfigError, Layers, Sources};
use crate::kazoo::time::Clock;

mod check;
mod config;
mod explain;
mod healthcheck;
mod ledger;
mod list;
mod pages;
mod plain;
mod run;

/// `EX_USAGE`: the configuration, or the command line, is wrong.
const USAGE: u8 = 64;

/// Records Kazoo calls on behalf of callflows, and loses none of them.
///
/// A worker beside a Kazoo cluster: it runs the record_call action of callflows whose node says "remote_execution": true, brings the
/// audio from the media switch to where it belongs, and tells everybody who must know.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// A TOML file with settings; what it does not set keeps its default.
    ///
    /// If neither this nor the variable names one, it is /etc/kz-record-call/config.toml, where that can be read; `none` means no file.
    /// Every setting can also be given in the environment: [amqp] uri is KZ_RECORD_CALL__AMQP__URI.
    #[arg(long, short, global = true, value_name = "FILE", env = "KZ_RECORD_CALL_CONFIG", value_hint = ValueHint::FilePath)]
    config: Option<OsString>,

    /// A single setting, such as log.level=debug; wins over everything else. Can be given several times.
    ///
    /// Not for secrets: everybody on the host sees a command line.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker until SIGTERM or SIGINT.
    ///
    /// On the first signal it takes nothing new, finishes what it has in hand within flow.drain_s, and leaves the rest to other
    /// workers; a second signal ends it at once. On SIGHUP it reads the certificate for uploads again.
    Run,
    /// Tell the story of a recording: what was asked, what happened and when, where its audio is, and what comes next.
    Explain {
        /// A call's id, a recording's id, or its document's.
        name: String,
        /// As JSON: everything that the ledger has, the URLs of actions with their credentials too.
        #[arg(long)]
        json: bool,
    },
    /// List recordings, by state, account, cause and age.
    List(list::ListArgs),
    /// Move recordings on that are parked: their attempts begin anew.
    Retry(list::RetryArgs),
    /// Give a recording up whose audio cannot, or need not, be delivered.
    Discard(list::DiscardArgs),
    /// Ask the worker of this host how it is: exit status 0 when it is ready.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Look at everything that a worker needs, and tell what is wrong and what to do about it.
    ///
    /// Broker, Kazoo, database, settings for recordings, upload port, disk, clock. Nothing is changed, no message is taken. The exit status
    /// is 1 when something is wrong that recordings need; warnings leave it 0.
    Check(check::CheckArgs),
    /// Print the settings.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print what makes a shell complete this program's arguments.
    #[command(hide = true)]
    Completions(pages::CompletionsArgs),
    /// Print the manual page, or write all of them into a folder.
    #[command(hide = true)]
    Man(pages::ManArgs),
}

/// What can be said on the command line, for whoever holds documents against it.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // The one crypto library, before anything asks for it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            let _ = told.print();
            // Help and the version are no error.
            return ExitCode::from(if told.use_stderr() { USAGE } else { 0 });
        }
    };
    // What a package's build asks needs no configuration, and a wrong one is nothing to it.
    match &cli.command {
        Command::Completions(args) => return ended(pages::completions(Cli::command(), args)),
        Command::Man(args) => return ended(pages::man(Cli::command(), args)),
        Command::List(args) => {
            if let Some(contradiction) = args.contradiction() {
                let _ = Cli::command().error(ErrorKind::ArgumentConflict, contradiction).print();
                return ExitCode::from(USAGE);
            }
        }
        _ => {}
    }
    let (file, odd) = settings::own_file(cli.config.as_deref(), settings::USUAL_FILE);
    let mut layers = Layers::gather(&Sources::of_process(file.as_deref(), &cli.set));
    if let Some(odd) = odd {
        layers.note(odd);
    }
    match &cli.command {
        Command::Config(command) => return config::run(command, layers).unwrap_or_else(|error| failed(&error)),
        Command::Check(args) => return check::run(layers, args).unwrap_or_else(|error| failed(&error)),
        _ => {}
    }
    let notes = layers.notes().to_vec();
    let config = match Config::of(layers) {
        Ok(config) => config,
        Err(mistakes) => return wrong(&mistakes, &notes),
    };
    let done = match cli.command {
        Command::Run => return run::run(config, &notes),
        Command::Explain { name, json } => explain::run(&config, &name, json),
        Command::List(args) => list::list(&config, &args),
        Command::Retry(args) => list::retry(&config, &args),
        Command::Discard(args) => list::discard(&config, &args),
        Command::Healthcheck(args) => healthcheck::healthcheck(&config, &args),
        // Done above.
        Command::Config(_) | Command::Check(_) | Command::Completions(_) | Command::Man(_) => Ok(true),
    };
    ended(done)
}

fn ended(done: anyhow::Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

/// The system's clock. In debug builds a test can put it forward, to stand at the turn of a month.
fn clock() -> Clock {
    const VARIABLE: &str = "KZ_RECORD_CALL_TEST_CLOCK_FORWARD_S";
    let forward = cfg!(debug_assertions).then(|| std::env::var(VARIABLE).ok()).flatten();
    match forward.and_then(|seconds| seconds.parse().ok()) {
        Some(seconds) => Clock::put_forward(Duration::from_secs(seconds)),
        None => Clock::system(),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // Whoever read the output has enough of it, as `head` does.
    let closed = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(closed) {
        return ExitCode::SUCCESS;
    }
    eprintln!("kz-record-call: {error:#}");
    ExitCode::FAILURE
}

/// Tells all mistakes, and what was odd besides: it may be their cause.
fn wrong(mistakes: &[ConfigError], notes: &[String]) -> ExitCode {
    eprintln!("kz-record-call: the configuration is wrong:");
    for mistake in mistakes {
        eprintln!("  {mistake}");
    }
    if !notes.is_empty() {
        eprintln!("odd besides:");
    }
    for note in notes {
        eprintln!("  {note}");
    }
    ExitCode::from(USAGE)
}
