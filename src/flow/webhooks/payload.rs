//! The body of a notice. It has the fields of the AMQP event, in the form that receivers of webhooks expect.

use serde_json::{Map, Value, json};

use crate::entry::Entry;
use crate::entry::webhooks::Debt;
use crate::kazoo::time::Moment;

/// The body, with what is known of the recording now.
pub fn payload(entry: &Entry, debt: &Debt) -> Value {
    let event = entry.outcome_event(debt.outcome, Some(debt.cause));
    let mut data = Map::new();
    for (name, value) in event
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
    {
        data.insert(name.to_ascii_lowercase().replace('-', "_"), value.clone());
    }
    if let Some(ended) = entry.ended() {
        data.insert("ended_at".into(), json!(ended.at.rfc3339()));
    }
    json!({
        "type": format!("recording.{}", debt.outcome),
        "timestamp": debt.since.rfc3339(),
        "data": data,
    })
}

/// The body of a test.
pub fn test_payload(endpoint: &str, now: Moment) -> Value {
    json!({
        "type": "webhook.test",
        "timestamp": now.rfc3339(),
        "data": {"endpoint": endpoint},
    })
}
