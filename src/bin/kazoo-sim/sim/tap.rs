//! The observer: a bystander on the exchanges where the worker publishes. It sees what one queue sees, in the order in
//! which the broker routed it, so it can judge the order of messages that go to different queues.
//!
//! It never binds what would make a `mandatory` message routable that nobody serves: not the actions on `kapps`, not
//! the commands on `switch` nor the questions on `callevt` (those are noted when ecallmgr takes them), and a control
//! queue only while its ecallmgr lives.

use std::{sync::Arc, time::Duration};

use super::{
    amqp::{QueueSpec, Received},
    check,
    record::{Direction, Entry, Role},
    state::{Observed, RunState, State},
    wire::{Object, text},
    world::World,
};

/// What the observer binds.
pub fn queue(world: &World, name: String) -> QueueSpec {
    let all = || "#".to_owned();
    let mut binds = vec![
        ("kapps", "recording.#".to_owned()),
        ("configuration", all()),
        ("targeted", world.flow_queue.clone()),
    ];
    if world.options.declare_exchanges {
        binds.extend([("sysconf", all()), ("notifications", all())]);
    }
    binds.extend(
        world
            .control_queues
            .iter()
            .flatten()
            .map(|queue| ("callctl", queue.clone())),
    );
    QueueSpec {
        name,
        private: true,
        shared: false,
        binds,
    }
}

/// A message passes by.
pub fn on_message(world: &Arc<World>, message: &Received) {
    let body = serde_json::from_slice::<Object>(&message.body).unwrap_or_default();
    if text(&body, "App-Name").is_some_and(|app| ["freeswitch", "ecallmgr", "callflow"].contains(&app)) {
        return;
    }
    if ["configuration", "kapps"].contains(&message.exchange.as_str()) {
        let (read, mut findings) = check::envelope(message, &world.options.worker_app);
        findings.extend(check::announcement(message, &read.unwrap_or_default()));
        for (rule, sentence) in findings {
            let body = String::from_utf8_lossy(&message.body);
            world.violate(rule, sentence, format!("{} {}: {body}", message.exchange, message.key));
        }
        let entry = Entry::message(
            Role::Cluster,
            Direction::Received,
            &message.exchange,
            &message.key,
            Arc::new(body.clone()),
        );
        world.log(entry);
    }
    let disorder = world.with(|s| {
        let disorder = order(s, message, &body);
        observe(s, message, Arc::new(body));
        disorder
    });
    if let Some(sentence) = disorder {
        world.violate("order", sentence, "");
    }
}

/// Keeps a message of the worker.
pub fn observe(s: &mut State, message: &Received, body: Arc<Object>) {
    s.observed.push(Observed {
        at: message.at,
        exchange: message.exchange.clone(),
        key: message.key.clone(),
        category: text(&body, "Event-Category").unwrap_or_default().to_owned(),
        name: text(&body, "Event-Name").unwrap_or_default().to_owned(),
        traceparent: message.traceparent.clone(),
        body,
    });
}

/// Accepted, if it comes at all, then the command, then the result: a result that came first would let the call go on before the start was
/// on its way. `accepted` is left out where its queue has no room. Only the first delivery of an action is judged: after a worker's death the answer comes first.
fn order(s: &mut State, message: &Received, body: &Object) -> Option<String> {
    let (name, id) = (text(body, "Event-Name")?, text(body, "Msg-ID")?);
    match name {
        "action.accepted" => {
            // One that the broker had not confirmed may come again.
            let lost = s.broker_lost;
            let run = s.runs.get_mut(id)?;
            let late = run.times_published == 1 && !lost && !run.order.is_empty() && !run.order.contains(&"accepted");
            run.order.push("accepted");
            late.then(|| format!("action {id}: accepted came after the command or the result"))
        }
        "action.result" => {
            let run = s.runs.get_mut(id).filter(|r| r.times_published == 1)?;
            run.order.push("result");
            None
        }
        "command" if message.exchange == "callctl" => {
            // What is set on the channel before it is no start.
            let starts = text(body, "Record-Action").is_none_or(|action| action == "start")
                && text(body, "Application-Name") != Some("set");
            let call = s
                .controls
                .get(&(message.key.clone(), message.to_pid.clone()?))
                .filter(|_| starts)?;
            let actions = s.calls.get(call)?.actions.clone();
            // The oldest start of this call that has had no command yet.
            let waiting = |r: &RunState| r.starts && r.times_published == 1 && !r.order.contains(&"command");
            let action = actions.into_iter().find(|id| s.runs.get(id).is_some_and(waiting))?;
            let run = s.runs.get_mut(&action)?;
            let disorder = match run.order.as_slice() {
                seen if seen.contains(&"result") => Some(format!("action {action}: the command came after the result")),
                _ => None,
            };
            run.order.push("command");
            disorder
        }
        _ => None,
    }
}

/// Everything that the worker published, for tests that validate or await it.
#[derive(Clone)]
pub struct Tap {
    pub(super) world: Arc<World>,
}

impl Tap {
    pub fn messages(&self) -> Vec<Observed> {
        self.world.look(|s| s.observed().to_vec())
    }

    /// Waits for the first message that fits, also among those that have passed already.
    pub async fn wait(&self, fits: impl Fn(&Observed) -> bool, patience: Duration) -> anyhow::Result<Observed> {
        self.world
            .wait_for("a message of the worker", patience, |s| {
                s.observed().iter().find(|m| fits(m)).cloned()
            })
            .await
    }

    /// Waits for the worker's last word about a recording: `recording.<outcome>.<account>` on `kapps`.
    pub async fn outcome(&self, media_id: &str, patience: Duration) -> anyhow::Result<Observed> {
        self.wait(
            |m| m.exchange == "kapps" && m.category == "recording" && names(m, media_id),
            patience,
        )
        .await
    }

    /// Waits for the notice that the document exists.
    pub async fn document(&self, media_id: &str, patience: Duration) -> anyhow::Result<Observed> {
        self.wait(
            |m| m.exchange == "configuration" && m.name == "doc_created" && names(m, media_id),
            patience,
        )
        .await
    }
}

fn names(message: &Observed, id: &str) -> bool {
    message.body.values().any(|v| v.as_str() == Some(id))
}
