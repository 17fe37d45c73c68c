//! What every promise stands on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

#[path = "../destinations/support/file_server.rs"]
#[allow(dead_code, unused_imports)]
pub mod file_server;
#[allow(dead_code)] // the destinations' own tests use more of it
#[path = "../destinations/support/server.rs"]
pub mod http;
mod looks;
pub mod machine;
#[path = "../destinations/support/object_store.rs"]
#[allow(dead_code)]
pub mod object_store;
mod proxy;
mod schema_files;
pub mod schemas;
mod services;
pub mod tls;
mod worker;
mod world;

pub use looks::Looks;
pub use proxy::{Mode, Proxy};
pub use services::{Broker, Services, couch};
pub use worker::Worker;
pub use world::World;

pub type TestResult = anyhow::Result<()>;

type Running = Pin<Box<dyn Future<Output = TestResult> + Send>>;

/// A promise: its name, and how it is kept.
#[derive(Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub run: fn(Arc<Services>) -> Running,
}

/// Lists async functions as tests, by their names.
#[macro_export]
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::support::Test] = &[
            $($crate::support::Test { name: stringify!($name), run: |services| Box::pin($name(services)) }),*
        ];
    };
}

/// Patience for things that take milliseconds, on a machine that is busy with something else. It is no limit that is promised: those are
/// measured, see `machine`.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(60);
