//! What every test here stands on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

mod couchdb;
pub mod file_server;
mod front;
#[path = "../promises/support/machine.rs"]
pub mod machine;
pub mod object_store;
mod recording;
mod schemas;
mod sending;
mod server;
#[path = "../promises/support/services.rs"]
#[allow(dead_code)]
mod services;
#[path = "../promises/support/tls.rs"]
#[allow(dead_code)]
pub mod tls;
mod way;

pub use couchdb::{Couchdb, World, view};
pub use front::{Fault, Front, Seen};
pub use recording::{ACCOUNT, Recording};
pub use schemas::check as check_schema;
pub use sending::{Names, files_here, http, http_here, send, send_by, store};
pub use server::{Reply, Server};
pub use way::{Case, WAYS, Way};

pub type TestResult = anyhow::Result<()>;

type Running = Pin<Box<dyn Future<Output = TestResult> + Send>>;

/// A test: its name, which is its promise, and how it is kept.
#[derive(Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub run: fn(Arc<Couchdb>) -> Running,
}

/// Lists async functions as tests, by their names.
#[macro_export]
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::support::Test] = &[
            $($crate::support::Test { name: stringify!($name), run: |couchdb| Box::pin($name(couchdb)) }),*
        ];
    };
}

/// The settings of `[destination]`, with some changed: `("ALLOW", "127.0.0.1")`.
pub fn settings(changes: &[(&str, &str)]) -> kz_record_call::config::Destination {
    let changes: Vec<(String, String)> = changes
        .iter()
        .map(|(key, value)| (format!("DESTINATION__{key}"), (*value).to_owned()))
        .collect();
    whole_settings(&changes).destination
}

/// All settings, with some changed.
pub fn whole_settings(changes: &[(String, String)]) -> kz_record_call::config::Config {
    use kz_record_call::config::{Config, Layers};
    let environment = changes
        .iter()
        .map(|(key, value)| (format!("KZ_RECORD_CALL__{key}"), value.clone()));
    Config::of(Layers::load(None, environment).unwrap()).unwrap()
}
