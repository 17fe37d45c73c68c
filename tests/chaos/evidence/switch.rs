//! What the simulated Kazoo asked for, and what its switch wrote.

use std::path::Path;
use std::time::Instant;

use base64::Engine as _;

use super::{File, Start};
use crate::cluster::Cluster;
use crate::plan::{End, StartPlan, When};
use crate::play::Played;
use crate::simulator::sim::{Audio, Recording};
use crate::targets::hex;

/// Every start, and what is on the switch that none of them asked for.
pub fn starts(cluster: &Cluster, played: &[Played]) -> (Vec<Start>, Vec<String>) {
    let all = cluster.kazoo.recordings();
    let starts = played
        .iter()
        .flat_map(|played| {
            let plans = played.plan.starts.iter().enumerate();
            plans.map(|(n, plan)| start(played, n, plan, &all))
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

fn start(played: &Played, n: usize, plan: &StartPlan, all: &[Recording]) -> Start {
    let action = played.actions.iter().find(|action| action.start == Some(n));
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
    let in_time = |at: Option<Instant>| at.is_some_and(|at| at <= played.over_at);
    Start {
        label: plan.label.clone(),
        account: played.plan.account,
        server: plan.url.map(|url| url.server),
        min_ms: plan.min_s * 1000,
        asked_at: action.map(|action| action.sent_at),
        routed: action.and_then(|action| action.routed),
        triggered: match plan.when {
            When::Now => true,
            When::Answer => in_time(played.answered_at),
            When::Bridge => in_time(played.bridged_at),
        },
        over_at: played.over_at,
        vanished: played.plan.end == End::Vanish,
        files,
        wholes,
    }
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
            let what = if action.start.is_some() { "a start" } else { "a turn" };
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
