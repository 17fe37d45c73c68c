//! Thousands of lives of a recording, in seconds: the driver that workers run, over a broker, a store in two parts, a switch and a target that all
//! live in memory. Time is made up, a crash is a drop, and every seed can be run again: `SIMULATION_SEED=… cargo test --test simulation`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros
)]

mod drivers;
mod effects;
mod judge;
mod life;
mod targets;
mod workers;
mod world;

use std::collections::BTreeMap;

use kz_record_call::lifecycle::State;

use world::World;

static RESTARTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
static RETRIES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
static PANICS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
static UNHEARD: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

fn live(seed: u64) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed);
        let steps = world.rng.u32(200..1500);
        for _ in 0..steps {
            world.step().await;
        }
        world.heal().await;
        world
    })
}

#[test]
fn no_life_of_a_recording_loses_it() {
    let seeds: Vec<u64> = match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let count = std::env::var("SIMULATION_SEEDS")
                .ok()
                .and_then(|n| n.parse().ok())
                .unwrap_or(1000);
            (0..count).collect()
        }
    };
    let mut outcomes: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in seeds {
        let lived = std::panic::catch_unwind(|| {
            let world = live(seed);
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.judge()));
            RESTARTS.fetch_add(world.restarts, std::sync::atomic::Ordering::Relaxed);
            RETRIES.fetch_add(world.retries, std::sync::atomic::Ordering::Relaxed);
            PANICS.fetch_add(world.panics, std::sync::atomic::Ordering::Relaxed);
            UNHEARD.fetch_add(world.unheard, std::sync::atomic::Ordering::Relaxed);
            if judged.is_err() {
                world.tell_all();
                panic!("judged");
            }
            world.store[0]
                .values()
                .filter_map(|stored| stored.entry.as_ref().map(|entry| State::of(entry).name()))
                .collect::<Vec<_>>()
        });
        match lived {
            Ok(states) => states
                .into_iter()
                .for_each(|state| *outcomes.entry(state).or_default() += 1),
            Err(_) => panic!("seed {seed} fails; run it again: SIMULATION_SEED={seed} cargo test --test simulation"),
        }
    }
    let restarts = RESTARTS.load(std::sync::atomic::Ordering::Relaxed);
    let unheard = UNHEARD.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{outcomes:?}; {restarts} recordings began again, {unheard} of them unheard");
    let retries = RETRIES.load(std::sync::atomic::Ordering::Relaxed);
    let panics = PANICS.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{retries} recordings were moved on, workers panicked at {panics}");
    if outcomes.values().sum::<u32>() > 100 {
        assert!(retries > 10, "only {retries} recordings were moved on");
        assert!(panics > 10, "workers panicked only {panics} times");
        assert!(restarts > 10, "only {restarts} recordings began again");
        assert!(unheard > 10, "only {unheard} of them began again unheard");
        for state in ["stored", "delivered", "parked"] {
            assert!(outcomes.contains_key(state), "no life ended as {state}: {outcomes:?}");
        }
    }
}
