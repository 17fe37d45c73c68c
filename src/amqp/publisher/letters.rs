//! Which properties a dead letter keeps of its message. The broker must accept the copy from this worker's user, must not route it to any
//! other queue, and must not expire it.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::kazoo::call::clip;

use super::super::delivery::Delivery;

/// The header with the time at which a worker moved the message.
const DEAD_AT: &str = "x-kz-record-call-dead-at";
/// The header with the reason why a message is in the dead-letter queue.
const REASON: &str = "x-kz-record-call-reason";
/// The header with the message's sender, as the broker verified it.
const USER: &str = "x-kz-record-call-user-id";
/// The header that says that the headers were too long to keep.
const CUT: &str = "x-kz-record-call-headers";

/// Longest reason in that header, in bytes. A frame of headers cannot be split, and the reason may quote the faulty message.
const MAX_REASON: usize = 1024;

/// Longest headers that are kept, in bytes. Together with our own headers they fit into the smallest frame size that a broker negotiates.
const MAX_HEADERS: usize = 4096;

/// Headers that brokers interpret: copies for further queues, and delivery counters.
const BROKERS: [&str; 4] = ["CC", "BCC", "x-delivery-count", "x-acquired-count"];
const BROKERS_TOO: [&str; 3] = ["x-death", "x-first-death-", "x-last-death-"];

/// The properties of a dead letter, without its id.
pub(super) fn properties(delivery: &Delivery, reason: &str, now: u64) -> BasicProperties {
    let received = delivery.properties();
    let mut headers = FieldTable::default();
    if let Some(theirs) = received.headers() {
        for (name, value) in theirs.inner() {
            let brokers = |own: &&str| name.as_str().starts_with(*own);
            if !BROKERS.contains(&name.as_str()) && !BROKERS_TOO.iter().any(brokers) {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
    let length = table_bytes(&headers);
    if length > MAX_HEADERS {
        headers = FieldTable::default();
        let why = format!("left out: they have {length} bytes");
        headers.insert(CUT.into(), AMQPValue::LongString(why.as_str().into()));
    }
    let user = received.user_id().as_ref().map_or("", |user| user.as_str());
    for (key, text) in [
        (REASON, clip(reason, MAX_REASON)),
        ("x-kz-record-call-exchange", delivery.exchange()),
        ("x-kz-record-call-routing-key", delivery.routing_key()),
        (USER, user),
    ] {
        if key != USER || !text.is_empty() {
            headers.insert(key.into(), AMQPValue::LongString(text.into()));
        }
    }
    headers.insert(DEAD_AT.into(), AMQPValue::Timestamp(now));
    let mut properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    if let Some(kind) = received.content_type() {
        properties = properties.with_content_type(kind.clone());
    }
    if let Some(encoding) = received.content_encoding() {
        properties = properties.with_content_encoding(encoding.clone());
    }
    if let Some(timestamp) = received.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    properties
}

/// When a message came into the dead letters, in Unix seconds: as the worker says that moved it, else the broker.
pub(in super::super) fn dead_at(properties: &BasicProperties) -> Option<u64> {
    let headers = properties.headers().as_ref()?.inner();
    let time = |value: &AMQPValue| match value {
        AMQPValue::Timestamp(at) => Some(*at),
        _ => None,
    };
    if let Some(moved) = headers.get(DEAD_AT) {
        return time(moved);
    }
    let Some(AMQPValue::FieldArray(deaths)) = headers.get("x-death") else {
        return None;
    };
    let times = deaths.as_slice().iter().filter_map(|death| match death {
        AMQPValue::FieldTable(death) => death.inner().get("time").and_then(time),
        _ => None,
    });
    times.max()
}

/// Bytes that a table takes in a frame.
fn table_bytes(table: &FieldTable) -> usize {
    let entries = table.inner().iter();
    entries
        .map(|(name, value)| 2 + name.as_str().len() + bytes(value))
        .sum()
}

fn bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ShortString(text) => 4 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(|value| 1 + bytes(value)).sum::<usize>(),
        AMQPValue::FieldTable(table) => 4 + table_bytes(table),
        // No other type takes more bytes.
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(properties: BasicProperties) -> BasicProperties {
        let mut message = lapin::message::Delivery::mock(1, "kapps".into(), "key".into(), false, b"{}".to_vec());
        message.properties = properties;
        super::properties(&Delivery::new(message, false), "why", 9)
    }

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn a_dead_letter_keeps_what_anybody_may_write() {
        let copies = AMQPValue::FieldArray(vec![text("kz_record_call.actions")].into());
        let received = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_timestamp(7)
            .with_user_id("kazoo".into())
            .with_expiration("1".into())
            .with_reply_to("amq.rabbitmq.reply-to".into())
            .with_headers(table(&[
                ("CC", copies.clone()),
                ("BCC", copies),
                ("x-death", text("x")),
                ("own", text("x")),
            ]));
        let letter = letter(received);
        let expected = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_timestamp(7)
            .with_delivery_mode(2)
            .with_headers(table(&[
                ("own", text("x")),
                (REASON, text("why")),
                (USER, text("kazoo")),
                ("x-kz-record-call-exchange", text("kapps")),
                ("x-kz-record-call-routing-key", text("key")),
                (DEAD_AT, AMQPValue::Timestamp(9)),
            ]));
        assert_eq!(letter, expected);
    }

    #[test]
    fn a_dead_letter_says_since_when_it_is_one() {
        let death = |at: u64| AMQPValue::FieldTable(table(&[("time", AMQPValue::Timestamp(at))]));
        let deaths = AMQPValue::FieldArray(vec![death(4), death(5), text("x")].into());
        let with = |headers: &[(&str, AMQPValue)]| BasicProperties::default().with_headers(table(headers));
        assert_eq!(dead_at(&letter(with(&[("x-death", deaths.clone())]))), Some(9));
        // A broker moved it: its queue was too long.
        assert_eq!(dead_at(&with(&[("x-death", deaths)])), Some(5));
        for older in [
            BasicProperties::default(),
            with(&[("x-death", text("x"))]),
            with(&[(DEAD_AT, text("x"))]),
        ] {
            assert_eq!(dead_at(&older), None);
        }
    }

    #[test]
    fn headers_that_leave_no_room_in_a_frame_are_left_out() {
        let long = text(&"x".repeat(MAX_HEADERS));
        let nested = AMQPValue::FieldTable(table(&[("in", AMQPValue::FieldArray(vec![long.clone()].into()))]));
        for value in [long, nested] {
            let letter = letter(BasicProperties::default().with_headers(table(&[("long", value)])));
            let headers = letter.headers().clone().unwrap_or_default();
            assert!(headers.inner().contains_key(CUT) && !headers.inner().contains_key("long"));
            assert!(table_bytes(&headers) < 2048, "{}", table_bytes(&headers));
        }
    }
}
