use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Delivery, Destination, Document};
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::identity::{Key, MediaId};

use super::*;

fn at(second: i64) -> Moment {
    Moment::from_unix_seconds(1_795_386_262 + second)
}

fn told(second: i64, length_ms: u64) -> Box<Told> {
    let mut told = Told::presumed("call", at(second), "freeswitch@fs1", "/tmp/a.mp3");
    told.stamp = Some(at(second).unix_micros());
    told.length_ms = Some(length_ms);
    Box::new(told)
}

#[test]
fn a_start_that_was_presumed_is_none_beside_what_the_events_tell() {
    let mut presumed = told(7, 0);
    presumed.stamp = None;
    let presumed = (8, What::Started(presumed));
    // Two workers sent the command. The second worker presumed a start from its own, later command. Events reported both start and end,
    // or the end alone.
    for events in [
        vec![(1, What::Started(told(1, 0))), (6, What::Ended(told(6, 5000)))],
        vec![(6, What::Ended(told(6, 5000)))],
    ] {
        let mut facts = events;
        facts.push(presumed.clone());
        let entry = entry(&facts);
        assert_eq!(entry.parts().len(), 1, "{facts:?}");
        assert!(entry.ended().is_some() && entry.started().is_some());
        assert!(!entry.is_to_be_continued());
    }
    // If no event is known it counts, and an end after it is its own.
    let alone = entry(std::slice::from_ref(&presumed));
    assert!(alone.parts()[0].started.is_some());
    let ended = entry(&[presumed, (9, What::Ended(told(9, 1000)))]);
    assert!(ended.parts().len() == 1 && ended.parts()[0].started.is_some());
}

fn entry(facts: &[(i64, What)]) -> Entry {
    let mut entry = Entry::new(Key::of("call", "action"), "call");
    for (heard, what) in facts {
        entry.add(Fact {
            at: at(*heard),
            by: "w".into(),
            what: what.clone(),
        });
    }
    entry
}

fn start(second: i64) -> What {
    What::Started(told(second, 0))
}

fn end(second: i64, length_ms: u64) -> What {
    What::Ended(told(second, length_ms))
}

fn collected(duration_ms: u64) -> What {
    What::Collected(Audio {
        size: duration_ms,
        digests: Digests {
            md5: "0".into(),
            sha256: duration_ms.to_string(),
        },
        duration_ms: Some(duration_ms),
        findings: vec![],
        as_written: None,
    })
}

fn delivered() -> What {
    let key = Key::of("call", "action");
    What::delivered(Delivery {
        destination: Destination::Account,
        document: Document {
            id: MediaId::derived(key, at(0)),
            database: "db".into(),
            rev: "1-a".into(),
            created: at(0),
        },
        sha256: Some("10000".into()),
        below_quorum: false,
        audio: None,
        deleted: false,
        edit_told: false,
        controls: None,
        again: 0,
    })
}

#[test]
fn a_recording_that_begins_again_before_it_is_safe_goes_on_in_the_same_file() {
    let running = entry(&[(1, start(1)), (11, end(11, 10_000)), (20, start(20))]);
    assert_eq!(running.ended(), None, "it records again");
    let ended = entry(&[
        (1, start(1)),
        (11, end(11, 10_000)),
        (20, start(20)),
        (25, end(25, 5000)),
    ]);
    assert_eq!(ended.ended().map(|told| told.at), Some(at(25)));
    assert_eq!(ended.told_ms(), Some(15_000));
    assert!(!ended.is_to_be_continued());
}

#[test]
fn what_begins_again_when_the_audio_is_safe_is_a_recording_of_its_own() {
    let mut facts = vec![
        (1, start(1)),
        (11, end(11, 10_000)),
        (12, collected(10_000)),
        (13, delivered()),
        (20, start(20)),
    ];
    assert_eq!(entry(&facts).ended().map(|told| told.at), Some(at(11)));
    assert_eq!(entry(&facts).told_ms(), Some(10_000));
    assert!(entry(&facts).is_to_be_continued() && !entry(&facts).is_closed());
    facts.push((21, What::Continued { told: 1 }));
    assert!(!entry(&facts).is_to_be_continued());
    facts.push((25, end(25, 5000)));
    assert!(entry(&facts).is_to_be_continued(), "its end is handed on too");
    facts.push((26, What::Continued { told: 2 }));
    assert!(!entry(&facts).is_to_be_continued());
    assert_eq!(
        entry(&facts).outcome(),
        Some((Outcome::Stored, Cause::Complete)),
        "its own story is over"
    );
}

#[test]
fn a_part_whose_end_was_presumed_is_in_the_audio_too() {
    let entry = entry(&[
        (1, start(1)),
        (11, end(11, 10_000)),
        (20, start(20)),
        (90, What::PresumedEnded(told(30, 0))),
        (91, collected(10_000)),
        (92, delivered()),
    ]);
    assert!(!entry.is_to_be_continued());
}

#[test]
fn a_short_part_that_came_after_the_audio_is_not_in_it() {
    let late = |length_ms| {
        entry(&[
            (1, start(1)),
            (11, end(11, 10_000)),
            (12, collected(10_000)),
            (13, delivered()),
            (14, start(14)),
            (16, end(16, length_ms)),
        ])
    };
    assert!(late(2000).is_to_be_continued());
    // A worker collected all of it, and only its end was reported late.
    let whole = entry(&[
        (1, start(1)),
        (11, end(11, 10_000)),
        (12, collected(11_900)),
        (13, delivered()),
        (14, start(11)),
        (16, end(13, 2000)),
    ]);
    assert!(!whole.is_to_be_continued());
}

#[test]
fn what_a_lost_end_would_tell_does_not_count_as_a_later_part() {
    let entry = entry(&[
        (1, start(1)),
        // Its end was lost.
        (20, start(20)),
        (30, end(30, 10_000)),
        (31, collected(28_000)),
        (32, delivered()),
        (40, start(40)),
        (46, end(46, 5000)),
    ]);
    assert!(entry.goes_on(), "the audio is that long because of the part before");
}

/// Its audio is known from the document alone, so nothing says when it arrived.
#[test]
fn what_was_found_stored_and_never_collected_is_judged_too() {
    let What::Collected(audio) = collected(10_000) else {
        unreachable!()
    };
    let found = match delivered() {
        What::Delivered(mut delivery) => {
            delivery.audio = Some(audio);
            What::Delivered(delivery)
        }
        other => other,
    };
    let story = entry(&[
        (1, start(1)),
        (11, end(11, 10_000)),
        (13, found),
        (14, start(14)),
        (20, end(20, 5_000)),
    ]);
    assert_eq!(story.outcome(), Some((Outcome::Stored, Cause::Complete)));
    assert!(story.is_to_be_continued(), "the second part came later");
}

#[test]
fn ends_whose_starts_were_lost_stand_in_their_order() {
    let story = entry(&[
        (11, end(11, 3_000)),
        (12, collected(11_000)),
        (13, delivered()),
        (12, end(12, 8_000)),
        (20, end(20, 12_000)),
    ]);
    let ends: Vec<_> = story.parts().iter().filter_map(|part| part.ended?.length_ms).collect();
    assert_eq!(ends, [3_000, 8_000, 12_000]);
    assert_eq!(story.told_ms(), Some(11_000), "the audio has the first two");
    assert!(story.is_to_be_continued());
    assert_eq!(story.outcome(), Some((Outcome::Stored, Cause::Complete)));
}

#[test]
fn of_two_workers_whose_clocks_differ_the_lengths_are_believed() {
    let story = |heard: i64, audio_ms, told_ms| {
        let facts = [
            (1, start(1)),
            (11, end(11, 10_000)),
            (14, start(14)),
            (12, collected(audio_ms)),
            (13, delivered()),
        ];
        let mut entry = entry(&facts);
        entry.add(Fact {
            at: at(heard),
            by: "another".into(),
            what: end(16, told_ms),
        });
        entry
    };
    // The other worker's clock is behind: by the clocks the part had ended before the audio was collected.
    assert!(story(2, 10_000, 2000).is_to_be_continued());
    assert!(story(20, 10_000, 2000).is_to_be_continued());
    // The other worker's clock is ahead, and the audio contains all of the part.
    assert!(!story(3600, 12_000, 2000).is_to_be_continued());
    assert!(!story(2, 12_000, 2000).is_to_be_continued());
}

#[test]
fn audio_that_came_to_nothing_seals_nothing() {
    let entry = entry(&[
        (1, start(1)),
        (11, end(11, 10_000)),
        (12, collected(10_000)),
        (13, delivered()),
        (20, start(20)),
        (25, end(25, 5000)),
        // Another worker received the next file, and left it on the switch.
        (26, collected(5_000)),
    ]);
    assert_eq!(entry.audio().and_then(|audio| audio.duration_ms), Some(10_000));
    assert_eq!(entry.told_ms(), Some(10_000));
    assert!(entry.is_to_be_continued());
}

#[test]
fn an_end_that_comes_late_belongs_to_the_start_before_it() {
    let late = entry(&[(1, start(1)), (20, start(20)), (21, end(11, 10_000))]);
    assert_eq!(late.ended(), None, "the second stretch runs");
    assert_eq!(late.parts().len(), 2);
    let early = entry(&[(11, end(11, 10_000)), (12, start(1))]);
    assert_eq!(early.ended().map(|told| told.at), Some(at(11)));
}

#[test]
fn a_start_with_the_stamp_of_the_end_before_it_is_a_part_of_its_own() {
    // The switch ended the recording and began it again within one tick of its stamps.
    let mut facts = vec![(1, start(1)), (11, end(11, 10_000)), (11, start(11))];
    assert_eq!(entry(&facts).ended(), None, "it is being recorded again");
    assert_eq!(entry(&facts).parts().len(), 2);
    facts.push((25, end(25, 14_000)));
    assert_eq!(entry(&facts).ended().map(|told| told.at), Some(at(25)));
    assert_eq!(entry(&facts).told_ms(), Some(24_000));
    // A recording that was shorter than a tick has both within one tick.
    let short = entry(&[(1, start(1)), (1, end(1, 20))]);
    assert_eq!((short.parts().len(), short.ended().is_some()), (1, true));
    // If no other start is known, the start belongs to that end, whatever length is reported.
    let odd = entry(&[(1, start(1)), (1, end(1, 6000))]);
    assert_eq!((odd.parts().len(), odd.ended().is_some()), (1, true));
    // What is recorded after that is a part of its own all the same.
    let again = entry(&[(1, start(1)), (1, end(1, 6000)), (9, start(2))]);
    assert_eq!(again.parts().len(), 2);
    let ended = entry(&[(1, start(1)), (3, end(3, 2000)), (9, start(9)), (9, end(9, 6000))]);
    assert!(ended.parts().len() == 2 && ended.parts().iter().all(|part| part.ended.is_some()));
}

#[test]
fn two_ends_of_one_tick_are_told_apart_by_what_they_tell() {
    let both = entry(&[(1, start(1)), (11, end(11, 10_000)), (11, end(11, 20))]);
    assert_eq!(both.parts().len(), 2);
    let copies = entry(&[(1, start(1)), (11, end(11, 10_000)), (12, end(11, 10_000))]);
    assert_eq!(copies.parts().len(), 1);
}

#[test]
fn copies_of_events_are_no_parts() {
    let mut again = told(12, 10_000);
    again.stamp = Some(again.at.unix_micros() + 1);
    let facts = [
        (1, start(1)),
        (1, start(1)),
        (11, end(11, 10_000)),
        (12, collected(10_000)),
        (13, delivered()),
        (14, end(11, 10_000)),
        (15, What::Ended(again)),
    ];
    assert_eq!(entry(&facts).parts().len(), 1);
    assert!(!entry(&facts).is_to_be_continued());
}

#[test]
fn events_without_stamps_are_told_apart_by_their_order_and_by_their_arrival() {
    let plain = |what: What| match what {
        What::Started(mut told) => {
            told.stamp = None;
            What::Started(told)
        }
        What::Ended(mut told) => {
            told.stamp = None;
            What::Ended(told)
        }
        other => other,
    };
    // Start and end are in one second, as with a short recording.
    let short = entry(&[(1, plain(start(1))), (2, plain(end(1, 500)))]);
    assert!(short.ended().is_some());
    // The switch's clock went back.
    let odd = entry(&[(1, plain(start(100))), (11, plain(end(11, 10_000)))]);
    assert!(odd.ended().is_some());
    let again = entry(&[
        (1, plain(start(1))),
        (11, plain(end(11, 10_000))),
        (20, plain(start(20))),
    ]);
    assert_eq!(again.ended(), None);
}

#[test]
fn an_end_told_late_that_is_longer_than_what_was_brought_is_continued_and_one_that_fits_is_not() {
    let presumed = What::PresumedEnded(told(11, 0));
    let story = |length| {
        entry(&[
            (1, start(1)),
            (11, presumed.clone()),
            (12, collected(10_000)),
            (13, delivered()),
            (600, end(590, length)),
        ])
    };
    assert!(!story(10_400).is_to_be_continued());
    assert!(story(589_000).is_to_be_continued());
    let (continuation, told) = story(589_000)
        .continuation(at(601), "w")
        .map_or((None, 0), |(entry, told)| (Some(entry), told));
    assert!(continuation.is_none() && told == 0, "nobody knows what was ordered");
}

/// A worker was killed after it had delivered the first part, before the ledger had it. The switch recorded two more parts, and another
/// worker found the delivery.
#[test]
fn what_was_found_at_its_destination_has_only_the_parts_that_it_is_long_enough_for() {
    let found = |ms: u64| match (delivered(), collected(ms)) {
        (What::Delivered(delivery), What::Collected(audio)) => What::delivered(Delivery {
            sha256: Some(audio.digests.sha256.clone()),
            audio: Some(audio),
            ..*delivery
        }),
        other => panic!("{other:?}"),
    };
    let parts = [
        (1, start(1)),
        (11, end(11, 10_000)),
        (20, start(20)),
        (25, end(25, 5_000)),
        (30, start(30)),
        (37, end(37, 7_000)),
    ];
    for (ms, own, left) in [(10_000, 10_000, 4), (15_000, 15_000, 2), (22_000, 22_000, 0)] {
        let mut all = parts.to_vec();
        all.push((38, found(ms)));
        let entry = entry(&all);
        assert_eq!(entry.told_ms(), Some(own));
        assert_eq!(entry.left_over().len(), left, "{ms} ms");
    }
    // No event reported the second part's end, which was presumed.
    let mut all = parts[..3].to_vec();
    all.extend([(36, What::PresumedEnded(told(36, 0))), (38, found(10_000))]);
    assert!(entry(&all).is_to_be_continued(), "the file may have more");
}

/// The end of the first part was lost, and presumed while its call was alive. Then the call was bridged again.
#[test]
fn a_start_after_an_end_that_was_presumed_begins_another_part() {
    let presumed = [
        (1, start(1)),
        (400, What::PresumedEnded(told(1, 0))),
        (401, collected(10_000)),
        (402, delivered()),
    ];
    let with = |more: &[(i64, What)]| entry(&[&presumed[..], more].concat());
    for more in [vec![(900, start(900))], vec![(900, start(900)), (905, end(905, 5_000))]] {
        let story = with(&more);
        assert!(story.is_to_be_continued(), "{more:?}");
        assert_eq!(story.left_over().len(), more.len());
        assert!(story.ended().is_some(), "the first part is over");
    }
    // A second report of the same start, and an end that comes late, are of the first part.
    assert!(!with(&[(900, start(1))]).is_to_be_continued());
    assert!(!with(&[(900, end(12, 10_200))]).is_to_be_continued());
}
