//! `kz-record-call explain`: the history of a recording, from the ledger.

use std::io::Write;

use serde_json::json;

use crate::config::Config;
use crate::entry::Entry;
use crate::entry::fact::{CollectFailure, Fact, What};
use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::kazoo::time::Moment;
use crate::ledger::Record;
use crate::lifecycle::{self, State};
use crate::recording::order::Url;

use super::ledger::{Desk, block_on, duration};
use super::plain::Plain;
use super::terminal::{self, wrapped};

mod audio;
mod webhooks;

pub use audio::{after_discarding, places, what_stays};

/// The indentation of a second line in the history.
const AFTER_TIMES: &str = "                                  ";

pub fn run(config: &Config, name: &str, json: bool) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let found = desk.named(name).await;
        let now = desk.clock.now();
        let policy = desk.policy.clone();
        desk.close().await;
        let found = found?;
        let mut out = std::io::stdout().lock();
        if json {
            let all: Vec<_> = found.iter().map(|record| as_json(record, now, &policy)).collect();
            writeln!(out, "{:#}", json!(all))?;
        } else if found.is_empty() {
            writeln!(out, "The ledger has no recording, document or call {name:?}.")?;
            writeln!(
                out,
                "Unless adopt.mode is store, the ledger has no recordings of other recorders: account, endpoint, conference, local action."
            )?;
        }
        for record in found.iter().filter(|_| !json) {
            story(&mut out, record, (now, terminal::width()), &policy)?;
        }
        Ok(!found.is_empty())
    })
}

fn as_json(record: &Record, now: Moment, policy: &lifecycle::Policy) -> serde_json::Value {
    let entry = &record.entry;
    json!({
        "media_id": entry.order().map(|order| order.media_id.as_str()),
        "call_id": entry.call_id,
        "key": entry.key,
        "state": State::of(entry).name(),
        "outcome": entry.outcome().map(|(outcome, _)| outcome.name()),
        "cause": entry.outcome().map(|(_, cause)| cause).or(entry.parked()).map(|cause| cause.name()),
        "next": lifecycle::due(entry, now, policy).map(Moment::rfc3339),
        "lease": record.lease,
        "webhooks": webhooks::as_json(entry, policy),
        "facts": entry.facts().collect::<Vec<_>>(),
    })
}

fn story(
    out: &mut impl Write,
    record: &Record,
    (now, width): (Moment, Option<usize>),
    policy: &lifecycle::Policy,
) -> std::io::Result<()> {
    let entry = &record.entry;
    let media_id = entry.order().map_or("unknown", |order| order.media_id.as_str());
    writeln!(out, "\nRecording {media_id}")?;
    writeln!(out, "  call      {}", Plain(&entry.call_id))?;
    if let Some(order) = entry.order() {
        writeln!(out, "  account   {}", Plain(account(entry)))?;
        writeln!(
            out,
            "  asked     {}, {}",
            order.asked_at.rfc3339(),
            Plain(&order.origin)
        )?;
        writeln!(
            out,
            "  format    {}, file name {}",
            order.format,
            Plain(&order.file_name)
        )?;
        match &order.url {
            Url::None => {}
            Url::Given(url) => writeln!(out, "  url       {}", Plain(without_secrets(url)))?,
            Url::Lost => writeln!(out, "  url       given by the action, and lost since")?,
        }
    }
    let state = format!("state     {}", Plain(verdict(entry)));
    writeln!(out, "{}", wrapped(&state, width, "  ", "            "))?;
    writeln!(out, "\n  History")?;
    let begin = entry.facts().next().map_or(now, |fact| fact.at);
    for fact in entry.facts() {
        let after = fact.at.since(begin).as_secs_f64();
        let line = format!(
            "{}  +{after:>9.3} s  {:<18} {}",
            clock(fact.at),
            Plain(&fact.by),
            Plain(words(entry, fact))
        );
        writeln!(out, "{}", wrapped(&line, width, "    ", AFTER_TIMES))?;
    }
    writeln!(out, "\n  Location of the audio")?;
    for place in places(entry) {
        writeln!(out, "{}", wrapped(&Plain(place).to_string(), width, "    ", "      "))?;
    }
    let owed = webhooks::lines(entry, now, policy);
    if !owed.is_empty() {
        writeln!(out, "\n  Webhooks")?;
    }
    for line in owed {
        writeln!(out, "{}", wrapped(&Plain(line).to_string(), width, "    ", "      "))?;
    }
    writeln!(out, "\n  Next step")?;
    writeln!(
        out,
        "{}",
        wrapped(&coming(record, now, policy), width, "    ", "      ")
    )?;
    Ok(())
}

/// The account's id, with its name and realm as the switch reported them.
fn account(entry: &Entry) -> String {
    let id = entry.account_id().unwrap_or("unknown");
    let told = entry.started().or(entry.ended());
    let variable = |name: &str| told?.variables.get(name)?.as_str();
    match (variable("Account-Name"), variable("Account-Realm")) {
        (Some(name), Some(realm)) => format!("{id} ({name}, {realm})"),
        (Some(one), None) | (None, Some(one)) => format!("{id} ({one})"),
        (None, None) => id.to_owned(),
    }
}

fn clock(at: Moment) -> String {
    let text = at.rfc3339();
    text.get(11..23).unwrap_or(&text).trim_end_matches('Z').to_owned()
}

fn verdict(entry: &Entry) -> String {
    match (entry.outcome(), entry.parked()) {
        (Some((outcome, cause)), _) => format!("{outcome} ({cause}): {}", cause.meaning()),
        (None, Some(cause)) => {
            let last = last_error(entry).map_or_else(String::new, |why| format!("; the last answer: {why}"));
            format!("parked ({cause}): {}{last}", cause.meaning())
        }
        (None, None) => State::of(entry).name().to_owned(),
    }
}

/// Why the last attempt failed.
fn last_error(entry: &Entry) -> Option<&str> {
    entry.facts().rev().find_map(|fact| match &fact.what {
        What::DeliveryFailed { why, .. } | What::CollectFailed { why, .. } => Some(why.as_str()),
        _ => None,
    })
}

/// A fact, in words.
fn words(entry: &Entry, fact: &Fact) -> String {
    let heard_of = |known: &Fact| matches!(known.what, What::Started(_) | What::Ended(_) | What::PresumedEnded(_));
    let unheard = || !entry.facts().take_while(|known| *known != fact).any(heard_of);
    match &fact.what {
        What::Asked(order) if entry.watched().is_some() => {
            format!(
                "Kazoo's own recording {}, for Kazoo's own recorder to store",
                order.media_id
            )
        }
        What::Asked(order) if order.adopted.is_some() => {
            format!(
                "Kazoo's own recording {}, stored in place of Kazoo's own recorder",
                order.media_id
            )
        }
        What::Asked(order) => format!("ordered by a callflow as {}", order.media_id),
        What::Commanded => "start command delivered to the broker".into(),
        What::CommandLost { why } => format!("start command not delivered: {why}"),
        What::CommandRefused { why } => format!("start command refused: {why}"),
        What::Started(told) => format!(
            "recording started on the switch ({}, {})",
            told.node.as_deref().unwrap_or("unknown switch"),
            told.path.as_deref().unwrap_or("unknown file")
        ),
        What::StopAsked { .. } => "stop requested by a callflow".into(),
        What::StopDelayed { asked, .. } => {
            format!("that stop had been sent at {}, by its sender's clock", asked.rfc3339())
        }
        What::StopSent { n, .. } if entry.is_stop_returned(&fact.what) => format!("stop command {n} not delivered"),
        What::StopSent { n, .. } => format!("stop command {n} delivered to the broker"),
        What::Returned { what, n, .. } => match n {
            0 => format!("{} command returned by the broker: no queue takes it", what.name()),
            n => format!("{} command {n} returned by the broker: no queue takes it", what.name()),
        },
        What::Intended { on: true, .. } => "mask command about to be sent".into(),
        What::Intended { on: false, .. } => "unmask command about to be sent".into(),
        What::StopUnconfirmed => "stop not confirmed by the switch".into(),
        What::HeardOf { .. } => "reported by another worker".into(),
        What::MaskAsked { on: true, .. } => "mask requested by a callflow".into(),
        What::MaskAsked { on: false, .. } => "unmask requested by a callflow".into(),
        What::Masked { on: true, .. } => "mask command delivered to the broker".into(),
        What::Masked { on: false, .. } => "unmask command delivered to the broker".into(),
        What::NotObeyed { what, why, .. } => format!(
            "{} had no effect, as far as is known: {}",
            what.name(),
            why.meaning(*what)
        ),
        What::Amended { unsaid: None, .. } => "stops and masks added to the document".into(),
        What::Amended { unsaid: Some(why), .. } => {
            format!("stops and masks not added to the document: {why}")
        }
        What::ChannelSeen { alive: true, .. } => "channel query: the call exists, or no ecallmgr answered".into(),
        What::ChannelSeen { alive: false, .. } => "channel query: the call does not exist".into(),
        What::Leg(leg) => leg_words(leg),
        What::Probed { size, open: true, .. } => {
            format!("file probe on the switch: {size} bytes, still open for writing")
        }
        What::Probed { size, .. } => format!("file probe on the switch: {size} bytes"),
        What::Ended(told) => format!(
            "recording ended on the switch: {} ms, {}",
            told.length_ms.unwrap_or(0),
            told.completion_cause.as_deref().unwrap_or("no cause given")
        ),
        What::PresumedEnded(_) => "end presumed: no event reported the end, and the file does not grow".into(),
        What::Decided { destination, .. } => format!("destination chosen: {}", destination.describe().words),
        What::Postponed { until, why, .. } => format!("next attempt not before {}: {why}", until.rfc3339()),
        What::Looked { deleted: true, .. } => "read-back: document deleted by a user since".into(),
        What::Looked { why: None, .. } => "read-back: document and audio complete".into(),
        What::Looked {
            why: Some(why),
            unanswered: true,
            ..
        } => format!("read-back unanswered: {why}"),
        What::Looked { why: Some(why), .. } => format!("read-back: incomplete: {why}"),
        What::Marked { .. } => "state and cause written to the document".into(),
        What::CollectFailed {
            failure: CollectFailure::Missing,
            why,
            ..
        } if unheard() => {
            format!("the switch was asked for a file: {why}")
        }
        What::CollectFailed { why, .. } if unheard() => {
            format!("the switch could not be asked for a file: {why}")
        }
        What::CollectFailed { attempt, why, .. } => format!("attempt {attempt}: upload from the switch failed: {why}"),
        What::Collected(audio) => format!(
            "audio received: {} bytes, {}sha256 {}",
            audio.size,
            audio
                .duration_ms
                .map_or_else(String::new, |ms| format!("{ms} ms counted, ")),
            short(&audio.digests.sha256)
        ),
        What::Held { holding, .. } => format!("audio copied to the hold ({}/{})", holding.place, holding.name),
        What::Unheld { .. } => "copy in the hold removed".into(),
        What::Released { .. } => "the switch was told to delete its file".into(),
        What::Tidied { left: None, .. } => "file deleted on the switch".into(),
        What::Tidied { left: Some(why), .. } => format!("the file may still be on the switch: {why}"),
        What::Separated { name } => format!("other audio in the hold ({name}) split off as another recording"),
        What::Continued { told } => {
            format!("the switch recorded again under this name: split off as another recording ({told} events)")
        }
        What::Documented(document) => format!("document written ({}, rev {})", document.database, short(&document.rev)),
        What::Uploaded { url, .. } => format!("audio delivered to {}", without_secrets(url)),
        What::ObjectStored(object) => {
            let (handler, proof) = (&object.handler, &object.proof);
            format!("audio put into the object store of handler {handler} (proof: {proof})")
        }
        What::DeliveryFailed {
            attempt,
            destination,
            why,
            ..
        } => {
            format!(
                "attempt {attempt}: delivery to {} failed: {why}",
                destination.describe().words
            )
        }
        What::Delivered(delivery) => format!(
            "delivered to {}: {} in {}, rev {}{}",
            delivery.destination.describe().words,
            delivery.document.id,
            delivery.document.database,
            short(&delivery.document.rev),
            match (delivery.below_quorum, delivery.deleted) {
                (_, true) => "; deleted there by a user",
                (true, false) => ", with fewer copies than the quorum",
                (false, false) => "",
            }
        ),
        What::Parked { cause, .. } => format!("parked: {}", cause.meaning()),
        What::Retried { .. } => "retried by an operator, or because the end was reported".into(),
        What::Panicked { why, .. } => format!("handler panicked, a program fault: {why}"),
        What::Concluded { outcome, cause } => format!("{outcome}: {}", cause.meaning()),
        What::Announced(announcement) => format!("published: {}", announcement.name()),
        What::RestAnnounced { .. } => "published: parked again".into(),
        What::CauseAnnounced { cause } => format!("published: another cause, {}", cause.name()),
        What::Watched { due } => format!("watched: Kazoo's own recorder tries no more after {}", due.rfc3339()),
        What::Sought { found, last: true, .. } => format!("last look at Kazoo's database: {}", found.words()),
        What::Sought { found, .. } => format!("look at Kazoo's database: {}", found.words()),
        What::WebhooksOwed(owed) => format!("webhooks owed: {} to {}", owed.outcome, owed.endpoints.join(", ")),
        What::WebhookSent(sent) => format!("webhook sent to {}", sent.endpoint),
        What::WebhookFailed(refused) => format!(
            "webhook to {}, attempt {} failed: {}",
            refused.notice.endpoint, refused.attempt, refused.why
        ),
        What::WebhookParked(given_up) => format!(
            "webhook to {} parked after attempt {}",
            given_up.notice.endpoint, given_up.attempt
        ),
        What::WebhookRetried(again) => format!("webhook to {} retried by an operator", again.notice.endpoint),
        What::Closed => "closed".into(),
    }
}

/// What happened to a leg that the recording is on, or may be on.
fn leg_words(leg: &Leg) -> String {
    let (leg_id, other) = (&leg.call_id, leg.other.as_deref().unwrap_or("another leg"));
    match leg.event {
        LegEvent::Bridged => format!("leg {leg_id} is bridged with {other}"),
        LegEvent::Transferor => format!("leg {leg_id} transfers {other}: the recording moves to that leg"),
        LegEvent::Transferee => format!("leg {leg_id} is transferred"),
        LegEvent::Replaced | LegEvent::Direct => format!("leg {leg_id} is replaced by {other}"),
        LegEvent::Gone => format!("leg {leg_id} is gone"),
        LegEvent::Action => format!("an action ran on leg {leg_id}"),
    }
}

fn coming(record: &Record, now: Moment, policy: &lifecycle::Policy) -> String {
    let entry = &record.entry;
    if entry.is_closed() {
        return "none: the recording is closed".into();
    }
    if entry.parked().is_some() {
        let media_id = entry
            .order()
            .map_or(entry.call_id.as_str(), |order| order.media_id.as_str());
        let media_id = Plain(media_id);
        let has_url = entry.order().is_some_and(|order| matches!(order.url, Url::Given(_)));
        let by_hand = match (has_url, entry.held().is_some()) {
            (true, true) => format!(
                " A retry uses the same url: if it was refused, ask the operator of its server first. If the url is wrong or expired for good: `kz-record-call fetch {media_id}`, give the audio to its owner, then `kz-record-call discard {media_id} --yes`."
            ),
            (true, false) => " A retry uses the same url.".to_owned(),
            _ => String::new(),
        };
        return format!(
            "none without an operator: correct the cause, then run `kz-record-call retry {media_id}`.{by_hand} To give the audio up: `kz-record-call discard {media_id} --yes`"
        );
    }
    if let Some(lease) = record.lease.as_ref().filter(|lease| lease.holds(now)) {
        return format!("in flight on {}, lease until {}", lease.by, lease.until.rfc3339());
    }
    let last_look = entry.is_let_go() && entry.owes_release();
    let why = if last_look {
        ", to check that the call is over and the switch recorded nothing more"
    } else {
        ""
    };
    match lifecycle::due(entry, now, policy) {
        Some(at) if at > now => format!(
            "resumed by a worker in {} ({}){why}",
            duration(at.since(now).as_secs()),
            at.rfc3339()
        ),
        Some(_) => "resumed by a worker now".into(),
        None => "none until an event reports the recording".into(),
    }
}

fn short(text: &str) -> &str {
    text.get(..14).unwrap_or(text)
}

/// A URL without its credentials, its fragment and the values of its query.
fn without_secrets(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_password(None);
            let _ = url.set_username("");
            url.set_fragment(None);
            let names: Vec<String> = url.query_pairs().map(|(name, _)| format!("{name}=***")).collect();
            if !names.is_empty() {
                url.set_query(Some(&names.join("&")));
            }
            url.to_string()
        }
        Err(_) => "(not a url)".into(),
    }
}

#[cfg(test)]
mod tests;
