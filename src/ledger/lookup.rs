//! Lookups for the commands: entries by id, by call, by state.

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde_json::json;

use crate::couch::{CouchError, Pages, Range, ViewRow};
use crate::kazoo::time::{Moment, Month};
use crate::lifecycle::{STATES, State};

use super::LedgerError;
use super::record::{Address, Record, call_prefix};
use super::store::{Store, address};
use super::views::LOOKUP;

/// Which entries to return.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The id of a recording, or of its document.
    pub media_id: Option<String>,
    pub call_id: Option<String>,
    pub state: Option<State>,
    /// The state that the ledger has for it. By the rules of this version, an entry of an earlier one may be in another state.
    pub noted_as: Option<State>,
    pub account_id: Option<String>,
    pub cause: Option<String>,
    /// Requested before this time.
    pub before: Option<Moment>,
    /// Requested after this time.
    pub after: Option<Moment>,
    pub limit: usize,
}

/// Entries per batch.
const BATCH: usize = 100;

/// Searches for entries in batches, because the entries of a month may not fit into memory.
pub struct Search<'a> {
    store: &'a Store,
    filter: Filter,
    /// The months that are left, newest first.
    months: VecDeque<Month>,
    /// The states of the month that is being read.
    states: Vec<Rows>,
}

/// The rows of one state, newest first.
struct Rows {
    pages: Pages,
    next: VecDeque<ViewRow>,
    over: bool,
}

impl Rows {
    fn of(state: State, filter: &Filter) -> Self {
        let newest = filter
            .before
            .unwrap_or(Moment::from_unix_seconds(i64::from(u32::MAX) * 4));
        let oldest = filter.after.unwrap_or(Moment::from_unix_seconds(0));
        Self {
            pages: Pages::of(Range {
                design: LOOKUP,
                view: "state",
                from: json!([state.name(), newest]),
                to: json!([state.name(), oldest]),
                descending: true,
            }),
            next: VecDeque::new(),
            over: false,
        }
    }

    async fn fill(&mut self, store: &Store, month: Month) -> Result<(), CouchError> {
        if !self.next.is_empty() || self.over {
            return Ok(());
        }
        match self.pages.next(&*store.couch, &super::database(month)).await {
            Ok(rows) => {
                self.over = rows.is_empty();
                self.next = rows.into();
                Ok(())
            }
            Err(error) => {
                self.over = true;
                store.missing(error).await
            }
        }
    }

    /// When the recording of the next row was requested, as the view stores it.
    fn asked_at(&self) -> Option<f64> {
        Some(self.next.front()?.key.get(1)?.as_f64().unwrap_or(0.0))
    }
}

impl Search<'_> {
    /// The next matching entries, newest first. `None` when there are no more. A batch may be empty before that.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, LedgerError> {
        self.batch().await.map_err(LedgerError::Down)
    }

    async fn batch(&mut self) -> Result<Option<Vec<Record>>, CouchError> {
        let Some(month) = self.months.front().copied() else {
            return Ok(None);
        };
        if self.filter.call_id.is_some() || self.filter.media_id.is_some() {
            self.months.pop_front();
            let mut found = self.store.named(month, &self.filter).await?;
            found.retain(|record| self.filter.fits(record));
            return Ok(Some(found));
        }
        if self.states.is_empty() {
            let states = self
                .filter
                .state
                .or(self.filter.noted_as)
                .map_or(STATES.to_vec(), |state| vec![state]);
            self.states = states.into_iter().map(|state| Rows::of(state, &self.filter)).collect();
        }
        let mut ids = Vec::new();
        while ids.len() < BATCH {
            for rows in &mut self.states {
                rows.fill(self.store, month).await?;
            }
            let newest = self
                .states
                .iter_mut()
                .filter(|rows| !rows.next.is_empty())
                .max_by(|one, other| one.asked_at().partial_cmp(&other.asked_at()).unwrap_or(Ordering::Equal));
            match newest.and_then(|rows| rows.next.pop_front()) {
                Some(row) => ids.push(row.id),
                None => break,
            }
        }
        if ids.is_empty() {
            self.months.pop_front();
            self.states.clear();
            return Ok(Some(Vec::new()));
        }
        let found = self.store.couch.get_many(&super::database(month), &ids).await?;
        let records = found.iter().flatten().filter_map(Record::read);
        Ok(Some(records.filter(|record| self.filter.fits(record)).collect()))
    }
}

impl Store {
    pub async fn search(&self, filter: Filter) -> Result<Search<'_>, CouchError> {
        let mut months = self.months_now().await?;
        months.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Search {
            store: self,
            filter,
            months: months.into(),
            states: Vec::new(),
        })
    }

    pub async fn find(&self, filter: &Filter) -> Result<Vec<Record>, CouchError> {
        let mut search = self.search(filter.clone()).await?;
        let mut found = Vec::new();
        while found.len() < filter.limit
            && let Some(records) = search.batch().await?
        {
            found.extend(records);
        }
        found.truncate(filter.limit);
        Ok(found)
    }

    /// The addresses of the rows' entries. The document ids contain them, except for calls with very long ids, whose documents are read.
    pub(super) async fn addresses(&self, month: Month, rows: Vec<ViewRow>) -> Result<Vec<Address>, CouchError> {
        let (mut found, mut unclear) = (Vec::new(), Vec::new());
        for row in rows {
            match Address::of_id(month, &row.id) {
                Some(address) => found.push(address),
                None => unclear.push(row.id),
            }
        }
        if !unclear.is_empty() {
            let documents = self.couch.get_many(&super::database(month), &unclear).await?;
            found.extend(
                documents
                    .iter()
                    .flatten()
                    .filter_map(|document| address(month, document)),
            );
        }
        Ok(found)
    }

    /// The entries of a call, or with a media id. There are few of them.
    async fn named(&self, month: Month, filter: &Filter) -> Result<Vec<Record>, CouchError> {
        if let Some(call_id) = &filter.call_id {
            let prefix = call_prefix(call_id);
            return match self
                .couch
                .id_range(&super::database(month), &prefix, &format!("{prefix}g"))
                .await
            {
                Ok(found) => Ok(found.iter().filter_map(Record::read).collect()),
                Err(error) => self.missing(error).await.map(|()| Vec::new()),
            };
        }
        let key = json!(filter.media_id).to_string();
        let limit = BATCH.to_string();
        let query = [("key", key.as_str()), ("limit", &limit), ("include_docs", "true")];
        let rows = self.rows(month, LOOKUP, "media", &query).await?;
        Ok(rows
            .iter()
            .filter_map(|row| row.doc.as_ref())
            .filter_map(Record::read)
            .collect())
    }
}

impl Filter {
    /// Whether an entry matches. The id of a recording or of a document is not compared.
    pub fn fits(&self, record: &Record) -> bool {
        let entry = &record.entry;
        let order = entry.order();
        let asked = order.map(|order| order.asked_at);
        let cause = entry.outcome().map(|(_, cause)| cause).or_else(|| entry.parked());
        self.call_id.as_ref().is_none_or(|call_id| entry.call_id == *call_id)
            && self.state.is_none_or(|state| State::of(entry) == state)
            && self
                .cause
                .as_ref()
                .is_none_or(|wanted| cause.is_some_and(|cause| cause.name() == wanted))
            && self.before.is_none_or(|before| asked.is_some_and(|at| at < before))
            && self.after.is_none_or(|after| asked.is_some_and(|at| at > after))
            && self.account_id.as_ref().is_none_or(|account| {
                order
                    .and_then(|order| order.account_id.as_ref())
                    .is_some_and(|of| of == account)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use crate::couch::testing::{self, Asked};
    use crate::entry::Entry;
    use crate::recording::identity::Key;

    use super::*;

    /// More than two pages.
    const MANY: usize = 2500;

    fn month() -> Month {
        Month::of_id("202611-x").unwrap()
    }

    fn id(n: usize) -> String {
        let address = Address {
            month: month(),
            call_id: format!("call {n:05}@h"),
            key: Key::of("call", &n.to_string()),
        };
        address.id()
    }

    fn parameter(asked: &Asked, name: &str) -> Option<String> {
        let url = url::Url::parse(&format!("http://h{}", asked.path)).unwrap();
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// A ledger of one month with many parked recordings, in the order of their ids, the newest first.
    fn answer(asked: &Asked) -> (u16, Value) {
        if asked.path.contains("_all_dbs") {
            return (200, json!(["kz_record_call-202611"]));
        }
        if asked.path.contains("/_all_docs") {
            let keys: Value = serde_json::from_str(&asked.body).unwrap();
            let row = |id: &Value| {
                let n: usize = id.as_str().unwrap()[8..13].parse().unwrap();
                let mut entry = serde_json::to_value(Entry::new(Key::of("call", &n.to_string()), "call")).unwrap();
                entry["_id"] = id.clone();
                json!({"id": id, "key": id, "value": {"rev": "1-a"}, "doc": entry})
            };
            let rows: Vec<Value> = keys["keys"].as_array().unwrap().iter().map(row).collect();
            return (200, json!({"total_rows": MANY, "offset": null, "rows": rows}));
        }
        if asked.path.contains("/_view/") {
            // Among the states, only the parked one has entries.
            if parameter(asked, "startkey").unwrap().contains("held") {
                return (200, json!({"total_rows": 0, "offset": 0, "rows": []}));
            }
            let limit: usize = parameter(asked, "limit").expect("no limit").parse().unwrap();
            let after = parameter(asked, "startkey_docid");
            let from = (0..MANY).find(|n| after.as_deref() == Some(&id(*n))).unwrap_or(0);
            let skip = usize::from(parameter(asked, "skip").as_deref() == Some("1"));
            let row = |n: usize| json!({"id": id(n), "key": ["parked", 10_000 - n], "value": null});
            let rows: Vec<Value> = (from + skip..MANY).take(limit).map(row).collect();
            return (200, json!({"total_rows": MANY, "offset": 0, "rows": rows}));
        }
        (200, json!({"couchdb": "Welcome"}))
    }

    fn store(couch: crate::couch::Couch) -> Arc<Store> {
        Arc::new(Store::new(
            Arc::new(couch),
            crate::kazoo::time::Clock::system(),
            crate::ledger::testing::policy(),
        ))
    }

    #[tokio::test]
    async fn a_month_of_any_size_is_read_page_by_page_and_never_as_a_whole() {
        let (couch, log) = testing::couch(answer).await;
        let store = store(couch);
        let open = store.open("west").await.unwrap();
        assert_eq!(open.len(), MANY);
        assert_eq!(open[MANY - 1].call_id, format!("call {:05}@h", MANY - 1));
        let filter = Filter {
            limit: usize::MAX,
            account_id: Some("a".repeat(32)),
            ..Filter::default()
        };
        let parked = Filter {
            state: Some(State::Parked),
            ..filter.clone()
        };
        for filter in [filter, parked] {
            assert!(store.find(&filter).await.unwrap().is_empty(), "none is of that account");
        }
        let log = log.lock().unwrap();
        assert!(log.len() > 30);
        for asked in log.iter().filter(|asked| asked.path.contains("/_view/")) {
            assert!(!asked.path.contains("include_docs"), "{}", asked.path);
            assert!(parameter(asked, "limit").unwrap().parse::<usize>().unwrap() <= 1000);
        }
        for asked in log.iter().filter(|asked| asked.path.contains("/_all_docs")) {
            let keys: Value = serde_json::from_str(&asked.body).unwrap();
            assert!(keys["keys"].as_array().unwrap().len() <= BATCH);
        }
    }

    #[tokio::test]
    async fn the_names_of_all_databases_are_not_asked_for_every_second() {
        let (couch, log) = testing::couch(answer).await;
        let store = store(couch);
        for second in 0..60 {
            store.due("west", Moment::from_unix_seconds(second), 128).await.unwrap();
        }
        let lists = |log: &testing::Log| {
            log.lock()
                .unwrap()
                .iter()
                // The request whether any database exists does not count.
                .filter(|asked| asked.path.contains("_all_dbs") && !asked.path.ends_with("?limit=1"))
                .count()
        };
        assert_eq!(lists(&log), 1);
        // A month that this worker creates is listed at once.
        store.ensure(month().next()).await.unwrap();
        assert_eq!(store.months().await.unwrap(), [month(), month().next()]);
        assert_eq!(lists(&log), 1);
    }

    #[tokio::test]
    async fn a_server_without_the_databases_says_nothing_about_the_ledger_and_gets_no_second_one() {
        let (couch, log) = testing::couch(|_| testing::no_database()).await;
        let store = store(couch);
        let call = Address {
            month: month(),
            call_id: "call".into(),
            key: Key::of("call", "action"),
        };
        assert!(store.load(&call).await.is_err());
        assert!(store.of_call(&[month()], "call").await.is_err());
        assert!(store.of_fetch(&[month()], "fetch").await.is_err());
        assert!(store.ensure(month()).await.is_err());
        let log = log.lock().unwrap();
        assert!(
            log.iter()
                .all(|asked| asked.method == "GET" || asked.path.contains("_all_docs")),
            "{log:?}"
        );
    }
}
