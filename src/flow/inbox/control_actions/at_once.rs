//! Stops of one call that reach several workers at the same time.

use std::sync::Arc;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::ledger::Address;

use super::find::Finder;
use crate::flow::inbox::request::Request;
use crate::flow::memory::Open;

/// Time limit for the ledger to load a recording.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Another worker's message about a stop that it sent at the same time is there after the first of these, or on a busy machine after both.
const HEARD_WITHIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(700)];

/// No command is under way for longer than that.
const WELL_BEFORE: Duration = Duration::from_secs(2);

/// How many stops of one call may come at the same time.
const MOST_AT_ONCE: usize = 4;

/// Tells apart stops that come at the same time.
pub struct AtOnce {
    pub finder: Arc<Finder>,
}

impl AtOnce {
    /// Two stops of one call can reach two workers at the same moment. They must not both be spent on the call's newest recording: the later
    /// stop is for the recording before it. Both workers see the same facts, so both see the same stop as the later one. Nor must a stop be
    /// spent on a recording that was over while its end was on the way.
    pub(super) async fn the_one_before(&self, request: &Request<'_>, open: &Open, asked: &Fact) -> Option<Open> {
        if !self.knows_others(request, open) {
            // Of a recording that began while the connection to the broker was away this worker never heard.
            if !self.finder.ledger.is_up() {
                return None;
            }
            self.learn_others(request).await;
            if !self.knows_others(request, open) {
                return None;
            }
        }
        // The notice of another worker that the recording is over removes what this worker heard of it.
        let heard = self.finder.memory.entry(open.key);
        for pause in HEARD_WITHIN {
            tokio::time::sleep(pause).await;
            let next = self.not_spent(request, open, asked, heard.as_ref()).await?;
            if next.key != open.key {
                return Some(next);
            }
        }
        None
    }

    fn knows_others(&self, request: &Request<'_>, open: &Open) -> bool {
        let of_call = self
            .finder
            .memory
            .of_call(request.action.call.fetch_id.as_deref(), &request.action.call_id);
        of_call.iter().any(|other| other.key != open.key)
    }

    /// Remembers what the ledger knows of the call, and this worker never heard of.
    async fn learn_others(&self, request: &Request<'_>) {
        let looking = self.finder.in_ledger(request);
        let Ok(Ok(records)) = tokio::time::timeout(KNOWLEDGE, looking).await else {
            return;
        };
        for record in &records {
            self.finder.remember_unheard(&record.entry);
        }
    }

    /// The newest recording of the call, from `open` on, on which no earlier stop was spent, and that was not over; `None`: there is none.
    /// `heard`: what this worker had heard of `open`.
    async fn not_spent(&self, request: &Request<'_>, open: &Open, asked: &Fact, heard: Option<&Entry>) -> Option<Open> {
        let memory = &self.finder.memory;
        let mut newest = open.clone();
        for _ in 0..MOST_AT_ONCE {
            let Some(mut known) = self.now_known(&newest).await else {
                break;
            };
            known
                .heard
                .extend(heard.filter(|heard| heard.key == newest.key).cloned());
            if !known.is_spent(asked) {
                break;
            }
            memory.stopping(newest.key);
            // None that was begun since: the call has its answer, and goes on.
            let before = Some(open.asked_at);
            newest = memory.newest(request.action.call.fetch_id.as_deref(), &request.action.call_id, before)?;
        }
        Some(newest)
    }

    /// What is known of a recording by now, here and in the ledger. The memory alone does not suffice: what it heard of a recording is dropped
    /// when another worker's notice says that the recording is over, and what comes after that is a part.
    async fn now_known(&self, open: &Open) -> Option<Known> {
        let remembered = self.finder.memory.entry(open.key);
        let address = Address {
            month: open.asked_at.month(),
            call_id: open.call_id.clone(),
            key: open.key,
        };
        let loading = tokio::time::timeout(KNOWLEDGE, self.finder.ledger.load(&address)).await;
        let written = loading.ok().and_then(Result::ok).flatten().map(|record| record.entry);
        Known::of(remembered, written)
    }
}

/// What is known of a recording.
struct Known {
    entry: Entry,
    /// What this worker itself heard. Of one event that two workers heard, the entry keeps the earlier time alone.
    heard: Vec<Entry>,
}

impl Known {
    fn of(remembered: Option<Entry>, written: Option<Entry>) -> Option<Self> {
        let entry = match (remembered.clone(), written) {
            (Some(remembered), Some(written)) => written.merge(remembered),
            (remembered, written) => remembered.or(written)?,
        };
        let heard = remembered.into_iter().collect();
        Some(Self { entry, heard })
    }

    /// Whether this stop is for the recording before: an earlier stop was spent on this one, or this one was over.
    fn is_spent(&self, asked: &Fact) -> bool {
        let Some(mine) = stop_of(asked) else { return false };
        let mut stops = self.entry.facts().filter_map(stop_of);
        let collides = stops.any(|(at, action)| action != mine.1 && (at, action) < mine);
        collides || self.was_over(asked)
    }

    /// Whether the recording had ended when this worker took the stop. The stop itself ends it too, so only an end well before counts, and only
    /// by this worker's own clock: by the clock of another worker that is behind, what this stop ended was over before the stop.
    fn was_over(&self, asked: &Fact) -> bool {
        let Some(stamp) = self.entry.told_end().and_then(|told| told.stamp) else {
            return false;
        };
        let own = self.heard.iter().chain([&self.entry]);
        // The event that was heard soonest tells best how this worker's clock differs from the switch's.
        let end = own.filter_map(|entry| entry.by_clock_of(&asked.by, stamp)).min();
        end.is_some_and(|end| end.plus(WELL_BEFORE) < asked.at)
    }
}

/// When a stop was carried out, and which stop it was.
fn stop_of(fact: &Fact) -> Option<(Moment, &str)> {
    match &fact.what {
        What::StopAsked { action, .. } => Some((fact.at, action)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::What;
    use crate::recording::ending::Told;
    use crate::recording::identity::Key;

    use super::*;

    const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

    /// After that many milliseconds.
    fn after(ms: u64) -> Moment {
        NOW.plus(Duration::from_millis(ms))
    }

    fn fact(by: &str, at: Moment, what: What) -> Fact {
        let by = by.to_owned();
        Fact { at, by, what }
    }

    fn told(stamp: Moment) -> Box<Told> {
        let mut told = Told::presumed("call", stamp, "fs1", "/tmp/a.mp3");
        told.stamp = Some(stamp.unix_micros());
        Box::new(told)
    }

    /// A stop that worker "a" took after a minute, by its own clock that is ahead by so many milliseconds. The recording ended so many
    /// milliseconds after that minute. "a" or "b" heard of its start.
    fn stopped(ahead: u64, ended: u64, heard: &str) -> (Known, Fact) {
        let mut entry = Entry::new(Key::of("call", "2"), "call");
        let of_a = |by: &str, ms: u64| after(if by == "a" { ms + ahead } else { ms });
        entry.add(fact(heard, of_a(heard, 20), What::Started(told(after(0)))));
        let action = "stop".to_owned();
        let asked = fact("a", of_a("a", 60_000), What::StopAsked { action, route: None });
        entry.add(asked.clone());
        entry.add(fact("b", after(ended + 20), What::Ended(told(after(ended)))));
        (Known::of(None, Some(entry)).unwrap(), asked)
    }

    /// The stop ended it. Taken for over, it would cost the call's older recording.
    #[test]
    fn a_stop_ends_no_older_recording_because_a_workers_clock_is_ahead() {
        for ahead in [0, 3000, 30_000] {
            for heard in ["a", "b"] {
                let (known, asked) = stopped(ahead, 60_030, heard);
                assert!(!known.is_spent(&asked), "{ahead} {heard}");
            }
        }
    }

    #[test]
    fn a_recording_that_was_over_before_the_stop_leaves_the_stop_to_an_older_one() {
        for ahead in [0, 3000, 30_000] {
            let (known, asked) = stopped(ahead, 50_000, "a");
            assert!(known.is_spent(&asked), "{ahead}");
        }
    }

    /// An entry keeps the earlier of two workers' times of one event, which is that of the clock that is behind.
    #[test]
    fn what_this_worker_heard_counts_though_another_worker_heard_it_too() {
        let (known, asked) = stopped(3000, 50_000, "b");
        assert!(!known.is_spent(&asked), "this worker heard nothing");
        let mut heard = Entry::new(known.entry.key, "call");
        heard.add(fact("a", after(3020), What::Started(told(after(0)))));
        let known = Known::of(Some(heard), Some(known.entry)).unwrap();
        assert!(known.is_spent(&asked));
    }
}
