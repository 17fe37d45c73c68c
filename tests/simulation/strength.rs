//! How strong the simulation is: each fault is put back, and must be found.

use crate::faults::ALL;
use crate::{live_all, number};

/// What must happen in some lives, or a run says little.
pub const MUST_HAPPEN: &[&str] = &[
    "stored",
    "delivered",
    "parked",
    "doc_created",
    "began again",
    "kills",
    "panics",
    "moved on",
    "of another version",
    "too few copies",
    "events lost",
    "stopped",
];

/// Seeds in which a fault must be found.
const BUDGET: u64 = 2000;

/// All faults, by hand: `SIMULATION_FAULTS=all cargo test --test simulation faults -- --nocapture`. The suite tries some.
#[test]
fn faults_that_are_put_back_are_found() {
    let wanted = std::env::var("SIMULATION_FAULTS").unwrap_or_else(|_| SOME.to_owned());
    let budget = number("SIMULATION_SEEDS").unwrap_or(BUDGET);
    let mut missed = Vec::new();
    for (name, what, fault) in ALL {
        if wanted != "all" && !wanted.split(',').any(|one| one == *name) {
            continue;
        }
        match live_all(0..budget, Some(*fault)).1 {
            Some((seed, lived)) => eprintln!("| {name} | {what} | {} |   {}", seed + 1, lived.verdict.unwrap_err()),
            None => missed.push(*name),
        }
    }
    assert!(missed.is_empty(), "not found within {budget} seeds: {missed:?}");
}

const SOME: &str = "hold,A2,A4,B9";
