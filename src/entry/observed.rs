//! What workers observed of a running recording: its channel, and its file.

use std::time::Duration;

use crate::kazoo::time::Moment;

use super::Entry;
use super::fact::{Fact, What};

/// A probe: a worker read the file on its switch, and left it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe<'a> {
    pub at: Moment,
    pub size: u64,
    pub md5: &'a str,
    /// The file's format showed that its writer had not closed it.
    pub open: bool,
    /// The worker that read the file, by whose clock `at` is.
    pub by: &'a str,
}

impl Probe<'_> {
    /// Whether both probes saw the same bytes.
    pub fn saw_same_as(&self, other: &Self) -> bool {
        (self.size, self.md5) == (other.size, other.md5)
    }
}

impl Entry {
    /// The last channel query by its number, because two workers' clocks may differ: when it was, and whether the channel was alive.
    pub fn channel_seen(&self) -> Option<(Moment, bool)> {
        let looks = self.facts().filter_map(|fact| match fact.what {
            What::ChannelSeen { n, alive } => Some((n, fact.at, alive)),
            _ => None,
        });
        looks
            .max_by_key(|(n, at, _)| (*n, *at))
            .map(|(_, at, alive)| (at, alive))
    }

    /// Since when every channel query found the channel gone.
    pub fn gone_since(&self) -> Option<Moment> {
        let looks = self.facts().rev().filter_map(|fact| match fact.what {
            What::ChannelSeen { alive, .. } => Some((fact.at, alive)),
            _ => None,
        });
        looks.take_while(|(_, alive)| !alive).last().map(|(at, _)| at)
    }

    /// The last channel queries that found the channel gone, with the worker that made each, the newest first. In the order of their
    /// numbers, because two workers' clocks may differ.
    fn gone_looks(&self) -> Vec<(&str, Moment)> {
        let mut looks: Vec<(u32, &Fact, bool)> = self
            .facts()
            .filter_map(|fact| match fact.what {
                What::ChannelSeen { n, alive } => Some((n, fact, alive)),
                _ => None,
            })
            .collect();
        looks.sort_by_key(|(n, fact, _)| std::cmp::Reverse((*n, fact.at)));
        let gone = looks.into_iter().take_while(|(.., alive)| !alive);
        gone.map(|(_, fact, _)| (fact.by.as_str(), fact.at)).collect()
    }

    /// How many of the last channel queries found the channel gone.
    pub fn seen_gone(&self) -> usize {
        self.gone_looks().len()
    }

    /// Since when every channel query of this worker found the channel gone.
    pub fn gone_since_by(&self, worker: &str) -> Option<Moment> {
        let own = self.gone_looks().into_iter().filter(|(by, _)| *by == worker);
        own.map(|(_, at)| at).min()
    }

    /// For how long every channel query found the channel gone, by the clock of one worker. Two workers' clocks may differ by more than any
    /// time that counts here.
    pub fn gone_for(&self) -> Duration {
        longest(&self.gone_looks())
    }

    /// The probes, the newest first.
    pub fn probes(&self) -> impl Iterator<Item = Probe<'_>> {
        self.facts().rev().filter_map(|fact| match &fact.what {
            What::Probed { size, md5, open, .. } => Some(Probe {
                at: fact.at,
                size: *size,
                md5,
                open: *open,
                by: &fact.by,
            }),
            _ => None,
        })
    }
}

/// The longest time between two of these moments of one worker.
pub fn longest(seen: &[(&str, Moment)]) -> Duration {
    let pairs = seen.iter().flat_map(|(by, at)| {
        let own = seen.iter().filter(move |(other, _)| other == by);
        own.map(move |(_, before)| at.since(*before))
    });
    pairs.max().unwrap_or_default()
}
