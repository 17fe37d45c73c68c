//! Thousands of lives of a recording, in seconds: the driver, the ledger's writer and its store, as workers run them, over a simulated
//! CouchDB cluster, broker, switch and destinations. Time is virtual, one thread runs one seed, and every seed can be run again:
//! `SIMULATION_SEED=… cargo test --test simulation`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::cast_possible_truncation
)]

mod broker;
mod calls;
mod collect;
mod couch;
mod effects;
mod fate;
mod faults;
mod gate;
mod inbox;
mod judge;
mod places;
mod plan;
mod strength;
mod sweep;
mod switch;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use faults::Any;
use world::World;

/// What became of a life.
pub struct Lived {
    pub verdict: Result<(), String>,
    pub timeline: Vec<String>,
    /// What the ledger has in the end.
    pub ledger: Vec<String>,
    pub counts: BTreeMap<&'static str, u32>,
}

/// Lives one seed on this thread, with a fault put back or not.
pub fn live(seed: u64, fault: Option<Any>) -> Lived {
    faults::put(fault);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .on_thread_unpark(world::tick)
        .build()
        .unwrap();
    let lived = runtime.block_on(async {
        let world = World::new(seed);
        let living = AssertUnwindSafe(async {
            world.live().await;
            world.rest().await?;
            // What is parked because of the troubles must go out now.
            world.move_on().await;
            world.rest().await?;
            world.judge()
        });
        let verdict = futures_util::FutureExt::catch_unwind(living).await;
        let verdict =
            verdict.unwrap_or_else(|panic| Err(format!("the simulation panics: {:?}", panic.downcast_ref::<String>())));
        let mut counts = world.counts.lock().unwrap().clone();
        for word in world
            .places
            .lock()
            .unwrap()
            .announced
            .values()
            .flatten()
            .map(|(_, what)| *what)
        {
            *counts.entry(word).or_default() += 1;
        }
        Lived {
            verdict,
            timeline: world.timeline(),
            ledger: world.ledger(),
            counts,
        }
    });
    faults::put(None);
    lived
}

/// Lives these seeds on all cores. Returns what was counted, and the lowest seed that fails.
pub fn live_all(
    seeds: std::ops::Range<u64>,
    fault: Option<Any>,
) -> (BTreeMap<&'static str, u32>, Option<(u64, Lived)>) {
    let (next, counts) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    let failed: Mutex<Option<(u64, Lived)>> = Mutex::new(None);
    let goes_on = std::env::var("SIMULATION_GO_ON").is_ok();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() && !goes_on {
                        return;
                    }
                    let lived = live(seed, fault);
                    for (what, n) in &lived.counts {
                        *counts.lock().unwrap().entry(*what).or_default() += n;
                    }
                    if let Err(why) = lived.verdict.as_ref()
                        && goes_on
                    {
                        eprintln!("seed {seed}: {why}");
                    }
                    let mut failed = failed.lock().unwrap();
                    if lived.verdict.is_err() && failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                        *failed = Some((seed, lived));
                    }
                }
            });
        }
    });
    (counts.into_inner().unwrap(), failed.into_inner().unwrap())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_life_of_a_recording_loses_it() {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIMULATION_FIRST").unwrap_or(0);
            first..first + number("SIMULATION_SEEDS").unwrap_or(1000)
        }
    };
    let count = seeds.end - seeds.start;
    let begun = std::time::Instant::now();
    let (counts, failed) = live_all(seeds, None);
    if let Some((seed, lived)) = failed {
        eprintln!("{}", lived.timeline.join("\n"));
        eprintln!("{}", lived.ledger.join("\n"));
        panic!(
            "seed {seed}: {}; run it again: SIMULATION_SEED={seed} cargo test --test simulation",
            lived.verdict.unwrap_err()
        );
    }
    eprintln!("{count} seeds in {:?}: {counts:?}", begun.elapsed());
    if count >= 100 {
        for what in strength::MUST_HAPPEN {
            assert!(
                counts.get(what).is_some_and(|n| *n >= 5),
                "too little of {what:?} happened: {counts:?}"
            );
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 2, 3, 4] {
        let lives = [live(seed, None), live(seed, None)].map(|lived| lived.timeline);
        let differs = lives[0].iter().zip(&lives[1]).position(|(one, other)| one != other);
        if let Some(line) = differs {
            panic!("seed {seed}, line {line}: {} / {}", lives[0][line], lives[1][line]);
        }
        assert_eq!(lives[0].len(), lives[1].len(), "seed {seed}");
    }
}

#[test]
fn a_life_has_a_timeline() {
    let lived = catch_unwind(|| live(1, None)).unwrap();
    assert!(lived.timeline.len() > 20);
}
