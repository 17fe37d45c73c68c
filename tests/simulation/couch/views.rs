//! The views of the ledger's design documents, computed when they are read.

use std::cmp::Ordering;

use serde_json::{Value, json};

/// The keys under which a view lists a document.
pub fn keys(view: &str, doc: &Value) -> Vec<Value> {
    let text = |name: &str| doc.get(name).filter(|value| value.is_string());
    let open = doc.get("open") == Some(&Value::Bool(true));
    match view {
        "due" => doc
            .get("due")
            .filter(|due| due.is_number())
            .map(|due| json!([doc["zone"], due])),
        "open" if open => text("zone").cloned(),
        "fetch" if open => text("fetch_id").cloned(),
        "interaction" if open => text("interaction").cloned(),
        "state" => text("state").map(|state| json!([state, doc.get("asked_at")])),
        "media" => text("media_id").cloned(),
        _ => None,
    }
    .into_iter()
    .collect()
}

/// CouchDB's order of keys.
pub fn order(one: &Value, other: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    };
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64().partial_cmp(&other.as_f64()).unwrap(),
        (Value::String(one), Value::String(other)) => one.cmp(other),
        (Value::Array(one), Value::Array(other)) => one
            .iter()
            .zip(other)
            .map(|(one, other)| order(one, other))
            .find(|found| found.is_ne())
            .unwrap_or(one.len().cmp(&other.len())),
        _ => rank(one).cmp(&rank(other)),
    }
}

/// The parameters of a query.
pub struct Query {
    from: Option<Value>,
    to: Option<Value>,
    pub descending: bool,
    pub skip: usize,
    pub limit: usize,
    pub docs: bool,
}

impl Query {
    pub fn read(query: &[(&str, &str)]) -> Self {
        let given = |name: &str| query.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let key = |name: &str| given(name).map(|text| serde_json::from_str(text).unwrap());
        let number = |name: &str| given(name).map(|text| text.parse().unwrap());
        Self {
            from: key("key").or_else(|| key("startkey")),
            to: key("key").or_else(|| key("endkey")),
            descending: given("descending") == Some("true"),
            skip: number("skip").unwrap_or(0),
            limit: number("limit").unwrap_or(usize::MAX),
            docs: given("include_docs") == Some("true"),
        }
    }

    pub fn has(&self, key: &Value) -> bool {
        let (low, high) = match self.descending {
            true => (&self.to, &self.from),
            false => (&self.from, &self.to),
        };
        low.as_ref().is_none_or(|low| order(low, key).is_le())
            && high.as_ref().is_none_or(|high| order(key, high).is_le())
    }
}
