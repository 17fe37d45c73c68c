//! Masks, unmasks and stops that came to nothing, came twice, or in another order than they were asked for.

use crate::entry::fact::BEFORE_ANY_START;
use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::recording::controls::{Controls, Why};

use super::*;

mod undone;

const HALF_A_TENTH: Duration = Duration::from_millis(50);

/// When a command came, by tenths of a second.
fn tenth(tenths: u64) -> Moment {
    NOW.plus(Duration::from_millis(100 * tenths))
}

fn fact(by: &str, at: Moment, what: What) -> Fact {
    let by = by.to_owned();
    Fact { at, by, what }
}

fn asked(action: &str, on: bool, at: u64) -> What {
    What::MaskAsked {
        action: action.into(),
        on,
        asked: Some(tenth(at)),
        route: None,
    }
}

fn sent(action: &str, on: bool, n: u32) -> What {
    What::Masked {
        action: action.into(),
        on,
        n,
        start: started(order()).entry.newest_start(),
        sender: None,
    }
}

fn intended(action: &str, on: bool) -> What {
    What::Intended {
        action: action.into(),
        on,
        asked: None,
    }
}

fn returned(what: Control, action: &str, n: u32) -> What {
    What::Returned {
        what,
        action: action.into(),
        n,
    }
}

/// The switch reports the end at that tenth of a second.
fn end(at: u64) -> What {
    let mut end = told(5000);
    end.stamp = Some(tenth(at).unix_micros());
    What::Ended(end)
}

/// A recording that began, and what two workers noted of it: by whom, at which tenth of a second, and what.
fn noted(facts: impl IntoIterator<Item = (&'static str, u64, What)>) -> Case {
    let mut case = started(order());
    for (by, at, what) in facts {
        let mut news = Entry::new(case.entry.key, "call");
        news.add(fact(by, tenth(at), what));
        next(&mut case, Input::Known(Box::new(news)), tenth(at), &policy());
    }
    case
}

fn masks(controls: &Controls) -> Vec<(Moment, bool)> {
    controls.masks.iter().map(|mask| (mask.at, mask.on)).collect()
}

fn not_obeyed(case: &Case) -> Vec<(Control, Why)> {
    let told = case.entry.controls().not_obeyed;
    told.iter().map(|one| (one.what, one.why)).collect()
}

#[test]
fn a_mask_that_no_queue_took_and_an_unmask_overtook_is_told() {
    let overtaken = |began: bool| {
        let facts = [
            ("w", 100, asked("a", true, 100)),
            ("w", 100, returned(Control::Mask, "a", 0)),
            ("v", 150, asked("b", false, 150)),
            ("v", 150, sent("b", false, 0)),
        ];
        if began {
            return noted(facts);
        }
        let mut case = super::asked(order());
        for (by, at, what) in facts {
            let mut news = Entry::new(case.entry.key, "call");
            news.add(fact(by, tenth(at), what));
            next(&mut case, Input::Known(Box::new(news)), tenth(at), &policy());
        }
        case
    };
    let case = overtaken(true);
    assert_eq!(not_obeyed(&case), [(Control::Mask, Why::Undelivered)]);
    assert_eq!(case.entry.controls().not_obeyed[0].asked_at, Some(tenth(100)));
    let told = case.entry.facts().filter(|one| one.what.kind() == "not_obeyed");
    assert_eq!(told.count(), 1, "operators are alerted once");
    assert_eq!(not_obeyed(&overtaken(false)), [], "nothing was recorded in between");
}

/// A recording that begins at every bridge: both were asked for when none of its parts ran.
#[test]
fn a_mask_and_an_unmask_between_two_parts_are_no_fault() {
    let mut order = order();
    order.command.as_mut().unwrap().trigger = Trigger::Bridge;
    let mut case = started(order);
    let mut again = told(0);
    again.stamp = Some(tenth(300).unix_micros());
    for (at, what) in [
        (100, end(100)),
        (200, asked("a", true, 200)),
        (250, asked("b", false, 250)),
        (300, What::Started(again)),
        (301, sent("b", false, 0)),
    ] {
        let mut news = Entry::new(case.entry.key, "call");
        news.add(fact("w", tenth(at), what));
        next(&mut case, Input::Known(Box::new(news)), tenth(at), &policy());
    }
    assert_eq!(not_obeyed(&case), []);
}

#[test]
fn a_mask_that_waited_and_was_overtaken_is_told() {
    let case = noted([
        ("w", 150, asked("b", false, 150)),
        ("w", 150, sent("b", false, 0)),
        ("w", 200, asked("a", true, 100)),
    ]);
    assert_eq!(not_obeyed(&case), [(Control::Mask, Why::Undelivered)]);
}

#[test]
fn a_mask_that_no_worker_could_send_before_the_end_is_told() {
    let ended = |asked_at, end_at, back: bool| {
        let mut facts = vec![("w", asked_at, asked("a", true, asked_at))];
        if back {
            facts.push(("w", asked_at, returned(Control::Mask, "a", 0)));
        }
        facts.push(("w", end_at, end(end_at)));
        not_obeyed(&noted(facts))
    };
    assert_eq!(ended(100, 150, true), [(Control::Mask, Why::Undelivered)]);
    assert_eq!(ended(100, 150, false), [(Control::Mask, Why::Ended)]);
    assert_eq!(ended(100, 105, true), [], "the call was ending");
}

#[test]
fn a_mask_that_another_worker_delivered_is_not_told_as_undelivered() {
    let undelivered = What::NotObeyed {
        action: "a".into(),
        what: Control::Mask,
        why: Why::Undelivered,
    };
    let case = noted([
        ("w", 100, asked("a", true, 100)),
        ("w", 101, undelivered),
        ("v", 101, sent("a", true, 0)),
    ]);
    let controls = case.entry.controls();
    assert_eq!(
        (masks(&controls), controls.not_obeyed),
        (vec![(tenth(101), true)], vec![])
    );
}

/// A stop that was asked for at the tenth second; `back`: the broker returned its command, `None`: no worker sent one.
fn stopped(back: Option<bool>, until: u64) -> Case {
    let action = "s".to_owned();
    let mut facts = vec![("w", 100, What::StopAsked { action, route: None })];
    let start = started(order()).entry.newest_start();
    if back == Some(true) {
        facts.push(("w", 101, returned(Control::Stop, "", 1)));
    }
    if back.is_some() {
        facts.push(("w", 101, What::StopSent { n: 1, start }));
    }
    facts.push(("w", until, end(until)));
    noted(facts)
}

#[test]
fn a_stop_that_no_queue_took_is_told_as_undelivered() {
    assert_eq!(
        not_obeyed(&stopped(Some(true), 150)),
        [(Control::Stop, Why::Undelivered)]
    );
    assert_eq!(not_obeyed(&stopped(Some(true), 110)), [], "the call was ending");
    assert_eq!(not_obeyed(&stopped(Some(false), 120)), [], "obeyed");
    assert_eq!(
        not_obeyed(&stopped(None, 150)),
        [(Control::Stop, Why::Ended)],
        "never sent"
    );
    // The same while the recording runs on.
    let mut case = started(order());
    let mut news = Entry::new(case.entry.key, "call");
    let start = case.entry.newest_start();
    let action = "s".to_owned();
    news.add(fact("w", tenth(100), What::StopAsked { action, route: None }));
    for n in 1..=4 {
        news.add(fact("w", tenth(101), returned(Control::Stop, "", n)));
        news.add(fact("w", tenth(101), What::StopSent { n, start }));
    }
    next(&mut case, Input::Known(Box::new(news)), tenth(102), &policy());
    assert_eq!(not_obeyed(&case), []);
    next(&mut case, Input::Due, tenth(410), &policy());
    assert_eq!(not_obeyed(&case), [(Control::Stop, Why::Undelivered)]);
}

#[test]
fn masks_of_two_workers_are_told_once_and_in_the_order_of_the_actions() {
    // The unmask was confirmed before the mask, and another worker sent the mask once more.
    let case = noted([
        ("w", 102, asked("a", true, 100)),
        ("v", 101, asked("b", false, 101)),
        ("v", 101, sent("b", false, 0)),
        ("w", 102, sent("a", true, 0)),
        ("v", 104, sent("a", true, 1)),
        ("v", 105, sent("b", false, 1)),
    ]);
    assert_eq!(
        masks(&case.entry.controls()),
        [(tenth(102), true), (tenth(102), false)],
        "and not masked to the second unmask: the audio is not"
    );
}

/// The ledger keeps the first four and the last twenty-eight facts of a kind.
#[test]
fn a_mask_whose_command_is_kept_no_more_is_not_told_as_undelivered() {
    let names: Vec<String> = (0..40).map(|n| format!("a{n}")).collect();
    let mut facts = Vec::new();
    for (name, n) in names.iter().zip(0..) {
        let (on, at) = (n % 2 == 0, 100 + 10 * n);
        facts.push(("w", at, asked(name, on, at)));
        facts.push(("w", at + 1, sent(name, on, 0)));
        if n == 30 {
            facts.push(("w", at + 2, sent(name, on, 1)));
        }
    }
    let mut case = noted(facts);
    next(&mut case, Input::Due, tenth(1000), &policy());
    assert_eq!(not_obeyed(&case), []);
}

#[test]
fn a_mask_that_met_no_queue_does_not_delay_a_stop() {
    let returned = What::Returned {
        what: Control::Mask,
        action: "a".into(),
        n: 0,
    };
    let mut case = noted([("w", 101, asked("a", true, 101)), ("w", 101, returned)]);
    let mask = Next::Do(Effect::Control {
        what: Control::Mask,
        n: 0,
    });
    assert_eq!(next(&mut case, Input::Due, tenth(102), &policy()), [mask]);
    let stop = What::StopAsked {
        action: "b".into(),
        route: None,
    };
    let stopped = next(&mut case, Input::Fact(stop), tenth(103), &policy());
    let first = Next::Do(Effect::Control {
        what: Control::Stop,
        n: 1,
    });
    assert_eq!(stopped, [first]);
}

#[test]
fn a_mask_whose_worker_was_killed_while_it_sent_it_is_told_as_perhaps() {
    let again = noted([
        ("killed", 100, intended("a", true)),
        ("w", 140, asked("a", true, 99)),
        ("w", 140, sent("a", true, 0)),
    ]);
    let mask = again.entry.controls().masks[0];
    assert_eq!((mask.at, mask.on), (tenth(140), true));
    assert_eq!((mask.asked_at, mask.perhaps_at), (Some(tenth(99)), Some(tenth(100))));
    // The usual case: the same worker, a moment later.
    let usual = noted([
        ("w", 100, intended("a", true)),
        ("w", 101, asked("a", true, 99)),
        ("w", 101, sent("a", true, 0)),
    ]);
    assert_eq!(usual.entry.controls().masks[0].perhaps_at, None);
    // Nothing came after it, because the recording was over.
    let over = noted([("killed", 100, intended("a", false)), ("w", 150, end(150))]);
    assert_eq!(not_obeyed(&over), [(Control::Unmask, Why::Unconfirmed)]);
    assert_eq!(masks(&over.entry.controls()), []);
    // An unmask was carried out before its action was delivered again.
    let overtaken = noted([
        ("killed", 100, intended("a", true)),
        ("w", 120, asked("b", false, 120)),
        ("w", 120, sent("b", false, 0)),
        ("w", 130, asked("a", true, 99)),
    ]);
    assert_eq!(not_obeyed(&overtaken), [(Control::Mask, Why::Unconfirmed)]);
    // It moved meanwhile.
    let transferred = What::Leg(Box::new(Leg {
        call_id: "call".into(),
        event: LegEvent::Transferor,
        other: Some("other".into()),
        control: None,
        was_answered: None,
        stamp: Some(tenth(120).unix_micros()),
    }));
    let moved = noted([
        ("killed", 100, intended("a", true)),
        ("w", 120, transferred),
        ("w", 140, asked("a", true, 99)),
        ("w", 140, sent("a", true, 0)),
    ]);
    assert_eq!(not_obeyed(&moved), [(Control::Mask, Why::PerhapsMoved)]);
}

#[test]
fn what_two_workers_say_of_one_mask_is_told_once() {
    let why = |why| What::NotObeyed {
        action: "a".into(),
        what: Control::Mask,
        why,
    };
    for order in [[Why::Moved, Why::PerhapsMoved], [Why::PerhapsMoved, Why::Moved]] {
        let case = noted([
            ("w", 100, asked("a", true, 100)),
            ("w", 101, why(order[0])),
            ("v", 102, why(order[1])),
        ]);
        assert_eq!(not_obeyed(&case), [(Control::Mask, Why::Moved)]);
    }
}

#[test]
fn what_earlier_versions_do_not_write_makes_no_document_to_be_amended() {
    let told = |asked_at| {
        let case = noted([("w", 102, asked("a", true, asked_at)), ("w", 102, sent("a", true, 0))]);
        let controls = case.entry.controls();
        assert_eq!(controls.masks[0].asked_at, Some(tenth(asked_at)));
        controls.fingerprint()
    };
    assert_eq!(told(100), told(101));
}

/// The ledger keeps the first and the last of a kind. Here it keeps notes of actions whose masks it keeps no more.
#[test]
fn a_mask_of_which_less_is_kept_is_not_told_as_unconfirmed() {
    let names: Vec<String> = (0..40).map(|n| format!("a{n:02}")).collect();
    let mut facts = Vec::new();
    for (name, n) in names.iter().zip(0..) {
        let (on, at) = (n % 2 == 0, 100 + 10 * n);
        // The worker could not note the last two before it sent them.
        if n < 38 {
            facts.push(("w", at, intended(name, on)));
        }
        facts.push(("w", at, asked(name, on, at)));
        facts.push(("w", at + 1, sent(name, on, 0)));
    }
    facts.push(("w", 1000, end(1000)));
    assert_eq!(not_obeyed(&noted(facts)), []);
}

/// A worker presumed the start before the event came. That is one start, whatever its stamp.
#[test]
fn a_presumed_start_and_the_real_one_are_one_part_for_masks() {
    let mut case = super::asked(order());
    let mut presumed = told(0);
    presumed.at = after(10);
    let mut real = told(0);
    real.stamp = Some(after(9).unix_micros());
    let facts = [
        ("w", 600, What::Started(presumed)),
        ("w", 700, asked("a", true, 700)),
        ("w", 700, sent("a", true, 0)),
        ("w", 900, What::Started(real)),
        ("w", 2000, asked("b", false, 2000)),
        ("w", 2000, sent("b", false, 0)),
    ];
    for (by, at, what) in facts {
        case.entry.add(fact(by, tenth(at), what));
    }
    assert_eq!(
        masks(&case.entry.controls()),
        [(tenth(700), true), (tenth(2000), false)]
    );
}

/// Another worker knew no start when it sent the mask, so it is sent again. Meanwhile the control process of the call has lost its queue for good.
#[test]
fn a_mask_that_no_queue_takes_any_more_keeps_no_worker_from_looking_for_the_end() {
    let mut case = started(order());
    let first = What::Masked {
        action: "m".into(),
        on: true,
        n: 0,
        start: Some(BEFORE_ANY_START),
        sender: Some("v".into()),
    };
    let mut news = Entry::new(case.entry.key, "call");
    news.add(fact("v", tenth(10), asked("m", true, 10)));
    news.add(fact("v", tenth(10), first));
    step(&mut case, Input::Known(Box::new(news)));
    let again = Effect::Control {
        what: Control::Mask,
        n: 1,
    };
    assert_eq!(next(&mut case, Input::Due, after(400), &policy())[0], again);
    let undelivered = What::NotObeyed {
        action: "m".into(),
        what: Control::Mask,
        why: Why::Undelivered,
    };
    let given_up = next(&mut case, Input::Fact(undelivered), after(400), &policy());
    assert!(
        matches!(given_up[0], Next::Do(Effect::LookForChannel { .. })),
        "{given_up:?}"
    );
    assert_eq!(not_obeyed(&case), [], "the first command had met the recording");
}
