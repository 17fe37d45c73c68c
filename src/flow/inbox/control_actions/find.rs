//! Finds the recording that a stop, mask or unmask is for. It is the newest running one of its call, or the one of its conversation that
//! moved to its leg. The memory of the workers knows it, or the ledger does. Only the ledger can say that there is none.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::ledger::{Address, Ledger, LedgerError, Record};
use crate::recording::ending::Told;
use crate::recording::identity::Key;
use crate::recording::names;

use crate::flow::effects::calls::Calls;
use crate::flow::inbox::request::Request;
use crate::flow::journal::{self, Journal};
use crate::flow::memory::{CallIds, Open, OpenRecordings};

/// Time limit for the ledger to find a recording that no worker remembers.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Time limit for the ledger to say that a remembered recording is over. Without an answer the recording counts as running.
const SECOND_OPINION: Duration = Duration::from_millis(250);

/// How many recordings of a call whose end was missed are skipped, one after the other.
const STALE: usize = 4;

/// What another worker takes out of the journal is in the ledger within that, as a rule.
const BEING_WRITTEN: Duration = Duration::from_millis(150);

const _: () = assert!(BEING_WRITTEN.as_millis() > 4 * journal::TOGETHER.as_millis());

/// An action that is sent this long before an end may have met it: the clocks of two hosts differ.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// What an action is for.
#[derive(Debug)]
pub(super) enum Found {
    /// On the leg where it began, as far as is known.
    Here(Open),
    /// It moved to the action's leg.
    Moved(Open),
    /// It begins at every bridge, and there is no bridge now. The action applies to the next part.
    Between(Open),
    /// A worker was about to send this action's command when it was killed, and the recording is over.
    Over(Open),
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

/// Finds the recording that an action is for.
pub struct Finder {
    pub memory: Arc<OpenRecordings>,
    pub ledger: Ledger,
    pub journal: Arc<Journal>,
    pub calls: Arc<Calls>,
    pub call_ids: Arc<CallIds>,
}

impl Finder {
    /// Searches what all workers remember, else the ledger: recordings of the action's own call, and recordings that are known to have moved to
    /// its leg.
    pub(super) async fn look(&self, request: &Request<'_>) -> Look {
        let mut remembered = self.remembered(request);
        for _ in 0..STALE {
            let Some(Found::Here(open) | Found::Moved(open)) = &remembered else {
                break;
            };
            // The notice of a newer one's start may have been lost: this worker's connection to the broker was away.
            let (written, is_newest) = tokio::join!(self.written_of(request, open), self.learn_newer(request, open));
            match written {
                // The notice of its end was lost, and an older recording may run.
                Written::Over(end) => self.memory.heard_of_end(open.key, end),
                // The same for a stop whose worker may be dead. Its end may not be written yet.
                Written::Stopping => self.memory.stopping(open.key),
                Written::Nothing if is_newest => break,
                Written::Nothing => {}
            }
            remembered = self.remembered(request);
        }
        if request.doubtful && !matches!(remembered, Some(Found::Done { .. })) {
            // Another worker can have carried the action out, on a recording that is over.
            match self.told(self.in_ledger(request)).await {
                Ok(before) => {
                    let done = |record: &Record| done_in_ledger(request, &record.entry);
                    remembered = before
                        .iter()
                        .find_map(done)
                        .or_else(|| self.begun(request, &before))
                        .or_else(|| self.newer(request, before, remembered.as_ref()))
                        .or(remembered);
                }
                // The action may have been for a newer recording, which no worker remembers.
                Err(why) if request.repeated => return Look::Untold(why),
                Err(_) => {}
            }
        }
        if let Some(found) = remembered {
            return Look::Found(Box::new(found));
        }
        let mut records = match self.told(self.in_ledger(request)).await {
            Ok(records) => records,
            Err(why) => return Look::Untold(why),
        };
        if !request.waited && records.iter().any(|record| is_to_be_controlled(request, &record.entry)) {
            if self.journal.may_have_more().await {
                // A newer one's start may be among them.
                return Look::Untold(journal::WAITING.to_owned());
            }
            // Or it has just been taken out of there, and is being written.
            tokio::time::sleep(BEING_WRITTEN).await;
            records = match self.told(self.in_ledger(request)).await {
                Ok(records) => records,
                Err(why) => return Look::Untold(why),
            };
        }
        if let Some(done) = records.iter().find_map(|record| done_in_ledger(request, &record.entry)) {
            return Look::Found(Box::new(done));
        }
        let memory = &self.memory;
        let mut newest: Option<Open> = None;
        for record in records {
            // What was asked of it a moment ago may be known here, and not be written yet.
            let entry = memory.completed(record.entry);
            if !is_to_be_controlled(request, &entry) || memory.is_stopping(entry.key) {
                continue;
            }
            let Some(open) = Open::of(&entry) else { continue };
            // All of them: the next stop is for the one before.
            memory.open(open.clone());
            memory.remember(&entry);
            if newest.as_ref().is_none_or(|newest| newest.asked_at < open.asked_at) {
                newest = Some(open);
            }
        }
        newest.map_or(Look::None, |open| Look::Found(Box::new(Found::Here(open))))
    }

    /// The same, and in addition what the ledger knows of the action's conversation. This finds a recording whose move no event reported: the
    /// leg on which it began is gone, and it runs all the same.
    pub(super) async fn look_further(&self, request: &Request<'_>) -> Look {
        let look = self.look(request).await;
        let is_final = match &look {
            Look::Found(_) => true,
            Look::Untold(why) => is_final(request, why),
            Look::None => false,
        };
        if is_final {
            return look;
        }
        let Some(interaction) = self.conversation(request) else {
            return match look {
                Look::None => self.between(request).await,
                untold => untold,
            };
        };
        let mut entries = self.of_conversation(interaction);
        let mut untold = match look {
            Look::Untold(why) => Some(why),
            _ => None,
        };
        match self.told(self.ledger.of_interaction(interaction)).await {
            Ok(records) => {
                if let Some(done) = records.iter().find_map(|record| done_in_ledger(request, &record.entry)) {
                    return Look::Found(Box::new(done));
                }
                let complete = |record: Record| self.memory.complete(record.entry);
                entries.extend(records.into_iter().map(complete));
            }
            Err(why) => untold = Some(why),
        }
        // The newest first, as everywhere.
        entries.sort_by_key(|entry| std::cmp::Reverse(asked_at(entry)));
        for entry in entries {
            if !is_to_be_controlled(request, &entry) {
                continue;
            }
            let carrier = entry.carried_by();
            let is_here = carrier.call_id == request.action.call_id;
            let its_leg = self.call_ids.current(&carrier.call_id);
            let is_its_own = || its_leg == request.action.call_id;
            if (is_here || !is_its_own() && self.calls.is_alive(&its_leg).await == Some(false))
                && let Some(open) = Open::of(&entry)
            {
                if !request.waited && self.journal.may_have_more().await {
                    return Look::Untold(journal::WAITING.to_owned());
                }
                self.memory.remember(&entry);
                let is_where_it_began = is_here && !carrier.moved;
                return Look::Found(Box::new(match is_where_it_began {
                    true => Found::Here(open),
                    false => Found::Moved(open),
                }));
            }
        }
        match untold {
            Some(why) => Look::Untold(why),
            None => self.between(request).await,
        }
    }

    /// The newest recording of the call that begins at every bridge, where none of them runs now.
    async fn between(&self, request: &Request<'_>) -> Look {
        let mut records = match self.told(self.in_ledger(request)).await {
            Ok(records) => records,
            Err(why) => return Look::Untold(why),
        };
        records.retain(|record| {
            let entry = &record.entry;
            let begins_again = entry.order().is_some_and(|order| order.begins_at_bridges());
            begins_again && !entry.is_open() && entry.ended().is_some() && !is_later(request, entry)
        });
        let newest = records.iter().max_by_key(|record| asked_at(&record.entry));
        // One that is stopped begins no more.
        let newest = newest.filter(|newest| newest.entry.stop_asked_at().is_none());
        let open = newest.and_then(|newest| Open::of(&newest.entry));
        open.map_or(Look::None, |open| Look::Found(Box::new(Found::Between(open))))
    }

    /// The recording that ran when the action was sent, and has ended since. `Err`: the ledger did not answer, and why.
    pub(super) async fn ended_since(&self, request: &Request<'_>) -> Result<Option<Open>, String> {
        let Some(at) = request.at else { return Ok(None) };
        let records = self.told(self.in_ledger(request)).await?;
        let entries = records.into_iter().map(|record| self.memory.completed(record.entry));
        let ran = |entry: &Entry| {
            let told = entry.told_end().and_then(|told| told.stamp);
            let ended = told.map(|stamp| entry.by_our_clock(stamp)).or_else(|| entry.ended_at());
            ended.is_some_and(|ended| at.plus(ON_ITS_WAY) < ended)
                && entry.stop_asked_at().is_none()
                && asked_at(entry) <= Some(at)
        };
        let newest = entries.filter(ran).max_by_key(asked_at);
        Ok(newest.and_then(|entry| Open::of(&entry)))
    }

    /// What the ledger has of the action's call, under its own id or an earlier one.
    pub(super) async fn in_ledger(&self, request: &Request<'_>) -> Result<Vec<Record>, LedgerError> {
        let (ledger, call_id) = (&self.ledger, &request.action.call_id);
        // The view by what stays when the call's id is replaced has open ones alone; the ids have those too that are over.
        let mut records = ledger.of_call(call_id).await?;
        if let Some(fetch_id) = request.action.call.fetch_id.as_deref() {
            let of_fetch = ledger.of_fetch(fetch_id).await?;
            let known: HashSet<Key> = records.iter().map(|record| record.entry.key).collect();
            records.extend(of_fetch.into_iter().filter(|record| !known.contains(&record.entry.key)));
        }
        // A recording that Kazoo's own recorder began is Kazoo's to control.
        records.retain(|record| !record.entry.is_adopted());
        Ok(records)
    }

    /// Searches only what all workers remember.
    pub(super) fn remembered(&self, request: &Request<'_>) -> Option<Found> {
        let (memory, action) = (&self.memory, request.action);
        let fetch_id = action.call.fetch_id.as_deref();
        if let Some((key, media_id)) = action.msg_id.as_deref().and_then(|id| memory.done_on(id)) {
            let entry = memory.entry(key);
            let unwritten = entry.and_then(|entry| Some((Open::of(&entry)?, of_action(request, &entry))));
            return Some(Found::Done { media_id, unwritten });
        }
        // Another worker carried the action out, and sent a notice of it.
        let told = self.recordings_of(request).into_iter().find_map(|open| {
            let facts = memory.entry(open.key).map(|entry| of_action(request, &entry))?;
            (!facts.is_empty()).then_some((open, facts))
        });
        if let Some((open, facts)) = told {
            return Some(Found::Done {
                media_id: open.media_id.clone(),
                unwritten: Some((open, facts)),
            });
        }
        if let Some(open) = memory.newest(fetch_id, &action.call_id, began_by(request)) {
            return Some(Found::Here(open));
        }
        let mut entries = self.of_conversation(self.conversation(request)?);
        entries.retain(|entry| is_to_be_controlled(request, entry) && entry.carried_by().call_id == action.call_id);
        let newest = entries.iter().max_by_key(|entry| asked_at(entry))?;
        Open::of(newest).map(Found::Moved)
    }

    /// The recordings of the action's own call that count as open in this worker's memory, including those that are being stopped.
    fn recordings_of(&self, request: &Request<'_>) -> Vec<Open> {
        let action = request.action;
        self.memory.of_call(action.call.fetch_id.as_deref(), &action.call_id)
    }

    /// The name of another recorder's recording of the call. The action is for that one if no recording of ours runs on the call.
    pub(super) fn stranger<'a>(&self, request: &'a Request<'_>) -> Option<&'a str> {
        let name = request.action.call.media_name.as_deref();
        // Kazoo 4 writes the name of our own file there. Kazoo's own names have the same form.
        let is_ours = |name: &str| names::key_of(name).is_some_and(|key| self.memory.is_commanded(key));
        name.filter(|name| names::is_plain(name) && !is_ours(name))
    }

    fn conversation<'a>(&self, request: &'a Request<'_>) -> Option<&'a str> {
        let interaction = request.action.call.parties.interaction_id.as_deref();
        interaction.filter(|_| self.stranger(request).is_none())
    }

    async fn told(
        &self,
        looking: impl Future<Output = Result<Vec<Record>, LedgerError>>,
    ) -> Result<Vec<Record>, String> {
        if !self.ledger.is_up() {
            return Err("the ledger is down".to_owned());
        }
        match tokio::time::timeout(KNOWLEDGE, looking).await {
            Ok(records) => records.map_err(|error| error.to_string()),
            Err(_) => Err(LedgerError::Late.to_string()),
        }
    }

    async fn written_of(&self, request: &Request<'_>, open: &Open) -> Written {
        if !self.ledger.is_up() {
            return Written::Nothing;
        }
        let address = Address {
            month: open.asked_at.month(),
            call_id: open.call_id.clone(),
            key: open.key,
        };
        let loading = tokio::time::timeout(SECOND_OPINION, self.ledger.load(&address)).await;
        let Ok(Ok(Some(record))) = loading else {
            return Written::Nothing;
        };
        let entry = &record.entry;
        if !entry.is_open() {
            Written::Over(entry.ended().map(Told::order))
        } else if entry.stop_asked_at().is_some() && of_action(request, entry).is_empty() {
            Written::Stopping
        } else {
            Written::Nothing
        }
    }

    /// Remembers the call's recordings that are open according to the ledger, and that this worker never heard of. `true` when none of them is
    /// newer than `open`, or the ledger does not answer in time.
    async fn learn_newer(&self, request: &Request<'_>, open: &Open) -> bool {
        if !self.ledger.is_up() {
            return true;
        }
        let Ok(Ok(records)) = tokio::time::timeout(SECOND_OPINION, self.in_ledger(request)).await else {
            return true;
        };
        let mut is_newest = true;
        for record in records {
            if let Some(unheard) = self.remember_unheard(&record.entry) {
                is_newest &= unheard.asked_at <= open.asked_at || !is_to_be_controlled(request, &record.entry);
            }
        }
        is_newest
    }

    /// Remembers a recording that is open according to the ledger. `None` for one that this worker has heard of, unless it began again since.
    pub(super) fn remember_unheard(&self, entry: &Entry) -> Option<Open> {
        let memory = &self.memory;
        if !entry.is_open() || memory.is_open(entry.key) || memory.was_closed_since(entry) {
            return None;
        }
        let unheard = Open::of(entry)?;
        // It may have begun again.
        memory.reopen(unheard.clone());
        memory.remember(entry);
        Some(unheard)
    }

    /// What this worker remembers of the recordings of a conversation.
    fn of_conversation(&self, interaction: &str) -> Vec<Entry> {
        let memory = &self.memory;
        let open = memory.of_interaction(interaction);
        let entries = open.iter().filter_map(|open| memory.entry(open.key));
        entries.filter(|entry| entry.order().is_some()).collect()
    }
}

/// Whether that the ledger does not tell is the last word for now: what memory knows may be an older recording.
pub(super) fn is_final(request: &Request<'_>, why: &str) -> bool {
    request.repeated || why == journal::WAITING
}

/// What the ledger knows of a recording that counts as open in this worker's memory.
enum Written {
    /// It is over, since that end, in the switch's order.
    Over(Option<i64>),
    /// Another action asked for its end.
    Stopping,
    /// Nothing else, or the ledger does not answer in time.
    Nothing,
}

pub(super) fn asked_at(entry: &Entry) -> Option<Moment> {
    entry.order().map(|order| order.asked_at)
}

/// A repeat must not reach a recording that was ordered after it, nor must a search after the call has continued. The first search has no
/// such limit, because the clocks of two hosts may differ.
pub(super) fn began_by(request: &Request<'_>) -> Option<Moment> {
    request.at.filter(|_| request.doubtful)
}

fn is_to_be_controlled(request: &Request<'_>, entry: &Entry) -> bool {
    entry.is_open() && !entry.is_adopted() && entry.stop_asked_at().is_none() && !is_later(request, entry)
}

pub(super) fn is_later(request: &Request<'_>, entry: &Entry) -> bool {
    began_by(request)
        .zip(asked_at(entry))
        .is_some_and(|(at, asked)| asked > at)
}

/// The facts of exactly this action in an entry.
fn of_action(request: &Request<'_>, entry: &Entry) -> Vec<Fact> {
    let Some(id) = request.action.msg_id.as_deref() else {
        return Vec::new();
    };
    let of_it = |fact: &&Fact| match &fact.what {
        What::StopAsked { action, .. } | What::MaskAsked { action, .. } => action == id,
        _ => false,
    };
    entry.facts().filter(of_it).cloned().collect()
}

fn done_in_ledger(request: &Request<'_>, entry: &Entry) -> Option<Found> {
    let media_id = entry.order().map(|order| order.media_id.to_string())?;
    (!of_action(request, entry).is_empty()).then_some(Found::Done {
        media_id,
        unwritten: None,
    })
}
