//! What processes use: CPU time and memory, from Linux's `/proc`.

use std::{collections::HashMap, fs, time::Instant};

use serde::Serialize;

/// Clock ticks of `/proc/PID/stat` in a second: 100 on every architecture that Linux runs on today.
const TICKS: f64 = 100.0;

/// The processes of a run.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    pub workers: Vec<u32>,
    pub rabbitmq: Option<u32>,
    pub couchdb: Option<u32>,
}

/// CPU seconds used so far, of each process with all its descendants.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    used: Cpu,
    /// Of all processes of the machine.
    busy: Option<f64>,
}

/// One number for each program. `None`: its process is not known, or cannot be read.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    pub worker: Option<f64>,
    pub rabbitmq: Option<f64>,
    pub couchdb: Option<f64>,
    /// The load generator: this process.
    pub generator: Option<f64>,
}

impl Cpu {
    fn map(self, with: impl Fn(f64) -> f64) -> Self {
        Self {
            worker: self.worker.map(&with),
            rabbitmq: self.rabbitmq.map(&with),
            couchdb: self.couchdb.map(&with),
            generator: self.generator.map(&with),
        }
    }
}

impl Meter {
    pub fn read(&self) -> Reading {
        let stats = stats();
        let tree = |pid: u32| used_by(&stats, pid);
        let of_workers: Option<Vec<f64>> = self.workers.iter().map(|pid| tree(*pid)).collect();
        let generator = stats.get(&std::process::id()).map(|own| own.own);
        Reading {
            at: Instant::now(),
            busy: busy(),
            used: Cpu {
                worker: of_workers.filter(|all| !all.is_empty()).map(|all| all.iter().sum()),
                rabbitmq: self.rabbitmq.and_then(tree),
                couchdb: self.couchdb.and_then(tree),
                generator,
            },
        }
    }
}

impl Reading {
    /// CPU milliseconds since `before`, for each of `count` things done.
    pub fn ms_each(&self, before: &Self, count: u64) -> Cpu {
        self.since(before).map(|seconds| seconds * 1000.0 / count.max(1) as f64)
    }

    /// The share of one core since `before`, in per cent.
    pub fn percent(&self, before: &Self) -> Cpu {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        self.since(before).map(|used| used * 100.0 / seconds)
    }

    /// The share of one core that other processes used since `before`, in per cent: the noise of a
    /// measurement. Docker's proxies count as others. `None`: one of the run's own processes is not
    /// known.
    pub fn others_percent(&self, before: &Self) -> Option<f64> {
        let Cpu {
            worker,
            rabbitmq,
            couchdb,
            generator,
        } = self.since(before);
        let own = worker.unwrap_or_default() + rabbitmq? + couchdb? + generator?;
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        Some((self.busy? - before.busy? - own).max(0.0) * 100.0 / seconds)
    }

    fn since(&self, before: &Self) -> Cpu {
        let less = |now: Option<f64>, then: Option<f64>| Some((now? - then?).max(0.0));
        Cpu {
            worker: less(self.used.worker, before.used.worker),
            rabbitmq: less(self.used.rabbitmq, before.used.rabbitmq),
            couchdb: less(self.used.couchdb, before.used.couchdb),
            generator: less(self.used.generator, before.used.generator),
        }
    }
}

struct Stat {
    parent: u32,
    /// Seconds of the process itself.
    own: f64,
    /// Seconds of its children that have ended.
    children: f64,
}

fn stats() -> HashMap<u32, Stat> {
    let Ok(folders) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let pids = folders.filter_map(|folder| folder.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, parse(&text)?))
    })
    .collect()
}

/// Reads the fields after the program's name, which is in parentheses and may contain anything.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |n: usize| Some(fields.get(n)?.parse::<f64>().ok()? / TICKS);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        children: seconds(13)? + seconds(14)?,
    })
}

fn used_by(stats: &HashMap<u32, Stat>, pid: u32) -> Option<f64> {
    let root = stats.get(&pid)?;
    let children = stats.iter().filter(|(_, stat)| stat.parent == pid);
    let below: f64 = children.filter_map(|(child, _)| used_by(stats, *child)).sum();
    Some(root.own + root.children + below)
}

/// Seconds that all cores together were not idle.
fn busy() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // Not the fourth and fifth, which are idle and waiting for a disk. Time of guests is in the
    // first two already.
    let busy = fields.iter().take(8).enumerate().filter(|(n, _)| ![3, 4].contains(n));
    Some(busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS)
}

/// The resident memory of a process in MiB: now, and the peak.
pub fn memory(pid: u32) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    };
    Some((mib("VmRSS:")?, mib("VmHWM:")?))
}

/// The load average of the last minute.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The number of cores, and their model.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let model = line
        .and_then(|line| line.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    format!("{cores} cores, {}", model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = parse("7 (a ) b) S 3 1 1 0 -1 4194304 1 2 3 4 150 50 25 50 20 0 1 0 5").unwrap();
        assert_eq!((stat.parent, stat.own, stat.children), (3, 2.0, 0.75));
    }

    #[test]
    fn a_tree_counts_its_descendants() {
        let stat = |parent, own| Stat {
            parent,
            own,
            children: 0.5,
        };
        let stats = HashMap::from([
            (1, stat(0, 1.0)),
            (2, stat(1, 2.0)),
            (3, stat(2, 4.0)),
            (4, stat(0, 8.0)),
        ]);
        assert_eq!(used_by(&stats, 1), Some(8.5));
        assert_eq!(used_by(&stats, 9), None);
    }
}
