//! The places that audio goes to, over real HTTP and against a real CouchDB-speaking server; no broker and no switch.
//!
//! `TEST_COUCHDB_URL` names a server that runs already; otherwise one is started in a container. Every test of a database that holds audio runs
//! on both roads.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

mod bigcouch;
mod bigcouch_faults;
mod files;
mod guard;
mod hold;
mod http;
mod http_faults;
mod memory;
mod modb;
mod others;
mod proxy;
mod refusals;
mod signed;
mod stores;
mod support;
mod system_config;
mod url;

use support::{Couchdb, Test};

/// No test may take longer.
const LIMIT: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    support::machine::watch();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let Some(code) = memory::child(&runtime) {
        return code;
    }
    let couchdb = if arguments.list {
        None
    } else {
        // Two cores: more at once only makes everything late.
        arguments.test_threads.get_or_insert(4);
        Some(Arc::new(runtime.block_on(Couchdb::start()).expect("a database")))
    };
    let mut tests: Vec<Test> = Vec::new();
    for list in [
        bigcouch::TESTS,
        bigcouch_faults::TESTS,
        files::TESTS,
        guard::TESTS,
        hold::TESTS,
        http::TESTS,
        http_faults::TESTS,
        memory::TESTS,
        modb::TESTS,
        others::TESTS,
        proxy::TESTS,
        refusals::TESTS,
        signed::TESTS,
        stores::TESTS,
        system_config::TESTS,
        url::TESTS,
    ] {
        tests.extend_from_slice(list);
    }
    let trials = tests
        .into_iter()
        .map(|Test { name, run }| {
            let (handle, couchdb) = (runtime.handle().clone(), couchdb.clone());
            Trial::test(name, move || {
                let couchdb = couchdb.ok_or("no database")?;
                let outcome = handle.block_on(async {
                    let task = tokio::spawn(run(couchdb));
                    let abort = task.abort_handle();
                    match tokio::time::timeout(LIMIT, task).await {
                        Ok(Ok(result)) => result.map_err(|error| format!("{error:?}")),
                        Ok(Err(panic)) => Err(panic.to_string()),
                        Err(_) => {
                            abort.abort();
                            Err(format!("not through after {LIMIT:?}"))
                        }
                    }
                });
                outcome.map_err(Into::into)
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(couchdb) = couchdb.and_then(Arc::into_inner) {
        runtime.block_on(couchdb.stop());
    }
    conclusion.exit_code()
}
