//! What the simulated Kazoo asked for, and what its switch wrote.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;

use super::{Command, CommandFate, File, KazoosEvents, Start, Turn};
use crate::cluster::Cluster;
use crate::plan::{End, Fate, StartPlan, When};
use crate::play::{Asked, Played};
use crate::simulator::sim::record::{Direction, Entry, Role};
use crate::simulator::sim::wire::{Object, text};
use crate::simulator::sim::{Audio, Recording};
use crate::targets::hex;

/// Every start, and what is on the switch that none of them asked for.
pub fn starts(cluster: &Cluster, played: &[Played]) -> (Vec<Start>, Vec<String>) {
    let (all, timeline) = (cluster.kazoo.recordings(), cluster.kazoo.timeline());
    let starts = played
        .iter()
        .flat_map(|played| {
            let plans = played.plan.starts.iter().enumerate();
            plans.map(|(n, plan)| start(played, n, plan, &all, &timeline))
        })
        .collect();
    let known = |limit: u64| {
        played
            .iter()
            .any(|p| p.plan.starts.iter().any(|start| start.limit_s == limit))
    };
    let strange = all
        .iter()
        .filter(|file| !known(file.limit_secs))
        .map(|file| format!("a recording that nobody asked for: {}", file.path.display()));
    (starts, strange.collect())
}

fn start(played: &Played, n: usize, plan: &StartPlan, all: &[Recording], timeline: &[Entry]) -> Start {
    let action = played.actions.iter().find(|action| action.start() == Some(n));
    let mine: Vec<&Recording> = all.iter().filter(|file| file.limit_secs == plan.limit_s).collect();
    let lost = |path: &Path| played.lost.iter().any(|lost| lost == path);
    let files: Vec<File> = mine
        .iter()
        .filter(|file| file.ended())
        .map(|file| File {
            path: file.path.display().to_string(),
            md5: digest(&file.audio),
            millis: file.audio.millis(),
            there: file.path.exists() && !file.deleted,
            lost: lost(&file.path),
        })
        .collect();
    let looked = played
        .wholes
        .iter()
        .filter(|(path, _)| mine.iter().any(|file| file.path == *path));
    let mut wholes: Vec<String> = looked.map(|(_, audio)| digest(audio)).collect();
    wholes.extend(files.iter().map(|file| file.md5.clone()));
    let asked_at = match plan.kazoos {
        true => played.kazoos_at,
        false => action.map(|action| action.sent_at),
    };
    let triggered_at = match plan.when {
        When::Now => asked_at,
        When::Answer => played.answered_at,
        When::Bridge => {
            let begins = |(from, until): &(Instant, Option<Instant>)| {
                let at = *from + AFTER_BRIDGE;
                (at <= until.unwrap_or(played.over_at)).then_some(at)
            };
            played.bridges.iter().find_map(begins)
        }
    };
    Start {
        label: plan.label.clone(),
        account: played.plan.account,
        server: plan.url.map(|url| url.server),
        min_ms: plan.min_s * 1000,
        asked_at,
        kazoos: plan.kazoos.then_some(KazoosEvents {
            start_lost: played.plan.start_event == Fate::Lost,
            stop_lost: played.plan.stop_event == Fate::Lost || played.plan.end == End::Vanish,
        }),
        routed: action.and_then(|action| action.routed),
        triggered: plan.when == When::Now || triggered_at.is_some_and(|at| at <= played.over_at),
        triggered_at,
        masks: mine.iter().map(|file| file.masks).sum(),
        commands: commands(timeline, plan.limit_s),
        ended_at: mine.iter().filter_map(|file| file.ended_at).min(),
        over_at: played.over_at,
        vanished: played.plan.end == End::Vanish,
        files,
        wholes,
    }
}

/// The switch begins to record a moment after a bridge; of one that was over before nothing was recorded.
const AFTER_BRIDGE: Duration = Duration::from_millis(500);

/// The commands that came to call control for the start with this time limit, and what became of each.
fn commands(timeline: &[Entry], limit_s: u64) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    // What is noted of a name belongs to the command that came last for it: a stop's fate is not its start's.
    let mut is_start = false;
    for entry in timeline {
        let started = entry.body.as_deref().and_then(|body| start_in(body, limit_s));
        if let Some(name) = started.filter(|_| came_to_control(entry)) {
            names.push(name);
            is_start = true;
            commands.push(Command {
                at: entry.at,
                fate: CommandFate::Taken,
            });
            continue;
        }
        let is_named = |body: &Object| {
            let named = body.get("Media-Name").and_then(|name| name.as_str());
            named.is_some_and(|named| names.iter().any(|name| name == named))
        };
        if came_to_control(entry) && entry.body.as_deref().is_some_and(is_named) {
            is_start = false;
        }
        // What became of it stands behind it.
        let fate = match (entry.role, entry.direction) {
            (Role::Ecallmgr, Direction::Sent) if entry.name == "dialplan" => {
                let of_it = entry.body.as_deref().and_then(|body| body.get("Request")?.as_object());
                of_it
                    .is_some_and(|request| start_in(request, limit_s).is_some())
                    .then_some(CommandFate::Refused)
            }
            (_, Direction::Note) if is_start && names.iter().any(|name| entry.summary.ends_with(name)) => {
                let known = [
                    ("fault: the start is ignored", CommandFate::Ignored),
                    ("no such channel", CommandFate::TooLate),
                    ("the control process is gone", CommandFate::TooLate),
                ];
                let is = |(words, _): &&(&str, CommandFate)| entry.summary.starts_with(words);
                known.iter().find(is).map(|(_, fate)| *fate)
            }
            _ => None,
        };
        if let (Some(fate), Some(last)) = (fate, commands.last_mut()) {
            last.fate = fate;
        }
    }
    commands
}

fn came_to_control(entry: &Entry) -> bool {
    (entry.role, entry.direction, entry.name.as_str()) == (Role::Ecallmgr, Direction::Received, "command")
}

/// The file's name, if the command starts the recording with this time limit, at once or later.
fn start_in(command: &Object, limit_s: u64) -> Option<String> {
    let delayed = command.get("Event-Actions").and_then(|actions| actions.as_object());
    let delayed = delayed.into_iter().flat_map(Object::values);
    let delayed = delayed.filter_map(|event| event.get("Record-Call")?.as_object());
    let mut all = std::iter::once(command).chain(delayed);
    let mine = all.find(|start| start.get("Time-Limit").and_then(serde_json::Value::as_u64) == Some(limit_s))?;
    text(mine, "Media-Name").map(str::to_owned)
}

/// What was asked of recordings that ran, and the commands that came of it.
pub fn turns(cluster: &Cluster, played: &[Played]) -> Vec<Turn> {
    let (all, timeline) = (cluster.kazoo.recordings(), cluster.kazoo.timeline());
    let mut turns = Vec::new();
    for played in played {
        for action in &played.actions {
            let Asked::Turn(turned) = &action.asked else { continue };
            let Some(name) = turned.file.as_deref().filter(|_| action.routed == Some(true)) else {
                continue;
            };
            let Some(file) = all.iter().rfind(|file| file.name == name) else {
                continue;
            };
            let mut starts = played.plan.starts.iter();
            let Some(start) = starts.find(|start| start.limit_s == file.limit_secs) else {
                continue;
            };
            let is_it = |body: &Object| {
                text(body, "Record-Action") == Some(turned.verb.name()) && text(body, "Media-Name") == Some(name)
            };
            let commands = timeline
                .iter()
                .filter(|entry| came_to_control(entry) && entry.at >= action.sent_at)
                .filter(|entry| entry.body.as_deref().is_some_and(is_it));
            turns.push(Turn {
                label: start.label.clone(),
                verb: turned.verb,
                asked_at: action.sent_at,
                over_at: played.over_at,
                commands: commands.count(),
                ended_before: file.ended_at.is_some_and(|at| at <= action.sent_at),
            });
        }
    }
    turns
}

fn digest(audio: &Audio) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(audio.md5());
    hex(&bytes.unwrap_or_default())
}

/// Actions that the broker took and nobody answered.
pub async fn unanswered(cluster: &Cluster, played: &[Played]) -> anyhow::Result<Vec<(String, Instant)>> {
    let sent = played
        .iter()
        .flat_map(|played| played.actions.iter().map(|action| (played.plan.n, action)));
    let mut open = Vec::new();
    for (call, action) in sent.filter(|(_, action)| action.routed.is_some()) {
        let answered = cluster
            .kazoo
            .wait_for("a look", std::time::Duration::from_secs(5), |s| {
                Some(s.run(&action.msg_id).is_some_and(|run| run.result.is_some()))
            });
        if !answered.await? {
            let what = if action.start().is_some() { "a start" } else { "a turn" };
            let routed = if action.routed == Some(true) {
                ""
            } else {
                ", unroutable"
            };
            open.push((
                format!("{what} of call {call} ({}{routed})", action.msg_id),
                action.sent_at,
            ));
        }
    }
    Ok(open)
}
