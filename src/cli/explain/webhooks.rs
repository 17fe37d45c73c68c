//! The notices that endpoints of operators have not accepted.

use serde_json::{Value, json};

use crate::entry::Entry;
use crate::entry::fact::What;
use crate::entry::webhooks::Debt;
use crate::kazoo::time::Moment;
use crate::lifecycle::{self, Policy};

use super::duration;

/// A line for each of them.
pub(super) fn lines(entry: &Entry, now: Moment, policy: &Policy) -> Vec<String> {
    let media_id = entry
        .order()
        .map_or(entry.call_id.as_str(), |order| order.media_id.as_str());
    let line = |debt: &Debt| {
        let (endpoint, outcome) = (&debt.notice.endpoint, debt.outcome);
        let last = last_answer(entry, debt).map_or_else(String::new, |why| format!("; the last answer: {why}"));
        if debt.is_parked {
            return format!(
                "{endpoint}: {outcome}, parked after attempt {}{last}. Run `kz-record-call retry {media_id}` to send it again",
                debt.attempts
            );
        }
        let when = match when(entry, debt, policy) {
            None => "the settings have no such endpoint".to_owned(),
            Some(at) if at > now => format!("attempt {} in {}", debt.attempts + 1, duration(at.since(now).as_secs())),
            Some(_) => format!("attempt {} now", debt.attempts + 1),
        };
        format!("{endpoint}: {outcome}, {when}{last}")
    };
    entry.webhooks().iter().map(line).collect()
}

pub(super) fn as_json(entry: &Entry, policy: &Policy) -> Vec<Value> {
    let one = |debt: &Debt| {
        json!({
            "endpoint": debt.notice.endpoint,
            "id": debt.notice.id,
            "outcome": debt.outcome.name(),
            "state": if debt.is_parked { "parked" } else { "owed" },
            "attempts": debt.attempts,
            "next": when(entry, debt, policy).filter(|_| !debt.is_parked).map(Moment::rfc3339),
            "last_answer": last_answer(entry, debt),
        })
    };
    entry.webhooks().iter().map(one).collect()
}

/// When a worker sends it. `None` without the endpoint in the settings.
fn when(entry: &Entry, debt: &Debt, policy: &Policy) -> Option<Moment> {
    let mut known = policy.hooks.endpoints.iter();
    known.find(|hook| hook.name == debt.notice.endpoint)?;
    Some(lifecycle::due_at(entry, debt, policy))
}

/// Why the last attempt failed.
fn last_answer<'a>(entry: &'a Entry, debt: &Debt) -> Option<&'a str> {
    entry.facts().rev().find_map(|fact| match &fact.what {
        What::WebhookFailed(refused) if refused.notice == debt.notice => Some(refused.why.as_str()),
        _ => None,
    })
}
