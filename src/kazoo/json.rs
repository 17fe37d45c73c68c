//! Reading JSON as Kazoo's `kz_json` and `kz_term` do: a number may be a string, a boolean too, an empty string is absent.

use serde_json::Value;

/// The non-empty string at `key`.
pub fn text<'a>(json: &'a Value, key: &str) -> Option<&'a str> {
    json.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// As `text`, owned.
pub fn owned_text(json: &Value, key: &str) -> Option<String> {
    text(json, key).map(str::to_owned)
}

/// The text at `key`, where a number stands for its decimal form (`kz_json:get_binary_value`).
pub fn text_or_number(json: &Value, key: &str) -> Option<String> {
    match json.get(key)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An integer, or what `kz_term:to_integer` makes one of: a numeric string, a float (rounded).
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(round)),
        Value::String(text) => {
            let text = text.trim();
            text.parse()
                .ok()
                .or_else(|| text.contains('.').then(|| text.parse().ok().and_then(round)).flatten())
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
    // Beyond 2^53 a float no longer names one integer.
    #[allow(clippy::cast_possible_truncation)]
    (value.is_finite() && value.abs() < 9.0e15).then(|| value.round() as i64)
}

#[cfg(test)]
mod tests {
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
            (json!(1e300), None),
            (json!("inf"), None),
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
}
