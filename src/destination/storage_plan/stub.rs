//! What a document says of audio in an object store, in the form that Kazoo's handlers write and read (`kz_att_s3:encode_retrieval`). Pure.
//!
//! The entry contains the settings, secrets included: Kazoo fetches the audio with them. They are in a private field, as Kazoo has them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::kazoo::term::{Term, TermError};
use crate::system_config::Settings;

/// The parts in which the handlers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Kazoo's module.
    pub module: &'static str,
    /// The name of the term in the document.
    pub term: &'static str,
    /// Kazoo adds the object's name to the settings.
    pub has_file: bool,
}

pub const S3: Form = Form {
    module: "kz_att_s3",
    term: "S3",
    has_file: false,
};

pub const AZURE: Form = Form {
    module: "kz_att_azure",
    term: "azure",
    has_file: true,
};

/// Audio in an object store.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    pub settings: &'a Settings,
    /// The object's name, as Kazoo builds it.
    pub key: &'a str,
    /// What the store said of the object.
    pub metadata: &'a BTreeMap<String, String>,
    pub content_type: &'a str,
    pub length: u64,
}

/// The entry of `pvt_attachments`.
///
/// # Errors
/// When a setting cannot be a term.
pub fn entry(form: Form, stored: &Stored<'_>) -> Result<Value, TermError> {
    let mut settings = stored.settings.expose().clone();
    if form.has_file {
        settings.insert("file".into(), json!(stored.key));
    }
    let term = Term::Tuple(vec![settings_term(&settings), Term::binary(stored.key)]).to_base64()?;
    Ok(json!({
        "content_type": stored.content_type,
        "length": stored.length,
        "stub": false,
        "handler": {form.module: {form.term: term, "metadata": stored.metadata}},
    }))
}

/// Settings as Kazoo has them: keys of objects are atoms (`kz_maps:keys_to_atoms`).
fn settings_term(settings: &Map<String, Value>) -> Term {
    let pair = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Object(inner) => settings_term(inner),
            other => plain(other),
        };
        (Term::atom(key), value)
    };
    Term::Map(settings.iter().map(pair).collect())
}

/// A value inside a list keeps its keys as binaries.
fn plain(value: &Value) -> Term {
    match value {
        Value::Null => Term::atom("null"),
        Value::Bool(flag) => Term::atom(if *flag { "true" } else { "false" }),
        Value::Number(number) => number
            .as_i64()
            .map_or_else(|| Term::Float(number.as_f64().unwrap_or_default()), Term::Integer),
        Value::String(text) => Term::binary(text),
        Value::Array(items) => Term::List(items.iter().map(plain).collect()),
        Value::Object(object) => {
            let pairs = object.iter().map(|(key, value)| (Term::binary(key), plain(value)));
            Term::Map(pairs.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(value: &Value) -> Settings {
        Settings::of(value.as_object().unwrap().clone())
    }

    #[test]
    fn the_term_is_erlangs_own() {
        let settings = settings(&json!({
            "bucket": "buck", "bucket_after_host": false, "field_list": [{"arg": "id"}], "key": "AK", "port": 9000, "secret": "SK",
        }));
        let stored = Stored {
            settings: &settings,
            key: "path",
            metadata: &BTreeMap::from([("etag".to_owned(), "abc".to_owned())]),
            content_type: "audio/mpeg",
            length: 7,
        };
        let entry = entry(S3, &stored).unwrap();
        assert_eq!(
            entry,
            json!({
                "content_type": "audio/mpeg", "length": 7, "stub": false,
                "handler": {"kz_att_s3": {
                    "S3": "g2gCdAAAAAZkAAZidWNrZXRtAAAABGJ1Y2tkABFidWNrZXRfYWZ0ZXJfaG9zdGQABWZhbHNlZAAKZmllbGRfbGlzdGwAAAABdAAAAAFtAAAAA2FyZ\
                           20AAAACaWRqZAADa2V5bQAAAAJBS2QABHBvcnRiAAAjKGQABnNlY3JldG0AAAACU0ttAAAABHBhdGg=",
                    "metadata": {"etag": "abc"},
                }},
            })
        );
    }

    #[test]
    fn azure_has_the_name_in_its_settings_too() {
        let settings =
            settings(&json!({"account": "a", "container": "c", "key": "k", "nested": {"deep": {"x": null}}}));
        let stored = Stored {
            settings: &settings,
            key: "n%20m.mp3",
            metadata: &BTreeMap::new(),
            content_type: "audio/mpeg",
            length: 0,
        };
        let entry = entry(AZURE, &stored).unwrap();
        let term = entry["handler"]["kz_att_azure"]["azure"].as_str().unwrap();
        let Term::Tuple(parts) = Term::from_base64(term).unwrap() else {
            panic!("{term}")
        };
        let Term::Map(pairs) = &parts[0] else { panic!("{term}") };
        assert!(pairs.contains(&(Term::atom("file"), Term::binary("n%20m.mp3"))));
        let deep = Term::Map(vec![(Term::atom("x"), Term::atom("null"))]);
        assert!(pairs.contains(&(Term::atom("nested"), Term::Map(vec![(Term::atom("deep"), deep)]))));
        assert_eq!(parts[1], Term::binary("n%20m.mp3"));
    }
}
