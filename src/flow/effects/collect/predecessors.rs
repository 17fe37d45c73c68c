//! A recording that continues another one, and whether it has any audio of its own. Events that arrive late can be about audio that is kept
//! already.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::ledger::{Ledger, address};
use crate::recording::digest::Digests;
use crate::recording::ending::Told;

use crate::lifecycle::{Case, Input};

/// Time limit for the ledger's answer. Without an answer the recording is delivered as one of its own: audio that is kept twice is better
/// than none.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// At most this many preceding recordings are examined.
const MOST_PARTS: usize = 8;

/// The conclusion for a recording whose audio is in another recording.
pub(super) fn already_kept() -> Input {
    Input::Fact(What::Concluded {
        outcome: Outcome::Discarded,
        cause: Cause::AlreadyKept,
    })
}

/// The conclusion for a recording that is known to have no other copy of its audio.
pub(super) fn lost() -> Input {
    Input::Fact(What::Concluded {
        outcome: Outcome::Failed,
        cause: Cause::FileGone,
    })
}

/// Where the audio is, if the switch has no file of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// In the preceding recording, by its length.
    All,
    /// Nowhere: the file was released while the switch wrote it.
    Lost,
    /// Unknown. The file may be missing only for now.
    Unknown,
}

/// How much shorter a file may be than the reported length: the switch counts from its start, and the file begins a little later.
const PATIENCE_MS: u64 = 2000;

/// Whether the reported audio of `after` is in the audio of `before`, which it continues. The lengths decide: a missing file says nothing
/// about what was in it.
fn compare(before: &Entry, after: &Entry) -> Kept {
    let same = is_same_stretch(before, after);
    // A continuation's file may begin with the audio of what it continues: then its length tells nothing of later stretches.
    let begins_with_others = before.order().is_some_and(|order| order.continues.is_some());
    if !same && begins_with_others && before.goes_on() {
        return Kept::Unknown;
    }
    if !before.audio_is_safe() || before.goes_on() && !same && !before.is_all_left_to(after) {
        return Kept::Unknown;
    }
    let Some(counted) = before.audio().and_then(|audio| audio.duration_ms) else {
        return Kept::Unknown;
    };
    let begun = after.started().map(Told::order);
    if begun.is_some_and(|begun| before.has_whole_part(begun)) {
        // The part is one of those in that audio. Its end was reported to `before`, and not to `after`.
        return match before.told_ms() {
            Some(told) if counted + PATIENCE_MS >= told => Kept::All,
            _ => Kept::Unknown,
        };
    }
    let Some(told) = after.told_ms() else {
        // Its end was lost. Audio that is longer than what was told before has its beginning, and perhaps no more.
        return Kept::Unknown;
    };
    // The length of a part counts from the part's own start.
    let needed = if same {
        Some(told)
    } else {
        before.told_ms().map(|ms| ms + told)
    };
    // A short part must not pass for a difference in counting.
    let patience = if same { PATIENCE_MS } else { PATIENCE_MS.min(told / 2) };
    match needed {
        Some(needed) if counted + patience >= needed => Kept::All,
        Some(_) if same && before.is_let_go() => Kept::Lost,
        _ => Kept::Unknown,
    }
}

/// Whether audio that was split off from `before` has the reported audio of `after` too: the file that a worker received later. Which end it
/// belongs to is not certain, so that its length alone counts.
fn has_both(apart: &Entry, before: &Entry, after: &Entry) -> bool {
    let counted = |entry: &Entry| entry.audio().and_then(|audio| audio.duration_ms);
    let (Some(all), Some(first), Some(told)) = (counted(apart), counted(before), after.told_ms()) else {
        return false;
    };
    let end = |entry: &Entry| entry.told_end().map(Told::order);
    // Otherwise the file was received before that end, and may have another part.
    let is_later = end(apart).zip(end(after)).is_some_and(|(apart, after)| apart >= after);
    told > 0 && is_later && apart.audio_is_safe() && all + PATIENCE_MS.min(told / 2) >= first + told
}

/// Whether the reported end of `after` is the end of the part that `before` has the beginning of: its end was presumed too early.
fn is_same_stretch(before: &Entry, after: &Entry) -> bool {
    let end = |entry: &Entry| entry.told_end().map(Told::order);
    let began = |entry: &Entry| entry.started().map(Told::order);
    let anew = began(after)
        .zip(began(before))
        .is_some_and(|(after, before)| after > before);
    !anew && (end(before).is_none() || end(before) == end(after))
}

/// Reads the recordings that a recording continues.
pub struct Predecessors {
    pub ledger: Ledger,
}

impl Predecessors {
    /// Whether exactly this audio is safe in one of the recordings that this one continues, or in one that was split off from them.
    pub(super) async fn is_kept_before(&self, case: &Case, digests: &Digests) -> bool {
        let ancestors = self.ancestors(&case.entry).await;
        ancestors.iter().any(|before| before.is_safe(digests))
            || self
                .apart(&case.entry, &ancestors)
                .await
                .iter()
                .any(|other| other.is_safe(digests))
    }

    /// Where the reported audio is, as far as is known, if the switch has no file of it.
    pub(super) async fn kept_before(&self, case: &Case) -> Kept {
        let ancestors = self.ancestors(&case.entry).await;
        let kept = ancestors.iter().find(|before| !before.is_already_kept());
        let kept = kept.map_or(Kept::Unknown, |before| compare(before, &case.entry));
        let nearest = ancestors.first();
        let has_it = |other: &Entry| nearest.is_some_and(|nearest| has_both(other, nearest, &case.entry));
        if kept != Kept::All && self.apart(&case.entry, &ancestors).await.iter().any(has_it) {
            return Kept::All;
        }
        kept
    }

    /// The recordings that were split off from these: another worker received the file when it had the next part too.
    async fn apart(&self, entry: &Entry, ancestors: &[Entry]) -> Vec<Entry> {
        let keys = ancestors.iter().flat_map(Entry::apart).filter(|key| *key != entry.key);
        let mut found = Vec::new();
        for key in keys.take(MOST_PARTS) {
            let mut address = address(entry);
            address.key = key;
            if let Ok(Ok(Some(record))) = tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address)).await {
                found.push(record.entry);
            }
        }
        found
    }

    /// Nearest first.
    async fn ancestors(&self, entry: &Entry) -> Vec<Entry> {
        let mut found: Vec<Entry> = Vec::new();
        while found.len() < MOST_PARTS {
            let last = found.last().unwrap_or(entry);
            let Some(continues) = last.order().and_then(|order| order.continues.as_ref()) else {
                break;
            };
            let mut address = address(last);
            address.key = continues.key;
            match tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address)).await {
                Ok(Ok(Some(record))) => found.push(record.entry),
                _ => break,
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::{Delivery, Destination, Document, Fact};
    use crate::kazoo::time::Moment;
    use crate::recording::audio::Audio;
    use crate::recording::identity::{Key, MediaId};

    use super::*;

    fn at(second: i64) -> Moment {
        Moment::from_unix_seconds(1_795_386_262 + second)
    }

    fn told(second: i64, length_ms: Option<u64>) -> Box<Told> {
        let mut told = Told::presumed("call", at(second), "freeswitch@fs1", "/tmp/a.wav");
        (told.stamp, told.length_ms) = (Some(at(second).unix_micros()), length_ms);
        Box::new(told)
    }

    fn entry(facts: impl IntoIterator<Item = (i64, What)>) -> Entry {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        for (heard, what) in facts {
            entry.add(Fact {
                at: at(heard),
                by: "w".into(),
                what,
            });
        }
        entry
    }

    /// Its end was presumed, its audio of `counted` milliseconds stored, and its file released.
    fn presumed(counted: u64) -> Vec<(i64, What)> {
        let audio = Audio {
            size: 7,
            digests: Digests {
                md5: "0".into(),
                sha256: "1".into(),
            },
            duration_ms: Some(counted),
            findings: vec![],
            as_written: None,
        };
        let delivery = Delivery {
            destination: Destination::Account,
            document: Document {
                id: MediaId::derived(Key::of("call", "action"), at(0)),
                database: "db".into(),
                rev: "1-a".into(),
                created: at(0),
            },
            sha256: Some("1".into()),
            below_quorum: false,
            audio: None,
            deleted: false,
            edit_told: false,
            controls: None,
            again: 0,
        };
        vec![
            (1, What::Started(told(1, None))),
            (400, What::PresumedEnded(told(300, None))),
            (401, What::Collected(audio)),
            (402, What::delivered(delivery)),
            (403, What::Released { n: 1 }),
        ]
    }

    #[test]
    fn audio_that_went_with_a_file_that_was_let_go_too_early_is_lost_and_not_kept_already() {
        let late = || What::Ended(told(500, Some(29_240)));
        let after = entry([(501, What::Started(told(1, None))), (501, late())]);
        // As the ledger answers before, and after, the late end is written there.
        let unaware = entry(presumed(9_480));
        let aware = entry(presumed(9_480).into_iter().chain([(501, late())]));
        for before in [unaware, aware] {
            assert_eq!(compare(&before, &after), Kept::Lost);
        }
        // All of it was in the file.
        let whole = entry(presumed(29_000));
        assert_eq!(compare(&whole, &after), Kept::All);
        // The file may still be there.
        let kept = entry(
            presumed(9_480)
                .into_iter()
                .filter(|(_, what)| what.kind() != "released"),
        );
        assert_eq!(compare(&kept, &after), Kept::Unknown);
        // No event reported how long it is.
        let mute = entry([(501, What::Ended(told(500, None)))]);
        assert_eq!(compare(&entry(presumed(9_480)), &mute), Kept::Unknown);
    }

    #[test]
    fn a_later_stretch_that_is_in_the_audio_before_is_kept() {
        // The file was brought late, with both stretches in it; the second one's start came later still.
        let second = || (500, What::Started(told(20, None)));
        let before = |counted| {
            let mut facts = presumed(counted);
            facts.retain(|(_, what)| what.kind() != "presumed_ended");
            facts.extend([(12, What::Ended(told(11, Some(10_000)))), second()]);
            entry(facts)
        };
        let unheard = entry([second()]);
        let told_all = entry([second(), (501, What::Ended(told(25, Some(5_000))))]);
        assert_eq!(compare(&before(15_000), &told_all), Kept::All);
        assert_eq!(
            compare(&before(15_000), &unheard),
            Kept::Unknown,
            "no event reported its length"
        );
        assert_eq!(compare(&before(10_100), &told_all), Kept::Unknown);
        assert_eq!(compare(&before(10_100), &unheard), Kept::Unknown);
    }

    #[test]
    fn a_stretch_that_is_in_audio_that_was_split_off_is_kept() {
        let ended = |second, ms| What::Ended(told(second, Some(ms)));
        let stored = |counted, end: What| {
            let mut facts = presumed(counted);
            facts.retain(|(_, what)| !matches!(what.kind(), "presumed_ended" | "started"));
            entry(facts.into_iter().chain([(12, end)]))
        };
        let before = stored(10_000, ended(11, 10_000));
        let after = entry([(21, What::Started(told(20, None))), (26, ended(25, 5_000))]);
        assert!(has_both(&stored(15_100, ended(25, 5_000)), &before, &after));
        assert!(
            !has_both(&stored(15_100, ended(11, 10_000)), &before, &after),
            "received before that end: it has another part"
        );
        assert!(
            !has_both(&stored(10_100, ended(25, 5_000)), &before, &after),
            "it has the first part only"
        );
        let held = entry([(12, ended(25, 5_000))]);
        assert!(!has_both(&held, &before, &after), "it is not safe");
    }

    #[test]
    fn a_stretch_of_its_own_is_not_taken_for_kept_because_the_one_before_is_long() {
        let first = What::Ended(told(11, Some(10_000)));
        let before = |counted| entry(presumed(counted).into_iter().chain([(12, first.clone())]));
        let after = entry([
            (601, What::Started(told(600, None))),
            (621, What::Ended(told(620, Some(5_000)))),
        ]);
        assert_eq!(compare(&before(10_000), &after), Kept::Unknown, "its file may come");
        // Nor a short one: what the switch and the worker count may differ by as much.
        let short = entry([
            (601, What::Started(told(600, None))),
            (603, What::Ended(told(602, Some(1_900)))),
        ]);
        assert_eq!(compare(&before(10_000), &short), Kept::Unknown);
    }
}
