//! RabbitMQ: whether it accepts our login, what exists there in which form, and whether Kazoo uses it.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::amqp::{AmqpError, Form, Load, Probe, QueueKind, QueueSpec, Sent};
use crate::config::{self, Config, TlsFault};
use crate::flow::inbox::dead_letters::DEAD_LETTERS;
use crate::kazoo::channel::{StatusReply, status_request};
use crate::kazoo::envelope::Sender;
use crate::kazoo::names::{APP_NAME, Exchange};
use crate::worker;

use super::report::Rows;
use super::settings::{IGNORES_REMOTE_EXECUTION, REMOTE_EXECUTION};
use super::{adopt, policies};

const GROUP: &str = "broker";

/// Kazoo itself waits this long for answers of ecallmgrs (`kapps_call_command`).
const ANSWERS: Duration = Duration::from_secs(2);

/// Exchanges that a worker publishes to.
const WRITTEN: &[Exchange] = &[
    Exchange::Kapps,
    Exchange::Targeted,
    Exchange::Callctl,
    Exchange::Callevt,
    Exchange::Switch,
    Exchange::Configuration,
    Exchange::Unrouted,
];

/// Exchanges that a worker binds queues to.
const READ: &[Exchange] = &[
    Exchange::Kapps,
    Exchange::Targeted,
    Exchange::Callevt,
    Exchange::Configuration,
    Exchange::Unrouted,
];

/// `set_by` names the source that set `amqp.uri`.
pub async fn look(config: &Config, set_by: &str) -> Vec<Rows> {
    let mut rows = Rows::of(GROUP);
    let sender = Sender {
        node: format!("{APP_NAME}@{}", config.kazoo.host),
    };
    let Some((probe, vhost, uri)) = connect(&mut rows, config, &sender, set_by).await else {
        rows.note("the rest", "not checked without a connection");
        return vec![rows];
    };
    let mut kazoo = Rows::of("kazoo");
    let missing = exchanges(&mut rows, &probe).await;
    let specs = worker::topology(config);
    queues(&mut rows, &probe, &specs).await;
    rights(&mut rows, &probe, &missing).await;
    let found = policies::look(&mut rows, config, uri, &vhost, &specs).await;
    policy(&mut rows, &probe, &sender, &missing, (&found, &vhost)).await;
    seen(&mut kazoo, &probe, &sender, &missing).await;
    looks(&mut kazoo, &probe).await;
    adopt::runs(&mut kazoo, &probe, config).await;
    probe.close().await;
    vec![rows, kazoo]
}

/// Tries every URI. The further checks use the first one that works, in its vhost.
async fn connect<'a>(
    rows: &mut Rows,
    config: &'a Config,
    sender: &Sender,
    set_by: &str,
) -> Option<(Probe, String, &'a SecretString)> {
    let mut connected = None;
    let mut failed = Vec::new();
    let tried = config.amqp.uris.iter().map(|uri| async move {
        let (name, vhost) = config::broker(uri.expose_secret()).map_or_else(
            |_| ("amqp.uri".to_owned(), String::new()),
            |uri| (format!("{} vhost {}", config::authority(&uri), uri.vhost), uri.vhost),
        );
        (
            (name, vhost, uri),
            Probe::connect(&config.amqp, uri, &sender.node).await,
        )
    });
    // Concurrently: five brokers that do not answer take no longer than one.
    for ((name, vhost, uri), probe) in futures_util::future::join_all(tried).await {
        match probe {
            Ok(probe) => {
                let others = if connected.is_some() { ", a reserve" } else { "" };
                rows.good(name, format!("connected{others}"));
                match &connected {
                    None => connected = Some((probe, vhost, uri)),
                    Some(_) => probe.close().await,
                }
            }
            Err(error) => failed.push((name, error)),
        }
    }
    for (name, error) in failed {
        let (found, advice) = refusal(&error, set_by);
        if connected.is_some() {
            rows.warn(name, found, format!("no action while another broker is used; {advice}"));
        } else {
            rows.fail(name, found, advice);
        }
    }
    connected
}

/// What a failed connection means, and what the operator must do.
fn refusal(error: &AmqpError, set_by: &str) -> (String, String) {
    let found = error.reply().map_or_else(|| error.to_string(), |(_, words)| words);
    let advice = match error.reply() {
        Some((403, _)) => {
            let advice = format!(
                "correct user name and password in amqp.uri (set by {set_by}); the user guest can log in from localhost only"
            );
            return (found, advice);
        }
        Some((530, ref words)) if words.contains("refused") => {
            "give the user permissions on the vhost of amqp.uri: rabbitmqctl set_permissions -p <vhost> <user> '.*' '.*' '.*'"
        }
        Some((530, _)) => "create the vhost, or correct it in amqp.uri: the vhost is the URI's path, %2f for /",
        Some(_) => "read the log of RabbitMQ",
        None => match error {
            AmqpError::Tls {
                fault: TlsFault::Protocol(_),
                ..
            } => "use amqps:// in amqp.uri for the TLS port (5671), amqp:// for the plain port (5672)",
            AmqpError::Tls { .. } => "correct the setting that the message names",
            AmqpError::TimedOut { .. } => "check host and port of amqp.uri, and the firewall between",
            _ => {
                "check host and port of amqp.uri, that RabbitMQ runs there, and amqps:// for a TLS port or amqp:// for a plain port"
            }
        },
    };
    (found, advice.to_owned())
}

/// Whether each exchange is as Kazoo declares it. Returns those that cannot be used.
async fn exchanges(rows: &mut Rows, probe: &Probe) -> BTreeSet<Exchange> {
    let mut unusable = BTreeSet::new();
    let (mut right, mut missing) = (Vec::new(), Vec::new());
    for exchange in WRITTEN {
        let name = format!("exchange {exchange}");
        match probe.exchange(*exchange).await {
            Ok(Form::Right) => {
                right.push(exchange.name());
                continue;
            }
            Ok(Form::Missing) if *exchange == Exchange::Unrouted => {
                rows.note(name, "does not exist yet: the first worker declares it");
            }
            Ok(Form::Missing) => missing.push(exchange.name()),
            Ok(Form::Other(words)) => rows.fail(
                name,
                format!("differs from what Kazoo declares: {words}"),
                "delete the exchange, and restart its users: it was declared by hand, and Kazoo cannot declare it either",
            ),
            Ok(Form::Forbidden(words)) => {
                rows.warn(
                    name,
                    format!(
                        "the worker has no permission to declare it, and waits for Kazoo after a restart of RabbitMQ: {words}"
                    ),
                    "give the user of amqp.uri permission to configure the exchange",
                );
                continue;
            }
            Err(error) => rows.fail(name, error.to_string(), "read the log of RabbitMQ"),
        }
        unusable.insert(*exchange);
    }
    if !right.is_empty() {
        rows.good("exchanges", format!("as Kazoo declares them: {}", right.join(", ")));
    }
    if !missing.is_empty() {
        rows.fail(
            "Kazoo's exchanges",
            format!("missing: {}", missing.join(", ")),
            "check that amqp.uri names the broker and vhost of Kazoo's zone, and that Kazoo runs: Kazoo declares them when it connects",
        );
    }
    unusable
}

/// Whether our queues exist in the right form, and how many consumers they have.
async fn queues(rows: &mut Rows, probe: &Probe, specs: &[QueueSpec]) {
    let shared = specs.iter().filter(|spec| spec.kind != QueueKind::Exclusive);
    let (mut right, mut missing) = (Vec::new(), Vec::new());
    for spec in shared {
        let name = format!("queue {}", spec.name);
        match probe.queue(spec).await {
            Ok((Form::Right, load)) => {
                let load = load.unwrap_or(Load {
                    messages: 0,
                    consumers: 0,
                });
                let waiting = load.messages > 0;
                if spec.name == DEAD_LETTERS && waiting {
                    rows.warn(
                        name,
                        format!("{} unreadable messages", load.messages),
                        "read the reason in the header x-kz-record-call-reason of each message",
                    );
                } else if spec.name != DEAD_LETTERS && waiting && load.consumers == 0 {
                    rows.warn(
                        name,
                        format!("{} messages wait, and no worker consumes the queue", load.messages),
                        "start a worker",
                    );
                } else {
                    right.push(format!("{} ({} waiting)", spec.name, load.messages));
                }
            }
            Ok((Form::Missing, _)) => missing.push(spec.name.as_str()),
            Ok((Form::Other(words), _)) => rows.warn(
                name,
                format!("differs from what the worker declares, and is used as it is: {words}"),
                "when the queue is empty, stop the workers and delete the queue: the next worker declares it",
            ),
            Ok((Form::Forbidden(words), _)) => rows.fail(
                name,
                format!("access refused: {words}"),
                "give the user of amqp.uri permission to configure, write and read kz_record_call.*, and to write amq.default",
            ),
            Err(error) => rows.fail(name, error.to_string(), "read the log of RabbitMQ"),
        }
    }
    if !right.is_empty() {
        rows.good("queues", right.join(", "));
    }
    if !missing.is_empty() {
        rows.note(
            "queues",
            format!(
                "do not exist yet, the first worker declares them: {}. Do not point callflows here before that",
                missing.join(", ")
            ),
        );
    }
}

/// Whether we may do what a worker does: have queues, bind and consume them, publish.
async fn rights(rows: &mut Rows, probe: &Probe, unusable: &BTreeSet<Exchange>) {
    let mut refused = Vec::new();
    match probe.mailbox().await {
        Err(error) => refused.push(format!("declare an exclusive queue ({error})")),
        Ok(mailbox) => {
            for exchange in READ.iter().filter(|exchange| !unusable.contains(exchange)) {
                if let Err(error) = mailbox.bind(*exchange, probe.mark()).await {
                    refused.push(format!("bind queues to {exchange} ({error})"));
                }
            }
        }
    }
    if let Err(error) = probe.dead_letters(DEAD_LETTERS).await {
        refused.push(format!("declare queues with dead-lettering ({error})"));
    }
    for exchange in WRITTEN.iter().filter(|exchange| !unusable.contains(exchange)) {
        if let Err(error) = probe.may_publish(*exchange).await {
            refused.push(format!("publish to {exchange} ({error})"));
        }
    }
    if refused.is_empty() {
        rows.good("permissions", "may declare, bind and consume queues, and publish");
    } else {
        rows.fail(
            "permissions",
            format!("we may not {}", refused.join("; nor ")),
            "rabbitmqctl set_permissions -p <vhost> <user> '.*' '.*' '.*'; docs/installing.md has the least permissions",
        );
    }
}

/// A message in Kazoo's envelope that no application handles.
fn message(sender: &Sender) -> Value {
    let id = uuid::Uuid::new_v4().simple().to_string();
    sender.message(APP_NAME, "check", &id, json!({}))
}

/// Whether the broker keeps actions while no queue is bound for them. AMQP cannot read a policy, so this check tests its effect. A message
/// that no queue is bound for at `kapps` must arrive at our own exchange.
async fn policy(
    rows: &mut Rows,
    probe: &Probe,
    sender: &Sender,
    unusable: &BTreeSet<Exchange>,
    (policies, vhost): (&policies::Found, &str),
) {
    const NAME: &str = "policy for kapps";
    if unusable.contains(&Exchange::Unrouted) || unusable.contains(&Exchange::Kapps) {
        return rows.note(
            NAME,
            "not checked before both exchanges exist; see \"In this order\" in docs/production.md",
        );
    }
    let followed = async {
        let key = format!("{}_unrouted", probe.mark());
        let mailbox = probe.mailbox().await?;
        mailbox.bind(Exchange::Unrouted, &key).await?;
        probe.publish(Exchange::Kapps, &key, &message(sender)).await
    };
    match followed.await {
        Ok(Sent::Routed) => rows.good(NAME, "actions are kept while no worker is bound"),
        Ok(Sent::Returned) => {
            let (found, advice) = policies.keeping_actions(vhost);
            rows.warn(NAME, found, advice);
        }
        Err(error) => rows.note(NAME, format!("not checked: {error}")),
    }
}

/// Whether the worker may query the length of Kazoo's queues. During a burst of calls, an answer goes out when its queue has room.
async fn looks(rows: &mut Rows, probe: &Probe) {
    const NAME: &str = "Kazoo's queues";
    // The name is neither one of our queues nor any existing queue: the broker checks the permission first.
    match probe.may_look(&format!("callflow-{}", probe.mark())).await {
        Ok(()) => rows.good(NAME, "the worker may query their length"),
        Err(error) => rows.warn(
            NAME,
            format!("the worker may not query their length: {error}. Answers are limited to flow.pace_per_second"),
            "give the user of amqp.uri permission to read every queue; see docs/installing.md",
        ),
    }
}

/// Whether ecallmgrs answer on this broker. For a call that does not exist, each ecallmgr answers that it does not know the call.
async fn seen(rows: &mut Rows, probe: &Probe, sender: &Sender, unusable: &BTreeSet<Exchange>) {
    const NAME: &str = "ecallmgr";
    if unusable.contains(&Exchange::Callevt) || unusable.contains(&Exchange::Targeted) {
        return rows.note(NAME, "not checked without the exchanges callevt and targeted");
    }
    let asked = async {
        let mut mailbox = probe.mailbox().await?;
        mailbox.bind(Exchange::Targeted, mailbox.name()).await?;
        let (id, call) = (
            uuid::Uuid::new_v4().simple().to_string(),
            format!("{}@check", probe.mark()),
        );
        if let Some(request) = status_request(sender, &id, mailbox.name(), &call) {
            probe
                .publish(request.exchange, &request.routing_key, &request.body)
                .await?;
        }
        let (until, mut nodes, mut versions) = (Instant::now() + ANSWERS, BTreeSet::new(), BTreeSet::new());
        while let Some(reply) = mailbox.next(until).await {
            if StatusReply::of(&reply).is_ok() {
                nodes.insert(reply.node.clone().unwrap_or_else(|| "unnamed".to_owned()));
                versions.extend(reply.body["App-Version"].as_str().map(str::to_owned));
            }
        }
        Ok::<_, AmqpError>((nodes, versions))
    };
    match asked.await {
        Ok((nodes, _)) if nodes.is_empty() => rows.fail(
            NAME,
            format!("no ecallmgr answered within {} s", ANSWERS.as_secs()),
            "check that amqp.uri names the broker of the zone whose calls are recorded, and that ecallmgr runs (`kz_nodes status`)",
        ),
        Ok((nodes, versions)) => {
            let names: Vec<String> = nodes.into_iter().collect();
            rows.good(NAME, format!("{} answered: {}", names.len(), names.join(", ")));
            remote_execution(rows, &versions);
        }
        Err(error) => rows.fail(NAME, format!("not checked: {error}"), "correct the failures above first"),
    }
}

/// Whether Kazoo is a version that never sends an action. Kazoo 5.0's open source and older Kazoos both say 4.0.0, so only the fork is known by
/// its version.
fn remote_execution(rows: &mut Rows, versions: &BTreeSet<String>) {
    if let Some(version) = versions.iter().find(|version| version.starts_with("4.4.")) {
        rows.warn(
            "remote_execution",
            format!("ecallmgr is version {version}, openkazoo 4.4, {IGNORES_REMOTE_EXECUTION}"),
            REMOTE_EXECUTION,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kazoo_that_sends_no_actions_is_known_by_its_version() {
        for (version, warned) in [("4.4.0a1", true), ("4.0.0", false), ("5.1.0", false), ("4.40", false)] {
            let mut rows = Rows::of("kazoo");
            remote_execution(&mut rows, &BTreeSet::from([version.to_owned()]));
            assert_eq!(rows.rows.len(), usize::from(warned), "{version}");
        }
    }
}
