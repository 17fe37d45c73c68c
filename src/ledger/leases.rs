//! Leases of many recordings, with few requests.

use std::collections::BTreeSet;

use crate::couch::{CouchError, Row};
use crate::faults::{Fault, is_back};
use crate::kazoo::time::Month;

use super::database;
use super::due::{Timers, webhooks};
use super::record::{Address, Lease, Record};
use super::store::{Found, Store};

/// Leases in one request. An entry can be large.
const TAKEN_AT_ONCE: usize = 64;

impl Store {
    /// Writes a lease for each of these entries, unless another live worker has one, or the entry needs no work: `None` then. The revision
    /// ensures that only one of two workers gets the lease. A partitioned database may give it to both.
    pub async fn take(
        &self,
        addresses: &[Address],
        lease: &Lease,
        is_gone: &(dyn Fn(&str) -> bool + Sync),
    ) -> Vec<Result<Option<Record>, CouchError>> {
        let mut results: Vec<Result<Option<Record>, CouchError>> = addresses.iter().map(|_| Ok(None)).collect();
        let months: BTreeSet<Month> = addresses.iter().map(|address| address.month).collect();
        for month in months {
            let of_month = addresses
                .iter()
                .enumerate()
                .filter(|(_, address)| address.month == month);
            let of_month: Vec<(usize, String)> = of_month.map(|(n, address)| (n, address.id())).collect();
            for some in of_month.chunks(TAKEN_AT_ONCE) {
                match self.take_some(month, some, lease, is_gone).await {
                    Ok(taken) => taken.into_iter().for_each(|(n, record)| results[n] = Ok(Some(record))),
                    Err(error) => some.iter().for_each(|(n, _)| results[*n] = Err(error.clone())),
                }
            }
        }
        results
    }

    /// The same for entries of one month: one request reads them, and one writes the leases.
    async fn take_some(
        &self,
        month: Month,
        wanted: &[(usize, String)],
        lease: &Lease,
        is_gone: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Vec<(usize, Record)>, CouchError> {
        let ids: Vec<String> = wanted.iter().map(|(_, id)| id.clone()).collect();
        let mut found = self.load_many(month, &ids).await?;
        let is_taken = |held: &Lease| held.holds(lease.stamped) && held.by != lease.by && !is_gone(&held.by);
        let (mut mine, mut documents) = (Vec::new(), Vec::new());
        for (n, id) in wanted {
            let Some(mut record) = found.remove(id).and_then(Found::record) else {
                continue;
            };
            if record.lease.as_ref().is_some_and(is_taken) && !is_back(Fault::LeasesIgnored) {
                continue;
            }
            record.lease = Some(lease.clone());
            let timers = Timers {
                due: Some(lease.until),
                webhooks: webhooks(&record.entry, &self.policy),
            };
            let document = record.document(id, timers);
            self.soon.note(&document);
            documents.push(document);
            mine.push((*n, record));
        }
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.couch.bulk_docs(&database(month), &documents).await?;
        let (mut written, mut refused) = (Vec::new(), Vec::new());
        for ((n, mut record), row) in mine.into_iter().zip(rows) {
            if let Row::Saved { rev, .. } = row {
                record.rev = Some(rev);
                written.push((n, record));
            } else {
                refused.push(n);
            }
        }
        let refused = wanted.iter().filter(|(n, _)| refused.contains(n));
        written.extend(self.taken_nevertheless(month, refused.cloned().collect(), lease).await);
        Ok(written)
    }

    /// A cluster answers with a conflict if one copy took the lease, and sent it to the other copies before the cluster asked them. Such a
    /// lease would keep every worker from the entry until the lease expires.
    async fn taken_nevertheless(
        &self,
        month: Month,
        refused: Vec<(usize, String)>,
        lease: &Lease,
    ) -> Vec<(usize, Record)> {
        if refused.is_empty() {
            return Vec::new();
        }
        let ids: Vec<String> = refused.iter().map(|(_, id)| id.clone()).collect();
        // If the database does not answer, the lease expires.
        let mut found = self.load_many(month, &ids).await.unwrap_or_default();
        let is_mine = |record: &Record| record.lease.as_ref() == Some(lease);
        let taken = refused.into_iter().filter_map(|(n, id)| {
            let record = found.remove(&id)?.record().filter(is_mine)?;
            Some((n, record))
        });
        taken.collect()
    }
}
