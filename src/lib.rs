//! A daemon beside a Kazoo cluster that runs the `record_call` callflow action, and loses none of the recordings.
//!
//! The modules form layers, which `tests/rooms.rs` calls rooms. A module may import from the layers below it, never from those
//! above. `tests/rooms.rs` reads the `use` lines and enforces this. From top to bottom:
#![forbid(unsafe_code)]
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unimplemented
)]
// Without optimisation, each function that creates a large future has it on its stack. The threads of a worker have 2 MiB of
// stack.
#![cfg_attr(not(test), warn(clippy::large_futures))]

pub mod cli;

pub mod admin;
pub mod worker;

pub mod flow;

pub mod destination;

pub mod hold;

pub mod ingest;
pub mod ledger;
pub mod system_config;

pub mod amqp;
pub mod couch;
pub mod webhook;

pub mod lifecycle;

pub mod entry;
pub mod recording;

pub mod kazoo;

pub mod config;
pub mod faults;
pub mod telemetry;
