//! What a package installs beside the program: manual pages, and completions for shells. Both are generated from the definition of the
//! command line, so that they agree with it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const NAME: &str = env!("CARGO_PKG_NAME");

/// The shell.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Where the pages are written.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the page of each command too, as files in this folder. Without this option, print the program's own page.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the completions.
pub fn completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<bool> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, NAME, &mut script);
    print(&script)
}

/// Prints the manual page, or writes all of them.
pub fn man(command: Command, args: &ManArgs) -> anyhow::Result<bool> {
    let Some(dir) = &args.dir else {
        return print(&main_page(command)?);
    };
    std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be created", dir.display()))?;
    write(dir, NAME, &main_page(command.clone())?)?;
    for page in visible(&command) {
        let name = format!("{NAME}-{}", page.get_name());
        let mut roff = Vec::new();
        titled(Man::new(page), &name).render(&mut roff)?;
        write(dir, &name, &roff)?;
    }
    Ok(true)
}

/// The commands that are not hidden.
fn visible(command: &Command) -> Vec<Command> {
    let mut command = command.clone().disable_help_subcommand(true);
    // Gives the commands their full names, and the global options.
    command.build();
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.cloned().collect()
}

fn titled(man: Man, title: &str) -> Man {
    // No date, so that the same program makes the same page.
    man.title(title.to_uppercase())
        .section("1")
        .source(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")))
        .manual("kz-record-call")
}

fn main_page(command: Command) -> anyhow::Result<Vec<u8>> {
    let commands = visible(&command);
    let man = titled(Man::new(command.disable_help_subcommand(true)), NAME);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    let mut more = Roff::new();
    more.control("SH", ["ENVIRONMENT"]);
    for (name, what) in [
        (
            "KZ_RECORD_CALL_CONFIG",
            "The settings file, as --config; none for no file.",
        ),
        (
            "KZ_RECORD_CALL__SECTION__KEY",
            "Any setting: [amqp] uri is KZ_RECORD_CALL__AMQP__URI. It wins over the file.",
        ),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "Set by a service manager. The worker reports to it when it consumes, what it lacks, and its heartbeat.",
        ),
        ("NO_COLOR", "No colours in the log."),
    ] {
        more.control("TP", []).text([bold(name)]).text([roman(what)]);
    }
    more.control("SH", ["EXIT STATUS"]);
    for (status, what) in [
        ("0", "Success; for healthcheck: ready."),
        (
            "1",
            "Failure, or nothing found; for healthcheck: not ready. Standard error has the reason.",
        ),
        (
            "64",
            "The command line or the configuration has mistakes. Standard error has all of them.",
        ),
    ] {
        more.control("TP", []).text([bold(status)]).text([roman(what)]);
    }
    more.control("SH", ["FILES"]);
    for (path, what) in [
        (
            "/etc/kz-record-call/config.toml",
            "The settings, if neither --config nor KZ_RECORD_CALL_CONFIG names another file.",
        ),
        (
            "/etc/kz-record-call/environment",
            "Secret settings, readable by root only.",
        ),
        (
            "/usr/share/doc/kz-record-call/config/default.toml",
            "All settings with their meaning and default.",
        ),
        (
            "/usr/share/doc/kz-record-call/docs/when-it-goes-wrong.md",
            "What to do about causes, log lines and alerts.",
        ),
    ] {
        more.control("TP", []).text([bold(path)]).text([roman(what)]);
    }
    more.control("SH", ["SEE ALSO"]);
    let pages: Vec<String> = commands
        .iter()
        .map(|command| format!("{NAME}-{}(1)", command.get_name()))
        .collect();
    more.text([roman(pages.join(", "))]);
    more.to_writer(&mut page)?;
    Ok(page)
}

fn print(text: &[u8]) -> anyhow::Result<bool> {
    match std::io::stdout().lock().write_all(text) {
        // The reader of the output has closed the pipe, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(true),
        other => other.map(|()| true).context("standard output cannot be written"),
    }
}

fn write(dir: &Path, name: &str, page: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    #[test]
    fn every_command_that_people_are_told_of_has_its_page() {
        let dir = std::env::temp_dir().join(format!("kz-record-call-man-{}", uuid::Uuid::new_v4().simple()));
        let args = ManArgs { dir: Some(dir.clone()) };
        assert!(man(Cli::command(), &args).unwrap());
        let main = std::fs::read_to_string(dir.join("kz-record-call.1")).unwrap();
        for section in ["NAME", "SYNOPSIS", "ENVIRONMENT", "EXIT STATUS", "FILES", "SEE ALSO"] {
            assert!(
                main.contains(&format!(".SH \"{section}\"")) || main.contains(&format!(".SH {section}")),
                "{section}\n{main}"
            );
        }
        let commands = visible(&Cli::command());
        assert!(commands.len() > 5);
        for command in commands {
            let name = format!("kz-record-call-{}", command.get_name());
            let page = std::fs::read_to_string(dir.join(format!("{name}.1"))).unwrap();
            assert!(page.contains("SYNOPSIS"), "{page}");
            assert!(
                main.contains(&name.replace('-', "\\-")),
                "{name} is not in the main page"
            );
        }
        assert!(
            !dir.join("kz-record-call-man.1").exists(),
            "what packages use is not for people"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("healthcheck") && script.contains("explain"), "{shell}");
        }
    }
}
