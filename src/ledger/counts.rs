//! How many entries are in each state, for the gauges. One reduced query per month.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::couch::CouchError;
use crate::kazoo::time::{Moment, Month};

use super::database;
use super::readable::Readable;
use super::store::Store;
use super::views::{COUNTS, LOOKUP};

/// The entries in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub count: u64,
    /// When the oldest of them was requested.
    pub oldest: Moment,
}

impl Store {
    /// The entries of a zone, counted by state. States without entries are left out.
    pub async fn counts(&self, zone: &str) -> Result<BTreeMap<String, Counted>, CouchError> {
        let (from, to) = (json!([zone]).to_string(), json!([zone, {}]).to_string());
        let query = [("startkey", from.as_str()), ("endkey", &to), ("group", "true")];
        let mut all = BTreeMap::new();
        let mut months = Readable::default();
        for month in self.months().await? {
            months.take(month, self.counted(month, &query).await);
        }
        for (key, value) in months.all()? {
            if let Some((state, counted)) = read(&key, &value) {
                add(&mut all, state, counted);
            }
        }
        Ok(all)
    }

    async fn counted(&self, month: Month, query: &[(&str, &str)]) -> Result<Vec<(Value, Value)>, CouchError> {
        let ask = || async move { self.couch.reduced(&database(month), LOOKUP, COUNTS, query).await };
        match ask().await {
            // The database was dropped since its name was read.
            Err(error @ CouchError::DatabaseMissing(_)) => self.missing(error).await.map(|()| Vec::new()),
            // An older version of the worker wrote the views.
            Err(CouchError::NotFound) => {
                self.forget(month);
                self.ensure(month).await?;
                ask().await
            }
            other => other,
        }
    }
}

fn add(all: &mut BTreeMap<String, Counted>, state: &str, counted: Counted) {
    let known = all.entry(state.to_owned()).or_insert(Counted { count: 0, ..counted });
    known.count += counted.count;
    known.oldest = known.oldest.min(counted.oldest);
}

/// Parses a row of the view.
fn read<'a>(key: &'a Value, value: &Value) -> Option<(&'a str, Counted)> {
    let state = key.get(1)?.as_str()?;
    let number = |name: &str| value.get(name).and_then(Value::as_f64);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // counts and Unix times
    let (count, oldest) = (number("count")? as u64, number("min")? as i64);
    Some((
        state,
        Counted {
            count,
            oldest: Moment::from_unix_seconds(oldest),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_add_up_and_the_oldest_of_all_counts() {
        let rows = [
            (
                json!(["west", "parked"]),
                json!({"sum": 30, "count": 2, "min": 10, "max": 20, "sumsqr": 500}),
            ),
            (
                json!(["west", "parked"]),
                json!({"sum": 5.0, "count": 1.0, "min": 5.0, "max": 5.0, "sumsqr": 25.0}),
            ),
            (json!(["west", "held"]), json!({"count": 4, "min": 7})),
            (json!(["west"]), json!({"count": 4, "min": 7})),
            (json!(["west", "stored"]), json!(9)),
        ];
        let mut all = BTreeMap::new();
        for (key, value) in &rows {
            if let Some((state, counted)) = read(key, value) {
                add(&mut all, state, counted);
            }
        }
        let of = |count, oldest| Counted {
            count,
            oldest: Moment::from_unix_seconds(oldest),
        };
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!((all["parked"], all["held"]), (of(3, 5), of(4, 7)));
    }
}
