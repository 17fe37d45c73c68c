//! Other recordings of the same call that go to the same URL.
//!
//! Kazoo names the file by its call alone (`media_recording:handler_fields_for_protocol`). A server that stores by path would replace one
//! recording of a call by the next. So only the first recording has Kazoo's name.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::destination::url::Target;
use crate::destination::{DeliveryError, Places};
use crate::entry::Entry;
use crate::entry::cause::Outcome;
use crate::entry::fact::What;
use crate::flow::journal::{self, Journal};
use crate::kazoo::time::Month;
use crate::ledger::{Holder, Ledger, address};
use crate::lifecycle::Case;
use crate::recording::order::{Order, Url};
use crate::recording::settings::Method;

/// Digits of the recording's key in its file's name.
const OF_THE_KEY: usize = 8;

/// Time limit for the ledger to say which other recordings the call has: a switch may wait for the delivery.
const KNOWLEDGE: Duration = Duration::from_secs(2);

/// A call that lasts over the turn of a month has recordings in two months.
const LONGEST_CALL: Duration = Duration::from_secs(86_400);

/// How often a place is taken over from a recording that left nothing there, for one look.
const TAKEN_OVER: usize = 4;

/// Why a recording has no name at its URL.
pub(super) enum Nameless {
    /// It is not known yet which other recordings the call has, or what becomes of them.
    Unknown(String),
    /// The URL is signed, so it names one object, and another recording has it.
    Replaces,
}

/// Names of files at users' URLs. May touch: the ledger, where names are claimed, and the depth of the journal.
pub struct Names {
    pub ledger: Ledger,
    pub journal: Arc<Journal>,
}

impl Names {
    /// What tells the recording's file from the files of the call's other recordings at the same URL. `None` for the first one, and for
    /// every other destination.
    pub(super) async fn of_its_own(&self, case: &Case, url: Option<&Target>) -> Result<Option<String>, Nameless> {
        let (Some(target), Some(order)) = (url, case.entry.order()) else {
            return Ok(None);
        };
        let naming = async {
            if target.is_signed() && target.method(order.method) == Method::Put {
                self.has_object(case, target, order).await.map(|()| None)
            } else {
                let has_it = self.has_kazoos_name(case, target, order).await?;
                Ok((!has_it).then(|| digits(order)))
            }
        };
        match tokio::time::timeout(KNOWLEDGE, naming).await {
            Ok(named) => named,
            Err(_) => Err(Nameless::Unknown("the ledger does not answer in time".to_owned())),
        }
    }

    /// Whether the recording is the one of its call that has Kazoo's name at the URL.
    async fn has_kazoos_name(&self, case: &Case, target: &Target, order: &Order) -> Result<bool, Nameless> {
        let others = self.others_at(case, target, order).await?;
        if order.continues.is_some() || others.iter().any(|other| has_name(other, order, &case.entry)) {
            return Ok(false);
        }
        // The list may lack the newest ones: it comes from one node of a cluster.
        let place = target.place(&case.entry.call_id);
        let months = Month::around(order.asked_at, LONGEST_CALL);
        let mine = address(&case.entry);
        let claimed = self.ledger.claim(&place, &mine, Some(&months), None).await;
        let holder = claimed.map_err(|error| Nameless::Unknown(error.to_string()))?;
        Ok(holder == Holder::Mine)
    }

    /// Makes sure that no other recording has, or may get, the one object that a signed URL names.
    async fn has_object(&self, case: &Case, target: &Target, order: &Order) -> Result<(), Nameless> {
        let others = self.others_at(case, target, order).await?;
        let unsettled = || Nameless::Unknown("another recording has this signed URL, and is not settled".to_owned());
        match others.iter().map(|other| claim(other, order)).max() {
            Some(Claim::Has) => return Err(Nameless::Replaces),
            Some(Claim::MayGet) => return Err(unsettled()),
            Some(Claim::Never) | None if order.continues.is_some() => return Err(Nameless::Replaces),
            Some(Claim::Never) | None => {}
        }
        // A callflow can have a signed URL for all its calls.
        let (place, mine) = (target.place(""), address(&case.entry));
        let mut from = None;
        for _ in 0..TAKEN_OVER {
            let claimed = self.ledger.claim(&place, &mine, None, from.as_ref()).await;
            let holder = match claimed.map_err(|error| Nameless::Unknown(error.to_string()))? {
                Holder::Mine => return Ok(()),
                Holder::Other(holder) => holder,
            };
            let loaded = self.ledger.load(&holder).await;
            match loaded.map_err(|error| Nameless::Unknown(error.to_string()))? {
                Some(record) if is_without(&record.entry) => from = Some(holder),
                Some(record) if record.entry.outcome().is_none() && record.entry.uploaded().is_none() => {
                    return Err(match record.entry.parked() {
                        Some(_) if has_tried(&record.entry) => Nameless::Replaces,
                        _ => unsettled(),
                    });
                }
                // Its audio is there, or it is not known what became of it.
                _ => return Err(Nameless::Replaces),
            }
        }
        Err(unsettled())
    }

    /// The other recordings of the call that go to the same URL. Of two that are delivered at the same time at least one sees the other:
    /// each is in the ledger before it looks.
    async fn others_at(&self, case: &Case, target: &Target, order: &Order) -> Result<Vec<Entry>, Nameless> {
        let unknown = |why: &str| Nameless::Unknown(why.to_owned());
        if !self.ledger.is_up() {
            return Err(unknown("the ledger is down"));
        }
        let receipt = self.ledger.note(&case.entry, None, Duration::ZERO).await;
        if !receipt.durable().await {
            return Err(unknown("the ledger did not take the recording"));
        }
        if self.journal.has_more().await {
            // The start of another one may be among them.
            return Err(unknown(journal::WAITING));
        }
        let records = self
            .ledger
            .of_call_in(&Month::around(order.asked_at, LONGEST_CALL), &case.entry.call_id)
            .await;
        let records = records.map_err(|error| Nameless::Unknown(error.to_string()))?;
        let at_url = |entry: &Entry| {
            let other = entry.order().filter(|other| other.key != order.key);
            match other.map(|other| &other.url) {
                Some(Url::Given(url)) => Target::parse(url).is_ok_and(|url| url == *target),
                _ => false,
            }
        };
        Ok(records.into_iter().map(|record| record.entry).filter(at_url).collect())
    }
}

impl Places for Names {
    fn claim<'a>(&'a self, entry: &'a Entry, place: &'a str) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(async move {
            let taking = tokio::time::timeout(KNOWLEDGE, self.take(entry, place));
            let slow = |_| Err("the ledger does not answer in time".to_owned());
            taking.await.unwrap_or_else(slow).map_err(DeliveryError::Cluster)
        })
    }
}

impl Names {
    /// Takes an object's name in a store, as soon as the recording that has it is settled. Whether its object is there, a look shows.
    async fn take(&self, entry: &Entry, place: &str) -> Result<(), String> {
        // Another recording of the same name reads in the ledger what becomes of this one.
        let receipt = self.ledger.note(entry, None, Duration::ZERO).await;
        if !receipt.durable().await {
            return Err("the ledger did not take the recording".to_owned());
        }
        let (mine, mut from) = (address(entry), None);
        for _ in 0..TAKEN_OVER {
            let claimed = self.ledger.claim(place, &mine, None, from.as_ref()).await;
            let holder = match claimed.map_err(|error| error.to_string())? {
                Holder::Mine => return Ok(()),
                Holder::Other(holder) => holder,
            };
            let loaded = self.ledger.load(&holder).await.map_err(|error| error.to_string())?;
            let is_settled = |entry: &Entry| entry.outcome().is_some() || entry.parked().is_some();
            if loaded.is_some_and(|record| !is_settled(&record.entry)) {
                break;
            }
            from = Some(holder);
        }
        Err("another recording has the object's name, and is not settled".to_owned())
    }
}

fn digits(order: &Order) -> String {
    let key = order.key.to_string();
    key.get(..OF_THE_KEY).unwrap_or(&key).to_owned()
}

fn is_earlier(other: &Order, than: &Order) -> bool {
    (other.asked_at, other.key) < (than.asked_at, than.key)
}

fn has_tried(entry: &Entry) -> bool {
    let is_try = |what: &What| matches!(what, What::DeliveryFailed { .. });
    entry.facts().any(|fact| is_try(&fact.what))
}

/// Whether another recording has Kazoo's name at the URL, or is about to get it. The answer stays the same at every attempt: recordings that
/// begin later have later orders, and names of their own.
fn has_name(other: &Entry, mine: &Order, me: &Entry) -> bool {
    let Some(order) = other.order() else { return false };
    if is_earlier(order, mine) {
        return true;
    }
    match other.uploaded() {
        Some(url) => !url.contains(&format!("-{}.", digits(order))),
        // Its first attempt is in flight, and began before it could see this one.
        None => !has_tried(me) && !has_tried(other) && other.documented().is_some() && other.outcome().is_none(),
    }
}

/// Whether a recording is over, and left nothing at its URL.
fn is_without(entry: &Entry) -> bool {
    let is_lost = matches!(entry.outcome(), Some((Outcome::Failed | Outcome::Discarded, _)));
    is_lost && !has_tried(entry) && entry.uploaded().is_none()
}

/// What another recording has to do with a signed URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// It left nothing there, and never will.
    Never,
    MayGet,
    Has,
}

fn claim(other: &Entry, mine: &Order) -> Claim {
    let Some(order) = other.order() else {
        return Claim::Never;
    };
    if other.uploaded().is_some() {
        return Claim::Has;
    }
    match other.outcome() {
        Some((Outcome::Failed | Outcome::Discarded, _)) if !has_tried(other) => Claim::Never,
        // Its audio may be there, though no answer said so.
        Some(_) => Claim::Has,
        None if other.parked().is_some() && is_earlier(order, mine) => Claim::Has,
        None if is_earlier(order, mine) => Claim::MayGet,
        None => Claim::Never,
    }
}
