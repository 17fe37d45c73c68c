//! `kz-record-call explain`: the history of a recording, from the ledger.

use std::io::Write;

use serde_json::json;

use crate::config::Config;
use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{CollectFailure, Destination, Fact, What};
use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::kazoo::time::Moment;
use crate::ledger::Record;
use crate::lifecycle::{self, State};
use crate::recording::order::Url;

use super::ledger::{Desk, block_on, duration};
use super::plain::Plain;

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
            writeln!(out, "The ledger knows no recording, document or call {name:?}.")?;
            writeln!(
                out,
                "A recording that another recorder made (account, endpoint, conference, a local action) is not in it."
            )?;
        }
        for record in found.iter().filter(|_| !json) {
            story(&mut out, record, now, &policy)?;
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
        "facts": entry.facts(),
    })
}

fn story(out: &mut impl Write, record: &Record, now: Moment, policy: &lifecycle::Policy) -> std::io::Result<()> {
    let entry = &record.entry;
    let media_id = entry.order().map_or("unknown", |order| order.media_id.as_str());
    writeln!(out, "\nRecording {media_id}")?;
    writeln!(out, "  call      {}", Plain(&entry.call_id))?;
    if let Some(order) = entry.order() {
        writeln!(out, "  account   {}", Plain(entry.account_id().unwrap_or("unknown")))?;
        writeln!(
            out,
            "  asked     {}, {}",
            order.asked_at.rfc3339(),
            Plain(&order.origin)
        )?;
        writeln!(
            out,
            "  format    {}, file {} on the switch",
            order.format,
            Plain(&order.file_name)
        )?;
        match &order.url {
            Url::None => {}
            Url::Given(url) => writeln!(out, "  url       {}", Plain(without_secrets(url)))?,
            Url::Lost => writeln!(out, "  url       there was one, and it is not known any more")?,
        }
    }
    writeln!(out, "  state     {}", verdict(entry))?;
    writeln!(out, "\n  What happened")?;
    let begin = entry.facts().first().map_or(now, |fact| fact.at);
    for fact in entry.facts() {
        let after = fact.at.since(begin).as_secs_f64();
        writeln!(
            out,
            "    {}  +{after:>9.3} s  {:<18} {}",
            clock(fact.at),
            Plain(&fact.by),
            Plain(words(entry, fact))
        )?;
    }
    writeln!(out, "\n  Where the audio is")?;
    for place in places(entry) {
        writeln!(out, "    {}", Plain(place))?;
    }
    writeln!(out, "\n  What comes next")?;
    writeln!(out, "    {}", coming(record, now, policy))?;
    Ok(())
}

fn clock(at: Moment) -> String {
    let text = at.rfc3339();
    text.get(11..23).unwrap_or(&text).trim_end_matches('Z').to_owned()
}

fn verdict(entry: &Entry) -> String {
    match (entry.outcome(), entry.parked()) {
        (Some((outcome, cause)), _) => format!("{outcome}: {}", cause.meaning()),
        (None, Some(cause)) => format!("parked: {}", cause.meaning()),
        (None, None) => State::of(entry).name().to_owned(),
    }
}

/// A fact, in words.
fn words(entry: &Entry, fact: &Fact) -> String {
    let heard_of = |known: &Fact| matches!(known.what, What::Started(_) | What::Ended(_) | What::PresumedEnded(_));
    let unheard = || !entry.facts().iter().take_while(|known| *known != fact).any(heard_of);
    match &fact.what {
        What::Asked(order) => format!("asked for by a callflow, as {}", order.media_id),
        What::Commanded => "start command delivered to the broker".into(),
        What::CommandLost { why } => format!("start command not delivered: {why}"),
        What::CommandRefused { why } => format!("start command refused: {why}"),
        What::Started(told) => format!(
            "the switch records ({}, {})",
            told.node.as_deref().unwrap_or("unknown switch"),
            told.path.as_deref().unwrap_or("unknown file")
        ),
        What::StopAsked { .. } => "a callflow wants it stopped".into(),
        What::StopSent { n, .. } => format!("stop command {n} delivered to the broker"),
        What::StopUnconfirmed => "the switch has not confirmed the stop".into(),
        What::HeardOf { .. } => "known by another worker's notice".into(),
        What::MaskAsked { on: true, .. } => "a callflow wants its audio masked".into(),
        What::MaskAsked { on: false, .. } => "a callflow wants its audio unmasked".into(),
        What::Masked { on: true, .. } => "mask command delivered to the broker".into(),
        What::Masked { on: false, .. } => "unmask command delivered to the broker".into(),
        What::NotObeyed { what, why, .. } => format!("the switch did not {}: {}", what.name(), why.meaning()),
        What::Amended { unsaid: None, .. } => "its document says what is known of stops and masks".into(),
        What::Amended { unsaid: Some(why), .. } => {
            format!("its document does not say what is known of stops and masks: {why}")
        }
        What::ChannelSeen { alive: true, .. } => "channel query: the call lives, or no ecallmgr answered".into(),
        What::ChannelSeen { alive: false, .. } => "looked for the call: it is gone".into(),
        What::Leg(leg) => leg_words(leg),
        What::Probed { size, open: true, .. } => {
            format!("looked at the file on the switch: {size} bytes, and its writer has not closed it")
        }
        What::Probed { size, .. } => format!("looked at the file on the switch: {size} bytes"),
        What::Ended(told) => format!(
            "the switch ended it: {} ms, {}",
            told.length_ms.unwrap_or(0),
            told.completion_cause.as_deref().unwrap_or("no cause told")
        ),
        What::PresumedEnded(_) => "end presumed: no event reported it, and the file is unchanged".into(),
        What::Decided { destination, .. } => format!("it is to go to {}", place_name(*destination)),
        What::Postponed { until, why, .. } => format!("nothing is tried before {}: {why}", until.rfc3339()),
        What::Looked { deleted: true, .. } => "read back: it was there, and a user has deleted it since".into(),
        What::Looked { why: None, .. } => "read back: it is there, whole".into(),
        What::Looked {
            why: Some(why),
            unanswered: true,
            ..
        } => format!("not read back, the server does not tell: {why}"),
        What::Looked { why: Some(why), .. } => format!("read back, and not whole: {why}"),
        What::Marked { .. } => "its document says that it rests".into(),
        What::CollectFailed {
            failure: CollectFailure::Missing,
            why,
            ..
        } if unheard() => {
            format!("asked the switch whether it has a file: {why}")
        }
        What::CollectFailed { why, .. } if unheard() => {
            format!("the switch could not be asked whether it has a file: {why}")
        }
        What::CollectFailed { attempt, why, .. } => format!("attempt {attempt}: the audio did not come: {why}"),
        What::Collected(audio) => format!(
            "audio received: {} bytes, sha256 {}",
            audio.size,
            short(&audio.digests.sha256)
        ),
        What::Held { holding, .. } => format!("audio put into the hold ({}/{})", holding.place, holding.name),
        What::Unheld { .. } => "audio taken out of the hold".into(),
        What::Released { .. } => "the switch was told to let its file go".into(),
        What::Tidied { left: None, .. } => "the switch has let its file go".into(),
        What::Tidied { left: Some(why), .. } => format!("the file may still be on the switch: {why}"),
        What::Separated { name } => format!("other audio in the hold ({name}) became a recording of its own"),
        What::Continued { told } => {
            format!("the switch recorded again under this name: that is a recording of its own ({told} events)")
        }
        What::Documented(document) => format!("document written ({}, rev {})", document.database, short(&document.rev)),
        What::Uploaded { url, .. } => format!("audio delivered to {}", without_secrets(url)),
        What::DeliveryFailed {
            attempt,
            destination,
            why,
            ..
        } => {
            format!(
                "attempt {attempt}: not delivered to {}: {why}",
                place_name(*destination)
            )
        }
        What::Delivered(delivery) => format!(
            "at {}: {} in {}, rev {}{}",
            place_name(delivery.destination),
            delivery.document.id,
            delivery.document.database,
            short(&delivery.document.rev),
            match (delivery.below_quorum, delivery.deleted) {
                (_, true) => "; a user has deleted it there",
                (true, false) => ", with fewer copies than the quorum",
                (false, false) => "",
            }
        ),
        What::Parked { cause, .. } => format!("parked: {}", cause.meaning()),
        What::Retried { .. } => "retried by an operator, or because its end was reported".into(),
        What::Panicked { why, .. } => format!("the program failed on it, a fault of ours: {why}"),
        What::Concluded { outcome, cause } => format!("{outcome}: {}", cause.meaning()),
        What::Announced(announcement) => format!("announced: {}", announcement.name()),
        What::RestAnnounced { .. } => "announced: parked again".into(),
        What::CauseAnnounced { cause } => format!("announced: another cause, {}", cause.name()),
        What::Closed => "closed".into(),
    }
}

/// What happened to a leg that the recording is on, or may be on.
fn leg_words(leg: &Leg) -> String {
    let (leg_id, other) = (&leg.call_id, leg.other.as_deref().unwrap_or("another leg"));
    match leg.event {
        LegEvent::Bridged => format!("leg {leg_id} is bridged with {other}"),
        LegEvent::Transferor => format!("leg {leg_id} transfers {other}: the recording goes with that"),
        LegEvent::Transferee => format!("leg {leg_id} is transferred"),
        LegEvent::Replaced | LegEvent::Direct => format!("leg {leg_id} is replaced by {other}"),
        LegEvent::Gone => format!("leg {leg_id} is gone"),
        LegEvent::Action => format!("an action ran on leg {leg_id}"),
    }
}

fn place_name(destination: Destination) -> &'static str {
    match destination {
        Destination::Account => "the account's monthly database",
        Destination::ThirdParty => "the third party's database",
        Destination::Url => "the user's url",
        Destination::StoragePlan => "the account's storage plan",
    }
}

fn places(entry: &Entry) -> Vec<String> {
    let mut places = Vec::new();
    if let Some(delivery) = entry.delivery() {
        let document = &delivery.document;
        places.push(match (delivery.destination, entry.uploaded()) {
            (Destination::Url, Some(url)) => format!(
                "{}; its document {} in {}",
                without_secrets(url),
                document.id,
                document.database
            ),
            _ => format!(
                "{}: document {} in {}",
                place_name(delivery.destination),
                document.id,
                document.database
            ),
        });
    }
    if let Some(holding) = entry.held() {
        places.push(format!(
            "the hold: {}/{}, {} bytes",
            holding.place, holding.name, holding.size
        ));
    }
    if places.is_empty() {
        places.push(on_the_switch(entry));
    }
    // Judged by all that is known now: the switch may have reported the length after the audio
    // arrived.
    if let Some(audio) = entry.judged_audio() {
        places.push(format!(
            "{} bytes, md5 {}, sha256 {}",
            audio.size, audio.digests.md5, audio.digests.sha256
        ));
        if let Some(written) = &audio.as_written {
            let (md5, sha256) = (&written.md5, &written.sha256);
            places.push(format!(
                "its header was repaired; the switch wrote md5 {md5}, sha256 {sha256}"
            ));
        }
        if audio.is_suspect() {
            let names: Vec<&str> = audio.findings.iter().map(|finding| finding.name()).collect();
            places.push(format!("something is wrong with it: {}", names.join(", ")));
        }
    }
    places
}

/// Where the switch's file is, for audio that is nowhere else.
fn on_the_switch(entry: &Entry) -> String {
    let gone = entry.outcome().is_some_and(|(_, cause)| cause == Cause::FileGone);
    let Some((node, path)) = switch_file(entry) else {
        return "nowhere, as far as is known".into();
    };
    let before = entry.order().and_then(|order| order.continues.as_ref());
    if let Some(before) = before.filter(|_| entry.is_already_kept()) {
        format!("in the recording that it goes on from, {}", before.media_id)
    } else if entry.is_let_go() {
        format!("nowhere any more: the switch {node} was told to delete its file {path}")
    } else if gone {
        format!("nowhere any more: the switch {node} has no file {path}")
    } else {
        format!("on the switch {node}, {path}, as far as is known")
    }
}

/// The switch that recorded, and the file's path there.
fn switch_file(entry: &Entry) -> Option<(&str, &str)> {
    let told = entry.told_end().or(entry.ended()).or(entry.started())?;
    told.node.as_deref().zip(told.path.as_deref())
}

/// What remains of a recording that an operator discards, in words: everything that no worker
/// removes.
pub fn what_stays(entry: &Entry) -> Vec<String> {
    let mut stays = Vec::new();
    if let Some((node, path)) = switch_file(entry).filter(|_| !entry.is_let_go()) {
        stays.push(format!(
            "its file stays on the switch {node}, {path}, if it is still there"
        ));
    }
    if let Some(document) = entry.documented() {
        stays.push(format!("its document {} in {} stays", document.id, document.database));
    }
    if let Some(url) = entry.uploaded() {
        stays.push(format!("its audio stays at {}", without_secrets(url)));
    }
    stays
}

fn coming(record: &Record, now: Moment, policy: &lifecycle::Policy) -> String {
    let entry = &record.entry;
    if entry.is_closed() {
        return "nothing: it is closed".into();
    }
    if entry.parked().is_some() {
        return "nothing by itself: `kz-record-call retry` moves it on, `kz-record-call discard` gives it up".into();
    }
    if let Some(lease) = record.lease.as_ref().filter(|lease| lease.holds(now)) {
        return format!(
            "in flight at {}, until {} at the latest",
            lease.by,
            lease.until.rfc3339()
        );
    }
    let last_look = entry.is_let_go() && entry.owes_release();
    let why = if last_look {
        ", to see whether its call is over, and nothing more was recorded"
    } else {
        ""
    };
    match lifecycle::due(entry, now, policy) {
        Some(at) if at > now => format!(
            "a worker takes it up in {} ({}){why}",
            duration(at.since(now).as_secs()),
            at.rfc3339()
        ),
        Some(_) => "a worker takes it up now".into(),
        None => "nothing, until something is heard of it".into(),
    }
}

fn short(text: &str) -> &str {
    text.get(..14).unwrap_or(text)
}

/// A URL without its credentials and the values of its query.
fn without_secrets(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_password(None);
            let _ = url.set_username("");
            if url.query().is_some() {
                url.set_query(Some("…"));
            }
            url.to_string().replace("%E2%80%A6", "…")
        }
        Err(_) => "(not a url)".into(),
    }
}

#[cfg(test)]
mod tests;
