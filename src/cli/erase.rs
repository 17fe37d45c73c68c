//! `kz-record-call erase`: removes what the workers hold of a call or of a recording, and prints a receipt. The receipt also names what this
//! command cannot reach.
//!
//! The entry in the ledger goes last. If a step fails, the command can be repeated.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::amqp::{self, Letter, Removed};
use crate::config::{self, Config};
use crate::couch::{Couch, Documents, Erased};
use crate::entry::Entry;
use crate::flow::inbox::dead_letters::DEAD_LETTERS;
use crate::hold::Hold;
use crate::kazoo::envelope::Envelope;
use crate::kazoo::names::APP_NAME;
use crate::kazoo::time::Moment;
use crate::ledger::{self, Address, Record};
use crate::lifecycle::State;

use super::explain;
use super::ledger::{Desk, block_on};
use super::plain::Plain;

/// What is erased.
#[derive(Debug, Args)]
pub struct EraseArgs {
    /// The id of a call, of a recording, or of a recording's document. With a call's id, all recordings of the call are erased.
    name: String,
    /// Confirm: nothing brings the entries back.
    #[arg(long)]
    yes: bool,
    /// Print the receipt as JSON.
    #[arg(long)]
    json: bool,
}

/// What is left in every case, because this program has no access to it.
const BEYOND: &[&str] = &[
    "the switch's variables and events, which have the sealed recording context, and what other programs keep of these events",
    "messages in queues that workers consume, until workers have handled them; dead letters on brokers of other zones",
    "uploads in the spool of a worker, until they are delivered; days of the hold that its database cannot read now",
    "logs of workers, RabbitMQ, CouchDB, the switch and Kazoo; Kazoo's CDRs",
    "backups and replicas of the databases; in CouchDB's files older revisions, until a compaction ends",
];

/// A copy in the hold: whose it is, its place and its name.
type HeldCopy = (Address, String, String);

/// What was removed, and what was not.
#[derive(Debug)]
struct Receipt {
    name: String,
    at: Moment,
    by: String,
    removed: Vec<String>,
    left: Vec<String>,
}

pub fn erase(config: &Config, args: &EraseArgs) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let erased = erase_from(&desk, config, args).await;
        desk.close().await;
        erased
    })
}

async fn erase_from(desk: &Desk, config: &Config, args: &EraseArgs) -> anyhow::Result<bool> {
    let records = desk.named(&args.name).await?;
    refuse_what_is_open(&records)?;
    if !args.yes {
        bail!(
            "erase removes {} recordings from the ledger and the hold, and their dead letters, for good: repeat the command with --yes to confirm",
            records.len()
        );
    }
    let couch = Couch::new(&config.couchdb).context("the HTTP client cannot be built")?;
    let mut receipt = Receipt {
        name: args.name.clone(),
        at: desk.clock.now(),
        by: desk.policy.worker.clone(),
        removed: Vec::new(),
        left: Vec::new(),
    };
    let hold = Hold::new(&config.hold, &config.couchdb, &couch).context("the hold cannot be used")?;
    let held = receipt.copies(&hold, &records).await?;
    refuse_what_is_needed(desk, &held).await?;
    receipt.dead_letters(config, &records).await?;
    receipt.held(&hold, held).await?;
    receipt.entries(&couch, &records).await?;
    receipt
        .left
        .extend(records.iter().flat_map(|record| stays(&record.entry)));
    if records.len() >= super::ledger::MOST_NAMED {
        receipt
            .left
            .push("perhaps more recordings of the call: repeat the command until it removes no entry".to_owned());
    }
    receipt.left.extend(BEYOND.iter().map(ToString::to_string));
    receipt.print(args.json)?;
    Ok(true)
}

/// A recording that is open would be written again, and its audio may have no other copy.
fn refuse_what_is_open(records: &[Record]) -> anyhow::Result<()> {
    for Record { entry, .. } in records {
        let state = State::of(entry);
        let advice = match state {
            state if state.is_final() => continue,
            State::Asked | State::Recording => "stop it by a callflow, or wait for the end of the call",
            State::Parked | State::Held | State::Ended => {
                "run `kz-record-call discard` first, or wait until it is stored"
            }
            _ => "wait until a worker has finished it",
        };
        let id = entry.order().map_or("a recording", |order| order.media_id.as_str());
        bail!("{id} is {}, so nothing is erased: {advice}", state.name());
    }
    Ok(())
}

/// The list by name comes from one node, which may lack the newest entries, and contains a limited number of them. A copy can also belong to a
/// recording that continues another one, and have that one's key. So the entry of each copy is read by its id.
async fn refuse_what_is_needed(desk: &Desk, copies: &[HeldCopy]) -> anyhow::Result<()> {
    for (address, _, name) in copies {
        let load = async |address: &Address| {
            let loading = desk.ledger.load(address).await;
            loading.context("the ledger cannot be read, so nothing is erased")
        };
        let Some(record) = load(address).await? else { continue };
        let separated = record.entry.separated(name, desk.clock.now(), &desk.policy.worker);
        let owner = match separated {
            Some(separated) => load(&ledger::address(&separated))
                .await?
                .with_context(|| format!("{name} in the hold belongs to a recording that is not in the ledger yet, so nothing is erased: repeat the command later"))?,
            None => record,
        };
        refuse_what_is_open(&[owner])?;
    }
    Ok(())
}

/// What remains of a finished recording outside of the ledger and the hold.
fn stays(entry: &Entry) -> Vec<String> {
    let mut stays = explain::what_stays(entry);
    if let Some(delivery) = entry.delivery() {
        let document = &delivery.document;
        stays.push(format!(
            "not removed: document {} in {}",
            document.id, document.database
        ));
    }
    let unique: BTreeSet<String> = stays
        .into_iter()
        .map(|line| line.trim_start_matches("not removed: ").to_owned())
        .collect();
    unique.into_iter().collect()
}

impl Receipt {
    fn is_of(&self, records: &[Record], address: &Address) -> bool {
        address.call_id == self.name || records.iter().any(|record| record.entry.key == address.key)
    }

    /// Dead letters whose body names the call or the recording, on the first broker that answers.
    async fn dead_letters(&mut self, config: &Config, records: &[Record]) -> anyhow::Result<()> {
        let mut ids: BTreeSet<String> = BTreeSet::from([self.name.clone()]);
        for Record { entry, .. } in records {
            ids.extend(entry.order().map(|order| order.media_id.to_string()));
            // With one recording's id, dead letters of the call's other recordings stay.
            if self.name == entry.call_id || entry.order().is_none() {
                ids.insert(entry.call_id.clone());
            }
        }
        let is_wanted =
            |letter: &Letter<'_>| names_any(letter.body, letter.content_type, letter.content_encoding, &ids);
        let name = format!("{APP_NAME}@{} erase", config.kazoo.host);
        let mut failed = None;
        for uri in &config.amqp.uris {
            let place = config::broker(uri.expose_secret())
                .map(|uri| format!("{} vhost {}", config::authority(&uri), uri.vhost));
            let place = place.unwrap_or_else(|_| "the broker".to_owned());
            match amqp::remove_from(&config.amqp, uri, &name, DEAD_LETTERS, &is_wanted).await {
                Ok(Removed { removed, read }) => {
                    self.removed
                        .push(format!("{removed} of {read} dead letters in {DEAD_LETTERS} on {place}"));
                    return Ok(());
                }
                Err(error) => failed = Some(format!("{place}: {error}")),
            }
        }
        bail!(
            "the dead letters cannot be read, so nothing is erased: {}",
            failed.unwrap_or_default()
        )
    }

    /// Copies in the hold, also those that the ledger does not know.
    async fn copies(&self, hold: &Hold, records: &[Record]) -> anyhow::Result<Vec<HeldCopy>> {
        let (mut found, mut after) = (Vec::new(), None);
        if !hold.is_there() {
            return Ok(found);
        }
        // The hold lists what is older than a day: seen from the day after tomorrow, that is everything.
        let later = self.at.plus(std::time::Duration::from_secs(2 * 86_400));
        loop {
            let (copies, more) = hold.older(later, after).await.context("the hold cannot be read")?;
            found.extend(
                copies
                    .into_iter()
                    .filter(|(address, _, _)| self.is_of(records, address)),
            );
            match more {
                Some(more) => after = Some(more),
                None => return Ok(found),
            }
        }
    }

    /// Removes these copies from the hold.
    async fn held(&mut self, hold: &Hold, copies: Vec<HeldCopy>) -> anyhow::Result<()> {
        for (_, place, name) in copies {
            hold.remove_named(&place, &name)
                .await
                .context("a copy in the hold cannot be removed")?;
            self.removed.push(format!("audio in the hold: {place}/{name}"));
        }
        Ok(())
    }

    /// The entries, and their claims of places at users' URLs.
    async fn entries(&mut self, couch: &Couch, records: &[Record]) -> anyhow::Result<()> {
        let mut databases = BTreeSet::new();
        for record in records {
            let address = ledger::address(&record.entry);
            let database = ledger::database(address.month);
            self.document(couch, &database, &address.id(), "ledger entry").await?;
            databases.insert(database);
        }
        for database in &databases {
            let documents: &dyn Documents = couch;
            let claims = documents
                .id_range(database, "place-", "place-g")
                .await
                .context("the ledger cannot be read")?;
            for claim in claims {
                let text = |key: &str| claim[key].as_str().unwrap_or_default().to_owned();
                if records.iter().any(|record| record.entry.key.to_string() == text("key")) {
                    self.document(couch, database, &text("_id"), "claim of a place").await?;
                }
            }
            if let Err(error) = couch.compact(database).await {
                self.left.push(format!(
                    "older revisions in {database}: compaction did not begin ({error})"
                ));
            }
        }
        Ok(())
    }

    async fn document(&mut self, couch: &Couch, database: &str, id: &str, what: &str) -> anyhow::Result<()> {
        let erased = couch.erase(database, id).await;
        let how = match erased.with_context(|| format!("{what} {id} in {database} cannot be removed"))? {
            Erased::Purged => "purged",
            Erased::Deleted => {
                self.left
                    .push(format!("the id of {what} {id} in {database}: this server cannot purge"));
                "deleted"
            }
            Erased::Missing => return Ok(()),
        };
        self.removed.push(format!("{what} {id} in {database} ({how})"));
        Ok(())
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            let receipt = json!({
                "erased": self.name,
                "at": self.at.rfc3339(),
                "by": self.by,
                "removed": self.removed,
                "not_reached": self.left,
            });
            writeln!(out, "{receipt:#}")?;
            return Ok(());
        }
        writeln!(
            out,
            "Erased: {} at {} by {}",
            Plain(&self.name),
            self.at.rfc3339(),
            self.by
        )?;
        writeln!(out, "Removed:")?;
        for line in &self.removed {
            writeln!(out, "  {}", Plain(line))?;
        }
        writeln!(out, "Not reached by this command:")?;
        for line in &self.left {
            writeln!(out, "  {}", Plain(line))?;
        }
        Ok(())
    }
}

/// Whether a message names one of the ids, in plain or in compressed form.
fn names_any(body: &[u8], kind: &str, encoding: &str, ids: &BTreeSet<String>) -> bool {
    let plain = match Envelope::decode(kind, encoding, body) {
        Ok(envelope) => envelope.body.to_string(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    ids.iter().any(|id| {
        // As JSON has it, without the quotes.
        let quoted = json!(id).to_string();
        plain.contains(quoted.trim_matches('"')) || plain.contains(id)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn a_dead_letter_is_known_by_the_ids_in_it_however_it_is_written() {
        let ids = BTreeSet::from(["a/b\"c@h".to_owned(), "m1".to_owned()]);
        let message = json!({"Event-Category": "c", "Event-Name": "n", "Call-ID": "a/b\"c@h"}).to_string();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(message.as_bytes()).unwrap();
        let packed = gzip.finish().unwrap();
        assert!(names_any(message.as_bytes(), "application/json", "", &ids));
        assert!(names_any(&packed, "application/json", "gzip", &ids));
        assert!(names_any(b"no message of Kazoo, but m1", "", "", &ids));
        assert!(!names_any(b"{\"Call-ID\":\"other\"}", "application/json", "", &ids));
    }
}
