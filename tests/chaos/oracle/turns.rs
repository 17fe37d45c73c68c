//! Whether stops, masks and unmasks were obeyed, and whether the documents tell of masks what the switch did.

use std::time::Duration;

use super::causes::{hindered, ledger_failed};
use crate::evidence::{CommandFate, Document, Ending, Evidence, Start, Turn};
use crate::play::Verb;

/// Of a command this close to the end of its call it is told that it was perhaps not obeyed: the leg that is gone may have handed the recording on.
const CLOSE: Duration = Duration::from_millis(250);

/// What was asked for reached the switch, or something kept it from that. What ended the recording before needs no stop any more.
pub fn obeyed(evidence: &Evidence, wrong: &mut Vec<String>) {
    for turn in &evidence.turns {
        let Turn { label, verb, .. } = turn;
        let is_late = *verb == Verb::Stop && is_second_at_once(evidence, turn);
        let is_unknown =
            turn.over_at <= turn.asked_at + HEARD_WITHIN && ledger_failed(evidence, turn.asked_at, turn.over_at);
        let is_excused =
            is_late || is_unknown || has_newer_one(evidence, turn) || hindered(evidence, turn.asked_at, turn.over_at);
        if turn.commands == 0 && !turn.ended_before && !is_excused {
            wrong.push(format!("{label}: its {} was never sent to the switch", verb.name()));
        }
    }
}

/// Whether it came after another start of its call, which the switch ignored: then it was meant for that one, as far as any worker knows.
fn has_newer_one(evidence: &Evidence, turn: &Turn) -> bool {
    let call = |label: &str| label.split("-start").next().map(str::to_owned);
    let mut newer = evidence.starts.iter().filter(|start| {
        let is_another = start.label != turn.label && call(&start.label) == call(&turn.label);
        is_another && start.asked_at.is_some_and(|at| at <= turn.asked_at)
    });
    newer.any(|start| {
        start.files.is_empty()
            && start
                .commands
                .iter()
                .any(|command| command.fate == CommandFate::Ignored)
    })
}

/// Of two stops of a call that come at once to two workers, both may meet its newest recording; the later one is for the one before as soon as its worker
/// hears of the other. A call that is over by then needs it no more.
fn is_second_at_once(evidence: &Evidence, turn: &Turn) -> bool {
    let call = |label: &str| label.split("-start").next().map(str::to_owned);
    let mut others = evidence.turns.iter().filter(|other| {
        let same = call(&other.label) == call(&turn.label) && other.verb == Verb::Stop;
        same && other.asked_at < turn.asked_at
    });
    turn.over_at <= turn.asked_at + HEARD_WITHIN && others.any(|other| turn.asked_at <= other.asked_at + HEARD_WITHIN)
}

/// After so long every worker has heard of another one's stop or start, on a busy machine too. A recording that is over sooner may be known to no
/// other worker where the ledger failed as well: RabbitMQ 3.10 ends a session by a fault of its own, after messages came back to their queue.
const HEARD_WITHIN: Duration = Duration::from_millis(1500);

/// Whether it is known which masks a recording must tell of.
pub fn are_masks_known(evidence: &Evidence, start: &Start, ending: &Ending) -> bool {
    let mut turns = evidence.turns.iter().filter(|turn| turn.label == start.label);
    let is_unsure =
        |turn: &Turn| hindered(evidence, turn.asked_at, turn.over_at) || turn.asked_at + CLOSE >= turn.over_at;
    // Of several recordings of one start, each has its own.
    ending.continues.is_none()
        && start.files.len() == 1
        && !turns.any(|turn| matches!(turn.verb, Verb::Mask | Verb::Unmask) && is_unsure(turn))
}

/// A document tells as many masks as the switch obeyed: not fewer, for what was hidden must be known, and not more, for what is said to be
/// hidden must be.
pub fn masks(evidence: &Evidence, start: &Start, ending: &Ending, document: &Document, say: &mut impl FnMut(String)) {
    if !are_masks_known(evidence, start, ending) {
        return;
    }
    let asked = |verb: Verb| {
        let turns = evidence.turns.iter();
        turns.filter(move |turn| turn.label == start.label && turn.verb == verb)
    };
    for (verb, on) in [(Verb::Mask, true), (Verb::Unmask, false)] {
        let told = document.masks.iter().filter(|masked| **masked == on).count();
        let obeyed = asked(verb)
            .filter(|turn| turn.commands > 0 && !turn.ended_before)
            .count();
        if told != obeyed {
            say(format!(
                "{} tells of {told} times {}, the switch was told {obeyed} times",
                document.id,
                verb.name()
            ));
        }
    }
    let masked = u32::try_from(document.masks.iter().filter(|masked| **masked).count()).unwrap_or(u32::MAX);
    if masked != start.masks {
        say(format!(
            "{} tells of {masked} masks, the switch did {}",
            document.id, start.masks
        ));
    }
}
