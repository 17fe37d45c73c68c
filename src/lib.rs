//! A daemon beside a Kazoo cluster that runs the `record_call` callflow action, and loses none of the recordings.
//!
//! The crate is a house of rooms. A room may import from the rooms below it, never from those above; `tests/rooms.rs`
//! reads the `use` lines and holds us to it. From top to bottom:
#![forbid(unsafe_code)]
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unimplemented
)]
// In a build without optimisation a large future is on the stack of each function that makes it: a worker's threads have 2 MiB.
#![cfg_attr(not(test), warn(clippy::large_futures))]

pub mod cli;

pub mod admin;
pub mod worker;

pub mod flow;

pub mod destination;
pub mod ingest;
pub mod ledger;
pub mod system_config;

pub mod amqp;
pub mod couch;

pub mod lifecycle;

pub mod entry;
pub mod recording;

pub mod kazoo;

pub mod config;
pub mod telemetry;
