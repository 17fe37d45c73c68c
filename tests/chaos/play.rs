//! Plays one call of the plan, as its people, its flow and its switch would, whatever breaks meanwhile.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, account_id};
use crate::plan::{CallPlan, End, Fate, SAME_ID, StartPlan, Step, When};
use crate::simulator::sim::{Audio, Call, CallOptions, EventFault, Mistreat, RawExecute, Run, Size, wire};

/// How long a caller waits for a flow that does not go on.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long something that a start brings about is waited for before the call goes on without it.
const AWHILE: Duration = Duration::from_secs(3);

/// What was done in a call.
pub struct Played {
    pub plan: CallPlan,
    pub call: Call,
    /// The id that it had at first, and at its end.
    pub first_id: String,
    pub actions: Vec<Action>,
    /// What a file held when a stretch of it had ended.
    pub wholes: Vec<(PathBuf, Audio)>,
    /// Files that were taken off the switch by somebody else.
    pub lost: Vec<PathBuf>,
    pub answered_at: Option<Instant>,
    /// When it was bridged, and until when, if not to its end.
    pub bridges: Vec<(Instant, Option<Instant>)>,
    pub over_at: Instant,
    /// When Kazoo began to record by itself.
    pub kazoos_at: Option<Instant>,
}

/// An action that was sent.
pub struct Action {
    pub asked: Asked,
    pub msg_id: String,
    pub sent_at: Instant,
    /// What the broker said: somebody is bound, nobody is, or nothing.
    pub routed: Option<bool>,
}

/// What an action asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The n-th of the call's starts.
    Start(usize),
    Turn(Turned),
}

/// A stop, a mask or an unmask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    pub verb: Verb,
    /// The name of the file that it is about: of the newest recording that runs. `None`: none runs that a command reaches.
    pub file: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Stop,
    Mask,
    Unmask,
}

impl Verb {
    /// As the action and the command call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Mask => "mask",
            Self::Unmask => "unmask",
        }
    }
}

impl Action {
    pub fn start(&self) -> Option<usize> {
        match self.asked {
            Asked::Start(n) => Some(n),
            Asked::Turn(_) => None,
        }
    }
}

/// Plays the call, from when its time has come.
pub async fn play(cluster: &Cluster, begin: Instant, plan: CallPlan) -> Played {
    tokio::time::sleep_until((begin + plan.at).into()).await;
    let mut options = if plan.ringing {
        CallOptions::ringing()
    } else {
        CallOptions::talking()
    };
    options.account_id = Some(account_id(plan.account).into());
    options.ecallmgr = plan.n % 2;
    options.caller_number = format!("1{:04}", plan.n);
    let call = cluster.kazoo.new_call(options);
    let mut player = Player {
        cluster,
        in_reach: true,
        runs: (0..plan.starts.len()).map(|_| None).collect(),
        played: Played {
            first_id: call.id(),
            call,
            actions: Vec::new(),
            wholes: Vec::new(),
            lost: Vec::new(),
            answered_at: (!plan.ringing).then(Instant::now),
            bridges: (!plan.ringing).then(|| (Instant::now(), None)).into_iter().collect(),
            over_at: Instant::now(),
            kazoos_at: None,
            plan,
        },
    };
    player.mistreat(player.played.call.id());
    if let Some(other) = player.played.call.other_leg() {
        player.mistreat(other);
    }
    for step in player.played.plan.steps.clone() {
        if !player.step(step).await {
            break;
        }
    }
    player.end().await;
    player.played
}

struct Player<'a> {
    cluster: &'a Cluster,
    /// Commands still find the call's recordings: it has not moved, and its control process lives.
    in_reach: bool,
    runs: Vec<Option<Run>>,
    played: Played,
}

impl Player<'_> {
    /// Does one step; `false` when the flow does not go on.
    async fn step(&mut self, step: Step) -> bool {
        let call = self.played.call.clone();
        match step {
            Step::Talk(length) => tokio::time::sleep(length).await,
            Step::Start(n) => return self.start(n).await,
            Step::Kazoos(n) => self.kazoos(n).await,
            Step::Again(n) => {
                if let Some(run) = &self.runs[n] {
                    // The broker may be away; then it is not repeated.
                    let _ = run.again().await;
                }
            }
            Step::Stop => return self.turn(Verb::Stop).await,
            Step::Mask => return self.turn(Verb::Mask).await,
            Step::Unmask => return self.turn(Verb::Unmask).await,
            Step::Answer => {
                self.played.answered_at = Some(Instant::now());
                call.answer();
            }
            Step::Bridge(said) => {
                self.look();
                call.set_size(Size::Millis(said));
                let now = Instant::now();
                self.played.answered_at.get_or_insert(now);
                self.played.bridges.push((now, None));
                call.bridge();
            }
            Step::EndParts => {
                self.cluster.kazoo.end_recordings(&call).await;
                call.unbridge();
                if let Some((_, until)) = self.played.bridges.last_mut() {
                    *until = Some(Instant::now());
                }
                self.look();
            }
            Step::Move => {
                self.in_reach = false;
                call.move_recordings();
            }
            Step::Replace => {
                self.in_reach = false;
                let id = wire::uuid();
                self.mistreat(id.clone());
                call.replace(&id).await;
            }
            Step::Transfer => {
                self.in_reach = false;
                call.transfer();
            }
        }
        true
    }

    async fn start(&mut self, n: usize) -> bool {
        let start = self.played.plan.starts[n].clone();
        self.played.call.set_size(Size::Millis(start.millis));
        let went_on = self.act(Asked::Start(n), self.data(&start)).await;
        if went_on && start.when == When::Now {
            let begun = |s: &crate::simulator::sim::State| {
                let file = s.recordings().iter().find(|r| r.limit_secs == start.limit_s);
                file.filter(|file| file.running() || file.ended()).map(drop)
            };
            // It may be late, or never come; the call goes on all the same.
            let _ = self.cluster.kazoo.wait_for("the recording", AWHILE, begun).await;
        }
        went_on
    }

    /// Kazoo records by itself, and waits for nobody.
    async fn kazoos(&mut self, n: usize) {
        let start = self.played.plan.starts[n].clone();
        self.played.call.set_size(Size::Millis(start.millis));
        self.played.kazoos_at = Some(Instant::now());
        self.played.call.record_as_kazoo(json!({
            "origin": format!("callflow : {}", start.label),
            "time_limit": start.limit_s,
            "format": if start.wav { "wav" } else { "mp3" },
        }));
        let begun = |s: &crate::simulator::sim::State| {
            let file = s.recordings().iter().find(|r| r.limit_secs == start.limit_s);
            file.filter(|file| file.running() || file.ended()).map(drop)
        };
        let _ = self.cluster.kazoo.wait_for("the recording", AWHILE, begun).await;
    }

    async fn turn(&mut self, verb: Verb) -> bool {
        let running = self.played.call.recordings().into_iter().filter(|file| file.running());
        let newest = running.max_by_key(|file| file.started_at);
        let turned = Turned {
            verb,
            file: newest.filter(|_| self.in_reach).map(|file| file.name),
        };
        self.act(Asked::Turn(turned), json!({"action": verb.name()})).await
    }

    /// What the flow's node says.
    fn data(&self, start: &StartPlan) -> Value {
        let mut data = json!({
            "action": "start",
            "label": start.label,
            "time_limit": start.limit_s,
            "format": if start.wav { "wav" } else { "mp3" },
            "record_min_sec": start.min_s,
            "record_on_answer": start.when == When::Answer,
            "record_on_bridge": start.when == When::Bridge,
        });
        if let Some(url) = start.url {
            data["url"] = json!(self.cluster.targets[url.server].url(&start.label));
            data["method"] = json!(if url.post { "post" } else { "put" });
        }
        if start.same_id {
            data["media_id"] = json!(format!("{}-{SAME_ID}", self.cluster.months[0]));
            data["media_name"] = json!("the same");
        }
        data
    }

    /// Runs an action as callflow does: waits for its result, without which the flow does not go on.
    async fn act(&mut self, asked: Asked, data: Value) -> bool {
        let Ok(body) = self.played.call.action(data) else {
            return false;
        };
        let clock = self.cluster.kazoo.options().clock;
        let raw = RawExecute::new(Value::Object(body).to_string()).timestamp(clock.gregorian_micros());
        let (msg_id, sent_at) = (raw.msg_id.clone(), Instant::now());
        let run = self.played.call.execute_raw(raw).await.ok();
        if let (Asked::Start(n), Some(run)) = (&asked, &run) {
            self.runs[*n] = Some(run.clone());
        }
        let routed = run.and_then(|run| run.state().routed);
        self.played.actions.push(Action {
            asked,
            msg_id: msg_id.clone(),
            sent_at,
            routed,
        });
        let answered = |s: &crate::simulator::sim::State| s.run(&msg_id)?.result.as_ref().map(drop);
        routed != Some(false)
            && self
                .cluster
                .kazoo
                .wait_for("the answer", PATIENCE, answered)
                .await
                .is_ok()
    }

    /// What becomes of this leg's events.
    fn mistreat(&self, leg: String) {
        let plan = &self.played.plan;
        let fates = [("RECORD_START", plan.start_event), ("RECORD_STOP", plan.stop_event)];
        for (event, fate) in fates {
            let how = match fate {
                Fate::Arrives => continue,
                Fate::Lost => Mistreat::Drop,
                Fate::Repeated(times) => Mistreat::Duplicate(times),
                Fate::Late(by) => Mistreat::Delay(by),
            };
            let fault = EventFault::new(event, how).of(&leg);
            self.cluster.kazoo.faults(|faults| faults.events.push(fault));
        }
    }

    /// Writes down what the call's files hold, of those that are not written now.
    fn look(&mut self) {
        for file in self.played.call.recordings() {
            let known = |(path, audio): &(PathBuf, Audio)| *path == file.path && *audio == file.audio;
            if file.ended() && !self.played.wholes.iter().any(known) {
                self.played.wholes.push((file.path, file.audio));
            }
        }
    }

    async fn end(&mut self) {
        let call = self.played.call.clone();
        match self.played.plan.end {
            End::HangUp => call.hangup("NORMAL_CLEARING").await,
            End::Vanish => call.vanish(),
            End::LoseFile => {
                call.hangup("NORMAL_CLEARING").await;
                for file in call.recordings() {
                    if std::fs::remove_file(&file.path).is_ok() {
                        self.played.lost.push(file.path);
                    }
                }
            }
        }
        self.played.over_at = Instant::now();
    }
}
