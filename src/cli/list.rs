//! `kz-record-call list`, `retry` and `discard`.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use crate::config::Config;
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::kazoo::time::Moment;
use crate::ledger::{Filter, Record};
use crate::lifecycle::{self, STATES, State};

use super::explain;
use super::ledger::{Desk, block_on, duration};
use super::plain::Plain;
use super::terminal::{self, cut};

/// Which recordings are listed.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only recordings in this state: asked, recording, ended, held, parked, announcing, unverified, closing, stored, delivered,
    /// discarded or failed.
    #[arg(long, hide_possible_values = true, value_parser = PossibleValuesParser::new(STATES.map(State::name)))]
    state: Option<String>,
    /// Only recordings of this account: 32 hex digits.
    #[arg(long, value_parser = account)]
    account: Option<String>,
    /// Only recordings with this cause, such as unreachable.
    #[arg(long, hide_possible_values = true, value_parser = PossibleValuesParser::new(causes()))]
    cause: Option<String>,
    /// Only recordings with webhooks that an endpoint has not accepted: owed (a worker sends them) or parked (retry sends them again).
    #[arg(long, value_parser = PossibleValuesParser::new(["owed", "parked"]))]
    webhooks: Option<String>,
    /// Only recordings that were ordered longer ago than this: 90s, 15m, 6h, 2d.
    #[arg(long, value_parser = age)]
    older: Option<Duration>,
    /// Only recordings that were ordered within this time: 90s, 15m, 6h, 2d.
    #[arg(long, value_parser = age)]
    newer: Option<Duration>,
    /// At most this many, the newest first.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Do not cut lines at the terminal's edge.
    #[arg(long, conflicts_with = "json")]
    wide: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

fn age(text: &str) -> Result<Duration, String> {
    // The last character, not the last byte.
    let unit = text.chars().next_back();
    let number = unit.map_or(text, |unit| &text[..text.len() - unit.len_utf8()]);
    let seconds = match unit {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err("a number and s, m, h or d, such as 15m".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a number and s, m, h or d, such as 15m".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

/// Every cause, once.
fn causes() -> BTreeSet<&'static str> {
    let all = Outcome::ALL.iter().flat_map(|outcome| outcome.causes());
    all.map(|cause| cause.name()).collect()
}

fn account(text: &str) -> Result<String, String> {
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("32 hex digits".into())
    }
}

impl ListArgs {
    /// Which of the arguments contradict each other.
    pub fn contradiction(&self) -> Option<&'static str> {
        let (older, newer) = (self.older?, self.newer?);
        (older >= newer).then_some("no recording can match: set --older to a shorter time than --newer")
    }
}

pub fn list(config: &Config, args: &ListArgs) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let now = desk.clock.now();
        let filter = Filter {
            state: args.state.as_deref().and_then(State::named),
            account_id: args.account.clone(),
            cause: args.cause.clone(),
            before: args.older.map(|age| now.minus(age)),
            after: args.newer.map(|age| now.minus(age)),
            ..Filter::default()
        };
        let mut found = match &args.webhooks {
            Some(which) => {
                let found = desk.ledger.with_webhooks(which == "parked").await;
                let mut found = found.context("the ledger cannot be read")?;
                found.retain(|record| filter.fits(record));
                found.sort_by_key(|record| std::cmp::Reverse(record.entry.order().map(|order| order.asked_at)));
                Some(found)
            }
            None => None,
        };
        let by_webhooks = found.is_some();
        let mut search = desk.ledger.search(filter).await.context("the ledger cannot be read")?;
        let width = if args.wide { None } else { terminal::width() };
        let mut out = std::io::stdout().lock();
        if !args.json {
            let columns = ["MEDIA ID", "STATE", "CAUSE", "AGE", "CALL", "ACCOUNT"];
            writeln!(out, "{}", cut(line(columns), width))?;
        }
        let (mut written, mut more, mut parked) = (0, false, false);
        // Rows are written as they arrive: there can be more than fit into memory.
        loop {
            let records = match by_webhooks {
                true => found.take(),
                false => search.next().await.context("the ledger cannot be read")?,
            };
            let Some(records) = records else { break };
            let room = args.limit - written;
            for record in records.iter().take(room) {
                parked |= record.entry.parked().is_some() || by_webhooks;
                row(&mut out, record, (args.json, width), now)?;
            }
            written += records.len().min(room);
            if records.len() > room {
                more = true;
                break;
            }
        }
        drop(search);
        desk.close().await;
        if !args.json {
            let s = if written == 1 { "" } else { "s" };
            writeln!(out, "{written} recording{s}")?;
            if parked {
                out.flush()?;
                eprintln!(
                    "next: kz-record-call explain <media id> says why a recording or a webhook is parked, and what to do"
                );
            }
        }
        if more {
            // On standard error, so that standard output contains only the rows.
            out.flush()?;
            eprintln!("more recordings match: these are the newest {written}, raise --limit for more");
        }
        Ok(true)
    })
}

fn row(
    out: &mut impl Write,
    record: &Record,
    (as_json, width): (bool, Option<usize>),
    now: Moment,
) -> std::io::Result<()> {
    let row = Row::of(record);
    if as_json {
        return writeln!(out, "{}", row.json(record));
    }
    let asked_at = record.entry.order().map(|order| order.asked_at);
    let age = asked_at.map_or_else(|| "-".to_owned(), |asked_at| duration(now.since(asked_at).as_secs()));
    let call_id = Plain(&record.entry.call_id).to_string();
    let columns = [
        row.media_id,
        row.state,
        row.cause.unwrap_or("-"),
        &age,
        &call_id,
        row.account.unwrap_or("-"),
    ];
    writeln!(out, "{}", cut(line(columns), width))
}

/// A line of the table. Each column is as wide as its longest common value.
fn line([media_id, state, cause, age, call_id, account]: [&str; 6]) -> String {
    format!("{media_id:<39}  {state:<10}  {cause:<16}  {age:>11}  {call_id:<36}  {account}")
}

struct Row<'a> {
    media_id: &'a str,
    state: &'static str,
    cause: Option<&'static str>,
    account: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of(record: &'a Record) -> Self {
        let entry = &record.entry;
        let cause = entry.outcome().map(|(_, cause)| cause).or(entry.parked());
        Self {
            media_id: entry.order().map_or("unknown", |order| order.media_id.as_str()),
            state: State::of(entry).name(),
            cause: cause.map(Cause::name),
            account: entry.account_id(),
        }
    }

    fn json(&self, record: &Record) -> serde_json::Value {
        let order = record.entry.order();
        json!({
            "media_id": order.map(|order| order.media_id.as_str()),
            "call_id": record.entry.call_id,
            "account_id": self.account,
            "state": self.state,
            "cause": self.cause,
            "asked_at": order.map(|order| order.asked_at.rfc3339()),
            "failures": record.entry.failures().count(),
            "webhooks_owed": endpoints(record, false),
            "webhooks_parked": endpoints(record, true),
        })
    }
}

/// The endpoints that have not accepted a notice of the recording.
fn endpoints(record: &Record, parked: bool) -> BTreeSet<String> {
    let debts = record.entry.webhooks().into_iter();
    let wanted = debts.filter(|debt| debt.is_parked == parked);
    wanted.map(|debt| debt.notice.endpoint).collect()
}

/// Which recordings are retried.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The id of a recording, of its document, or of its call. Its parked webhooks are sent again too.
    #[arg(required_unless_present_any = ["all_parked", "webhooks"])]
    name: Option<String>,
    /// Retry every parked recording.
    #[arg(long, conflicts_with = "name")]
    all_parked: bool,
    /// Send every parked webhook again.
    #[arg(long, conflicts_with = "name")]
    webhooks: bool,
}

pub fn retry(config: &Config, args: &RetryArgs) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let mut out = std::io::stdout().lock();
        let mut moved = 0;
        match &args.name {
            Some(name) => moved += again(&desk, &mut out, desk.one(name).await?).await?,
            None if !args.all_parked => {}
            None => {
                let filter = Filter {
                    state: Some(State::Parked),
                    ..Filter::default()
                };
                let mut search = desk.ledger.search(filter).await.context("the ledger cannot be read")?;
                // One batch after the other: after a long outage there can be more than fit into memory.
                while let Some(records) = search.next().await.context("the ledger cannot be read")? {
                    for record in records {
                        moved += again(&desk, &mut out, record).await?;
                    }
                }
            }
        }
        if args.webhooks {
            let parked = desk
                .ledger
                .with_webhooks(true)
                .await
                .context("the ledger cannot be read")?;
            for record in parked {
                moved += notify_again(&desk, &mut out, &mut record.entry.clone()).await?;
            }
        }
        desk.close().await;
        writeln!(out, "{moved} retried")?;
        Ok(moved > 0 || args.all_parked || args.webhooks)
    })
}

/// Retries one recording; returns how many were retried.
async fn again(desk: &Desk, out: &mut impl Write, record: Record) -> anyhow::Result<usize> {
    // A long list is old when its end is reached: a worker may have discarded the recording meanwhile.
    let mut entry = desk.now(record.entry).await?;
    let media_id = entry
        .order()
        .map_or("unknown", |order| order.media_id.as_str())
        .to_owned();
    let notified = notify_again(desk, out, &mut entry).await?;
    if let Some((outcome, _)) = entry.outcome() {
        if notified == 0 {
            writeln!(out, "{media_id}: already {}, not retried", outcome.name())?;
        }
        return Ok(notified);
    }
    let retry = entry.retry();
    desk.add(&mut entry, retry).await?;
    writeln!(out, "{media_id}: retried, a worker resumes it now")?;
    Ok(1)
}

/// Has the parked webhooks of a recording sent again; returns 1 if there are any.
async fn notify_again(desk: &Desk, out: &mut impl Write, entry: &mut Entry) -> anyhow::Result<usize> {
    let retried = lifecycle::retried(entry);
    let Some(media_id) = entry.order().map(|order| order.media_id.to_string()) else {
        return Ok(0);
    };
    let count = retried.len();
    for what in retried {
        desk.add(entry, what).await?;
    }
    if count > 0 {
        writeln!(
            out,
            "{media_id}: {count} parked webhooks retried, a worker sends them now"
        )?;
    }
    Ok(count.min(1))
}

/// Which recording is discarded.
#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// The id of a recording, of its document, or of its call.
    name: String,
    /// Confirm: the recording's audio is removed from the hold, and no worker asks for it again. The command prints what remains
    /// elsewhere.
    #[arg(long)]
    yes: bool,
}

pub fn discard(config: &Config, args: &DiscardArgs) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let found = desk.one(&args.name).await?;
        give_up(&desk, &mut std::io::stdout().lock(), found, args.yes).await?;
        desk.close().await;
        Ok(true)
    })
}

/// Discards one recording, if `yes`.
async fn give_up(desk: &Desk, out: &mut impl Write, record: Record, yes: bool) -> anyhow::Result<()> {
    // What a search finds comes from one node, and a worker may have stored the recording since.
    let mut entry = desk.now(record.entry).await?;
    let media_id = entry
        .order()
        .map_or("unknown", |order| order.media_id.as_str())
        .to_owned();
    if entry.outcome().is_some() {
        bail!("{media_id} is already {}", State::of(&entry).name());
    }
    if entry.ended().is_none() {
        bail!("{media_id} is still recording: stop it by a callflow, or wait for the end of the call");
    }
    if !yes {
        bail!("discard removes {media_id} and its audio for good: repeat the command with --yes to confirm");
    }
    let held = entry.held().cloned();
    let (outcome, cause) = (Outcome::Discarded, Cause::DiscardedByOperator);
    desk.add(&mut entry, What::Concluded { outcome, cause }).await?;
    writeln!(out, "{media_id}: discarded")?;
    if let Some(holding) = &held {
        writeln!(
            out,
            "  removed by a worker: copy in the hold, {}/{}",
            holding.place, holding.name
        )?;
    }
    for left in explain::after_discarding(&entry) {
        writeln!(out, "  {}", Plain(left))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use crate::ledger::testing;

    use super::*;

    /// `retry --all-parked` reads a long list, and a worker discards one of its last recordings meanwhile.
    #[tokio::test]
    async fn a_recording_that_was_discarded_meanwhile_is_not_told_as_retried() {
        let parked = What::Parked {
            n: 1,
            cause: Cause::Refused,
            ends: None,
        };
        let (outcome, cause) = (Outcome::Discarded, Cause::RetentionOver);
        let now = testing::document(&[parked.clone(), What::Concluded { outcome, cause }], "2-b");
        let (couch, log) = testing::server(move |first, _| match first.contains("_all_docs") {
            true => testing::found(&now),
            false => testing::welcome(),
        })
        .await;
        let desk = Desk::over(couch, testing::policy());
        let listed = Record {
            entry: testing::entry("action", 1_795_386_262, &[parked]),
            lease: None,
            rev: None,
        };
        let mut out = Vec::new();
        assert_eq!(again(&desk, &mut out, listed).await.unwrap(), 0);
        let said = String::from_utf8(out).unwrap();
        assert!(said.contains("already discarded"), "{said}");
        desk.close().await;
        let log = log.lock().unwrap();
        assert!(!log.iter().any(|(first, _)| first.contains("_bulk_docs")), "{log:?}");
    }

    /// A search is answered by one node, which may lack what a worker wrote a moment ago.
    #[tokio::test]
    async fn a_recording_that_was_stored_meanwhile_is_not_discarded() {
        let parked = What::Parked {
            n: 1,
            cause: Cause::Refused,
            ends: None,
        };
        let (outcome, cause) = (Outcome::Stored, Cause::Complete);
        let now = testing::document(&[parked.clone(), What::Concluded { outcome, cause }], "2-b");
        let (couch, log) = testing::server(move |first, _| match first.contains("_all_docs") {
            true => testing::found(&now),
            false => testing::welcome(),
        })
        .await;
        let desk = Desk::over(couch, testing::policy());
        let listed = Record {
            entry: testing::entry("action", 1_795_386_262, &[parked]),
            lease: None,
            rev: None,
        };
        let mut out = Vec::new();
        let refused = give_up(&desk, &mut out, listed, true).await.unwrap_err().to_string();
        assert!(refused.contains("is already"), "{refused}");
        assert!(out.is_empty());
        desk.close().await;
        let log = log.lock().unwrap();
        assert!(!log.iter().any(|(first, _)| first.contains("_bulk_docs")), "{log:?}");
    }

    #[test]
    fn nothing_can_be_both_older_and_newer_when_the_ages_do_not_leave_any() {
        let args = |older: &str, newer: &str| {
            let command = ListArgs::augment_args(clap::Command::new("list"));
            let matches = command.try_get_matches_from(["list", "--older", older, "--newer", newer]);
            ListArgs::from_arg_matches(&matches.unwrap()).unwrap()
        };
        assert!(args("2h", "1h").contradiction().is_some());
        assert!(args("1h", "60m").contradiction().is_some());
        assert!(args("1h", "2h").contradiction().is_none());
    }

    #[test]
    fn what_no_recording_can_have_is_refused() {
        let refused = |option: &str, value: &str| {
            let command = ListArgs::augment_args(clap::Command::new("list"));
            command.try_get_matches_from(["list", option, value]).is_err()
        };
        for (option, good, bad) in [
            ("--state", "parked", "parkd"),
            ("--cause", "file_gone", "file-gone"),
            ("--account", "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4", "4ba1"),
        ] {
            assert!(!refused(option, good) && refused(option, bad), "{option}");
        }
    }

    #[test]
    fn ages_have_a_unit() {
        assert_eq!(age("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(age("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "5", "m", "1w", "-1h", "5\u{b5}", "\u{b5}", "5\u{1f600}", "\u{661}m"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
