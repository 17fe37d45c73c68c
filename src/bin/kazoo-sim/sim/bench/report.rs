//! The results of a run: a table for people, JSON for programs.

use reqwest::Client;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::Url;

use super::{
    super::{
        report::say,
        wire::{Clock, Object},
    },
    BenchOptions,
    process::{self, Cpu, Reading},
};

#[derive(Debug, Serialize)]
pub struct Report {
    label: String,
    /// Unix seconds.
    began_at: u64,
    scale: f64,
    machine: String,
    worker_version: String,
    rabbitmq_version: String,
    couchdb_version: String,
    rows: Vec<Row>,
    /// What did not come to its end.
    failures: Vec<String>,
}

/// One number, and what it is compared with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub part: &'static str,
    pub what: String,
    pub unit: &'static str,
    pub worker: f64,
    /// The number that the worker's is compared with.
    pub beside: Option<f64>,
    /// What gave that number.
    pub against: &'static str,
    /// `worker` divided by `beside`.
    pub ratio: Option<f64>,
    pub used: Option<Used>,
    /// The same of the program beside it. Its own CPU time is in the place of the worker's.
    pub used_beside: Option<Used>,
    /// Resident memory of the worker at the end of the measurement; of the largest, if there are
    /// several.
    pub memory_mib: Option<f64>,
    pub peak_memory_mib: Option<f64>,
    /// The load average of the last minute before the measurement.
    pub load_average: Option<f64>,
    pub detail: Object,
}

/// CPU time of a measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Used {
    /// What `cpu` counts: `ms each` or `% of a core`.
    pub unit: &'static str,
    pub cpu: Cpu,
    /// The share of a core that processes outside of the run used.
    pub others_percent: Option<f64>,
}

impl Used {
    pub fn each(after: &Reading, before: &Reading, count: u64) -> Self {
        Self {
            unit: "ms each",
            cpu: after.ms_each(before, count),
            others_percent: after.others_percent(before),
        }
    }

    pub fn of_a_core(after: &Reading, before: &Reading) -> Self {
        Self {
            unit: "% of a core",
            cpu: after.percent(before),
            others_percent: after.others_percent(before),
        }
    }
}

impl Row {
    pub fn new(part: &'static str, what: impl Into<String>, unit: &'static str, worker: f64) -> Self {
        Self {
            part,
            what: what.into(),
            unit,
            worker,
            load_average: process::load_average(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn beside(mut self, against: &'static str, number: f64) -> Self {
        (self.against, self.beside) = (against, Some(number));
        self.ratio = (number > 0.0).then(|| self.worker / number);
        self
    }

    #[must_use]
    pub fn used(mut self, used: Used) -> Self {
        self.used = Some(used);
        self
    }

    #[must_use]
    pub fn memory(mut self, memory: Option<(f64, f64)>) -> Self {
        (self.memory_mib, self.peak_memory_mib) = memory.unzip();
        self
    }

    #[must_use]
    pub fn load(mut self, average: Option<f64>) -> Self {
        self.load_average = average;
        self
    }

    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(key.to_owned(), value.into());
        self
    }
}

impl Report {
    pub async fn new(options: &BenchOptions) -> Self {
        let version = std::process::Command::new(&options.worker).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let unknown = || "unknown".to_owned();
        Self {
            label: options.label.clone(),
            began_at: Clock::default().unix_micros() / 1_000_000,
            scale: options.scale,
            machine: process::machine(),
            worker_version: version.unwrap_or_else(|_| unknown()),
            rabbitmq_version: rabbitmq_version(&options.amqp_uri).await.unwrap_or_else(unknown),
            couchdb_version: couchdb_version(&options.couchdb_url).await.unwrap_or_else(unknown),
            rows: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Adds a row, and prints it at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        say(format!("  {}: {} {}", row.what, number(row.worker), row.unit));
        self.rows.push(row);
    }

    /// Notes that only so many of all came to their end.
    pub fn expect(&mut self, what: &str, done: u64, all: u64) {
        if done < all {
            self.failures.push(format!("{what}: {done} of {all}"));
        }
    }

    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    pub fn print(&self) {
        say("");
        say(format!(
            "{} · {} · RabbitMQ {} · CouchDB {} · scale {} · {}",
            self.worker_version, self.machine, self.rabbitmq_version, self.couchdb_version, self.scale, self.label
        ));
        say("");
        let head = [
            "measured",
            "unit",
            "worker",
            "beside it",
            "ratio",
            "CPU: worker, RabbitMQ, CouchDB, generator",
            "worker MiB",
            "others' CPU",
            "load",
        ];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        table.extend(self.rows.iter().map(cells));
        print_table(&table);
        for failure in &self.failures {
            say(format!("not complete: {failure}"));
        }
    }
}

fn cells(row: &Row) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let cpu = row.used.map(|used| {
        let Cpu {
            worker,
            rabbitmq,
            couchdb,
            generator,
        } = used.cpu;
        let all = [worker, rabbitmq, couchdb, generator].map(|value| or_dash(value.map(number)));
        format!("{} {}", all.join(", "), used.unit)
    });
    let others = row.used.and_then(|used| used.others_percent);
    vec![
        row.what.clone(),
        row.unit.to_owned(),
        number(row.worker),
        or_dash(row.beside.map(|beside| format!("{} ({})", number(beside), row.against))),
        or_dash(row.ratio.map(|ratio| format!("{ratio:.2}"))),
        or_dash(cpu),
        or_dash(row.memory_mib.map(number)),
        or_dash(others.map(|percent| format!("{percent:.0} %"))),
        or_dash(row.load_average.map(|average| format!("{average:.1}"))),
    ]
}

/// Three digits, as many as a measurement has.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// As Markdown, so that a page can have it as it is.
fn print_table(table: &[Vec<String>]) {
    let columns = table.first().map_or(0, Vec::len);
    let width = |n: usize| {
        let cells = table.iter().filter_map(|row| row.get(n));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| {
            let blanks = " ".repeat(width.saturating_sub(cell.chars().count()));
            format!("{cell}{blanks}")
        });
        format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
    };
    for (n, row) in table.iter().enumerate() {
        say(line(row));
        if n == 0 {
            let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            say(line(&dashes));
        }
    }
}

/// From the greeting of the broker (`Connection.Start`), which names its version.
async fn rabbitmq_version(uri: &str) -> Option<String> {
    let uri = Url::parse(uri).ok()?;
    let address = (uri.host_str()?.to_owned(), uri.port().unwrap_or(5672));
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
    let mut greeting = vec![0; 4096];
    let length = stream.read(&mut greeting).await.ok()?;
    let name = b"\x07versionS";
    let at = greeting[..length]
        .windows(name.len())
        .position(|window| window == name)?
        + name.len();
    let size = u32::from_be_bytes(greeting.get(at..at + 4)?.try_into().ok()?);
    let text = greeting.get(at + 4..at + 4 + usize::try_from(size).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

async fn couchdb_version(url: &str) -> Option<String> {
    let answer = Client::new().get(url).send().await.ok()?;
    let body: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
    let vendor = ["variant", "name"]
        .into_iter()
        .find_map(|key| body["vendor"][key].as_str());
    let vendor = vendor.unwrap_or_default();
    Some(format!("{} ({vendor})", body["version"].as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let all = [0.456, 9.99, 12.34, 345.6, 12_345.6].map(number);
        assert_eq!(all, ["0.46", "9.99", "12.3", "346", "12346"]);
    }

    #[test]
    fn a_ratio_is_the_workers_share() {
        let row = Row::new("actions", "50 at once", "1/s", 30.0).beside("limit loop", 60.0);
        assert_eq!((row.ratio, row.beside), (Some(0.5), Some(60.0)));
        assert_eq!(Row::new("a", "b", "c", 1.0).beside("nothing", 0.0).ratio, None);
    }
}
