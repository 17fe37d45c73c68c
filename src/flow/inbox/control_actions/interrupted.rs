//! Actions whose worker was killed while it carried them out: the broker delivers them again, and the switch may have obeyed already.

use crate::entry::fact::What;
use crate::flow::inbox::request::Request;
use crate::flow::memory::Open;
use crate::ledger::Record;

use super::find::{Finder, Found, asked_at, began_by, is_later};

impl Finder {
    /// The recording for which a worker was about to send this action's command when it was killed.
    pub(super) fn begun(&self, request: &Request<'_>, before: &[Record]) -> Option<Found> {
        let id = request.action.msg_id.as_deref()?;
        let record = before.iter().find(|record| record.entry.intended(id).is_some())?;
        let entry = self.memory.completed(record.entry.clone());
        let open = Open::of(&entry)?;
        if !entry.is_open() || self.memory.was_closed_since(&entry) {
            return Some(Found::Over(open));
        }
        // With the note of the worker that was killed.
        self.memory.reopen(open.clone());
        self.memory.remember(&entry);
        Some(match entry.carried_by().moved {
            true => Found::Moved(open),
            false => Found::Here(open),
        })
    }

    /// The recording that was the newest one when the action came, where `remembered` is an older one. The worker that carried the action out may
    /// have died before it wrote that down: the switch has obeyed, the newest is over or being stopped, and the one before must run on.
    pub(super) fn newer(
        &self,
        request: &Request<'_>,
        before: Vec<Record>,
        remembered: Option<&Found>,
    ) -> Option<Found> {
        let at = began_by(request)?;
        let (Found::Here(older) | Found::Moved(older)) = remembered? else {
            return None;
        };
        let memory = &self.memory;
        let entries = before.into_iter().map(|record| memory.completed(record.entry));
        let newest = entries
            .filter(|entry| !is_later(request, entry) && asked_at(entry) > Some(older.asked_at))
            .max_by_key(asked_at)?;
        // One that begins at every bridge is stopped between two bridges too. And another action's stop explains why it is over.
        let begins_again = newest.order().is_some_and(|order| order.begins_at_bridges());
        if newest.key == older.key || begins_again || newest.stop_asked_at().is_some() {
            return None;
        }
        let open = Open::of(&newest)?;
        let was_closed = memory.was_closed_since(&newest);
        if newest.is_open() && !was_closed {
            return Some(Found::Here(open));
        }
        let heard_end = newest.facts().find_map(|fact| match fact.what {
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
}
