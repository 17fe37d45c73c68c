//! What the commands that read the ledger share: the connection, and the words for people.

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Clock;
use crate::ledger::{Filter, Ledger, Record, address};
use crate::lifecycle::Policy;
use crate::telemetry::Pulses;

/// The most recordings that one name means.
pub const MOST_NAMED: usize = 100;

/// The ledger for a command: it writes without batch delay, and waits until the write is durable.
pub struct Desk {
    pub ledger: Ledger,
    pub policy: Policy,
    pub clock: Clock,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Desk {
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let couch = Couch::new(&config.couchdb).context("the HTTP client cannot be built")?;
        let policy = Policy::of(config, format!("operator@{}", config.kazoo.host));
        Ok(Self::over(couch, policy))
    }

    pub(super) fn over(couch: Couch, policy: Policy) -> Self {
        let (clock, tasks, stop) = (super::clock(), TaskTracker::new(), CancellationToken::new());
        let ledger = Ledger::start(
            couch,
            clock.clone(),
            &policy,
            (&tasks, &Pulses::default()),
            stop.clone(),
        );
        Self {
            ledger,
            policy,
            clock,
            stop,
            tasks,
        }
    }

    /// The recordings that `name` means: the id of a recording, of a document, or of a call.
    pub async fn named(&self, name: &str) -> anyhow::Result<Vec<Record>> {
        let by = |filter: Filter| async move { self.ledger.find(&filter).await };
        let media = Filter {
            media_id: Some(name.to_owned()),
            limit: MOST_NAMED,
            ..Filter::default()
        };
        let mut found = by(media).await?;
        if found.is_empty() {
            found = by(Filter {
                call_id: Some(name.to_owned()),
                limit: MOST_NAMED,
                ..Filter::default()
            })
            .await?;
        }
        found.sort_by_key(|record| record.entry.order().map(|order| order.asked_at));
        found.dedup_by_key(|record| record.entry.key);
        Ok(found)
    }

    /// The one recording that `name` means.
    pub async fn one(&self, name: &str) -> anyhow::Result<Record> {
        let mut found = self.named(name).await?;
        match found.len() {
            0 => bail!("the ledger has no recording, document or call {name:?}"),
            1 => Ok(found.remove(0)),
            more => bail!("{name:?} matches {more} recordings: repeat the command with one media id"),
        }
    }

    /// What the ledger knows of a recording now.
    pub async fn now(&self, entry: Entry) -> anyhow::Result<Entry> {
        let known = self.ledger.load(&address(&entry)).await;
        let known = known.context("the ledger cannot be read")?;
        Ok(match known {
            Some(record) => entry.merge(record.entry),
            None => entry,
        })
    }

    /// Adds a fact to a recording, and waits until it is written. A worker resumes the recording from
    /// there.
    pub async fn add(&self, entry: &mut Entry, what: What) -> anyhow::Result<()> {
        entry.add(Fact {
            at: self.clock.now(),
            by: self.policy.worker.clone(),
            what,
        });
        let receipt = self
            .ledger
            .note(entry, Some(self.ledger.no_lease()), std::time::Duration::ZERO)
            .await;
        if !receipt.within(std::time::Duration::from_secs(15)).await {
            bail!("the ledger did not confirm the write within 15 s");
        }
        Ok(())
    }

    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a command's work on a small runtime.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(work)
}

/// A duration, in its two largest units.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        assert_eq!(duration(5), "5 s");
        assert_eq!(duration(65), "1 min 5 s");
        assert_eq!(duration(3600 * 5 + 60), "5 h 1 min");
        assert_eq!(duration(86_400 * 2 + 3600), "2 d 1 h");
    }
}
