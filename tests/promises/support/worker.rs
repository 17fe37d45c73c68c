//! The worker, as the process that operators run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

/// How long a worker has to count what it did.
const COUNTED: Duration = super::SOON;

/// Whether it is a variable that other programs take a proxy from.
pub(super) fn is_proxy(key: &str) -> bool {
    key.to_ascii_lowercase().ends_with("_proxy")
}

pub struct Worker {
    child: Child,
    log: PathBuf,
    dir: PathBuf,
}

impl Worker {
    /// Starts a worker with these settings on top of those that every test has.
    pub fn start(settings: &[(String, String)], dir: PathBuf) -> anyhow::Result<Self> {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_kz-record-call")), settings, dir)
    }

    /// The same with a program of another version.
    pub fn start_program(program: &Path, settings: &[(String, String)], dir: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let log = dir.join("worker.log");
        let mut command = Command::new(program);
        command
            .arg("run")
            .env_clear()
            // Not what this host may have.
            .env("KZ_RECORD_CALL_CONFIG", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        for variable in ["PATH", "HOME", "SSL_CERT_FILE", "RUST_BACKTRACE"] {
            if let Ok(value) = std::env::var(variable) {
                command.env(variable, value);
            }
        }
        for (key, value) in settings {
            // Of a service manager.
            let verbatim = ["NOTIFY_SOCKET", "WATCHDOG_USEC"].contains(&key.as_str()) || is_proxy(key);
            match verbatim || key.starts_with("KZ_RECORD_CALL") {
                true => command.env(key, value),
                false => command.env(format!("KZ_RECORD_CALL__{key}"), value),
            };
        }
        let child = command
            .kill_on_drop(true)
            .spawn()
            .context("the worker does not start")?;
        Ok(Self { child, log, dir })
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The log's lines, as the JSON that they are.
    pub fn lines(&self) -> Vec<Value> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until a line of the log fits.
    pub async fn logged(&self, what: &str, fits: impl Fn(&Value) -> bool, patience: Duration) -> anyhow::Result<Value> {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.lines().into_iter().find(|line| fits(line)) {
                return Ok(line);
            }
            if begun.elapsed() > patience {
                bail!(
                    "{what} was not logged within {patience:?}; the log ends:\n{}",
                    self.tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The admin port's address.
    pub async fn admin(&self) -> anyhow::Result<String> {
        let line = self
            .logged("the start", |line| line["message"] == "worker started", super::SOON)
            .await?;
        Ok(format!(
            "http://{}",
            line["admin"].as_str().context("no admin address")?
        ))
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let (url, begun) = (format!("{}/readyz", self.admin().await?), Instant::now());
        loop {
            let answer = reqwest::get(&url).await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let text = match answer {
                    Ok(answer) => answer.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                bail!("not ready within {patience:?}: {text}\n{}", self.tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(reqwest::get(format!("{}/metrics", self.admin().await?))
            .await?
            .text()
            .await?)
    }

    /// Waits until the metrics have this line: what was done is counted a moment after others see it.
    pub async fn counts(&self, line: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let metrics = self.metrics().await?;
            if metrics.lines().any(|there| there == line) {
                return Ok(());
            }
            ensure!(begun.elapsed() < COUNTED, "no {line} in\n{metrics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process id.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("it runs no more")
    }

    /// SIGKILL: nothing of it is finished.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing the worker")
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// SIGSTOP: it stands still, and nobody is told.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .context("it runs no more")?;
        Ok(kill_process(id, signal)?)
    }

    /// SIGTERM, and its end.
    pub async fn terminate(&mut self, patience: Duration) -> anyhow::Result<std::process::ExitStatus> {
        self.signal(Signal::TERM)?;
        Ok(tokio::time::timeout(patience, self.child.wait())
            .await
            .context("it does not end")??)
    }

    /// The most memory that it ever had, in KiB.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        let id = self.id()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmHWM")?.parse()?)
    }

    /// The folder that its own folders are in.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Takes its spool folder away, as a lost disk would.
    pub fn lose_spool(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(self.dir.join("spool"))
    }

    /// Files that rest in its spool folder now.
    pub fn spooled(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("spool")) else {
            return Vec::new();
        };
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "upload"))
            .collect()
    }

    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}
