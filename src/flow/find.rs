//! Finds the recording that a stop, mask or unmask is for. It is the newest running one of its call, or the one of its conversation that
//! moved to its leg. The memory of the workers knows it, or the ledger does. Only the ledger can say that there is none.

use std::collections::HashSet;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::ledger::{Address, LedgerError, Record};
use crate::recording::identity::Key;
use crate::recording::names;

use super::journal;
use super::registry::Open;
use super::start::Job;

/// Time limit for the ledger to find a recording that no worker remembers.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Time limit for the ledger to say that a remembered recording is over. Without an answer the recording counts as running.
const SECOND_OPINION: Duration = Duration::from_millis(250);

/// How many recordings of a call whose end was missed are skipped, one after the other.
const STALE: usize = 4;

/// What is taken out of the journal is in the ledger within that, as a rule.
const BEING_WRITTEN: Duration = Duration::from_millis(150);

/// What an action is for.
#[derive(Debug)]
pub(super) enum Found {
    /// On the leg where it began, as far as is known.
    Here(Open),
    /// It moved to the action's leg.
    Moved(Open),
    /// It begins at every bridge, and there is no bridge now. The action applies to the next part.
    Between(Open),
    /// This action was carried out already. `unwritten` has the facts of it that the ledger may lack.
    Done {
        media_id: String,
        unwritten: Option<(Open, Vec<Fact>)>,
    },
}

/// The result of a search.
#[derive(Debug)]
pub(super) enum Look {
    Found(Box<Found>),
    /// The ledger has none.
    None,
    /// The ledger did not answer, and why.
    Untold(String),
}

/// Searches what all workers remember, else the ledger: recordings of the action's own call, and recordings that are known to have moved to
/// its leg.
pub(super) async fn look(job: &Job<'_>) -> Look {
    let mut remembered = remembered(job);
    for _ in 0..STALE {
        let Some(Found::Here(open) | Found::Moved(open)) = &remembered else {
            break;
        };
        // The notice of a newer one's start may have been lost: this worker's connection to the broker was away.
        let (written, is_newest) = tokio::join!(written_of(job, open), learn_newer(job, open));
        match written {
            // The notice of its end was lost, and an older recording may run.
            Written::Over => job.parts.registry.heard_of_end(open.key),
            // The same for a stop whose worker may be dead. Its end may not be written yet.
            Written::Stopping => job.parts.registry.stopping(open.key),
            Written::Nothing if is_newest => break,
            Written::Nothing => {}
        }
        remembered = self::remembered(job);
    }
    if job.doubtful && !matches!(remembered, Some(Found::Done { .. })) {
        // Another worker can have carried the action out, on a recording that is over.
        match told(job, in_ledger(job)).await {
            Ok(before) => {
                let done = |record: &Record| done_in_ledger(job, &record.entry);
                remembered = before
                    .iter()
                    .find_map(done)
                    .or_else(|| newer(job, before, remembered.as_ref()))
                    .or(remembered);
            }
            // The action may have been for a newer recording, which no worker remembers.
            Err(why) if job.repeated => return Look::Untold(why),
            Err(_) => {}
        }
    }
    if let Some(found) = remembered {
        return Look::Found(Box::new(found));
    }
    let mut records = match told(job, in_ledger(job)).await {
        Ok(records) => records,
        Err(why) => return Look::Untold(why),
    };
    if !job.waited && records.iter().any(|record| is_to_be_controlled(job, &record.entry)) {
        if journal::has_more(job.parts).await {
            // A newer one's start may be among them.
            return Look::Untold(journal::WAITING.to_owned());
        }
        // Or it has just been taken out of there, and is being written.
        tokio::time::sleep(BEING_WRITTEN).await;
        records = match told(job, in_ledger(job)).await {
            Ok(records) => records,
            Err(why) => return Look::Untold(why),
        };
    }
    if let Some(done) = records.iter().find_map(|record| done_in_ledger(job, &record.entry)) {
        return Look::Found(Box::new(done));
    }
    let registry = &job.parts.registry;
    let mut newest: Option<Open> = None;
    for record in records {
        // What was asked of it a moment ago may be known here, and not be written yet.
        let entry = registry.completed(record.entry);
        if !is_to_be_controlled(job, &entry) || registry.is_stopping(entry.key) {
            continue;
        }
        let Some(open) = Open::of(&entry) else { continue };
        // All of them: the next stop is for the one before.
        registry.open(open.clone());
        registry.remember(&entry);
        if newest.as_ref().is_none_or(|newest| newest.asked_at < open.asked_at) {
            newest = Some(open);
        }
    }
    newest.map_or(Look::None, |open| Look::Found(Box::new(Found::Here(open))))
}

/// The recording that was the newest one when the action came, where `remembered` is an older one. The worker that carried the action out may
/// have died before it wrote that down: the switch has obeyed, the newest is over or being stopped, and the one before must run on.
fn newer(job: &Job<'_>, before: Vec<Record>, remembered: Option<&Found>) -> Option<Found> {
    let at = began_by(job)?;
    let (Found::Here(older) | Found::Moved(older)) = remembered? else {
        return None;
    };
    let registry = &job.parts.registry;
    let entries = before.into_iter().map(|record| registry.completed(record.entry));
    let newest = entries
        .filter(|entry| !is_later(job, entry) && asked_at(entry) > Some(older.asked_at))
        .max_by_key(asked_at)?;
    // One that begins at every bridge is stopped between two bridges too. And another action's stop explains why it is over.
    let begins_again = newest.order().is_some_and(|order| order.begins_at_bridges());
    if newest.key == older.key || begins_again || newest.stop_asked_at().is_some() {
        return None;
    }
    let open = Open::of(&newest)?;
    let was_closed = registry.was_closed(newest.key);
    if newest.is_open() && !was_closed {
        return Some(Found::Here(open));
    }
    let heard_end = newest.facts().iter().find_map(|fact| match fact.what {
        What::Ended(_) => Some(fact.at),
        _ => None,
    });
    // An end that is not written yet was heard a moment ago.
    let ended_since = heard_end.is_none_or(|heard| heard >= at);
    (ended_since && (was_closed || heard_end.is_some())).then_some(Found::Done {
        media_id: open.media_id,
        unwritten: None,
    })
}

/// The same, and in addition what the ledger knows of the action's conversation. This finds a recording whose move no event reported: the
/// leg on which it began is gone, and it runs all the same.
pub(super) async fn look_further(job: &Job<'_>) -> Look {
    let look = look(job).await;
    let is_final = match &look {
        Look::Found(_) => true,
        Look::Untold(why) => is_final(job, why),
        Look::None => false,
    };
    if is_final {
        return look;
    }
    let Some(interaction) = conversation(job) else {
        return match look {
            Look::None => between(job).await,
            untold => untold,
        };
    };
    let mut entries = of_conversation(job, interaction);
    let mut untold = match look {
        Look::Untold(why) => Some(why),
        _ => None,
    };
    match told(job, job.parts.ledger.of_interaction(interaction)).await {
        Ok(records) => {
            if let Some(done) = records.iter().find_map(|record| done_in_ledger(job, &record.entry)) {
                return Look::Found(Box::new(done));
            }
            let complete = |record: Record| job.parts.registry.complete(record.entry);
            entries.extend(records.into_iter().map(complete));
        }
        Err(why) => untold = Some(why),
    }
    // The newest first, as everywhere.
    entries.sort_by_key(|entry| std::cmp::Reverse(asked_at(entry)));
    for entry in entries {
        if !is_to_be_controlled(job, &entry) {
            continue;
        }
        let carrier = entry.carried_by();
        let is_here = carrier.call_id == job.action.call_id;
        let its_leg = job.parts.replaced.current(&carrier.call_id);
        let is_its_own = || its_leg == job.action.call_id;
        if (is_here || !is_its_own() && job.parts.is_alive(&its_leg).await == Some(false))
            && let Some(open) = Open::of(&entry)
        {
            if !job.waited && journal::has_more(job.parts).await {
                return Look::Untold(journal::WAITING.to_owned());
            }
            job.parts.registry.remember(&entry);
            let is_where_it_began = is_here && !carrier.moved;
            return Look::Found(Box::new(match is_where_it_began {
                true => Found::Here(open),
                false => Found::Moved(open),
            }));
        }
    }
    match untold {
        Some(why) => Look::Untold(why),
        None => between(job).await,
    }
}

/// Whether that the ledger does not tell is the last word for now: what memory knows may be an older recording.
pub(super) fn is_final(job: &Job<'_>, why: &str) -> bool {
    job.repeated || why == journal::WAITING
}

/// The newest recording of the call that begins at every bridge, where none of them runs now.
async fn between(job: &Job<'_>) -> Look {
    let mut records = match told(job, in_ledger(job)).await {
        Ok(records) => records,
        Err(why) => return Look::Untold(why),
    };
    records.retain(|record| {
        let entry = &record.entry;
        let begins_again = entry.order().is_some_and(|order| order.begins_at_bridges());
        begins_again && !entry.is_open() && entry.ended().is_some() && !is_later(job, entry)
    });
    let newest = records.iter().max_by_key(|record| asked_at(&record.entry));
    // One that is stopped begins no more.
    let newest = newest.filter(|newest| newest.entry.stop_asked_at().is_none());
    let open = newest.and_then(|newest| Open::of(&newest.entry));
    open.map_or(Look::None, |open| Look::Found(Box::new(Found::Between(open))))
}

/// What the ledger has of the action's call, under its own id or an earlier one.
pub(super) async fn in_ledger(job: &Job<'_>) -> Result<Vec<Record>, LedgerError> {
    let (ledger, call_id) = (&job.parts.ledger, &job.action.call_id);
    // The view by what stays when the call's id is replaced has open ones alone; the ids have those too that are over.
    let mut records = ledger.of_call(call_id).await?;
    if let Some(fetch_id) = job.action.call.fetch_id.as_deref() {
        let of_fetch = ledger.of_fetch(fetch_id).await?;
        let known: HashSet<Key> = records.iter().map(|record| record.entry.key).collect();
        records.extend(of_fetch.into_iter().filter(|record| !known.contains(&record.entry.key)));
    }
    Ok(records)
}

/// Searches only what all workers remember.
pub(super) fn remembered(job: &Job<'_>) -> Option<Found> {
    let (registry, action) = (&job.parts.registry, job.action);
    let fetch_id = action.call.fetch_id.as_deref();
    if let Some((key, media_id)) = action.msg_id.as_deref().and_then(|id| registry.done_on(id)) {
        let entry = registry.entry(key);
        let unwritten = entry.and_then(|entry| Some((Open::of(&entry)?, of_action(job, &entry))));
        return Some(Found::Done { media_id, unwritten });
    }
    // Another worker carried the action out, and sent a notice of it.
    let told = recordings_of(job).into_iter().find_map(|open| {
        let facts = registry.entry(open.key).map(|entry| of_action(job, &entry))?;
        (!facts.is_empty()).then_some((open, facts))
    });
    if let Some((open, facts)) = told {
        return Some(Found::Done {
            media_id: open.media_id.clone(),
            unwritten: Some((open, facts)),
        });
    }
    if let Some(open) = registry.newest(fetch_id, &action.call_id, began_by(job)) {
        return Some(Found::Here(open));
    }
    let mut entries = of_conversation(job, conversation(job)?);
    entries.retain(|entry| is_to_be_controlled(job, entry) && entry.carried_by().call_id == action.call_id);
    let newest = entries.iter().max_by_key(|entry| asked_at(entry))?;
    Open::of(newest).map(Found::Moved)
}

/// The recordings of the action's own call that count as open in this worker's memory, including those that are being stopped.
fn recordings_of(job: &Job<'_>) -> Vec<Open> {
    let action = job.action;
    job.parts
        .registry
        .of_call(action.call.fetch_id.as_deref(), &action.call_id)
}

/// The name of another recorder's recording of the call. The action is for that one if no recording of ours runs on the call.
pub(super) fn stranger<'a>(job: &'a Job<'_>) -> Option<&'a str> {
    let name = job.action.call.media_name.as_deref();
    // Kazoo 4 writes the name of our own file there. Kazoo's own names have the same form.
    let is_ours = |name: &str| names::key_of(name).is_some_and(|key| job.parts.registry.is_commanded(key));
    name.filter(|name| names::is_plain(name) && !is_ours(name))
}

fn conversation<'a>(job: &'a Job<'_>) -> Option<&'a str> {
    let interaction = job.action.call.parties.interaction_id.as_deref();
    interaction.filter(|_| stranger(job).is_none())
}

async fn told(
    job: &Job<'_>,
    looking: impl Future<Output = Result<Vec<Record>, LedgerError>>,
) -> Result<Vec<Record>, String> {
    if !job.parts.ledger.is_up() {
        return Err("the ledger is down".to_owned());
    }
    match tokio::time::timeout(KNOWLEDGE, looking).await {
        Ok(records) => records.map_err(|error| error.to_string()),
        Err(_) => Err(LedgerError::Late.to_string()),
    }
}

/// What the ledger knows of a recording that counts as open in this worker's memory.
enum Written {
    Over,
    /// Another action asked for its end.
    Stopping,
    /// Nothing else, or the ledger does not answer in time.
    Nothing,
}

async fn written_of(job: &Job<'_>, open: &Open) -> Written {
    if !job.parts.ledger.is_up() {
        return Written::Nothing;
    }
    let address = Address {
        month: open.asked_at.month(),
        call_id: open.call_id.clone(),
        key: open.key,
    };
    let loading = tokio::time::timeout(SECOND_OPINION, job.parts.ledger.load(&address)).await;
    let Ok(Ok(Some(record))) = loading else {
        return Written::Nothing;
    };
    let entry = &record.entry;
    if !entry.is_open() {
        Written::Over
    } else if entry.stop_asked_at().is_some() && of_action(job, entry).is_empty() {
        Written::Stopping
    } else {
        Written::Nothing
    }
}

/// Remembers the call's recordings that are open according to the ledger, and that this worker never heard of. `true` when none of them is
/// newer than `open`, or the ledger does not answer in time.
async fn learn_newer(job: &Job<'_>, open: &Open) -> bool {
    if !job.parts.ledger.is_up() {
        return true;
    }
    let Ok(Ok(records)) = tokio::time::timeout(SECOND_OPINION, in_ledger(job)).await else {
        return true;
    };
    let mut is_newest = true;
    for record in records {
        if let Some(unheard) = remember_unheard(job, &record.entry) {
            is_newest &= unheard.asked_at <= open.asked_at || !is_to_be_controlled(job, &record.entry);
        }
    }
    is_newest
}

/// Remembers a recording that is open according to the ledger. `None` for one that this worker has heard of.
pub(super) fn remember_unheard(job: &Job<'_>, entry: &Entry) -> Option<Open> {
    let registry = &job.parts.registry;
    if !entry.is_open() || registry.is_open(entry.key) || registry.was_closed(entry.key) {
        return None;
    }
    let unheard = Open::of(entry)?;
    registry.open(unheard.clone());
    registry.remember(entry);
    Some(unheard)
}

/// What this worker remembers of the recordings of a conversation.
fn of_conversation(job: &Job<'_>, interaction: &str) -> Vec<Entry> {
    let registry = &job.parts.registry;
    let open = registry.of_interaction(interaction);
    let entries = open.iter().filter_map(|open| registry.entry(open.key));
    entries.filter(|entry| entry.order().is_some()).collect()
}

fn asked_at(entry: &Entry) -> Option<Moment> {
    entry.order().map(|order| order.asked_at)
}

/// A repeat must not reach a recording that was ordered after it, nor must a search after the call has continued. The first search has no
/// such limit, because the clocks of two hosts may differ.
fn began_by(job: &Job<'_>) -> Option<Moment> {
    job.at.filter(|_| job.doubtful)
}

fn is_to_be_controlled(job: &Job<'_>, entry: &Entry) -> bool {
    entry.is_open() && entry.stop_asked_at().is_none() && !is_later(job, entry)
}

fn is_later(job: &Job<'_>, entry: &Entry) -> bool {
    began_by(job).zip(asked_at(entry)).is_some_and(|(at, asked)| asked > at)
}

/// The facts of exactly this action in an entry.
fn of_action(job: &Job<'_>, entry: &Entry) -> Vec<Fact> {
    let Some(id) = job.action.msg_id.as_deref() else {
        return Vec::new();
    };
    let of_it = |fact: &&Fact| match &fact.what {
        What::StopAsked { action, .. } | What::MaskAsked { action, .. } => action == id,
        _ => false,
    };
    entry.facts().iter().filter(of_it).cloned().collect()
}

fn done_in_ledger(job: &Job<'_>, entry: &Entry) -> Option<Found> {
    let media_id = entry.order().map(|order| order.media_id.to_string())?;
    (!of_action(job, entry).is_empty()).then_some(Found::Done {
        media_id,
        unwritten: None,
    })
}
