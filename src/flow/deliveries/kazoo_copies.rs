//! Looks whether Kazoo's own recorder has stored its recordings. Nothing is written for those that it has stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use crate::couch::Couch;
use crate::destination::kazoo_copies::{Copy, copies};
use crate::destination::{Destinations, Registry as _};
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Destination, KazooCopy, What};
use crate::flow::common::Common;
use crate::kazoo::time::Month;
use crate::lifecycle::{Case, Input, unanswered};
use crate::recording::names;
use crate::recording::order::{Order, Url};
use crate::system_config::{Accounts, Plan, SystemConfig};
use crate::telemetry::events::KazooLook;

/// By this much the local time of a host differs from ours at most.
const TIME_ZONES: Duration = Duration::from_secs(14 * 3600);

/// So many requests for looks are sent to the cluster at once. Looks must not take the database from recordings that a worker stores.
const AT_ONCE: usize = 4;

/// Time limit for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for the documents of Kazoo's own recorder. May touch: these documents, and Kazoo's settings, to read them.
pub struct KazooCopies {
    pub common: Arc<Common>,
    pub destinations: Arc<Destinations>,
    pub system_config: SystemConfig,
    pub accounts: Accounts,
    /// The turns of requests to the cluster.
    pub turns: Semaphore,
}

/// What is known of a recording of Kazoo's own recorder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Stored,
    Deleted,
    /// Kazoo's settings say that it is stored nowhere.
    NotWanted,
    /// Kazoo's own recorder may still store it.
    Lacking(KazooCopy),
    /// The database does not tell.
    Unknown(String),
}

impl KazooCopies {
    /// The turns of requests to the cluster.
    pub const fn turns() -> Semaphore {
        Semaphore::const_new(AT_ONCE)
    }

    /// What became of recordings, each told as soon as it is known, by its place in the list. One request for each account's month, and one
    /// for each hundred of its recordings.
    pub async fn look(&self, entries: &[&Entry], tell: impl FnMut(usize, Seen)) {
        let looks = by_account(entries).into_iter().map(|indices| async move {
            let of_account: Vec<&Entry> = indices.iter().map(|index| entries[*index]).collect();
            let seen = self.look_at(&of_account).await;
            (indices, seen)
        });
        tell_each(looks, tell).await;
    }

    /// What became of the recordings of one account, in their order.
    async fn look_at(&self, entries: &[&Entry]) -> Vec<Seen> {
        let mut seen = vec![Seen::Lacking(KazooCopy::Missing); entries.len()];
        let all: Vec<usize> = (0..entries.len()).collect();
        let home = self.destinations.home_couch();
        self.look_in((home, true), entries, &all, &mut seen).await;
        let lacking = |index: &usize| matches!(seen[*index], Seen::Lacking(_));
        let lacking: Vec<usize> = all.into_iter().filter(lacking).collect();
        let Some(first) = lacking.first().map(|index| entries[*index]) else {
            // Almost all are stored, so almost no plan is read.
            return seen;
        };
        // Kazoo's own recorder fails on an event without account.
        let plan = match first.account_id() {
            Some(account_id) => self.in_turn(true, self.accounts.plan(account_id)).await,
            None => return seen,
        };
        let plan = plan.unwrap_or(Plan::Unknown);
        let is_elsewhere = matches!(&plan, Plan::Stored(storage) if storage.connection.is_some());
        let mut left = Vec::new();
        for index in lacking {
            let is_missing = seen[index] == Seen::Lacking(KazooCopy::Missing);
            match self.unless_wanted(entries[index], &plan).filter(|_| is_missing) {
                Some(verdict) => seen[index] = verdict,
                None if is_elsewhere => left.push(index),
                None => {}
            }
        }
        if left.is_empty() {
            return seen;
        }
        let documents = self.destinations.of(Destination::StoragePlan).documents(first);
        let unknown = match self.in_turn(false, documents).await {
            Ok(Ok(couch)) => {
                self.look_in((&couch, false), entries, &left, &mut seen).await;
                return seen;
            }
            Ok(Err(error)) => error.to_string(),
            Err(why) => why,
        };
        for index in left {
            seen[index] = Seen::Unknown(unknown.clone());
        }
        seen
    }

    /// Looks on one server for these of the recordings, and notes what is more than what is known.
    async fn look_in(
        &self,
        (couch, is_home): (&Couch, bool),
        entries: &[&Entry],
        indices: &[usize],
        seen: &mut [Seen],
    ) {
        let mut places: BTreeMap<String, Vec<(usize, bool)>> = BTreeMap::new();
        for index in indices {
            for (database, is_of_id) in databases(entries[*index]) {
                places.entry(database).or_default().push((*index, is_of_id));
            }
        }
        let asked = places.into_iter().map(async |(database, of)| {
            let sought = |(index, _): &(usize, bool)| entries[*index].order().map_or(("", ""), sought);
            let recordings: Vec<(&str, &str)> = of.iter().map(sought).collect();
            let found = self
                .in_turn(is_home, copies(couch, is_home, &database, &recordings))
                .await;
            (of, found.and_then(|found| found.map_err(|error| error.to_string())))
        });
        for (of, found) in futures_util::future::join_all(asked).await {
            for (nth, (index, is_of_id)) in of.into_iter().enumerate() {
                let news = match &found {
                    Ok(found) => of_copy(found[nth], is_of_id),
                    Err(why) => Seen::Unknown(why.clone()),
                };
                if rank(&news) > rank(&seen[index]) {
                    seen[index] = news;
                }
            }
        }
    }

    /// A request with its time limit. Requests to the cluster wait for their turn. A server that an account's plan names has no turn: it may
    /// answer late or never.
    async fn in_turn<T>(&self, is_home: bool, request: impl Future<Output = T>) -> Result<T, String> {
        let _turn = match is_home {
            true => self.turns.acquire().await.ok(),
            false => None,
        };
        let answer = tokio::time::timeout(PATIENCE, request).await;
        answer.map_err(|_| format!("no answer within {PATIENCE:?}"))
    }

    /// The verdict on a recording without a document that Kazoo does not want to store, by its settings as they are now.
    fn unless_wanted(&self, entry: &Entry, plan: &Plan) -> Option<Seen> {
        let order = entry.order()?;
        if is_unwanted(order) {
            return Some(Seen::NotWanted);
        }
        match plan {
            Plan::Stored(_) => return None,
            Plan::Unknown => return Some(Seen::Unknown("the account's storage plan cannot be read".into())),
            Plan::None => {}
        }
        let Some(media) = self.system_config.current() else {
            return Some(Seen::Unknown("system_config/media could not be read yet".into()));
        };
        // Kazoo 4 starts each recording with its recorder, whether it is to be stored or not.
        let is_4 = order.adopted.as_ref().is_some_and(|adopted| adopted.kazoo_4);
        let is_wanted = order
            .adopted
            .as_ref()
            .is_some_and(|adopted| adopted.wanted == Some(true));
        let has_url = match order.url {
            Url::Given(_) => true,
            Url::Lost => !is_4,
            Url::None => false,
        };
        (!media.store_recordings && !has_url && !is_wanted).then_some(Seen::NotWanted)
    }

    /// The fact that the worker watches a recording from now on.
    ///
    /// # Errors
    /// When Kazoo's settings do not tell for how long Kazoo's own recorder tries.
    pub async fn watched(&self, entry: &Entry) -> Result<What, String> {
        let longest = match self.common.config.adopt.give_up {
            Some(given) => given,
            None => {
                let media = self
                    .system_config
                    .current()
                    .ok_or("system_config/media could not be read yet")?;
                let adopted = entry.order().and_then(|order| order.adopted.as_ref());
                let own = adopted.and_then(|adopted| adopted.retry_times);
                let longest = self.accounts.longest_storing(entry.account_id(), &media, own).await;
                longest.map_err(|error| error.to_string())?
            }
        };
        Ok(What::Watched {
            due: self.common.now().plus(longest),
        })
    }

    /// Looks again at a recording that the ledger has.
    pub async fn look_again(&self, case: &Case, n: u32, last: bool) -> Input {
        let mut seen = Seen::Unknown("no look".into());
        self.look(&[&case.entry], |_, told| seen = told).await;
        KazooLook {
            first: false,
            result: seen.name(),
        }
        .emit();
        let conclude = |cause| {
            Input::Fact(What::Concluded {
                outcome: Outcome::Discarded,
                cause,
            })
        };
        match seen {
            Seen::Stored => conclude(Cause::StoredByKazoo),
            Seen::Deleted => conclude(Cause::Deleted),
            Seen::NotWanted => conclude(Cause::StoringDisabled),
            Seen::Lacking(found) => Input::Fact(What::Sought { n, found, last }),
            Seen::Unknown(why) => match unanswered(&case.entry, n, last) {
                Some(given_up) => Input::Fact(given_up),
                None => {
                    let before = case.entry.postponed().count();
                    self.common.postponed_by_schedule(case, before, why)
                }
            },
        }
    }
}

impl Seen {
    /// Its name in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Deleted => "deleted",
            Self::NotWanted => "not_wanted",
            Self::Lacking(KazooCopy::Missing) => "missing",
            Self::Lacking(_) => "no_audio",
            Self::Unknown(_) => "unanswered",
        }
    }
}

/// The recordings of each account, by their places in the list. The accounts have no order, so that no account is always the last one.
fn by_account(entries: &[&Entry]) -> Vec<Vec<usize>> {
    let mut accounts: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        accounts.entry(entry.account_id()).or_default().push(index);
    }
    let mut accounts: Vec<Vec<usize>> = accounts.into_values().collect();
    fastrand::shuffle(&mut accounts);
    accounts
}

/// Looks at all accounts at once, and tells what became of each account's recordings as soon as it is known: the plan of one account can
/// name a server that does not answer.
async fn tell_each<L>(looks: impl Iterator<Item = L>, mut tell: impl FnMut(usize, Seen))
where
    L: Future<Output = (Vec<usize>, Vec<Seen>)>,
{
    let mut looks: FuturesUnordered<L> = looks.collect();
    while let Some((indices, seen)) = looks.next().await {
        for (index, seen) in indices.into_iter().zip(seen) {
            tell(index, seen);
        }
    }
}

/// Whether Kazoo's own recorder does not want to store the recording, whatever the account's settings are.
fn is_unwanted(order: &Order) -> bool {
    let adopted = order.adopted.as_ref();
    adopted.is_some_and(|adopted| adopted.bowed_out || adopted.wanted == Some(false))
}

/// `is_of_id`: the database is the one of the month of the recording's id.
fn of_copy(copy: Copy, is_of_id: bool) -> Seen {
    match copy {
        Copy::Stored => Seen::Stored,
        Copy::Deleted => Seen::Deleted,
        Copy::Lacking(KazooCopy::NoAudio) if !is_of_id => Seen::Lacking(KazooCopy::NoAudioElsewhere),
        Copy::Lacking(found) => Seen::Lacking(found),
    }
}

/// Of two looks at one recording, in two months or on two servers, the higher one counts. A database that does not answer may have it.
fn rank(seen: &Seen) -> u8 {
    match seen {
        Seen::NotWanted | Seen::Lacking(KazooCopy::Missing) => 0,
        Seen::Lacking(KazooCopy::NoAudioElsewhere) => 1,
        Seen::Lacking(_) => 2,
        Seen::Unknown(_) => 3,
        Seen::Deleted => 4,
        Seen::Stored => 5,
    }
}

/// The id of the document, and the name of the audio there.
fn sought(order: &Order) -> (&str, &str) {
    (order.media_id.as_str(), &order.media_name)
}

/// Where the document can be: in the month of its id, in that of its end, by the clock of Kazoo's host, and where the recording's own
/// settings say. The flag: it is the month of the id.
fn databases(entry: &Entry) -> Vec<(String, bool)> {
    let Some((account_id, order)) = entry.account_id().zip(entry.order()) else {
        return Vec::new();
    };
    let of_id = names::modb(account_id, order.media_id.month());
    let ended = Month::around(entry.ended_at().unwrap_or(order.asked_at), TIME_ZONES);
    let of_end = ended.into_iter().map(|month| names::modb(account_id, month));
    let own = order.adopted.as_ref().and_then(|adopted| adopted.media_db.clone());
    let others: BTreeSet<String> = of_end.chain(own).filter(|database| *database != of_id).collect();
    let others = others.into_iter().map(|database| (database, false));
    std::iter::once((of_id, true)).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn of_account(account_id: &str) -> Entry {
        let mut order = crate::lifecycle::tests::order();
        order.account_id = Some(account_id.into());
        order.adopted = serde_json::from_value(serde_json::json!({})).ok();
        Entry::of_order(order, "w")
    }

    /// The plan of one account names a server that takes connections and never answers.
    #[tokio::test(start_paused = true)]
    async fn an_account_whose_look_hangs_delays_no_other_account() {
        let all: Vec<Entry> = ["aa", "hangs", "zz", "aa"].map(of_account).into();
        let entries: Vec<&Entry> = all.iter().collect();
        let begun = Instant::now();
        let looks = by_account(&entries).into_iter().map(|indices| async {
            if all[indices[0]].account_id() == Some("hangs") {
                tokio::time::sleep(PATIENCE).await;
            }
            let seen = vec![Seen::Stored; indices.len()];
            (indices, seen)
        });
        let mut told = Vec::new();
        tell_each(looks, |index, _| told.push((index, begun.elapsed()))).await;
        told.sort_by_key(|(index, _)| *index);
        let at: Vec<Duration> = told.into_iter().map(|(_, at)| at).collect();
        assert_eq!(at, [Duration::ZERO, PATIENCE, Duration::ZERO, Duration::ZERO]);
    }

    #[test]
    fn a_document_is_sought_in_the_month_of_its_id_and_where_its_settings_say() {
        let mut entry = of_account("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4");
        let mut order = entry.order().unwrap().clone();
        let of_id = names::modb("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4", order.media_id.month());
        assert_eq!(databases(&entry), [(of_id.clone(), true)]);
        order.adopted.as_mut().unwrap().media_db = Some("conferences".into());
        entry = Entry::of_order(order, "w");
        assert_eq!(databases(&entry), [(of_id, true), ("conferences".to_owned(), false)]);
    }

    #[test]
    fn kazoos_document_in_another_database_is_not_the_one_that_the_worker_completes() {
        let no_audio = Copy::Lacking(KazooCopy::NoAudio);
        assert_eq!(of_copy(no_audio, true), Seen::Lacking(KazooCopy::NoAudio));
        let elsewhere = of_copy(no_audio, false);
        assert_eq!(elsewhere, Seen::Lacking(KazooCopy::NoAudioElsewhere));
        assert!(rank(&elsewhere) < rank(&of_copy(no_audio, true)));
        assert!(rank(&elsewhere) > rank(&Seen::Lacking(KazooCopy::Missing)));
    }

    #[test]
    fn what_later_versions_of_kazoo_leave_on_purpose_is_not_wanted() {
        let mut order = of_account("aa").order().unwrap().clone();
        assert!(!is_unwanted(&order));
        order.adopted.as_mut().unwrap().bowed_out = true;
        assert!(is_unwanted(&order));
        order.adopted = serde_json::from_value(serde_json::json!({"wanted": false})).ok();
        assert!(is_unwanted(&order));
        order.adopted = serde_json::from_value(serde_json::json!({"wanted": true})).ok();
        assert!(!is_unwanted(&order));
    }
}
