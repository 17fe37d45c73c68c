//! Every key of the action's data does what it says: the table of `table.rs`, and what must hold whatever the data is.
//!
//! `TEST_MESSAGES` names a file that each command is appended to, a line with its schema and itself, to be held against other validators.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod data;
mod kazoo;
#[path = "../../fuzz/messages.rs"]
mod messages;
mod properties;
mod seeds;
mod table;
#[path = "../../fuzz/terms.rs"]
mod terms;
mod wire;
