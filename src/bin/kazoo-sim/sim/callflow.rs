//! The callflow executor: sends `action.execute`, waits for the worker's word, believes only what Kazoo would believe.

mod object;

pub use object::{account_db, overlay};

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use flate2::{Compression, write::GzEncoder};
use lapin::BasicProperties;
use serde_json::{Value, json};

use super::{
    amqp::{Out, Received},
    check,
    record::{Direction, Entry, Role},
    state::{CallKey, RunState, State},
    term::{self, Decision},
    wire::{Object, address, defaults, hex, merge, text},
    world::World,
};

/// How a flow node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Decided(Decision),
    /// The broker returned `action.execute`: nobody is bound. In Kazoo 5.0 the flow hangs.
    Unroutable,
}

/// A result and how long callflow waited for it.
#[derive(Clone, Debug)]
pub struct Answered {
    pub outcome: Outcome,
    pub after: Duration,
}

/// One executed action. Cheap to clone; dropping it does not stop anything.
#[derive(Clone)]
pub struct Run {
    world: Arc<World>,
    pub msg_id: String,
    out: Out,
}

impl Run {
    /// Waits for `action.accepted`; says how long it took.
    pub async fn accepted(&self, patience: Duration) -> anyhow::Result<Duration> {
        self.world
            .wait_for("action.accepted", patience, |s| {
                let run = s.runs.get(&self.msg_id)?;
                run.accepted.map(|at| at.saturating_duration_since(run.published))
            })
            .await
    }

    /// Waits for the first `action.result`, or for the broker to return the action.
    pub async fn result(&self, patience: Duration) -> anyhow::Result<Answered> {
        self.world
            .wait_for("action.result", patience, |s| {
                let run = s.runs.get(&self.msg_id)?;
                match (&run.result, run.routed) {
                    (Some((at, decision)), _) => Some(Answered {
                        outcome: Outcome::Decided(decision.clone()),
                        after: at.saturating_duration_since(run.published),
                    }),
                    (None, Some(false)) => Some(Answered {
                        outcome: Outcome::Unroutable,
                        after: Duration::ZERO,
                    }),
                    _ => None,
                }
            })
            .await
    }

    /// Accepted, and continued: what every right worker does.
    pub async fn continued(&self, patience: Duration) -> anyhow::Result<Duration> {
        let answered = self.result(patience).await?;
        match answered.outcome {
            Outcome::Decided(Decision::Continue) => Ok(answered.after),
            other => bail!("the flow got {other:?}"),
        }
    }

    /// Waits until the observer, too, has seen the result.
    pub async fn observed(&self, patience: Duration) -> anyhow::Result<()> {
        self.world
            .wait_for("the observer to see the result", patience, |s| {
                let order = &s.runs.get(&self.msg_id)?.order;
                order.contains(&"result").then_some(())
            })
            .await
    }

    /// The same message once more, as the broker delivers it again after a worker's death.
    pub async fn again(&self) -> anyhow::Result<bool> {
        self.again_as_old(Duration::ZERO).await
    }

    /// The same, as if it had been sent so much earlier.
    pub async fn again_as_old(&self, age: Duration) -> anyhow::Result<bool> {
        self.world
            .with(|s| s.runs.get_mut(&self.msg_id).map(|r| r.times_published += 1));
        let mut out = self.out.clone();
        if let Some(sent) = *out.properties.timestamp() {
            let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
            out.properties = out.properties.with_timestamp(sent.saturating_sub(age));
        }
        self.world.callflow.send_mandatory(out).await
    }

    /// Waits until so many results have come, repeats included.
    pub async fn results(&self, count: u32, patience: Duration) -> anyhow::Result<u32> {
        self.world
            .wait_for("repeated results", patience, |s| {
                let seen = s.runs.get(&self.msg_id)?.result_count;
                (seen >= count).then_some(seen)
            })
            .await
    }

    /// What callflow knows of it.
    pub fn state(&self) -> RunState {
        self.world.look(|s| s.runs[&self.msg_id].clone())
    }
}

/// An action that Kazoo would not write.
#[derive(Clone, Debug)]
pub struct RawExecute {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub key: String,
    /// The run that a reply is matched with; taken from the body when it has one.
    pub msg_id: String,
}

impl RawExecute {
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let msg_id = parsed["Msg-ID"].as_str().map_or_else(|| hex(32), str::to_owned);
        let properties = BasicProperties::default().with_content_type("application/json".into());
        Self {
            body,
            properties,
            key: "callflow.action.record_call".into(),
            msg_id,
        }
    }

    #[must_use]
    pub fn gzip(mut self) -> Self {
        let mut zip = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory cannot fail.
        let _ = zip.write_all(&self.body);
        self.body = zip.finish().unwrap_or_default();
        self.properties = self.properties.with_content_encoding("gzip".into());
        self
    }

    #[must_use]
    pub fn content_type(mut self, value: &str) -> Self {
        self.properties = self.properties.with_content_type(value.into());
        self
    }

    #[must_use]
    pub fn timestamp(mut self, value: u64) -> Self {
        self.properties = self.properties.with_timestamp(value);
        self
    }
}

/// The body of `action.execute` for a call; tests may change it before they send it raw.
pub fn action(world: &World, call: CallKey, data: Value) -> anyhow::Result<Object> {
    let mut body = defaults(
        "callflow",
        "action.execute",
        "callflow",
        "4.0.0",
        &world.options.callflow_node,
    );
    world.look(|s| {
        let call = s.calls.get(&call).context("no such call")?;
        merge(
            &mut body,
            json!({
                "Call-ID": call.call_id,
                "Server-ID": address(&call.flow_pid, &world.flow_queue),
                "Data": data,
                "Call": object::call_object(world, s, call),
            }),
        );
        Ok(body)
    })
}

/// Sends an action and starts to listen for its result.
pub async fn execute(world: &Arc<World>, call: CallKey, body: Object, raw: RawExecute) -> anyhow::Result<Run> {
    let action = body.get("Data").and_then(|d| d.get("action")).and_then(Value::as_str);
    let starts = !matches!(action, Some("stop" | "mask" | "unmask"));
    let out = Out {
        exchange: "kapps",
        key: raw.key,
        body: raw.body,
        properties: raw.properties,
    };
    world.log(Entry::message(
        Role::Callflow,
        Direction::Sent,
        "kapps",
        &out.key,
        Arc::new(body),
    ));
    let msg_id = raw.msg_id;
    world.with(|s| {
        let run = RunState {
            call,
            msg_id: msg_id.clone(),
            starts,
            published: Instant::now(),
            times_published: 1,
            routed: None,
            accepted: None,
            accepted_count: 0,
            result: None,
            result_count: 0,
            order: Vec::new(),
            answered: None,
        };
        s.runs.insert(msg_id.clone(), run);
        if let Some(call) = s.calls.get_mut(&call) {
            call.actions.push(msg_id.clone());
        }
    });
    let routed = world.callflow.send_mandatory(out.clone()).await?;
    world.with(|s| s.runs.get_mut(&msg_id).map(|r| r.routed = Some(routed)));
    if !routed {
        let id = world.look(|s| s.calls.get(&call).map(|c| c.call_id.clone()));
        world.note(
            Role::Callflow,
            id.as_deref(),
            "action.execute came back: nobody is bound",
        );
    }
    Ok(Run {
        world: world.clone(),
        msg_id,
        out,
    })
}

/// A message on the reply queue of the callflow node.
pub fn on_message(world: &Arc<World>, message: &Received) {
    let (body, mut findings) = check::envelope(message, &world.options.worker_app);
    let body = body.map(Arc::new);
    if let Some(body) = &body {
        let (exchange, key) = (message.exchange.as_str(), message.key.as_str());
        let entry = Entry::message(Role::Callflow, Direction::Received, exchange, key, body.clone());
        findings.extend(check::reply(message, body));
        let heard = world.with(|s| believe(s, message, body));
        world.log(entry);
        match heard {
            Ok(Heard::Counted) => {}
            Ok(Heard::TooLate) => {
                let words = "a reply under an id that the call no longer has: callflow passes it over";
                world.note(Role::Callflow, text(body, "Call-ID"), words);
            }
            Err(why) => findings.push(why),
        }
    }
    for (rule, sentence) in findings {
        let body = String::from_utf8_lossy(&message.body);
        world.violate(rule, sentence, format!("{} {}: {body}", message.exchange, message.key));
    }
}

/// Callflow hears a reply only through the flow's process, under the call's current id, with the action's id. All else
/// is passed over in silence, and the flow waits on.
fn believe(s: &mut State, message: &Received, body: &Object) -> Result<Heard, (&'static str, String)> {
    let pid = message
        .to_pid
        .as_deref()
        .ok_or(("deliver-to-pid", "a reply without Deliver-To-PID is lost".into()))?;
    let call = *s
        .flows
        .get(pid)
        .ok_or_else(|| ("deliver-to-pid", format!("no flow process {pid}")))?;
    let id = text(body, "Msg-ID").unwrap_or_default();
    let current = s.calls.get(&call).map(|c| c.call_id.clone());
    let run = s.runs.get_mut(id).filter(|r| r.call == call);
    let run = run.ok_or_else(|| ("reply-unmatched", format!("no action {id:?} in the flow of {pid}")))?;
    let call_id = text(body, "Call-ID").map(str::to_owned);
    // The channel may be replaced while the reply is on its way; the worker cannot know.
    if call_id != current
        && call_id
            .as_ref()
            .and_then(|id| s.legs.get(id))
            .is_some_and(|l| l.call == call)
    {
        return Ok(Heard::TooLate);
    }
    if call_id != current {
        return Err((
            "reply-call-id",
            format!("for {call_id:?}, but the call is {current:?} now: the flow hangs"),
        ));
    }
    match text(body, "Event-Name") {
        Some("action.accepted") => {
            run.accepted_count += 1;
            run.accepted.get_or_insert(message.at);
        }
        Some("action.result") => {
            run.result_count += 1;
            if let Ok(decision) = term::decision(text(body, "Result").unwrap_or_default()) {
                run.result.get_or_insert((message.at, decision));
            }
        }
        _ => {}
    }
    Ok(Heard::Counted)
}

enum Heard {
    Counted,
    TooLate,
}
