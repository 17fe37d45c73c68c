//! The lifecycle of a recording. Messages become facts, `lifecycle` decides what must be done about them, and `perform` does it.
//!
//! `lifecycle` is pure, so every decision can be tested without a socket. Every effect is harmless when it is done twice. A worker can be
//! killed before or after any effect, and another worker resumes the recording.

pub mod alerts;
pub mod alive;
mod amend;
mod ancestors;
mod announce;
pub mod answers;
mod at_once;
mod bounded;
mod collect;
mod command;
pub mod common;
mod continuation;
pub mod crash;
mod deliver;
pub mod drive;
pub mod driver;
pub mod dying;
pub mod end;
mod find;
mod follow;
mod found;
pub mod hands;
mod ids;
pub mod journal;
pub mod notices;
pub mod pace;
pub mod perform;
mod proof;
pub mod registry;
pub mod returns;
mod share;
mod siblings;
pub mod start;
mod still;
pub mod stop;
pub mod sweep;
mod way;
