//! Handles a missing monthly database.
//!
//! Kazoo creates the database when it first stores something for the account in that month (`kazoo_modb:maybe_create`). Any CDR causes
//! that. Until then a recording waits, and its file stays on the switch. After a time the worker creates the database as Kazoo would, with
//! the views that are registered for monthly databases, and announces it. A database without its views would be worse than none, because
//! Kazoo adds views only when it creates the database.
//!
//! ```text
//! create the database -> write its views but one -> publish db_created -> write the last view
//! ```
//!
//! A worker can be killed, and an answer can be lost, after each step. The last view marks completion. A worker that stores something in a
//! young database without that view repeats the steps. Each step is harmless when it is done twice.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::config;
use crate::couch::{Couch, CouchError};
use crate::kazoo::change;
use crate::kazoo::envelope::Sender;
use crate::kazoo::json::boolean_at;
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::{Moment, Month};
use crate::recording::names;
use crate::telemetry::events::DatabaseCreated;

const ACCOUNTS: &str = "accounts";
const SYSTEM_DATA: &str = "system_data";
/// The class of database that views are registered for (`kzs_util:db_classification`).
const CLASSIFICATION: &str = "modb";
/// The view that Crossbar lists recordings with. It is written last. If it is not registered, the last of the registered views takes its
/// place.
const LAST: &str = "_design/recordings";

/// While another worker, or Kazoo, creates a database, its last view appears within this time.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(100);

/// Attempts to write views, before the recording waits for its next attempt.
const TRIES: usize = 2;

/// Whether the account exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    There,
    /// The account never existed, or is deleted. Kazoo will not create databases for it.
    Gone,
}

/// What to do about a missing database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Store again at the time of the retry schedule. Nothing else happens before `until`.
    Wait { until: Option<Moment> },
    /// Create the database.
    Create,
    /// The account does not exist, so its database never will.
    NoSuchAccount,
}

/// Decides the step. `missing_since` is when this recording first met the missing database. `month` is the database's month.
pub fn step(account: Account, month: Month, missing_since: Moment, now: Moment, config: &config::Destination) -> Step {
    let until = missing_since.plus(config.create_databases_after);
    match account {
        Account::Gone => Step::NoSuchAccount,
        Account::There if !config.create_databases => Step::Wait { until: None },
        // The clocks of Kazoo's nodes may be in the next month already, or still in the last one. The worker creates no database for any
        // other month.
        Account::There if !is_about(month, now) => Step::Wait { until: None },
        Account::There if now < until => Step::Wait { until: Some(until) },
        Account::There => Step::Create,
    }
}

/// Whether a month is the present one, or one next to it. A recording can belong to such a month, waiting time and retries included.
pub fn is_about(month: Month, now: Moment) -> bool {
    let present = now.month();
    month == present || month.next() == present || present.next() == month
}

/// Whether the account exists (`kazoo_modb:is_account_deleted`).
///
/// # Errors
/// When the database does not answer. Kazoo counts that as a deleted account, and we do not.
pub async fn account(couch: &Couch, account_id: &str) -> Result<Account, CouchError> {
    match couch.get_surely(ACCOUNTS, account_id).await? {
        Some(document) if boolean_at(&document, "pvt_deleted") == Some(true) => Ok(Account::Gone),
        Some(_) => Ok(Account::There),
        None => Ok(Account::Gone),
    }
}

/// A database that exists now, with all its views but the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub account_id: String,
    /// The name that CouchDB uses, without our prefix.
    pub database: String,
    /// Whether this worker created it.
    pub by_us: bool,
    /// Views that were written.
    pub views: usize,
    /// The view that is still to be written. `None`: another worker or Kazoo has finished all steps.
    last: Option<Value>,
}

impl Created {
    /// Kazoo's notice, if it must be published. Publish it before `finish`.
    pub fn notice(&self, sender: &Sender, msg_id: &str) -> Option<Outgoing> {
        let database = names::encoded(&self.database);
        self.last
            .is_some()
            .then(|| change::database_created(sender, msg_id, &database, &self.account_id))
    }

    /// Writes the last view. From then on no worker repeats the steps.
    ///
    /// # Errors
    /// When the view may be missing.
    pub async fn finish(mut self, couch: &Couch) -> Result<Self, CouchError> {
        if let Some(last) = self.last.take() {
            self.views += write(couch, &self.database, std::slice::from_ref(&last)).await?;
            DatabaseCreated {
                account_id: &self.account_id,
                database: &self.database,
                views: self.views,
            }
            .emit();
        }
        Ok(self)
    }
}

/// Creates the database with all its views but the last. The call is harmless when several workers make it, and completes what an
/// interrupted worker left.
///
/// # Errors
/// When the views cannot be read, there are none, or the database cannot be written.
pub async fn create(couch: &Couch, account_id: &str, month: Month) -> Result<Created, CouchError> {
    let database = names::modb(account_id, month);
    // Reads the views first, so that no database is created without views.
    let views = registered_views(couch, &database).await?;
    if views.is_empty() {
        return Err(CouchError::NoAnswer(
            "system_data has no views for monthly databases".into(),
        ));
    }
    let by_us = couch.create_database(&database).await?;
    views_of(couch, (account_id, &database), views, by_us).await
}

/// Checks an existing database. `None` when all its views exist, or none are registered. Otherwise writes all missing views but the last.
///
/// # Errors
/// When the database does not answer, or cannot be written.
pub async fn complete(couch: &Couch, account_id: &str, month: Month) -> Result<Option<Created>, CouchError> {
    let database = names::modb(account_id, month);
    if couch.has_design(&database, LAST).await? {
        return Ok(None);
    }
    let views = match registered_views(couch, &database).await {
        // A cluster without system_data registers no views. A node that does not know the cluster's databases says nothing about views.
        Err(CouchError::DatabaseMissing(_)) => {
            couch.knows_databases().await?;
            Vec::new()
        }
        views => views?,
    };
    if views.is_empty() {
        return Ok(None);
    }
    let created = views_of(couch, (account_id, &database), views, false).await?;
    Ok(created.last.is_some().then_some(created))
}

async fn views_of(
    couch: &Couch,
    (account_id, database): (&str, &str),
    mut views: Vec<Value>,
    by_us: bool,
) -> Result<Created, CouchError> {
    let place = views.iter().position(|view| id(view) == LAST);
    let last = views.remove(place.unwrap_or(views.len().saturating_sub(1)));
    let mut created = Created {
        account_id: account_id.to_owned(),
        database: database.to_owned(),
        by_us,
        views: 0,
        last: None,
    };
    if !by_us {
        let mut waited = Duration::ZERO;
        loop {
            if couch.has_design(database, id(&last)).await? {
                return Ok(created);
            }
            if waited >= PATIENCE {
                break;
            }
            tokio::time::sleep(STEP).await;
            waited += STEP;
        }
    }
    created.views = write(couch, database, &views).await?;
    created.last = Some(last);
    Ok(created)
}

/// Writes views. Existing views stay unchanged.
async fn write(couch: &Couch, database: &str, views: &[Value]) -> Result<usize, CouchError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match couch.create_all(database, views).await {
            // The views may have been written or not. Writing them again is harmless.
            Err(error @ (CouchError::Failed { .. } | CouchError::NoAnswer(_))) if tries < TRIES => {
                tracing::debug!(event = "views_rewrite", database, %error, "views written again");
            }
            other => return other,
        }
    }
}

fn id(view: &Value) -> &str {
    view.get("_id").and_then(Value::as_str).unwrap_or_default()
}

/// Databases that are known to have all their views.
#[derive(Debug, Default)]
pub struct Whole(Mutex<HashSet<String>>);

/// Most databases that are remembered. Beyond that all of them are checked again.
const MOST: usize = 10_000;

impl Whole {
    pub fn has(&self, database: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(database)
    }

    pub fn remember(&self, database: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(database.to_owned());
    }
}

/// The design documents that are registered for the database (`kz_datamgr:refresh_views`).
async fn registered_views(couch: &Couch, database: &str) -> Result<Vec<Value>, CouchError> {
    let view = ("views", "views_by_classification");
    let found = couch
        .documents_by_view(SYSTEM_DATA, view, &[database, CLASSIFICATION])
        .await;
    let registered = match found {
        Ok(registered) => registered,
        // Kazoo registers this view itself. If the view is missing, the documents still hold the same data.
        Err(CouchError::NotFound) => {
            couch
                .documents_where(SYSTEM_DATA, |document| is_registered(document, database))
                .await?
        }
        Err(error) => return Err(error),
    };
    Ok(registered.iter().filter_map(design_document).collect())
}

/// Whether the view selects the document.
fn is_registered(document: &Value, database: &str) -> bool {
    let kind = document.get("pvt_type").and_then(Value::as_str);
    let deleted = boolean_at(document, "pvt_deleted") == Some(true);
    let maps = document.pointer("/kazoo/view_map").and_then(Value::as_array);
    let meant = |map: &Value| {
        let names = |key: &str, wanted: &str| map.get(key).and_then(Value::as_str) == Some(wanted);
        names("classification", CLASSIFICATION) || names("database", database)
    };
    kind == Some("view_definition") && !deleted && maps.is_some_and(|maps| maps.iter().any(meant))
}

/// The design document of a registration. The revision is dropped, and each function becomes one string, because Kazoo may store it as a
/// list of lines.
fn design_document(registration: &Value) -> Option<Value> {
    let mut design = registration.get("view_definition")?.clone();
    let object = design.as_object_mut()?;
    object.remove("_rev");
    object.remove("kazoo");
    let is_design = object
        .get("_id")
        .and_then(Value::as_str)
        .is_some_and(|id| id.starts_with("_design/"));
    let views = object.get_mut("views").and_then(Value::as_object_mut);
    for view in views.into_iter().flat_map(|views| views.values_mut()) {
        for part in view.as_object_mut().into_iter().flat_map(|view| view.values_mut()) {
            join_lines(part);
        }
    }
    is_design.then_some(design)
}

fn join_lines(part: &mut Value) {
    let joined = part.as_array().and_then(|lines| {
        let lines: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
        lines.map(|lines| lines.join("\n"))
    });
    if let Some(joined) = joined {
        *part = Value::String(joined);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn config(create: bool) -> config::Destination {
        let environment = [(
            "KZ_RECORD_CALL__DESTINATION__CREATE_DATABASES".to_owned(),
            create.to_string(),
        )];
        let layers = config::Layers::load(None, environment.into_iter()).unwrap();
        config::Config::of(layers).unwrap().destination
    }

    #[test]
    fn a_missing_database_is_waited_for_then_created_but_not_for_nobody() {
        let (since, hour) = (Moment::from_unix_seconds(1_795_386_262), Duration::from_secs(3600));
        let (on, off) = (config(true), config(false));
        let november = since.month();
        let wait = Step::Wait {
            until: Some(since.plus(hour)),
        };
        let never = Step::Wait { until: None };
        let minute = Duration::from_secs(60);
        for (what, account, month, later, config, expected) in [
            ("just missing", Account::There, november, Duration::ZERO, &on, wait),
            ("nearly", Account::There, november, hour - minute, &on, wait),
            ("long missing", Account::There, november, hour, &on, Step::Create),
            ("switched off", Account::There, november, hour * 9, &off, never),
            (
                "nobody's",
                Account::Gone,
                november,
                Duration::ZERO,
                &on,
                Step::NoSuchAccount,
            ),
            (
                "nobody's, off",
                Account::Gone,
                november,
                hour,
                &off,
                Step::NoSuchAccount,
            ),
            (
                "the month to come",
                Account::There,
                november.next(),
                hour,
                &on,
                Step::Create,
            ),
            (
                "a month nobody is in",
                Account::There,
                november.next().next(),
                hour,
                &on,
                never,
            ),
            (
                "last month's, after the turn",
                Account::There,
                november,
                Duration::from_secs(15 * 86_400),
                &on,
                Step::Create,
            ),
            (
                "older",
                Account::There,
                november,
                Duration::from_secs(45 * 86_400),
                &on,
                never,
            ),
        ] {
            assert_eq!(
                step(account, month, since, since.plus(later), config),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn registered_views_become_design_documents() {
        let registration = |map: Value| {
            json!({
                "pvt_type": "view_definition", "kazoo": {"view_map": [map]},
                "view_definition": {"_id": "_design/recordings", "_rev": "4-x", "views": {"all": {"map": ["function(doc) {", "}"], "reduce": "_count"}}},
            })
        };
        let database = "account/ab/cd/ef-202611";
        let good = registration(json!({"classification": "modb"}));
        assert!(is_registered(&good, database));
        assert!(is_registered(&registration(json!({"database": database})), database));
        assert!(!is_registered(
            &registration(json!({"classification": "account"})),
            database
        ));
        let mut deleted = good.clone();
        deleted["pvt_deleted"] = json!(true);
        assert!(!is_registered(&deleted, database));
        assert_eq!(
            design_document(&good),
            Some(
                json!({"_id": "_design/recordings", "views": {"all": {"map": "function(doc) {\n}", "reduce": "_count"}}})
            )
        );
        assert_eq!(design_document(&json!({"view_definition": {"_id": "x"}})), None);
        assert_eq!(design_document(&json!({})), None);
    }
}
