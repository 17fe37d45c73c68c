//! Waits until everything has ended, as far as is told. An operator moves on what rests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::evidence::{Ending, endings};
use crate::plan::What;
use crate::play::Played;
use crate::strike::Struck;

/// How often somebody looks when nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// What rests for so many looks although it was moved on will rest for ever.
const FOR_EVER: usize = 5;

/// Returns when everything has ended, or when it will not any more: the oracle says what is missing then. `patience`: for how long nothing may change.
/// What the operator had to set is told.
pub async fn settle(cluster: &Cluster, played: &[Played], patience: Duration) -> anyhow::Result<Option<Struck>> {
    let (mut changed, mut before) = (Instant::now(), (0, Vec::new()));
    let mut third_party = None;
    let (mut moved_on, mut rested, mut unseen) = (BTreeSet::new(), 0, 0);
    while changed.elapsed() < patience {
        let told = endings(cluster, &[]);
        let resting = resting(&told);
        let mut left = left(cluster).await?;
        left.extend(owed(cluster).await?);
        let now = (told.len(), left.clone());
        if now != before {
            (changed, before) = (Instant::now(), now);
        }
        if resting.iter().any(|key| !moved_on.contains(key)) {
            cluster.command(&["retry", "--all-parked"]).await?;
            moved_on.extend(resting);
        } else if left.is_empty() && open(played, &told).is_empty() {
            return Ok(third_party);
        }
        // What went to a third party with too few copies is looked for there until it is seen; where that was taken out of the settings, an operator
        // puts it there again.
        let unverified = left.iter().any(|state| state == "unverified");
        unseen = if unverified { unseen + 1 } else { 0 };
        if unseen == FOR_EVER {
            let from = Instant::now();
            cluster.use_third_party(true).await?;
            third_party = Some(Struck {
                what: What::UseThirdParty,
                from,
                until: from + Duration::from_secs(86_400),
                set: None,
            });
        }
        let all_rest = !left.is_empty() && left.iter().all(|state| state == "parked");
        rested = if all_rest { rested + 1 } else { 0 };
        if rested == FOR_EVER {
            println!("chaos: {} recordings rest although they were moved on", left.len());
            return Ok(third_party);
        }
        cluster.hearing.more(LOOK).await;
    }
    let told = endings(cluster, &[]);
    println!("chaos: nothing changes since {patience:?}: {:?}", open(played, &told));
    Ok(third_party)
}

/// Recordings that rest, as far as is told.
fn resting(told: &[Ending]) -> BTreeSet<String> {
    let over = |ending: &Ending| told.iter().any(|other| other.key == ending.key && other.is_final());
    let rests = told.iter().filter(|ending| !ending.is_final() && !over(ending));
    rests.map(|ending| ending.key.clone()).collect()
}

/// Starts that were asked for and have not ended.
fn open<'a>(played: &'a [Played], told: &[Ending]) -> Vec<&'a str> {
    let ended: BTreeSet<&str> = told
        .iter()
        .filter(|ending| ending.is_final())
        .map(|ending| ending.label.as_str())
        .collect();
    let asked = played.iter().flat_map(|played| {
        let sure = played.actions.iter().filter(|action| action.routed == Some(true));
        let kazoos = played
            .plan
            .starts
            .iter()
            .filter(|start| start.kazoos && played.kazoos_at.is_some());
        sure.filter_map(|action| played.plan.starts.get(action.start()?))
            .chain(kazoos)
    });
    asked
        .map(|start| start.label.as_str())
        .filter(|label| !ended.contains(label))
        .collect()
}

/// Outcomes that the endpoint has not accepted. An operator has those sent again that rest.
async fn owed(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let list = async |which: &str| -> anyhow::Result<usize> {
        let arguments = ["list", "--json", "--limit", "1000000", "--webhooks", which];
        let (_, listed) = cluster.command(&arguments).await?;
        Ok(listed.lines().count())
    };
    if list("parked").await? > 0 {
        cluster.command(&["retry", "--webhooks"]).await?;
    }
    Ok((0..list("owed").await?).map(|_| "an owed webhook".to_owned()).collect())
}

/// The states of everything that the product says itself is not closed.
async fn left(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let (_, listed) = cluster.command(&["list", "--json", "--limit", "1000000"]).await?;
    let mut left = Vec::new();
    for line in listed.lines() {
        let entry: Value = serde_json::from_str(line)?;
        let state = entry["state"].as_str().unwrap_or_default();
        if !["stored", "delivered", "discarded", "failed"].contains(&state) {
            left.push(state.to_owned());
        }
    }
    Ok(left)
}
