//! Reads JSON as Kazoo's `kz_json` and `kz_term` do. A number or a boolean may be a string, and an empty string counts as missing.

use std::collections::BTreeMap;
use std::num::IntErrorKind;

use serde_json::Value;
use serde_json::value::RawValue;

use super::call::clip;

/// Levels of objects that `read` reads member by member: a message, its `Call`, the variables of the `Call`, and one more.
const LEVELS: usize = 4;

/// Reads a message's body as far as possible. Erlang limits neither the depth of a term nor the size of a number, so serde_json rejects
/// some valid messages as a whole. A call must not wait for ever because of a value that no code here uses. For such a message each member
/// is read separately. A number out of range becomes the greatest or the least one, and a value that is nested too deep becomes empty.
///
/// # Errors
/// When the body is not JSON.
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let text = String::from_utf8_lossy(bytes);
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(raw) => Ok(piecemeal(raw.get(), LEVELS)),
        Err(_) => Err(error),
    }
}

/// A value with valid grammar that serde_json rejects.
fn piecemeal(text: &str, levels: usize) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    match text.bytes().next() {
        Some(b'{') if levels > 0 => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
            let read = |(key, raw): (String, &RawValue)| (key, piecemeal(raw.get(), levels - 1));
            Value::Object(members.into_iter().map(read).collect())
        }
        Some(b'{') => Value::Object(serde_json::Map::new()),
        Some(b'[') => Value::Array(Vec::new()),
        Some(b'-') => f64::MIN.into(),
        Some(b'0'..=b'9') => f64::MAX.into(),
        // A text with an incomplete surrogate pair.
        _ => Value::String(clip(text, 1024).trim_matches('"').to_owned()),
    }
}

/// The non-empty string at `key`.
pub fn text<'a>(json: &'a Value, key: &str) -> Option<&'a str> {
    json.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// As `text`, owned.
pub fn owned_text(json: &Value, key: &str) -> Option<String> {
    text(json, key).map(str::to_owned)
}

/// The text at `key`. A number gives its decimal form (`kz_json:get_binary_value`).
pub fn text_or_number(json: &Value, key: &str) -> Option<String> {
    match json.get(key)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An integer, or a value that `kz_term:to_integer` converts to one: a numeric string, or a float (rounded). Erlang's integers have no
/// limits. A number beyond our range becomes the greatest or the least integer. It still is a number, and each caller clamps it.
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(round)),
        Value::String(text) => {
            let text = text.trim();
            match text.parse::<i64>() {
                Ok(number) => Some(number),
                Err(error) => match error.kind() {
                    IntErrorKind::PosOverflow => Some(i64::MAX),
                    IntErrorKind::NegOverflow => Some(i64::MIN),
                    _ => text.contains('.').then(|| text.parse().ok().and_then(round)).flatten(),
                },
            }
        }
        _ => None,
    }
}

/// As `integer`, at a key.
pub fn integer_at(json: &Value, key: &str) -> Option<i64> {
    json.get(key).and_then(integer)
}

/// A boolean, or the strings `true` and `false` (`kz_term:is_true`).
pub fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => match text.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// As `boolean`, at a key.
pub fn boolean_at(json: &Value, key: &str) -> Option<bool> {
    json.get(key).and_then(boolean)
}

fn round(value: f64) -> Option<i64> {
    // The cast saturates.
    #[allow(clippy::cast_possible_truncation)]
    value.is_finite().then(|| value.round() as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_read_as_kazoo_reads_them() {
        for (given, read) in [
            (json!(600), Some(600)),
            (json!("600"), Some(600)),
            (json!(" 600 "), Some(600)),
            (json!("600.4"), Some(600)),
            (json!(600.6), Some(601)),
            (json!("-3"), Some(-3)),
            (json!("ten"), None),
            (json!(""), None),
            (json!(1e300), Some(i64::MAX)),
            (json!(u64::MAX), Some(i64::MAX)),
            (json!("99999999999999999999"), Some(i64::MAX)),
            (json!("-99999999999999999999"), Some(i64::MIN)),
            (json!("1.0e30"), Some(i64::MAX)),
            (json!("1e30"), None),
            (json!("inf"), None),
            (json!("NaN."), None),
            (json!(true), None),
            (json!([600]), None),
            (json!(null), None),
        ] {
            assert_eq!(integer(&given), read, "{given}");
        }
    }

    #[test]
    fn booleans_are_read_as_kazoo_reads_them() {
        assert_eq!(boolean(&json!("true")), Some(true));
        assert_eq!(boolean(&json!("false")), Some(false));
        assert_eq!(boolean(&json!(false)), Some(false));
        for other in [json!("yes"), json!(1), json!(null), json!({})] {
            assert_eq!(boolean(&other), None, "{other}");
        }
    }

    #[test]
    fn what_erlang_can_write_and_serde_cannot_read_spoils_no_more_than_itself() {
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        let digits = "9".repeat(400);
        let text = format!(
            r#" {{"Call-ID": "c", "Data": {{"x": {deep}, "time_limit": {digits}, "url": "http://h/", "least": -{digits}, "half": "a\ud800"}},
                "Call": {{"Custom-Channel-Vars": {{"a": {deep}, "b": "2"}}}}}} "#
        );
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(
            (&read["Call-ID"], &read["Data"]["url"]),
            (&json!("c"), &json!("http://h/"))
        );
        assert_eq!(read["Data"]["x"], json!([]));
        assert_eq!(integer_at(&read["Data"], "time_limit"), Some(i64::MAX));
        assert_eq!(integer_at(&read["Data"], "least"), Some(i64::MIN));
        assert_eq!(read["Data"]["half"], json!("a\\ud800"));
        assert_eq!(read["Call"]["Custom-Channel-Vars"], json!({"a": [], "b": "2"}));
    }

    #[test]
    fn bytes_that_are_no_text_spoil_no_more_than_their_value() {
        let read = read(b"{\"Caller-ID-Name\": \"J\xf6rg\", \"Call-ID\": \"c\"}").unwrap();
        assert_eq!(read, json!({"Caller-ID-Name": "J\u{fffd}rg", "Call-ID": "c"}));
        for bad in [&b""[..], b"{", b"{\"a\": 1} 2", b"\xff", b"{\"a\": 01}"] {
            assert!(super::read(bad).is_err(), "{bad:?}");
        }
    }
    proptest! {
        #[test]
        fn any_number_is_the_same_when_it_is_read_back(text in "-?[1-9][0-9]{0,40}(\\.[0-9]{1,20})?(e-?[0-9]{1,3})?") {
            let number = read(text.as_bytes()).unwrap();
            prop_assert_eq!(read(number.to_string().as_bytes()).unwrap(), number);
        }
    }
}
