//! Masks and unmasks that an action of an earlier time came after.

use crate::entry::fact::BEFORE_ANY_START;

use super::*;

#[test]
fn a_mask_that_an_earlier_unmask_came_after_is_sent_again_and_told_from_then_on() {
    let facts = [
        ("w", 90, asked("a", true, 90)),
        ("w", 90, sent("a", true, 0)),
        ("v", 101, asked("c", true, 101)),
        ("v", 101, sent("c", true, 0)),
        // The unmask was asked for before, and its worker was slow.
        ("w", 103, asked("b", false, 100)),
        ("w", 103, sent("b", false, 0)),
    ];
    let mut case = noted(facts);
    let again = Effect::Control {
        what: Control::Mask,
        n: 1,
    };
    let effects = next(&mut case, Input::Due, tenth(104), &policy());
    assert_eq!(effects, [Next::Do(again)], "the switch unmasked it");
    next(&mut case, Input::Fact(sent("c", true, 1)), tenth(104), &policy());
    assert!(case.entry.mask_to_send().is_none());
    let told = [(tenth(90), true), (tenth(103), false), (tenth(104), true)];
    assert_eq!(masks(&case.entry.controls()), told);
}

/// Nothing was sent again before the end.
#[test]
fn a_mask_or_unmask_that_an_earlier_action_undid_is_not_told_as_obeyed() {
    let unmasked = noted([
        ("w", 90, asked("a", true, 90)),
        ("w", 90, sent("a", true, 0)),
        ("v", 101, asked("c", true, 101)),
        ("v", 101, sent("c", true, 0)),
        ("w", 103, asked("b", false, 100)),
        ("w", 103, sent("b", false, 0)),
        ("w", 104, end(104)),
    ]);
    let told = [(tenth(90), true), (tenth(103), false)];
    assert_eq!(masks(&unmasked.entry.controls()), told);
    assert_eq!(not_obeyed(&unmasked), [(Control::Mask, Why::Unconfirmed)]);
    let alerts = unmasked.entry.facts();
    assert_eq!(alerts.filter(|one| one.what.kind() == "not_obeyed").count(), 1);
    // The mask was asked for before the unmask, and its worker sent it more than a second after the unmask.
    let silent = noted([
        ("v", 101, asked("b", false, 101)),
        ("v", 101, sent("b", false, 0)),
        ("w", 115, asked("a", true, 100)),
        ("w", 115, sent("a", true, 0)),
        ("w", 116, end(116)),
    ]);
    assert_eq!(masks(&silent.entry.controls()), [(tenth(115), true)]);
    assert_eq!(not_obeyed(&silent), [(Control::Unmask, Why::Unconfirmed)]);
    // Another worker had sent it again, which became known after the end.
    let mut again = unmasked;
    let mut news = Entry::new(again.entry.key, "call");
    news.add(fact("v", tenth(103).plus(HALF_A_TENTH), sent("c", true, 1)));
    next(&mut again, Input::Known(Box::new(news)), tenth(110), &policy());
    assert_eq!(masks(&again.entry.controls()).len(), 3);
    assert_eq!(not_obeyed(&again), []);
}

/// The clocks of two workers differ: the repeat followed the unmask, whatever the times say.
#[test]
fn a_mask_that_another_worker_repeated_is_told_although_clocks_differ() {
    let repeated = |n, at| {
        let case = noted([
            ("w", 90, asked("a", true, 90)),
            ("w", 90, sent("a", true, 0)),
            ("v", 101, asked("c", true, 101)),
            ("v", 101, sent("c", true, 0)),
            ("w", 120, asked("b", false, 100)),
            ("w", 120, sent("b", false, 0)),
            ("v", at, sent("c", true, n)),
            ("w", 180, end(180)),
        ]);
        masks(&case.entry.controls()).len()
    };
    assert_eq!(repeated(1, 102), 3);
    assert_eq!(repeated(0, 101), 2, "no repeat");
}

/// A mask that was sent before its recording's start is sent again for the start, whatever came between.
#[test]
fn a_mask_that_was_repeated_for_a_start_is_not_told_where_an_unmask_came_after_it() {
    let before_any_start = What::Masked {
        action: "c".into(),
        on: true,
        n: 0,
        start: Some(BEFORE_ANY_START),
        sender: None,
    };
    let case = noted([
        ("v", 101, asked("c", true, 101)),
        ("v", 101, before_any_start),
        ("v", 110, sent("c", true, 1)),
        ("w", 120, asked("b", false, 100)),
        ("w", 120, sent("b", false, 0)),
        ("w", 180, end(180)),
    ]);
    assert_eq!(masks(&case.entry.controls()), []);
}
