//! The promises, against a real RabbitMQ, a real CouchDB-speaking server, real HTTP and real audio; Kazoo is played by `kazoo-sim`'s modules.
//!
//! One pair of servers is shared; tests keep apart by AMQP vhost and database prefix. `TEST_AMQP_URI` (one or several, each with a vhost of
//! its own) and `TEST_COUCHDB_URL` make them use servers that run already.
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

#[path = "../../src/bin/kazoo-sim"]
mod simulator {
    pub mod sim;
}

mod actions;
mod adopted;
mod bench;
mod bridges;
mod broker_alarms;
mod check;
mod controls;
mod crashes;
mod credentials;
mod erasing;
mod file_servers;
mod killed;
mod ledger;
mod main_job;
mod moves;
mod neighbours;
mod places;
mod settings;
mod several;
mod sizes;
mod stores;
#[allow(dead_code, unused_imports)] // the chaos uses more of it
mod support;
mod tls;
mod told;
mod traces;
mod turns;
mod watched;
mod watching;
mod webhooks;

use support::{Services, Test};

/// No promise may take longer.
const LIMIT: Duration = Duration::from_secs(400);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    support::machine::watch();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let services = if arguments.list {
        None
    } else {
        let services = runtime.block_on(Services::start()).expect("the servers for the tests");
        // Two cores: more at once only makes everything late.
        arguments.test_threads.get_or_insert(services.width());
        Some(Arc::new(services))
    };
    let mut tests: Vec<Test> = Vec::new();
    let lists = [
        main_job::TESTS,
        actions::TESTS,
        adopted::TESTS,
        controls::TESTS,
        crashes::TESTS,
        credentials::TESTS,
        ledger::TESTS,
        erasing::TESTS,
        file_servers::TESTS,
        places::TESTS,
        sizes::TESTS,
        stores::TESTS,
        killed::TESTS,
        several::TESTS,
        neighbours::TESTS,
        moves::TESTS,
        turns::TESTS,
        bridges::TESTS,
        tls::TESTS,
        check::TESTS,
        settings::TESTS,
        watched::TESTS,
        watching::TESTS,
        webhooks::TESTS,
        traces::TESTS,
        told::TESTS,
        broker_alarms::TESTS,
        bench::TESTS,
    ];
    for list in lists {
        tests.extend_from_slice(list);
    }
    let trials = tests
        .into_iter()
        .map(|Test { name, run }| {
            let (handle, services) = (runtime.handle().clone(), services.clone());
            Trial::test(name, move || {
                let services = services.ok_or("no servers")?;
                let outcome = handle.block_on(async {
                    let task = tokio::spawn(run(services));
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
    if let Some(services) = services.and_then(Arc::into_inner) {
        runtime.block_on(services.stop());
    }
    conclusion.exit_code()
}
