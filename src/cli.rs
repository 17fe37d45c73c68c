//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueHint};

use crate::config::{self as settings, Config, ConfigError, Layers, Sources};
use crate::kazoo::time::Clock;

use plugin::{Answer, Status};

mod check;
mod config;
mod erase;
mod explain;
mod fetch;
mod healthcheck;
mod ledger;
mod list;
mod pages;
mod plain;
mod plugin;
mod run;
mod terminal;
mod webhook;

/// `EX_USAGE`: the configuration, or the command line, is wrong.
const USAGE: u8 = 64;

/// Records the calls of a Kazoo cluster, and loses no recording.
///
/// A worker runs beside a Kazoo cluster. It executes the record_call action of callflows whose node says "remote_execution": true. It
/// delivers the audio from the media switch to its destination, and publishes the events that Kazoo and other consumers need.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Read settings from this TOML file. A setting that the file does not have keeps its default.
    ///
    /// Without this option and without the variable, the file is /etc/kz-record-call/config.toml, if it is readable. `none` means no file.
    /// Every setting can also be given in the environment: [amqp] uri is KZ_RECORD_CALL__AMQP__URI.
    #[arg(long, short, global = true, value_name = "FILE", env = "KZ_RECORD_CALL_CONFIG", value_hint = ValueHint::FilePath)]
    config: Option<OsString>,

    /// Set a single setting, such as log.level=debug. It wins over every other source. Can be given several times.
    ///
    /// Do not give secrets here: every user of the host can see a command line.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker until SIGTERM or SIGINT.
    ///
    /// On the first signal the worker accepts nothing new. It finishes the recordings in flight within flow.drain_s, and leaves other
    /// recordings to other workers. A second signal ends the process at once. On SIGHUP the worker reloads the certificate for uploads.
    Run,
    /// Show the history of a recording: what was ordered, what happened and when, where its audio is, and what comes next.
    Explain {
        /// The id of a call, of a recording, or of a recording's document.
        name: String,
        /// Print JSON: everything that the ledger has, including the URLs of actions with their credentials.
        #[arg(long)]
        json: bool,
    },
    /// List recordings, by state, account, cause and age.
    List(list::ListArgs),
    /// Retry parked recordings: their attempts start again. A worker of the zone must run.
    Retry(list::RetryArgs),
    /// Copy the audio of a recording from the hold into a file, and verify that it is complete.
    Fetch(fetch::FetchArgs),
    /// Discard a recording whose audio cannot be delivered, or need not be.
    Discard(list::DiscardArgs),
    /// Remove everything that the workers hold of a call or a recording, and print a receipt.
    ///
    /// This removes the entries in the ledger, copies in the hold, and dead letters. It is refused while a recording is open. The receipt
    /// names what was removed, and what this command cannot reach, such as the recording itself in the account's database.
    Erase(erase::EraseArgs),
    /// Ask the worker of this host whether it is ready: exit status 0 when it is.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Check everything that a worker needs, and report what is wrong and what to do about it.
    ///
    /// This checks the broker, Kazoo, the database, the settings for recordings, the upload port, the disk and the clock. It changes
    /// nothing and takes no message. The exit status is 1 when something that recordings need is wrong. Warnings leave it 0.
    Check(check::CheckArgs),
    /// Test the endpoints that get the outcomes of recordings.
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Print the settings.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a shell's completions for the arguments of this program.
    #[command(hide = true)]
    Completions(pages::CompletionsArgs),
    /// Print the manual page, or write all of them into a folder.
    #[command(hide = true)]
    Man(pages::ManArgs),
}

/// The definition of the command line, for tests that compare documents with it.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // rustls must have its crypto provider before any code uses TLS.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            let _ = told.print();
            // Help and the version are no errors.
            return ExitCode::from(if told.use_stderr() { USAGE } else { 0 });
        }
    };
    // The build of a package runs these commands without a configuration. A wrong configuration must not stop them.
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
        Command::Check(args) => {
            return check::run(layers, args).unwrap_or_else(|error| match args.plugin {
                true => Answer::new(Status::Unknown, format!("{error:#}")).give(),
                false => failed(&error),
            });
        }
        _ => {}
    }
    let notes = layers.notes().to_vec();
    let config = match Config::of(layers) {
        Ok(config) => config,
        Err(mistakes) => {
            return match (&cli.command, mistakes.first()) {
                (Command::Healthcheck(args), Some(mistake)) if args.plugin => {
                    Answer::new(Status::Unknown, format!("the configuration is wrong: {mistake}")).give()
                }
                _ => wrong(&mistakes, &notes),
            };
        }
    };
    let done = match cli.command {
        Command::Run => return run::run(config, &notes),
        Command::Explain { name, json } => explain::run(&config, &name, json),
        Command::List(args) => list::list(&config, &args),
        Command::Retry(args) => list::retry(&config, &args),
        Command::Fetch(args) => fetch::fetch(&config, &args),
        Command::Discard(args) => list::discard(&config, &args),
        Command::Erase(args) => erase::erase(&config, &args),
        Command::Healthcheck(args) if args.plugin => return healthcheck::answer(&config, &args).give(),
        Command::Healthcheck(args) => healthcheck::healthcheck(&config, &args),
        Command::Webhook(command) => webhook::run(&config, &command),
        // Handled above.
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

/// The system's clock. In debug builds a test can put the clock forward, to run at the end of a month.
fn clock() -> Clock {
    const VARIABLE: &str = "KZ_RECORD_CALL_TEST_CLOCK_FORWARD_S";
    let forward = cfg!(debug_assertions).then(|| std::env::var(VARIABLE).ok()).flatten();
    match forward.and_then(|seconds| seconds.parse().ok()) {
        Some(seconds) => Clock::put_forward(Duration::from_secs(seconds)),
        None => Clock::system(),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // The reader of the output has closed the pipe, as `head` does. That is no failure.
    let closed = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(closed) {
        return ExitCode::SUCCESS;
    }
    eprintln!("kz-record-call: {error:#}");
    ExitCode::FAILURE
}

/// Prints all mistakes, and the notes on odd settings: an odd setting may be the cause of a mistake.
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
