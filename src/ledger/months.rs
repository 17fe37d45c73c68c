//! Which months have a database, and what a missing one means.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::couch::CouchError;
use crate::kazoo::time::Month;

use super::PREFIX;
use super::store::Store;

/// The list of databases is read again after this time. The list can be long: BigCouch returns the names of all databases, whatever range
/// is requested. The sweep sees a month that another worker creates meanwhile only later. Lookups by call or by id read that month in any
/// case.
const KNOWN_FOR: Duration = Duration::from_secs(120);

/// After a server has shown that it knows Kazoo's databases, its "missing" is trusted for this long.
const BELIEVED_FOR: Duration = Duration::from_secs(30);

/// What is known of the server's databases.
#[derive(Debug, Default)]
pub struct Known(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    months: Option<(Vec<Month>, Instant)>,
    /// When the server last showed that it knows Kazoo's databases.
    whole: Option<Instant>,
}

impl Known {
    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A month's database was created or read just now.
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
    /// The months with a database, at most two minutes old. Months that this worker created are listed at once.
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

    /// The months with a database.
    pub async fn months_now(&self) -> Result<Vec<Month>, CouchError> {
        let names = self.couch.databases(PREFIX).await?;
        let month = |name: &String| {
            name.strip_prefix(PREFIX)
                .filter(|rest| rest.len() == 6)
                .and_then(Month::of_id)
        };
        let months: Vec<Month> = names.iter().filter_map(month).collect();
        if months.is_empty() {
            // A server without any database may not have received the list from the other nodes yet.
            self.couch.knows_databases().await?;
        }
        self.known
            .with(|seen| seen.months = Some((months.clone(), Instant::now())));
        Ok(months)
    }

    /// Judges an answer that a month's database, or its view, is missing. `Ok` when the answer can be trusted.
    ///
    /// # Errors
    /// The answer of a server that does not know Kazoo's databases either. It says nothing about the ledger.
    pub(super) async fn missing(&self, error: CouchError) -> Result<(), CouchError> {
        match error {
            // Only the view is missing. The database exists.
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
