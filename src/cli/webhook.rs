//! `kz-record-call webhook`: tests endpoints.

use std::io::Write;
use std::time::Instant;

use anyhow::bail;
use clap::Subcommand;

use crate::config::{Config, Endpoint};
use crate::flow::webhooks::test_payload;
use crate::kazoo::time::Clock;
use crate::webhook::Client;

use super::ledger::block_on;
use super::plain::Plain;

/// What is done with endpoints.
#[derive(Debug, Subcommand)]
pub enum WebhookCommand {
    /// Send a signed test event (webhook.test) to an endpoint, and print the answer. The exit status is 1 if an endpoint does not accept it.
    Test {
        /// The name of the endpoint in the settings; all endpoints without a name.
        endpoint: Option<String>,
    },
}

pub fn run(config: &Config, WebhookCommand::Test { endpoint }: &WebhookCommand) -> anyhow::Result<bool> {
    let all = &config.webhooks.endpoints;
    let is_wanted = |known: &&Endpoint| endpoint.as_ref().is_none_or(|name| known.name == *name);
    let wanted: Vec<&Endpoint> = all.iter().filter(is_wanted).collect();
    match (endpoint, wanted.is_empty()) {
        (_, false) => {}
        (None, true) => bail!("the settings have no endpoint: add a table [webhooks.endpoint.<name>]"),
        (Some(name), true) => {
            let names: Vec<&str> = all.iter().map(|known| known.name.as_str()).collect();
            bail!(
                "the settings have no endpoint {name:?}; they have: {}",
                names.join(", ")
            )
        }
    }
    block_on(async {
        let clock = super::clock();
        let mut is_good = true;
        let mut out = std::io::stdout().lock();
        for endpoint in wanted {
            is_good &= test(config, endpoint, &clock, &mut out).await?;
        }
        Ok(is_good)
    })
}

async fn test(config: &Config, endpoint: &Endpoint, clock: &Clock, out: &mut impl Write) -> anyhow::Result<bool> {
    let client = Client::new(endpoint, config.webhooks.timeout).map_err(anyhow::Error::msg)?;
    let id = format!("test_{}", uuid::Uuid::new_v4().simple());
    let body = test_payload(&endpoint.name, clock.now()).to_string();
    let begun = Instant::now();
    let answer = client.send(&id, clock.now(), body.as_bytes()).await;
    let took = begun.elapsed().as_millis();
    match &answer {
        Ok(accepted) => {
            let said = if accepted.said.is_empty() {
                String::new()
            } else {
                format!(": {}", accepted.said)
            };
            writeln!(
                out,
                "{}: accepted {id} in {took} ms, answered {}{}",
                endpoint.name,
                accepted.status,
                Plain(said)
            )?;
        }
        Err(refused) => writeln!(
            out,
            "{}: did not accept {id} in {took} ms: {}",
            endpoint.name,
            Plain(&refused.why)
        )?,
    }
    Ok(answer.is_ok())
}
