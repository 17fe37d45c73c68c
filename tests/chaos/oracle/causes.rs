//! Whether what is told of a recording that was not kept is true.

use std::time::{Duration, Instant};

use crate::evidence::{Command, CommandFate, Ending, Evidence, File, Start};
use crate::plan::What;

/// Messages that are on their way when a broker goes may go with it: as long as publishing has, and more on a busy machine.
const ON_THEIR_WAY: Duration = Duration::from_secs(5);

/// After so long every worker has the new settings, and what it decided before is delivered.
const SETTINGS_TAKE: Duration = Duration::from_secs(5);

/// How long after the call's end something may be told as if it had been before.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Whether this ending says truly why a file of the switch is not kept.
pub fn accounts_for(evidence: &Evidence, start: &Start, file: &File, ending: &Ending) -> bool {
    match (ending.outcome.as_str(), ending.cause.as_str()) {
        ("discarded", "too_short") => file.millis < start.min_ms,
        ("failed", "file_gone") | ("parked", "not_collected") => file.lost,
        // Its events went with a broker, its file with whoever cleans the folder: nobody has anything of it.
        ("failed", "never_started" | "call_gone") => file.lost && struck(evidence, takes_events),
        _ => false,
    }
}

/// Whether each event of a recording that Kazoo began by itself was lost, or may have gone with a broker: then nobody knows of it.
pub fn is_unheard_of(evidence: &Evidence, start: &Start) -> bool {
    let Some(events) = start.kazoos else { return false };
    let went = |at: Option<Instant>| at.is_some_and(|at| broker_was_away(evidence, at));
    let ended = start.ended_at.or(Some(start.over_at));
    (events.start_lost || went(start.asked_at)) && (events.stop_lost || went(ended))
}

/// What was told of a recording that was not kept, and must be so.
pub fn told(evidence: &Evidence, start: &Start, ending: &Ending, reopened: bool, say: &mut impl FnMut(String)) {
    // As far as could be known then.
    let unknown = |file: &File| accounts_for(evidence, start, file, ending);
    let recorded = !start.files.iter().all(unknown) && !reopened;
    let over = ending.at + AFTERWARDS >= start.over_at;
    let true_ = match (ending.outcome.as_str(), ending.cause.as_str()) {
        ("discarded", "too_short") | ("failed", "file_gone") | ("parked", "not_collected") => start
            .files
            .iter()
            .any(|file| accounts_for(evidence, start, file, ending)),
        // The other audio of its start is judged by itself: all that the switch wrote must be kept.
        ("discarded", "already_kept") => {
            let mut others = evidence.endings.iter().filter(|other| other.label == ending.label);
            ending.continues.is_some() && others.any(|other| other.is_kept() && other.key != ending.key)
        }
        ("discarded", "never_triggered") => {
            let due = start.triggered && !may_be_lost(evidence, start);
            !recorded && over && !due && came_to_nothing(evidence, start)
        }
        // A call's control queue goes with its broker.
        ("failed", "call_gone" | "never_started") => {
            !recorded && (over || may_be_lost(evidence, start)) && came_to_nothing(evidence, start)
        }
        ("failed", "start_refused") => !recorded && became(start, CommandFate::Refused),
        _ => false,
    };
    if !true_ {
        say(format!(
            "it is said to be {} ({}), and is not: recorded {recorded}, its call over {over}",
            ending.outcome, ending.cause
        ));
    }
}

/// Whether its command may have come to nothing: its own was ignored by the switch or refused, or may have gone with a broker.
fn may_be_lost(evidence: &Evidence, start: &Start) -> bool {
    became(start, CommandFate::Ignored)
        || became(start, CommandFate::Refused)
        || start.asked_at.is_some_and(|at| broker_was_away(evidence, at))
}

fn became(start: &Start, fate: CommandFate) -> bool {
    start.commands.iter().any(|command| command.fate == fate)
}

/// Whether it is explained that the switch has nothing of a start. One that nothing kept from being commanded was commanded before it was
/// answered: a worker that says at the call's end that it never started, and never sent anything, has lost it.
fn came_to_nothing(evidence: &Evidence, start: &Start) -> bool {
    let Some(asked_at) = start.asked_at else { return true };
    let explained = |command: &Command| match command.fate {
        CommandFate::Ignored | CommandFate::Refused | CommandFate::TooLate => true,
        // It came after the moment that it was to wait for, or that never came.
        CommandFate::Taken => start
            .triggered_at
            .is_none_or(|at| at <= command.at || at > start.over_at),
    };
    let hindered = hindered(evidence, asked_at, start.over_at);
    match start.commands.as_slice() {
        [] => hindered,
        commands => hindered || commands.iter().all(explained),
    }
}

/// Whether something struck, while the call went on, that keeps workers from what they do at once.
pub fn hindered(evidence: &Evidence, from: Instant, until: Instant) -> bool {
    let hinders = |what: What| {
        matches!(
            what,
            What::Kill(_)
                | What::Renew(_)
                | What::Upgrade(_)
                | What::Freeze(_)
                | What::RestartBroker { .. }
                | What::CutBroker
        )
    };
    let mut struck = evidence.struck.iter().filter(|struck| hinders(struck.what));
    struck.any(|struck| struck.from <= until && from <= struck.until + ON_THEIR_WAY)
}

/// Whether the ledger failed in that time, or a moment before.
pub fn ledger_failed(evidence: &Evidence, from: Instant, until: Instant) -> bool {
    let fails = |what: What| {
        matches!(
            what,
            What::Database(_) | What::OddDatabase(_) | What::StopDatabase { .. }
        )
    };
    let mut struck = evidence.struck.iter().filter(|struck| fails(struck.what));
    struck.any(|struck| struck.from <= until && from <= struck.until + ON_THEIR_WAY)
}

/// Whether an operator changed where recordings go, at that time or a moment before: a worker looks at the settings at intervals.
pub fn settings_changed(evidence: &Evidence, at: Instant) -> bool {
    let mut changes = evidence
        .struck
        .iter()
        .filter(|struck| matches!(struck.what, What::UseThirdParty));
    changes.any(|change| {
        [change.from, change.until]
            .into_iter()
            .any(|then| then <= at && at <= then + SETTINGS_TAKE)
    })
}

/// Whether events may have gone with it.
fn takes_events(what: What) -> bool {
    matches!(what, What::RestartBroker { .. } | What::CutBroker)
}

fn struck(evidence: &Evidence, is: impl Fn(What) -> bool) -> bool {
    evidence.struck.iter().any(|struck| is(struck.what))
}

/// Whether a broker went, with all that it had of Kazoo's, at that time or a moment later, or was back a moment before. Kazoo's exchanges are not
/// durable, so that the workers' bindings are gone until the workers are back.
pub fn broker_was_away(evidence: &Evidence, at: Instant) -> bool {
    let mut restarts = evidence
        .struck
        .iter()
        .filter(|struck| matches!(struck.what, What::RestartBroker { .. }));
    restarts.any(|restart| at + ON_THEIR_WAY >= restart.from && at <= restart.until + ON_THEIR_WAY)
}
