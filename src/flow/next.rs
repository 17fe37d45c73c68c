//! Every decision about a recording, pure: what is known and what just happened in, what is to be done out.
//!
//! What is to be done follows from the entry alone, and from whether this worker has the audio in hand. So it does not matter which worker
//! goes on with a recording, or how often it was begun.

use std::time::Duration;

use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Announcement, CollectFailure, DeliveryFailure, Destination, Fact, What};
use crate::entry::{Entry, Probe};
use crate::ingest::Answer;
use crate::kazoo::dialplan::{Control, Trigger};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::ending::Told;
use crate::recording::names;

mod ending;
mod running;

#[cfg(test)]
mod tests;

/// A recording in hand: its entry, and what only this worker has.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub entry: Entry,
    pub hand: Hand,
}

/// Whether this worker holds the audio of an upload that its switch awaits an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    Empty,
    Holding,
    /// Held, and a delivery from it failed.
    Tried,
    /// Held, and the hold would not take it.
    NotHeld,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Fact(What),
    /// An upload is in hand.
    Received(Audio),
    /// The upload in hand was answered.
    Answered(Answer),
    /// The hold did not take the audio in hand.
    NotHeld,
    /// What the ledger knows of it, of other workers too.
    Known(Box<Entry>),
    /// Time has passed.
    Due,
    /// Events may have been missed: the channel is to be looked for now.
    Doubt,
}

/// Something to be done. Harmless when done twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the start command.
    Command,
    /// Send the n-th command that stops the recording.
    Control { what: Control, n: u32 },
    /// Look for the call's channels.
    LookForChannel { n: u32 },
    /// Ask the switch for the file, and leave it there.
    Probe {
        n: u32,
        attempt: u32,
        node: String,
        path: String,
    },
    /// Ask the switch for the file.
    Collect { attempt: u32, node: String, path: String },
    /// Decide where the audio goes, from the configuration as it is now.
    Decide,
    /// Write the document that comes before the audio.
    Document { attempt: u32, destination: Destination },
    /// Bring the audio to its destination, from the hand or the hold.
    Deliver { attempt: u32, destination: Destination },
    /// Complete the document that came before the audio.
    Complete { attempt: u32, destination: Destination },
    /// Read back what a server with too few copies had taken.
    ReadBack { n: u32 },
    /// Write into the document what became known of stops and masks since it was written.
    Amend { n: u32 },
    /// Write into the document that came before the audio that the recording rests.
    Mark { n: u32, cause: Cause },
    /// Put the audio in hand into the hold.
    Hold,
    /// Take the audio out of the hold: it is not needed there any more.
    Unhold,
    /// Tell the switch what becomes of its file.
    Answer(Answer),
    /// Ask the switch once more for a file that it was never told to let go, and let it go if it is the one that is safe.
    Tidy { n: u32, node: String, path: String },
    /// Hand on what was told of parts that are not in this recording's audio.
    Continue,
    /// Make held audio that is not this recording's a recording of its own.
    Separate { name: String },
    /// Publish a notice.
    Announce(Announcement),
    /// Nothing is to be done before then.
    Wait { until: Moment },
}

/// What decisions depend on beside the recording.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Who we are, in facts.
    pub worker: String,
    /// Pauses after the first, second … failure; the last repeats.
    pub retry: Vec<Duration>,
    /// Pauses are varied by up to this share, in per cent.
    pub jitter: u8,
    /// After so many failures the recording is parked.
    pub max_attempts: u32,
    /// There is a hold.
    pub hold: bool,
    /// How long a recording waits after the hold did not take its audio.
    pub hold_pause: Duration,
    /// Pauses before the first, second … look at what a server with too few copies had taken; the last repeats.
    pub looks: Vec<Duration>,
    /// How long the switch has to confirm a start.
    pub start_timeout: Duration,
    /// How often the channel of a recording that runs is looked for.
    pub check_interval: Duration,
    /// How long a channel must be gone, and how long after its time limit a recording must be over, before its end is presumed.
    pub grace: Duration,
    /// Between two probes that must be equal.
    pub probe_gap: Duration,
    /// Pauses between stop commands.
    pub stop_repeats: Vec<Duration>,
    /// An operator is told of a stop that is not confirmed by then.
    pub stop_alarm: Duration,
}

/// Facts that follow from one input. What would follow from more of them comes with the next input: a decision must end.
const MOST_FOLLOW: usize = 256;

/// Takes in what happened, and says what is to be done next. An empty answer means: nothing, until something else happens.
pub fn next(case: &mut Case, input: Input, now: Moment, policy: &Policy) -> Vec<Effect> {
    let doubt = input == Input::Doubt;
    take(case, input, now, policy);
    for _ in 0..MOST_FOLLOW {
        let Some(what) = follows(case, now, policy) else { break };
        if !add(&mut case.entry, what, now, policy) {
            break;
        }
    }
    if doubt
        && case.entry.is_open()
        && case.entry.order().is_some()
        && left_alone(&case.entry, now, policy).is_none_or(|until| until <= now)
    {
        return vec![Effect::LookForChannel {
            n: case.entry.next_number("channel_seen"),
        }];
    }
    to_do(case, now, policy)
}

/// When something is to be done about an entry that nobody has in hand; `None`: not before something happens.
pub fn due(entry: &Entry, now: Moment, policy: &Policy) -> Option<Moment> {
    let mut case = Case {
        entry: entry.clone(),
        hand: Hand::Empty,
    };
    let effects = next(&mut case, Input::Due, now, policy);
    if case.entry != *entry {
        // What follows by now is to be written down, and told.
        return Some(now);
    }
    match effects.first() {
        Some(Effect::Wait { until }) => Some(*until),
        Some(_) => Some(now),
        None => None,
    }
}

fn add(entry: &mut Entry, what: What, now: Moment, policy: &Policy) -> bool {
    entry.add(Fact {
        at: now,
        by: policy.worker.clone(),
        what,
    })
}

fn take(case: &mut Case, input: Input, now: Moment, policy: &Policy) {
    let what = match input {
        Input::Fact(mut what) => {
            if let What::Delivered(delivery) = &mut what {
                delivery.again = case.entry.vain_looks();
            }
            let not_now = matches!(what, What::DeliveryFailed { .. } | What::Postponed { .. });
            if not_now && case.hand == Hand::Holding {
                case.hand = Hand::Tried;
            }
            what
        }
        Input::Received(audio) => {
            case.hand = Hand::Holding;
            What::Collected(case.entry.judged(audio))
        }
        Input::Answered(answer) => {
            case.hand = Hand::Empty;
            if answer == Answer::Keep {
                return;
            }
            What::Released {
                n: case.entry.next_number("released"),
            }
        }
        Input::NotHeld => {
            case.hand = Hand::NotHeld;
            // The switch keeps its file. Asking for it again at once would only bring it here once more.
            What::Postponed {
                n: case.entry.next_number("postponed"),
                until: now.plus(policy.hold_pause),
                why: "the hold does not take the audio".into(),
            }
        }
        Input::Known(known) => {
            case.entry = case.entry.clone().merge(*known);
            return;
        }
        Input::Due | Input::Doubt => return,
    };
    add(&mut case.entry, what, now, policy);
}

/// A fact that follows from the others.
fn follows(case: &Case, now: Moment, policy: &Policy) -> Option<What> {
    let entry = &case.entry;
    if let Some(unheeded) = entry.unheeded() {
        return Some(unheeded);
    }
    if entry.outcome().is_some() {
        return None;
    }
    if entry.unreadable().next().is_some() {
        return None;
    }
    if entry.parked().is_some() {
        return ending::woken(entry);
    }
    if entry.ended().is_some() {
        if entry.panics().count() >= policy.attempts(None) {
            // Its audio is kept where it is; a recording that runs goes on, for its end is still to be heard.
            return Some(What::Parked {
                n: entry.next_rest(),
                cause: Cause::ProgramFault,
            });
        }
        ending::follows(case, now, policy)
    } else {
        running::follows(entry, now, policy)
    }
}

/// The switch that has the file, and its path there.
fn source(entry: &Entry) -> Option<(&str, &str)> {
    let told: Vec<&Told> = [entry.ended(), entry.latest_start()].into_iter().flatten().collect();
    let node = told.iter().find_map(|told| told.node.as_deref());
    // Facts come from others too, by the ledger, the journal and notices: each path is looked at again before it is used.
    let mut paths = told.iter().filter_map(|told| told.path.as_deref());
    let path = paths.find(|path| is_file_of(entry, path));
    // A switch that tells of its recording, and not where, has it where it was told to.
    node.zip(path.or_else(|| ordered_path(entry))).or_else(|| guess(entry))
}

/// Where the file should be, if it was made and nobody told.
fn guess(entry: &Entry) -> Option<(&str, &str)> {
    let command = entry.order()?.command.as_ref()?;
    command.node.as_deref().zip(ordered_path(entry))
}

/// Where we had the file made.
fn ordered_path(entry: &Entry) -> Option<&str> {
    let command = entry.order()?.command.as_ref()?;
    Some(command.path.as_str()).filter(|path| is_file_of(entry, path))
}

fn is_file_of(entry: &Entry, path: &str) -> bool {
    entry
        .order()
        .is_some_and(|order| names::is_path_of(path, &order.file_name))
}

/// The account that the recording belongs to: the order's, else the one that an event named.
pub fn account(entry: &Entry) -> Option<&str> {
    let told = || {
        [entry.started(), entry.ended()]
            .into_iter()
            .flatten()
            .find_map(|told| told.account_id.as_deref())
    };
    entry
        .order()
        .and_then(|order| order.account_id.as_deref())
        .or_else(told)
}

fn to_do(case: &Case, now: Moment, policy: &Policy) -> Vec<Effect> {
    let entry = &case.entry;
    if case.hand == Hand::Empty
        && let Some(until) = left_alone(entry, now, policy).filter(|until| *until > now)
    {
        return vec![Effect::Wait { until }];
    }
    if let (Some(stray), Hand::Empty) = (entry.stray(), case.hand) {
        let name = stray.name.clone();
        return vec![Effect::Separate { name }];
    }
    if entry.outcome().is_some() || entry.parked().is_some() {
        return ending::settle(case, now, policy);
    }
    if entry.ended().is_some() {
        return ending::to_do(case, now, policy);
    }
    if case.hand != Hand::Empty {
        // The switch records again into the file that it has just brought.
        return vec![Effect::Answer(Answer::Keep)];
    }
    running::to_do(entry, now, policy)
}

/// Until when nothing at all is done about a recording: the program failed on it, or a newer version decided something that this one cannot
/// judge, and goes on with it.
fn left_alone(entry: &Entry, now: Moment, policy: &Policy) -> Option<Moment> {
    let mut facts = entry.facts().iter().rev();
    let parked = facts.find(|fact| matches!(fact.what, What::Parked { .. }));
    // Once it is parked for that its notices go out; where these panic too, they wait like all else.
    let panicked = entry.panics().next_back();
    let panicked = panicked.filter(|at| parked.is_none_or(|parked| *at > parked.at));
    let panicked = panicked.map(|at| at.plus(policy.pause(entry.panics().count(), None)));
    let newer = entry.unreadable().next().map(|_| now.plus(policy.check_interval));
    panicked.into_iter().chain(newer).max()
}

/// Until when the last failure, or the last postponement, lets the recording rest. Varied by the recording's key, so that a thousand that
/// failed together do not come back together.
fn paused(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let postponed = entry.postponed().next_back().map(|(_, until)| until);
    failed(entry, policy).into_iter().chain(postponed).max()
}

/// Until when the last failure lets the recording rest.
fn failed(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let last = entry.failures().next_back()?;
    let pause = policy.pause(
        entry.failures().count(),
        entry.decided().and_then(|(_, attempts)| attempts),
    );
    let bytes = entry.key.bytes();
    let spread = u64::from(bytes[0]) * 256 + u64::from(bytes[1]);
    let attempt = u64::from(last.what.attempt().unwrap_or(1));
    // From -jitter to +jitter per cent, turning with the attempts.
    let turn = (spread + attempt * 7919) % 2001;
    #[allow(clippy::cast_precision_loss)] // at most 2000
    let factor = 1.0 + (turn as f64 / 1000.0 - 1.0) * f64::from(policy.jitter) / 100.0;
    let asked = match last.what {
        What::DeliveryFailed {
            retry_after_s: Some(seconds),
            ..
        } => Duration::from_secs(seconds),
        _ => Duration::ZERO,
    };
    Some(last.at.plus(pause.mul_f64(factor.max(0.0)).max(asked)))
}

impl Policy {
    /// Attempts that a recording has before it rests.
    fn attempts(&self, said: Option<u32>) -> usize {
        let attempts = said.unwrap_or(self.max_attempts).clamp(1, MOST_ATTEMPTS);
        usize::try_from(attempts).unwrap_or(1)
    }

    /// The pause after failure number `failures`, counted from 1. Fewer, or more, attempts than the schedule has are spread over the same time.
    fn pause(&self, failures: usize, said: Option<u32>) -> Duration {
        let usual = |n: usize| {
            let last = self.retry.last().copied().unwrap_or(Duration::from_secs(5));
            self.retry.get(n).copied().unwrap_or(last)
        };
        let index = failures.saturating_sub(1);
        let Some(_) = said else { return usual(index) };
        // When the usual schedule has come as far as ours.
        let (mine, theirs) = (
            self.attempts(said).saturating_sub(1).max(1),
            self.attempts(None).saturating_sub(1),
        );
        let total = |steps: usize| (0..steps).map(usual).sum::<Duration>();
        let at = |n: usize| {
            let (whole, part) = (n * theirs / mine, n * theirs % mine);
            #[allow(clippy::cast_precision_loss)] // at most 28
            let share = part as f64 / mine as f64;
            total(whole) + usual(whole).mul_f64(share)
        };
        at(index + 1).saturating_sub(at(index))
    }

    /// The time that the schedule takes in all.
    fn whole(&self) -> Duration {
        (0..self.attempts(None)).map(|n| self.pause(n + 1, None)).sum()
    }
}

/// More would not all be kept in the entry.
const MOST_ATTEMPTS: u32 = 28;

/// The first of these moments that lies ahead, as a wait.
fn wait(candidates: impl IntoIterator<Item = Option<Moment>>, now: Moment) -> Vec<Effect> {
    let until = candidates.into_iter().flatten().map(|at| at.max(now)).min();
    until.map(|until| Effect::Wait { until }).into_iter().collect()
}
