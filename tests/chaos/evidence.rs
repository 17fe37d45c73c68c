//! What the oracle is shown: what was asked for, what the switch wrote, what was told, and what is where. Gathered from the simulated Kazoo, the
//! servers and the databases; of the product's own knowledge only what its commands print.

mod databases;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::endpoint::Notice;
use crate::hearing::Told;
use crate::plan::{Account, What};
use crate::play::{Played, Verb};
use crate::strike::Struck;
use crate::targets::Body;

pub use databases::{Document, Held, Home};

#[derive(Debug, Clone)]
pub struct Evidence {
    pub starts: Vec<Start>,
    pub endings: Vec<Ending>,
    pub documents: Vec<Document>,
    pub bodies: Vec<Body>,
    pub objects: Vec<Object>,
    /// What the endpoint of an operator accepted.
    pub notices: Vec<Notice>,
    pub stories: Vec<Story>,
    pub held: Vec<Held>,
    pub struck: Vec<Struck>,
    /// Actions that were surely sent and not answered, and when they were sent.
    pub unanswered: Vec<(String, Instant)>,
    /// What is left where nothing should be: queues, files that nobody asked for.
    pub left_over: Vec<String>,
    /// What was asked of recordings that ran.
    pub turns: Vec<Turn>,
}

/// An object of the store that a plan names.
#[derive(Debug, Clone)]
pub struct Object {
    pub key: String,
    pub md5: String,
    pub length: u64,
}

/// A start that an action asked for.
#[derive(Debug, Clone)]
pub struct Start {
    pub label: String,
    pub account: Account,
    /// The user's server that it goes to.
    pub server: Option<usize>,
    pub min_ms: u64,
    /// Kazoo began it by itself.
    pub kazoos: Option<KazoosEvents>,
    /// When its action was sent, or Kazoo began it; `None`: it never was, for the flow did not get there.
    pub asked_at: Option<Instant>,
    /// Whether the broker took the action: `None`: nobody knows.
    pub routed: Option<bool>,
    /// Whether what it waits for came before the call was over.
    pub triggered: bool,
    pub over_at: Instant,
    pub vanished: bool,
    /// The switch's files of it.
    pub files: Vec<File>,
    /// Digests of all that a file of it held when a stretch of it had ended.
    pub wholes: Vec<String>,
    /// How often the switch masked it.
    pub masks: u32,
    /// The commands that came to call control for it.
    pub commands: Vec<Command>,
    /// When the first stretch of it had ended, if there was one.
    pub ended_at: Option<Instant>,
    /// When what it waits for came.
    pub triggered_at: Option<Instant>,
}

/// What became of the events of a recording that Kazoo began by itself. Nobody can know of it but by these.
#[derive(Debug, Clone, Copy)]
pub struct KazoosEvents {
    pub start_lost: bool,
    pub stop_lost: bool,
}

/// A start that came to a call's control process.
#[derive(Debug, Clone)]
pub struct Command {
    pub at: Instant,
    pub fate: CommandFate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandFate {
    /// It was carried out, or waits for its moment.
    Taken,
    /// The switch took it, and nothing happened.
    Ignored,
    /// Call control refused it, and said so.
    Refused,
    /// There was no channel, or no control process, any more.
    TooLate,
}

/// A stop, a mask or an unmask that was asked for while a recording ran that commands reach.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The start whose recording it is about.
    pub label: String,
    pub verb: Verb,
    pub asked_at: Instant,
    pub over_at: Instant,
    /// Such commands for this recording that came to call control afterwards.
    pub commands: usize,
    /// It had no part in the end of the recording: that ended before.
    pub ended_before: bool,
}

/// A file of the switch.
#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub md5: String,
    pub millis: u64,
    /// It is there still.
    pub there: bool,
    /// Somebody else took it away.
    pub lost: bool,
}

/// What was announced of a recording, once for every message that is no repeat.
#[derive(Debug, Clone)]
pub struct Ending {
    pub at: Instant,
    pub msg_id: String,
    pub key: String,
    /// Of the start that it says that it is of.
    pub label: String,
    pub call_id: String,
    pub media_id: String,
    pub continues: Option<String>,
    pub outcome: String,
    pub cause: String,
    pub destination: String,
    pub database: String,
    pub md5: String,
    pub size: Option<u64>,
    pub findings: bool,
}

impl Ending {
    pub fn is_kept(&self) -> bool {
        matches!(self.outcome.as_str(), "stored" | "delivered")
    }

    pub fn is_final(&self) -> bool {
        self.outcome != "parked"
    }

    /// What a webhook tells has the names of the event's fields in another form.
    fn of_notice(notice: &Notice) -> Self {
        let data = notice.data.as_object().into_iter().flatten();
        let named = data.map(|(name, value)| {
            let words = name.split('_').map(|word| match word {
                "id" | "md5" => word.to_uppercase(),
                _ => word[..1].to_uppercase() + &word[1..],
            });
            (words.collect::<Vec<_>>().join("-"), value.clone())
        });
        let mut body: serde_json::Map<String, Value> = named.collect();
        body.insert("Msg-ID".to_owned(), notice.id.clone().into());
        Self::of(&Told {
            at: notice.at,
            body: Value::Object(body),
        })
    }

    fn of(told: &Told) -> Self {
        let text = |key: &str| told.text(key).to_owned();
        Self {
            at: told.at,
            msg_id: text("Msg-ID"),
            key: text("Recording-Key"),
            label: text("Origin").trim_start_matches("callflow : ").to_owned(),
            call_id: text("Call-ID"),
            media_id: text("Media-ID"),
            continues: Some(text("Continues")).filter(|id| !id.is_empty()),
            outcome: text("Outcome"),
            cause: text("Cause"),
            destination: text("Destination"),
            database: text("Database"),
            md5: text("MD5"),
            size: told.body["Size"].as_u64(),
            findings: !told.body["Findings"].is_null(),
        }
    }
}

/// What `explain` tells of a recording.
#[derive(Debug, Clone)]
pub struct Story {
    pub key: String,
    pub call_id: String,
    pub state: String,
    pub outcome: String,
    pub cause: String,
    /// For people.
    pub text: String,
}

impl Evidence {
    pub async fn gather(cluster: &Cluster, played: &[Played], struck: Vec<Struck>) -> anyhow::Result<Self> {
        let (starts, strange) = switch::starts(cluster, played);
        let mut left_over = strange;
        for (queue, messages) in cluster.hearing.left_over().await? {
            if messages > 0 {
                left_over.push(format!("{messages} messages in {queue}"));
            }
        }
        let bodies = cluster.book.lock().unwrap().clone();
        let documents = databases::documents(cluster).await?;
        // A recording that Kazoo began by itself is known by the leg that its end told of.
        let told: BTreeSet<String> = endings(cluster, &struck)
            .into_iter()
            .map(|ending| ending.call_id)
            .collect();
        let stories = stories(cluster, played, told).await?;
        Ok(Self {
            starts,
            // After the stories: what they tell was announced before.
            endings: endings(cluster, &struck),
            documents,
            bodies,
            objects: objects(cluster),
            notices: cluster.endpoint.notices(),
            stories,
            held: databases::held(cluster).await?,
            struck,
            unanswered: switch::unanswered(cluster, played).await?,
            turns: switch::turns(cluster, played),
            left_over,
        })
    }
}

fn objects(cluster: &Cluster) -> Vec<Object> {
    let all = cluster.objects.objects().into_iter();
    all.map(|(key, stored)| Object {
        key,
        md5: stored.digests.md5,
        length: stored.length,
    })
    .collect()
}

/// What was announced so far: by our own ear, and by the simulated cluster's, for one of them may have been deaf when the broker came back.
pub fn endings(cluster: &Cluster, struck: &[Struck]) -> Vec<Ending> {
    let tap = cluster.kazoo.tap().messages().into_iter();
    let seen = tap.filter(|m| m.category == "recording").map(|m| Told {
        at: m.at,
        body: Value::Object((*m.body).clone()),
    });
    let mut all: Vec<Ending> = Vec::new();
    for told in cluster.hearing.told().into_iter().chain(seen) {
        let ending = Ending::of(&told);
        match all.iter_mut().find(|known| known.msg_id == ending.msg_id) {
            // A repeat is the same message; the earliest counts.
            Some(known) => known.at = known.at.min(ending.at),
            None => all.push(ending),
        }
    }
    // Both ears are deaf for a moment while the broker comes back. The endpoint gets the same event, by the same id.
    for notice in cluster.endpoint.notices() {
        if notice.wrong.is_none()
            && is_back_lately(struck, notice.at)
            && !all.iter().any(|known| known.msg_id == notice.id)
        {
            all.push(Ending::of_notice(&notice));
        }
    }
    all
}

/// Whether the broker was struck less than a minute before.
fn is_back_lately(struck: &[Struck], at: Instant) -> bool {
    let mut broker = struck
        .iter()
        .filter(|one| matches!(one.what, What::RestartBroker { .. } | What::CutBroker));
    broker.any(|one| one.from <= at && at.saturating_duration_since(one.until) < Duration::from_secs(60))
}

async fn stories(cluster: &Cluster, played: &[Played], mut legs: BTreeSet<String>) -> anyhow::Result<Vec<Story>> {
    use futures_util::StreamExt as _;
    legs.extend(played.iter().map(|played| played.first_id.clone()));
    let legs = legs.into_iter().map(|leg| async move { story(cluster, &leg).await });
    let calls = futures_util::stream::iter(legs);
    let told: Vec<anyhow::Result<Vec<Story>>> = calls.buffer_unordered(3).collect().await;
    let mut by_key = BTreeMap::new();
    for stories in told {
        for story in stories? {
            by_key.insert(story.key.clone(), story);
        }
    }
    Ok(by_key.into_values().collect())
}

/// What `explain` says of a call's recordings.
async fn story(cluster: &Cluster, call_id: &str) -> anyhow::Result<Vec<Story>> {
    let (_, told) = cluster.command(&["explain", "--json", call_id]).await?;
    let told: Vec<Value> = serde_json::from_str(&told)?;
    let stories = told.into_iter().map(|told| {
        let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        Story {
            key: text("key"),
            call_id: text("call_id"),
            state: text("state"),
            outcome: text("outcome"),
            cause: text("cause"),
            text: format!("{told:#}"),
        }
    });
    Ok(stories.collect())
}
