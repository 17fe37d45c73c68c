//! Which months have a database, and what a missing one means.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::couch::CouchError;
use crate::kazoo::time::Month;

use super::PREFIX;
use super::store::Store;

/// The list of databases is asked for again after this. It can be long: BigCouch gives the names of all databases, whatever range is asked for.
/// A month that another worker begins meanwhile is seen later by the sweep only; what is looked up by call or by id is asked for in any case.
const KNOWN_FOR: Duration = Duration::from_secs(120);

/// A server that knew Kazoo's databases is believed for so long that a missing month is missing.
const BELIEVED_FOR: Duration = Duration::from_secs(30);

/// What was learnt of the server's databases.
#[derive(Debug, Default)]
pub struct Known(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    months: Option<(Vec<Month>, Instant)>,
    /// When the server was last seen to know Kazoo's databases.
    whole: Option<Instant>,
}

impl Known {
    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A month's database was made, or seen, just now.
    pub fn add(&self, month: Month) {
        self.with(|seen| {
            if let Some((months, _)) = &mut seen.months
                && !months.contains(&month)
            {
                months.push(month);
            }
        });
    }

    /// A database was dropped, or is missing.
    pub fn forget(&self) {
        self.with(|seen| seen.months = None);
    }
}

impl Store {
    /// The months that have a database, as they were at most two minutes ago; months that this worker began are among them at once.
    pub async fn months(&self) -> Result<Vec<Month>, CouchError> {
        let known = self.known.with(|seen| match &seen.months {
            Some((months, at)) if at.elapsed() < KNOWN_FOR => Some(months.clone()),
            _ => None,
        });
        match known {
            Some(months) => Ok(months),
            None => self.months_now().await,
        }
    }

    /// The months that have a database.
    pub async fn months_now(&self) -> Result<Vec<Month>, CouchError> {
        let names = self.couch.databases(PREFIX).await?;
        let month = |name: &String| {
            name.strip_prefix(PREFIX)
                .filter(|rest| rest.len() == 6)
                .and_then(Month::of_id)
        };
        let months: Vec<Month> = names.iter().filter_map(month).collect();
        if months.is_empty() {
            // A server without any database has not got the list from the others yet.
            self.couch.knows_databases().await?;
        }
        self.known
            .with(|seen| seen.months = Some((months.clone(), Instant::now())));
        Ok(months)
    }

    /// What to make of an answer that a month's database, or its view, is missing: `Ok` when that can be believed.
    ///
    /// # Errors
    /// The answer of a server that does not know Kazoo's databases either: it says nothing about the ledger.
    pub(super) async fn missing(&self, error: CouchError) -> Result<(), CouchError> {
        match error {
            // Only the view: the database is there.
            CouchError::NotFound => return Ok(()),
            CouchError::DatabaseMissing(_) => {}
            other => return Err(other),
        }
        let believed = self
            .known
            .with(|seen| seen.whole.is_some_and(|at| at.elapsed() < BELIEVED_FOR));
        if !believed {
            self.couch.knows_databases().await?;
            self.known.with(|seen| seen.whole = Some(Instant::now()));
        }
        Ok(())
    }
}
