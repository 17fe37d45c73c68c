//! Looks whether Kazoo's own recorder has stored its recordings. Nothing is written for those that it has stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::couch::Couch;
use crate::destination::kazoo_copies::{Copy, copies};
use crate::destination::{Destinations, Registry as _};
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Destination, KazooCopy, What};
use crate::flow::common::Common;
use crate::kazoo::time::Month;
use crate::lifecycle::{Case, Input};
use crate::recording::names;
use crate::recording::order::{Order, Url};
use crate::system_config::{Accounts, Plan, SystemConfig};
use crate::telemetry::events::KazooLook;

/// By this much the local time of a host differs from ours at most.
const TIME_ZONES: Duration = Duration::from_secs(14 * 3600);

/// So many databases are asked at once. Looks must not take the database from recordings that a worker stores.
const AT_ONCE: usize = 4;

/// Time limit for all databases of one look. The next look waits for it, and one account's database must not delay the recordings of others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for the documents of Kazoo's own recorder. May touch: these documents, and Kazoo's settings, to read them.
pub struct KazooCopies {
    pub common: Arc<Common>,
    pub destinations: Arc<Destinations>,
    pub system_config: SystemConfig,
    pub accounts: Accounts,
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

/// A database on a server: the server's name, empty for the cluster's own, and the database's.
type Place = (String, String);

impl KazooCopies {
    /// What became of recordings, in their order. One request for each account's month, and one for each hundred of its recordings.
    pub async fn look(&self, entries: &[&Entry]) -> Vec<Seen> {
        let home = self.destinations.home_couch();
        let mut places: BTreeMap<Place, (Couch, Vec<usize>)> = BTreeMap::new();
        let mut add = |place: Place, couch: &Couch, index: usize| {
            let all = &mut places.entry(place).or_insert_with(|| (couch.clone(), Vec::new())).1;
            all.push(index);
        };
        for (index, entry) in entries.iter().enumerate() {
            databases(entry).for_each(|database| add((String::new(), database), home, index));
        }
        let mut seen = vec![Seen::Lacking(KazooCopy::Missing); entries.len()];
        self.look_in(places, entries, &mut seen).await;
        let mut elsewhere: BTreeMap<Place, (Couch, Vec<usize>)> = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let Seen::Lacking(found) = seen[index] else { continue };
            // Kazoo's own recorder fails on an event without account.
            let Some(account_id) = entry.account_id() else { continue };
            // Almost all are stored, so almost no plan is read.
            let plan = self.accounts.plan(account_id).await;
            if found == KazooCopy::Missing
                && let Some(verdict) = self.unless_wanted(entry, &plan)
            {
                seen[index] = verdict;
                continue;
            }
            let Plan::Stored(storage) = &plan else { continue };
            let Some(connection) = &storage.connection else {
                continue;
            };
            match self.destinations.of(Destination::StoragePlan).documents(entry).await {
                Ok(couch) => {
                    let server = connection
                        .server
                        .as_ref()
                        .map_or_else(String::new, |server| server.authority());
                    for database in databases(entry) {
                        let place = (format!("{}@{server}", connection.tag), database);
                        let all = &mut elsewhere.entry(place).or_insert_with(|| (couch.clone(), Vec::new())).1;
                        all.push(index);
                    }
                }
                Err(error) => seen[index] = Seen::Unknown(error.to_string()),
            }
        }
        self.look_in(elsewhere, entries, &mut seen).await;
        seen
    }

    /// Looks in these databases, and notes what is more than what is known.
    async fn look_in(&self, places: BTreeMap<Place, (Couch, Vec<usize>)>, entries: &[&Entry], seen: &mut [Seen]) {
        let until = Instant::now() + PATIENCE;
        let asked = places.into_iter().map(async |((server, database), (couch, indices))| {
            let of = |index: &usize| entries[*index].order().map_or(("", ""), sought);
            let recordings: Vec<(&str, &str)> = indices.iter().map(of).collect();
            let found =
                match tokio::time::timeout_at(until, copies(&couch, server.is_empty(), &database, &recordings)).await {
                    Ok(found) => found.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("no answer within {PATIENCE:?}")),
                };
            (indices, found)
        });
        let mut asked = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((indices, found)) = asked.next().await {
            for (nth, index) in indices.iter().enumerate() {
                let news = match &found {
                    Ok(found) => of_copy(found[nth]),
                    Err(why) => Seen::Unknown(why.clone()),
                };
                if rank(&news) > rank(&seen[*index]) {
                    seen[*index] = news;
                }
            }
        }
    }

    /// The verdict on a recording without a document that Kazoo does not want to store, by its settings as they are now.
    fn unless_wanted(&self, entry: &Entry, plan: &Plan) -> Option<Seen> {
        match plan {
            Plan::Stored(_) => return None,
            Plan::Unknown => return Some(Seen::Unknown("the account's storage plan cannot be read".into())),
            Plan::None => {}
        }
        let Some(media) = self.system_config.current() else {
            return Some(Seen::Unknown("system_config/media could not be read yet".into()));
        };
        let order = entry.order()?;
        // Kazoo 4 starts each recording with its recorder, whether it is to be stored or not.
        let is_4 = order.adopted.as_ref().is_some_and(|adopted| adopted.kazoo_4);
        let has_url = match order.url {
            Url::Given(_) => true,
            Url::Lost => !is_4,
            Url::None => false,
        };
        (!media.store_recordings && !has_url).then_some(Seen::NotWanted)
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
                let zone = &self.common.config.kazoo.zone;
                let longest = self.accounts.longest_storing(entry.account_id(), &media, zone).await;
                longest.map_err(|error| error.to_string())?
            }
        };
        Ok(What::Watched {
            due: self.common.now().plus(longest),
        })
    }

    /// Looks again at a recording that the ledger has.
    pub async fn look_again(&self, case: &Case, n: u32, last: bool) -> Input {
        let seen = self.look(&[&case.entry]).await.pop();
        let seen = seen.unwrap_or(Seen::Unknown("no look".into()));
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
            Seen::Unknown(why) => {
                let before = case.entry.postponed().count();
                self.common.postponed_by_schedule(case, before, why)
            }
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

fn of_copy(copy: Copy) -> Seen {
    match copy {
        Copy::Stored => Seen::Stored,
        Copy::Deleted => Seen::Deleted,
        Copy::Lacking(found) => Seen::Lacking(found),
    }
}

/// Of two looks at one recording, in two months or on two servers, the higher one counts. A database that does not answer may have it.
fn rank(seen: &Seen) -> u8 {
    match seen {
        Seen::NotWanted | Seen::Lacking(KazooCopy::Missing) => 0,
        Seen::Lacking(_) => 1,
        Seen::Unknown(_) => 2,
        Seen::Deleted => 3,
        Seen::Stored => 4,
    }
}

/// The id of the document, and the name of the audio there.
fn sought(order: &Order) -> (&str, &str) {
    (order.media_id.as_str(), &order.media_name)
}

/// Where the document can be: in the month of its id, and in that of its end, by the clock of Kazoo's host.
fn databases(entry: &Entry) -> impl Iterator<Item = String> {
    let months = entry.account_id().zip(entry.order()).map(|(account_id, order)| {
        let ended = Month::around(entry.ended_at().unwrap_or(order.asked_at), TIME_ZONES);
        let mut months = vec![order.media_id.month()];
        months.extend(ended.into_iter().filter(|month| *month != order.media_id.month()));
        (account_id.to_owned(), months)
    });
    months.into_iter().flat_map(|(account_id, months)| {
        let of = move |month| names::modb(&account_id, month);
        months.into_iter().map(of)
    })
}
