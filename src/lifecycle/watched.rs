//! Decisions about a recording that Kazoo's own recorder is to store, and that a worker watches.
//!
//! ```text
//! first look ── watched ──▶ looks ──▶ stored by Kazoo, or deleted: concluded
//!                             └─ the last look, at `due` ──▶ lost: parked
//!                                                        └─ (rescue) ──▶ collected and stored like every recording
//! ```

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{KazooCopy, What};
use crate::kazoo::time::Moment;
use crate::recording::order::Url;

use super::schedule::{paused, wait_or};
use super::{Effect, Next, Policy};

/// Minutes after the first look at which a worker looks again. After the last of them it looks every hour.
const LOOKS_MIN: [u64; 4] = [5, 15, 25, 60];

/// So many looks without an answer are repeated before the last one counts.
const UNANSWERED: usize = 5;

/// What follows if Kazoo's own recorder has not stored the recording, and tries no more.
pub(super) fn follows(entry: &Entry, policy: &Policy) -> Option<What> {
    // An operator who retries the recording knows what is wrong with it. A worker that has received the audio goes on.
    let is_under_way = entry.next_number("retried") > 1 || entry.last_audio().is_some();
    if entry.watched().is_none() || entry.awaits_kazoo() || is_under_way {
        return None;
    }
    lost(entry, policy).map(|cause| entry.park(cause))
}

/// Why the worker does not store the recording in place of Kazoo's own recorder. `None`: the worker does.
fn lost(entry: &Entry, policy: &Policy) -> Option<Cause> {
    let order = entry.order()?;
    if !policy.rescue {
        return Some(Cause::NotStoredByKazoo);
    }
    let shared = order.adopted.as_ref().is_some_and(|adopted| adopted.shared_name);
    if shared {
        // By now the file can be another call's.
        return Some(Cause::SharedName);
    }
    let copy = entry.kazoo_copy().unwrap_or(KazooCopy::Missing);
    if copy == KazooCopy::Unanswered {
        // Kazoo's own recorder may have stored it.
        return Some(Cause::NotStoredByKazoo);
    }
    if order.url == Url::Lost && !copy.is_without_url() {
        return Some(Cause::SettingsLost);
    }
    // Kazoo's document waits for audio that goes elsewhere. The worker would write a second document beside it.
    let elsewhere = entry.destination().is_some_and(|to| to.documents_first());
    (elsewhere && copy != KazooCopy::Missing).then_some(Cause::NotStoredByKazoo)
}

/// The next look. `None`: Kazoo's own recorder tries no more, or the recording is none of its own.
pub(super) fn next(entry: &Entry, now: Moment, policy: &Policy) -> Option<Next> {
    let (since, due) = entry.watched().filter(|_| entry.awaits_kazoo())?;
    let n = entry.next_number("sought");
    let until = since.plus(after(n.saturating_sub(1))).min(due);
    let until = paused(entry, policy).map_or(until, |paused| until.max(paused));
    Some(wait_or(Some(until), now, || {
        Next::Do(Effect::SeekCopy { n, last: due <= now })
    }))
}

/// What a look without an answer says. `None`: a worker looks again later. An account's plan can name a server that never answers, and a
/// recording that is looked for without end is reported by no worker.
pub fn unanswered(entry: &Entry, n: u32, last: bool) -> Option<What> {
    let found = KazooCopy::Unanswered;
    (last && entry.postponed().count() >= UNANSWERED).then_some(What::Sought { n, found, last })
}

/// How long after the first look the next one comes, if there were so many.
fn after(looks: u32) -> Duration {
    let index = usize::try_from(looks.saturating_sub(1)).unwrap_or(usize::MAX);
    let minutes = LOOKS_MIN.get(index).copied().unwrap_or_else(|| {
        let hours = index.saturating_sub(LOOKS_MIN.len() - 1).saturating_add(1);
        60 * u64::try_from(hours).unwrap_or(u64::MAX / 60)
    });
    Duration::from_secs(minutes.saturating_mul(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_after_minutes_and_then_every_hour() {
        let minutes: Vec<u64> = (1..=7).map(|looks| after(looks).as_secs() / 60).collect();
        assert_eq!(minutes, [5, 15, 25, 60, 120, 180, 240]);
        assert!(after(u32::MAX) > after(7));
    }
}
