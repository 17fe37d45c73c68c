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

/// A worker answers first, and looks for the call before it commands, what it reads so long after it was sent (`flow.stale_action_ms`); and it
/// answers without a command when the broker has not confirmed that for as long (`amqp.publish_timeout_ms`). Both are 5 seconds by default.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Whether the result came so soon that its action was neither late when it was read nor was its command given up. A machine that is busy with
/// other things makes workers late: what they do then is no disorder.
fn was_answered_soon(run: &RunState) -> bool {
    run.answered
        .is_some_and(|at| at.saturating_duration_since(run.published) < AT_ONCE)
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
            run.answered.get_or_insert(message.at);
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
                seen if seen.contains(&"result") && was_answered_soon(run) => {
                    Some(format!("action {action}: the command came after the result"))
                }
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

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Instant};

    use serde_json::json;

    use super::{
        super::{
            options::CallOptions,
            state::{CallState, Control},
        },
        *,
    };

    const CALL: u64 = 1;

    fn control() -> Control {
        Control {
            pid: "<0.1.2>".into(),
            queue: "control".into(),
            ecallmgr: 0,
            dead_from: None,
            waiting: VecDeque::new(),
            running_app: None,
        }
    }

    /// A call with one start, which was sent so long ago.
    fn state(ago: Duration) -> State {
        let mut state = State::default();
        let call = CallState {
            call_id: "call".into(),
            fetch_id: "fetch".into(),
            flow_pid: "<0.1.3>".into(),
            control: control(),
            options: CallOptions::talking(),
            ccvs: Object::new(),
            created_micros: 0,
            actions: vec!["start".into()],
            recordings: Vec::new(),
            quiet: false,
        };
        let run = RunState {
            call: CALL,
            msg_id: "start".into(),
            starts: true,
            published: Instant::now().checked_sub(ago).unwrap(),
            times_published: 1,
            routed: Some(true),
            accepted: None,
            accepted_count: 0,
            result: None,
            result_count: 0,
            order: vec!["accepted"],
            answered: None,
        };
        state.controls.insert(("control".into(), "<0.1.2>".into()), CALL);
        state.calls.insert(CALL, call);
        state.runs.insert("start".into(), run);
        state
    }

    fn seen(s: &mut State, exchange: &str, body: &serde_json::Value) -> Option<String> {
        let message = Received {
            at: Instant::now(),
            queue: "observer".into(),
            exchange: exchange.into(),
            key: "control".into(),
            to_pid: Some("<0.1.2>".into()),
            traceparent: None,
            content_type: None,
            content_encoding: None,
            body: Vec::new(),
        };
        order(s, &message, body.as_object().unwrap())
    }

    /// A worker answers first what it reads late: that is no disorder. At once it is.
    #[test]
    fn only_what_was_answered_at_once_must_have_been_commanded_before() {
        for (ago, disorder) in [(Duration::ZERO, true), (AT_ONCE + Duration::from_secs(1), false)] {
            let mut s = state(ago);
            let result = json!({"Event-Name": "action.result", "Msg-ID": "start"});
            assert_eq!(seen(&mut s, "targeted", &result), None);
            let command = json!({"Event-Name": "command", "Msg-ID": "command", "Record-Action": "start"});
            assert_eq!(seen(&mut s, "callctl", &command).is_some(), disorder, "{ago:?}");
        }
    }
}
