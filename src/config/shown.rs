//! Values in a form that may be shown: without secrets.

use toml::Value;

/// The text that replaces a secret.
pub const MASK: &str = "***";

/// A value without secrets. Secrets are the values of keys with such names, and credentials in URLs. The value of an unknown key is not
/// shown at all.
pub fn shown(key: &str, value: &Value, known: bool) -> Value {
    match value {
        Value::String(text) if text.is_empty() => value.clone(),
        Value::Array(items) if items.is_empty() => value.clone(),
        _ if !known || is_secret(key) => Value::String(MASK.to_owned()),
        Value::String(text) => Value::String(without_credentials(text)),
        Value::Array(items) => Value::Array(items.iter().map(|item| shown(key, item, known)).collect()),
        _ => value.clone(),
    }
}

fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    ["secret", "password", "passphrase", "headers"]
        .iter()
        .any(|word| name.contains(word))
}

/// A text with the passwords of all URLs masked. Text that may be credentials is masked too.
pub fn without_credentials(text: &str) -> String {
    let starts = starts(text);
    let Some(&first) = starts.first() else {
        // The text has no URL, but may be a mistyped one.
        return text
            .rsplit_once('@')
            .map_or_else(|| text.to_owned(), |(_, rest)| format!("{MASK}@{rest}"));
    };
    let mut shown = match text[..first].contains('@') {
        true => MASK.to_owned(),
        false => text[..first].to_owned(),
    };
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(text.len());
        shown.push_str(&url(&text[start..end]));
    }
    shown
}

/// Where the URLs begin.
fn starts(text: &str) -> Vec<usize> {
    let begin = |at: usize| {
        let scheme = text[..at]
            .bytes()
            .rev()
            .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
            .count();
        at - scheme
    };
    // A URL without a separator before it is part of the preceding text, for example of a password.
    let apart = |start: &usize| {
        let before = text[..*start].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || matches!(c, ',' | ';' | '[' | '(' | '"' | '\'' | '<' | '='))
    };
    text.match_indices("://")
        .map(|(at, _)| begin(at))
        .filter(apart)
        .collect()
}

/// One URL, and what follows it up to the next one.
fn url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    // Masks up to the last @. A password that should have been encoded may contain other @s, and slashes.
    let rest = match rest.rsplit_once('@') {
        None => without_odd_port(rest),
        Some((userinfo, rest)) => match userinfo.split_once(':') {
            Some((name, _)) if is_plain(name) => format!("{name}:{MASK}@{rest}"),
            _ => format!("{MASK}@{rest}"),
        },
    };
    let rest = match rest.split_once('?') {
        None => rest,
        Some((before, query)) => {
            let parameters: Vec<String> = query.split('&').map(parameter).collect();
            format!("{before}?{}", parameters.join("&"))
        }
    };
    format!("{scheme}://{rest}")
}

/// A text in place of a port that is not a number may be a password that was cut off from its host.
fn without_odd_port(rest: &str) -> String {
    let end = rest
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | ','))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.split_once(':') {
        Some((host, port)) if !host.starts_with('[') && !port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{host}:{MASK}")
        }
        _ => format!("{authority}{path}"),
    }
}

fn parameter(text: &str) -> String {
    match text.split_once('=') {
        Some((name, _)) if is_secret(name) || name.contains("token") => format!("{name}={MASK}"),
        _ => text.to_owned(),
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(key: &str, value: &str, known: bool) -> String {
        match shown(key, &Value::String(value.to_owned()), known) {
            Value::String(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn credentials_are_masked_and_the_rest_is_shown() {
        for (value, is) in [
            (
                "amqp://guest:guest@h:5672/%2f?heartbeat=10",
                "amqp://guest:***@h:5672/%2f?heartbeat=10",
            ),
            ("amqp://a:p@h, amqps://b:q@i/v", "amqp://a:***@h, amqps://b:***@i/v"),
            ("http://token@h", "http://***@h"),
            ("http://u:a/b@c?d@h:5984", "http://u:***@h:5984"),
            ("u:p@h", "***@h"),
            ("http://h:5984", "http://h:5984"),
            (
                "amqps://h?password=x&verify=verify_peer",
                "amqps://h?password=***&verify=verify_peer",
            ),
            ("info", "info"),
            ("", ""),
        ] {
            assert_eq!(text("amqp.uri", value, true), is);
        }
    }

    #[test]
    fn secrets_and_what_nobody_knows_are_not_shown_at_all() {
        assert_eq!(text("secret", "x", true), MASK);
        assert_eq!(text("couchdb.password", "x", true), MASK);
        assert_eq!(text("couchdb.pasword", "x", false), MASK);
        assert_eq!(text("couchdb.password", "", true), "", "that none is set may be seen");
        let list = Value::Array(vec![Value::String("amqp://u:p@h".into())]);
        assert_eq!(
            shown("amqp.uri", &list, true),
            Value::Array(vec![Value::String("amqp://u:***@h".into())])
        );
        assert_eq!(shown("x.y", &Value::Integer(7), false), Value::String(MASK.into()));
    }

    #[test]
    fn a_password_with_a_url_in_it_is_not_shown() {
        for text in [
            "amqp://:HUNTER://@a",
            "amqp://u:HUNTER a://x@h",
            "amqp://u:HUNTER,b://x@h/",
        ] {
            let shown = without_credentials(text);
            assert!(!shown.contains("HUNTER"), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_password_of_any_url_is_shown(
            urls in proptest::collection::vec(("(amqps?|https?)", "[a-z:]{0,4}", "[ -~&&[^@]]{0,6}", "[a-z]{1,5}"), 1..4),
        ) {
            let all: Vec<String> = urls.iter().map(|(scheme, name, junk, host)| format!("{scheme}://{name}:HUNTER{junk}@{host}")).collect();
            let shown = without_credentials(&all.join(", "));
            prop_assert!(!shown.contains("HUNTER"), "{}", shown);
        }

        #[test]
        fn any_text_is_shown(value in any::<String>()) {
            without_credentials(&value);
        }
    }
}
