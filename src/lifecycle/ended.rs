//! Decisions about a recording that has ended: where its audio goes.

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{CollectFailure, DeliveryFailure, Destination, Fact, What};
use crate::faults::{Fault, is_back};
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::ending::Told;

use super::schedule::{paused, wait_or};
use super::{Answer, Case, Effect, Hand, Next, Policy, source};

/// How often a switch must say that it cannot open a file whose reported length is too short. Then the file counts as deleted by the
/// switch.
const SHORT_IS_GONE: usize = 3;

/// After this many postponements of the decision, the audio is collected from the switch.
const UNDECIDED_IS_LONG: usize = 3;

/// What follows once the end is known.
pub(super) fn follows(case: &Case, now: Moment, policy: &Policy) -> Option<What> {
    let entry = &case.entry;
    let order = entry.order()?;
    let conclude = |outcome, cause| Some(What::Concluded { outcome, cause });
    let park = |cause| Some(entry.park(cause));
    if entry.account_id().is_none() {
        return park(Cause::NoAccount);
    }
    if source(entry).is_none() {
        return conclude(Outcome::Failed, Cause::FileGone);
    }
    if entry.may_be_shared() && (entry.held().is_some() || !policy.hold) {
        return park(Cause::SharedName);
    }
    let min_ms = u64::from(order.min_sec) * 1000;
    let is_cut = entry.told_end().is_some_and(Told::is_write_failure);
    let told_short = min_ms > 0 && !is_cut && entry.told_ms().is_some_and(|ms| ms < min_ms);
    if min_ms > 0 && case.hand == Hand::Received {
        // The length that the switch reported is a channel's variable, and may belong to another recording: the audio alone decides. Audio
        // whose length cannot be counted is kept.
        let counted = |audio: &Audio| audio.duration_ms.or((audio.size == 0).then_some(0));
        // A file that is shorter than the switch reported has lost audio, for example on a full disk: that is kept, with its finding.
        let is_contradicted = is_cut || entry.told_ms().is_some() && !told_short;
        if !is_contradicted && entry.last_audio().and_then(counted).is_some_and(|ms| ms < min_ms) {
            return conclude(Outcome::Discarded, Cause::TooShort);
        }
    }
    let missing = entry
        .failures()
        .filter(|fact| {
            matches!(
                fact.what,
                What::CollectFailed {
                    failure: CollectFailure::Missing,
                    ..
                }
            )
        })
        .count();
    if missing >= SHORT_IS_GONE && is_back(Fault::MissingIsGone) {
        return conclude(Outcome::Failed, Cause::FileGone);
    }
    if missing >= SHORT_IS_GONE && told_short {
        // Switches that enforce the minimum themselves delete files that are shorter.
        return conclude(Outcome::Discarded, Cause::TooShort);
    }
    // A file may be unreadable only for now. The switch reports the same error for a missing file, for a lack of descriptors, and for a
    // disk that does not answer. So this error uses the whole retry schedule too.
    // Before the recording is parked, its audio goes into the hold, if there is one: the switch's disk is not ours.
    let in_hand = matches!(case.hand, Hand::Received | Hand::Tried);
    if in_hand && policy.hold && entry.held().is_none() {
        return None;
    }
    if let Some(cause) = entry.failures().find_map(parks) {
        return park(cause);
    }
    let decided = entry.decided();
    let worn_out = |last: Option<&What>| match (decided, last) {
        (None, _) => Cause::Undecided,
        (_, Some(What::CollectFailed { .. })) => Cause::NotCollected,
        (Some((destination, _)), last) => {
            let said = match last {
                Some(What::DeliveryFailed { failure, .. }) => failure.wears_out(),
                _ => None,
            };
            said.unwrap_or(destination.describe().worn_out)
        }
    };
    let last = || entry.failures().next_back().map(|fact| &fact.what);
    let attempts = policy.attempts(decided.and_then(|(_, attempts)| attempts));
    if entry.failures().count() >= attempts {
        return park(worn_out(last()));
    }
    // No attempt could be made in all that time. One postponement alone may be another worker's, from just before an operator's retry. A
    // recording that began again after its end was postponed because the switch recorded: its time begins with its last end.
    let ended = entry.last_end_at();
    let mut put_off = entry
        .postponed()
        .filter(|(at, _)| ended.is_none_or(|ended| *at >= ended));
    let since = put_off.next().map(|(at, _)| at)?;
    let is_again = put_off.next().is_some();
    (is_again && now.since(since) >= policy.whole()).then(|| entry.park(worn_out(last())))
}

/// The cause for which this failure parks a recording at once.
fn parks(fact: &Fact) -> Option<Cause> {
    match fact.what {
        What::DeliveryFailed { failure, .. } => failure.parks(),
        _ => None,
    }
}

/// What is to be done once the end is known, and nothing is concluded.
pub(super) fn next(case: &Case, now: Moment, policy: &Policy) -> Next {
    let entry = &case.entry;
    let Some((node, path)) = source(entry) else {
        return Next::Idle;
    };
    let attempt = entry.next_attempt();
    let collect = || Effect::Collect {
        attempt,
        node: node.to_owned(),
        path: path.to_owned(),
    };
    if entry.may_be_shared() {
        // Its audio goes into the hold: otherwise the switch would append every later call of that name to its file.
        return match case.hand {
            Hand::Received | Hand::Tried if entry.held().is_none() => Next::Do(Effect::Hold),
            Hand::Received | Hand::Tried => Next::Do(Effect::Answer(answer(entry))),
            Hand::HoldRefused => Next::Do(Effect::Answer(Answer::Keep)),
            Hand::Empty => rested(entry, now, policy, collect),
        };
    }
    let Some(destination) = entry.destination() else {
        let held = entry.held().is_some();
        return match case.hand {
            // The destination may stay undecided for long, and the switch's disk is not ours.
            Hand::Received | Hand::Tried if policy.hold && !held => Next::Do(Effect::Hold),
            Hand::Received | Hand::Tried if entry.audio_is_safe() => Next::Do(Effect::Answer(Answer::Release)),
            Hand::Received | Hand::Tried | Hand::HoldRefused => Next::Do(Effect::Answer(Answer::Keep)),
            Hand::Empty => rested(entry, now, policy, || {
                let open_for_long = entry.postponed().count() >= UNDECIDED_IS_LONG;
                // If a worker could not collect or keep the audio once, that is left for later.
                let tried = entry.failures().next().is_some();
                if open_for_long && policy.hold && !held && !tried {
                    collect()
                } else {
                    Effect::Decide
                }
            }),
        };
    };
    if entry.uploaded().is_some() {
        // The audio is at its destination; only its document is left.
        if case.hand != Hand::Empty {
            return Next::Do(Effect::Answer(answer(entry)));
        }
        return rested(entry, now, policy, || Effect::Complete { attempt, destination });
    }
    match case.hand {
        Hand::Received => Next::Do(deliver(entry, attempt, destination)),
        Hand::Tried => {
            let rests = entry.failures().next_back().is_some_and(|fact| parks(fact).is_some());
            // The last attempt has failed, and what follows is to be parked: the switch's disk is not ours.
            let attempts = policy.attempts(entry.decided().and_then(|(_, attempts)| attempts));
            let is_spent = entry.failures().count() >= attempts;
            let keep = policy.hold && (destination.is_held() || rests || is_spent);
            let lost = entry.failures().next_back().is_some_and(|fact| {
                matches!(
                    fact.what,
                    What::DeliveryFailed {
                        failure: DeliveryFailure::Source,
                        ..
                    }
                )
            });
            match entry.held() {
                Some(_) => Next::Do(Effect::Answer(answer(entry))),
                // Our copy cannot be read; the switch's copy still can be.
                None if lost => Next::Do(Effect::Answer(Answer::Keep)),
                None if keep => Next::Do(Effect::Hold),
                None => Next::Do(Effect::Answer(Answer::Keep)),
            }
        }
        Hand::HoldRefused => Next::Do(Effect::Answer(Answer::Keep)),
        Hand::Empty if entry.held().is_some() => rested(entry, now, policy, || deliver(entry, attempt, destination)),
        Hand::Empty => rested(entry, now, policy, collect),
    }
}

/// The answer to the switch for the audio in flight.
pub(super) fn answer(entry: &Entry) -> Answer {
    // A part that began during this upload is in the same file.
    if entry.audio_is_safe() && !entry.goes_on() {
        Answer::Release
    } else {
        Answer::Keep
    }
}

/// The next step of a delivery. If the document comes first, as in Kazoo, the worker writes and announces it before the audio is sent.
fn deliver(entry: &Entry, attempt: u32, destination: Destination) -> Effect {
    if destination.documents_first() {
        if entry.documented().is_none() {
            return Effect::Document { attempt, destination };
        }
        if let Some(announcement) = entry.open_announcements().next() {
            return Effect::Announce(announcement);
        }
    }
    Effect::Deliver { attempt, destination }
}

fn rested(entry: &Entry, now: Moment, policy: &Policy, act: impl FnOnce() -> Effect) -> Next {
    wait_or(paused(entry, policy), now, || Next::Do(act()))
}
