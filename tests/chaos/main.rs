//! Chaos: some hundreds of recordings while a seeded plan breaks everything that can be broken. Then an oracle that knows only what was asked
//! for, what the switch wrote and what arrived says whether every start ended exactly once, with nothing missing, nothing silent, nothing mixed
//! up, nothing cut and called whole.
//!
//! `CHAOS_SEED` (random unless set; printed), `CHAOS_RECORDINGS` (300), `CHAOS_SECONDS` within which the calls begin (a third of a second
//! each), `CHAOS_WORKERS` (3), `CHAOS_PATIENCE_S` until everything must have ended (240). `TEST_AMQP_URI` and `TEST_COUCHDB_URL` name servers
//! that run already: those are cut off, not stopped. `CHAOS_UPGRADE_FROM` is the program of another version, which the workers begin with; this
//! version replaces them in the middle of the plan. `CHAOS_DIR`: where logs and the plan go; they stay when something is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;

#[path = "../../src/bin/kazoo-sim"]
mod simulator {
    pub mod sim;
}

#[path = "../promises"]
mod promises {
    #[allow(dead_code, unused_imports)] // the promises use more of it
    pub mod support;
}

mod cluster;
mod endpoint;
mod evidence;
mod hearing;
mod odd;
mod oracle;
mod plan;
mod play;
mod servers;
mod settle;
mod strike;
mod tampered;
mod targets;

use promises::support;

use cluster::Cluster;
use evidence::Evidence;
use plan::Plan;
use strike::{Chronicle, strike};

fn main() -> ExitCode {
    // What the runner of tests asks every test program; this one has no list.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.expect("a runtime").block_on(run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("chaos: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// A number from the environment.
fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => text.parse().map(Some).with_context(|| format!("{variable}={text}")),
        _ => Ok(None),
    }
}

async fn run() -> anyhow::Result<bool> {
    let seed = number("CHAOS_SEED")?.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let recordings = number("CHAOS_RECORDINGS")?.unwrap_or(300);
    let seconds = number("CHAOS_SECONDS")?.unwrap_or(recordings / 3).max(10);
    let workers = usize::try_from(number("CHAOS_WORKERS")?.unwrap_or(3).max(1))?;
    let patience = Duration::from_secs(number("CHAOS_PATIENCE_S")?.unwrap_or(240));
    let length = Duration::from_secs(seconds);
    let old = std::env::var_os("CHAOS_UPGRADE_FROM").filter(|program| !program.is_empty());
    let old = old.map(PathBuf::from);
    let mut plan = Plan::new(seed, usize::try_from(recordings)?, length, workers);
    if old.is_some() {
        plan = plan.with_upgrade();
    }
    let dir = folder(seed)?;
    std::fs::write(dir.join("plan.txt"), plan.to_string())?;
    let headline = plan.to_string();
    println!("chaos: {}", headline.lines().next().unwrap_or_default());
    let again =
        format!("CHAOS_SEED={seed} CHAOS_RECORDINGS={recordings} CHAOS_SECONDS={seconds} CHAOS_WORKERS={workers}");
    let again = match &old {
        Some(program) => format!("{again} CHAOS_UPGRADE_FROM={}", program.display()),
        None => again,
    };
    println!("chaos: the same plan again: {again} make chaos");
    let begun = Instant::now();
    let cluster = Arc::new(Cluster::start(&plan, &dir, old).await?);
    let done = judged(&cluster, plan, patience, &dir).await;
    let good = matches!(done, Ok(true));
    if !good {
        println!(
            "chaos: FAILED with {again}; the plan and the workers' logs are in {}",
            dir.display()
        );
        std::fs::write(dir.join("timeline.txt"), timeline(&cluster))?;
    }
    let cluster = Arc::into_inner(cluster).context("somebody still plays")?;
    cluster.stop().await?;
    if good {
        std::fs::remove_dir_all(&dir)?;
        println!("chaos: kept every promise, in {:.0?}", begun.elapsed());
    }
    done
}

/// Nothing that the plan does takes this long: what takes longer waits for something that never comes.
const STUCK: Duration = Duration::from_secs(340);

async fn in_time<T>(what: &str, limit: Duration, playing: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, playing).await {
        Ok(done) => done,
        Err(_) => panic!("the run itself is stuck: {what}"),
    }
}

/// Plays the plan, waits until everything has ended, and judges.
async fn judged(cluster: &Arc<Cluster>, plan: Plan, patience: Duration, dir: &Path) -> anyhow::Result<bool> {
    let (begin, chronicle) = (Instant::now(), Arc::new(Chronicle::default()));
    let last = plan.calls.iter().map(|call| call.at).max().unwrap_or_default();
    let limit = last + STUCK;
    let calls = plan.calls.into_iter().map(|call| {
        let cluster = Arc::clone(cluster);
        let label = format!("call {}", call.n);
        tokio::spawn(async move { in_time(&label, limit, play::play(&cluster, begin, call)).await })
    });
    let strikes = plan.troubles.into_iter().map(|trouble| {
        let (cluster, chronicle) = (Arc::clone(cluster), Arc::clone(&chronicle));
        let label = format!("{trouble:?}");
        tokio::spawn(async move { in_time(&label, limit, strike(&cluster, &chronicle, begin, &trouble)).await })
    });
    let (played, struck) = tokio::join!(join_all(calls), join_all(strikes));
    let played = played.into_iter().collect::<Result<Vec<_>, _>>()?;
    for struck in struck {
        struck??;
    }
    println!("chaos: played in {:.0?}; waiting for the rest", begin.elapsed());
    let settled = Instant::now();
    let set = settle::settle(cluster, &played, patience).await?;
    println!("chaos: settled in {:.0?}", settled.elapsed());
    let struck = chronicle.all().into_iter().chain(set).collect();
    let evidence = Evidence::gather(cluster, &played, struck).await?;
    cluster.end_workers().await?;
    let stories: Vec<&str> = evidence.stories.iter().map(|story| story.text.as_str()).collect();
    std::fs::write(dir.join("stories.txt"), stories.join("\n"))?;
    let mut wrong = oracle::judge(&evidence);
    tell(&evidence);
    wrong.extend(cluster.kazoo.check().err().map(|error| error.to_string()));
    let messages = cluster.kazoo.tap().messages();
    wrong.extend(
        support::schemas::check_messages(&messages)
            .err()
            .map(|error| error.to_string()),
    );
    if wrong.is_empty() {
        wrong = tampered::overlooked(&evidence);
        println!("chaos: asked about {} falsifications", tampered::count());
    }
    for sentence in &wrong {
        println!("chaos: WRONG: {sentence}");
    }
    Ok(wrong.is_empty())
}

/// What came of it, in numbers.
fn tell(evidence: &Evidence) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for ending in &evidence.endings {
        let part = if ending.continues.is_some() {
            ", a continuation"
        } else {
            ""
        };
        let place = if ending.destination.is_empty() {
            "nowhere"
        } else {
            &ending.destination
        };
        let line = format!("{} ({}) at {place}{part}", ending.outcome, ending.cause);
        *counts.entry(line).or_default() += 1;
    }
    for (line, count) in counts {
        println!("chaos:   {count:>5}  {line}");
    }
    let asked = evidence.starts.iter().filter(|start| start.asked_at.is_some()).count();
    let unsure = evidence
        .starts
        .iter()
        .filter(|start| start.asked_at.is_some() && start.routed.is_none())
        .count();
    println!(
        "chaos:   {} copies left in the hold of what is kept elsewhere",
        evidence.held.len()
    );
    println!(
        "chaos:   {asked} starts asked for, of {unsure} of them nobody knows whether the broker had them; {} answers lost with a broker",
        evidence.unanswered.len()
    );
}

fn folder(seed: u64) -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("CHAOS_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("kz-record-call-chaos-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(Path::new(&dir))?;
    Ok(dir)
}

/// What the simulated cluster saw, for whoever looks for the reason.
fn timeline(cluster: &Cluster) -> String {
    let entries = cluster.kazoo.timeline();
    let Some(first) = entries.first().map(|entry| entry.at) else {
        return String::new();
    };
    let lines = entries.iter().map(|entry| {
        format!(
            "{:>9.3} {:<9} {:?} {} {} {} {}\n",
            entry.at.saturating_duration_since(first).as_secs_f64(),
            entry.role,
            entry.direction,
            entry.name,
            entry.call_id.as_deref().unwrap_or(""),
            entry.key,
            entry.summary
        )
    });
    lines.collect()
}
