//! The name of an object, byte for byte as Kazoo builds it (`kz_att_util:format_url`). Pure functions.
//!
//! Kazoo finds the audio by the name in the document, so another name would still be read. But a recording that Kazoo's store proxy, or an
//! older worker, has stored must be the same object, and lifecycle rules of a bucket match Kazoo's names. Whatever cannot be rendered exactly
//! is `NotOurs`, and Kazoo renders it.

use serde_json::{Map, Value};

use crate::system_config::Settings;

use super::not_ours::NotOurs;

/// What a name can be built from.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub account_id: &'a str,
    /// The database's name with slashes.
    pub database: &'a str,
    /// The document's id.
    pub id: &'a str,
    /// The attachment's name.
    pub attachment: &'a str,
    pub document: &'a Map<String, Value>,
}

/// The fields that a handler uses if its settings have no `field_list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usual {
    /// `db/id_attachment`
    S3,
    /// `id_attachment`
    Azure,
}

/// Nested deeper than this, a group is Kazoo's.
const DEEPEST: usize = 8;

/// A part of a name.
enum Piece {
    /// The same in the name of each recording.
    Fixed(String),
    Text(Option<Argument>, String),
}

/// What tells recordings apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Argument {
    Id,
    Database,
    Account,
    Attachment,
}

/// The name.
///
/// # Errors
/// When the settings have a form whose result in Kazoo is not certain.
pub fn name(settings: &Settings, usual: Usual, subject: &Subject<'_>) -> Result<String, NotOurs> {
    let pieces = pieces(settings, usual, subject)?;
    let joined: String = pieces.iter().map(Piece::text).collect();
    Ok(match prefix(settings)? {
        None => joined,
        Some(prefix) => format!("{}/{joined}", prefix.trim_end_matches('/')),
    })
}

/// Whether no other recording can have this name: it has the recording's key, or the document's id and the database or the account can be
/// told from it. A callflow can choose one id in many accounts. The id begins with the month, which with the account determines the database.
///
/// ```text
/// id 202611-a     attachment b_c.mp3     202611-a_b_c.mp3
/// id 202611-a_b   attachment c.mp3       202611-a_b_c.mp3
/// ```
pub fn is_own(name: &str, settings: &Settings, usual: Usual, subject: &Subject<'_>, key: &str) -> bool {
    if name.contains(key) {
        return true;
    }
    let Ok(pieces) = pieces(settings, usual, subject) else {
        return false;
    };
    let optional = optional_fields(settings);
    let texts = || pieces.iter().filter(|piece| matches!(piece, Piece::Text(..)));
    // Such a character is fixed in each name that is equal to this one: as many of them come from the fixed pieces of the other.
    let is_fixed = |c: char| match optional {
        0 => !texts().any(|piece| piece.text().contains(c)),
        _ => c != '%' && encoded(&c.to_string()) != c.to_string(),
    };
    // A recording without the field has a name with fewer of them. Two fields could stand for each other.
    if optional > 1 || (optional == 1 && !separator(settings).is_ok_and(|separator| separator.contains(is_fixed))) {
        return false;
    }
    let is_told = |wanted: Argument| {
        let places = pieces
            .iter()
            .enumerate()
            .filter(|(_, piece)| matches!(piece, Piece::Text(Some(argument), _) if *argument == wanted));
        places.map(|(n, _)| n).any(|n| {
            let (before, after) = (pieces.iter().take(n).rev(), pieces.iter().skip(n + 1));
            is_bounded(before, is_fixed) && is_bounded(after, is_fixed)
        })
    };
    is_told(Argument::Id) && (is_told(Argument::Database) || is_told(Argument::Account))
}

/// Whether a fixed character, or the end of the name, comes before the next text.
fn is_bounded<'a>(mut pieces: impl Iterator<Item = &'a Piece>, is_fixed: impl Fn(char) -> bool + Copy) -> bool {
    let decides = |piece: &&Piece| match piece {
        Piece::Text(..) => true,
        Piece::Fixed(text) => text.contains(is_fixed),
    };
    pieces
        .find(decides)
        .is_none_or(|piece| matches!(piece, Piece::Fixed(_)))
}

/// The number of fields that are left out, with a separator, where a document has no value.
fn optional_fields(settings: &Settings) -> usize {
    let fields = settings.get("field_list").and_then(Value::as_array);
    fields.map_or(0, |fields| {
        fields.iter().filter(|field| field.get("field").is_some()).count()
    })
}

impl Piece {
    fn text(&self) -> &str {
        match self {
            Self::Fixed(text) | Self::Text(_, text) => text,
        }
    }
}

fn separator(settings: &Settings) -> Result<&str, NotOurs> {
    match settings.get("field_separator") {
        None => Ok("/"),
        Some(Value::String(separator)) => Ok(separator),
        Some(_) => Err(NotOurs::Setting("field_separator")),
    }
}

fn pieces(settings: &Settings, usual: Usual, subject: &Subject<'_>) -> Result<Vec<Piece>, NotOurs> {
    if settings.get("file").is_some() {
        return Err(NotOurs::Setting("file"));
    }
    let separator = separator(settings)?;
    match settings.get("field_list") {
        None => Ok(usually(usual, subject)),
        Some(Value::Array(fields)) => joined(fields, separator, subject, DEEPEST),
        Some(_) => Err(NotOurs::Setting("field_list")),
    }
}

fn usually(usual: Usual, subject: &Subject<'_>) -> Vec<Piece> {
    let text = |argument: Argument| Piece::Text(Some(argument), encoded(argument.of(subject)));
    let fixed = |text: &str| Piece::Fixed(text.to_owned());
    let own = [text(Argument::Id), fixed("_"), text(Argument::Attachment)];
    match usual {
        Usual::S3 => [text(Argument::Database), fixed("/")].into_iter().chain(own).collect(),
        Usual::Azure => own.into(),
    }
}

fn joined(fields: &[Value], separator: &str, subject: &Subject<'_>, depth: usize) -> Result<Vec<Piece>, NotOurs> {
    let mut all = Vec::new();
    let rendered = fields
        .iter()
        .filter_map(|field| rendered(field, subject, depth).transpose());
    for (n, pieces) in rendered.enumerate() {
        if n > 0 {
            all.push(Piece::Fixed(separator.to_owned()));
        }
        all.extend(pieces?);
    }
    Ok(all)
}

/// `None`: the field gives nothing, and its separator is left out.
fn rendered(field: &Value, subject: &Subject<'_>, depth: usize) -> Result<Option<Vec<Piece>>, NotOurs> {
    const ODD: NotOurs = NotOurs::Setting("field_list");
    let fixed = |text: &str| Ok(Some(vec![Piece::Fixed(text.to_owned())]));
    let object = match field {
        Value::String(constant) => return fixed(constant),
        Value::Object(object) => object,
        _ => return Err(ODD),
    };
    let mut pairs = object.iter();
    let (Some((key, value)), None) = (pairs.next(), pairs.next()) else {
        return Err(ODD);
    };
    match (key.as_str(), value) {
        ("arg", Value::String(name)) => {
            let text = |argument: Argument| vec![Piece::Text(Some(argument), encoded(argument.of(subject)))];
            Ok(Argument::named(name).map(text))
        }
        ("field", path) => {
            let text = public_field(path, subject.document)?;
            Ok(text.map(|text| vec![Piece::Text(None, text)]))
        }
        ("const", Value::String(constant)) => fixed(constant),
        ("group", Value::Array(fields)) if depth > 0 => joined(fields, "", subject, depth - 1).map(Some),
        _ => Err(ODD),
    }
}

impl Argument {
    fn named(name: &str) -> Option<Self> {
        match name {
            "account_id" => Some(Self::Account),
            "db" => Some(Self::Database),
            "id" => Some(Self::Id),
            "attachment" => Some(Self::Attachment),
            _ => None,
        }
    }

    const fn of<'a>(self, subject: &Subject<'a>) -> &'a str {
        match self {
            Self::Account => subject.account_id,
            Self::Database => subject.database,
            Self::Id => subject.id,
            Self::Attachment => subject.attachment,
        }
    }
}

/// A field of the document that users see.
fn public_field(path: &Value, document: &Map<String, Value>) -> Result<Option<String>, NotOurs> {
    const ODD: NotOurs = NotOurs::Setting("field_list");
    let texts =
        |keys: &'_ [Value]| -> Option<Vec<String>> { keys.iter().map(|key| key.as_str().map(str::to_owned)).collect() };
    let keys = match path {
        Value::String(key) => vec![key.clone()],
        Value::Array(keys) => texts(keys).filter(|keys| !keys.is_empty()).ok_or(ODD)?,
        _ => return Err(ODD),
    };
    let Some((first, rest)) = keys.split_first() else {
        return Err(ODD);
    };
    let first = match first.as_str() {
        // Public fields have the document's `_id` under this name.
        "id" => "_id",
        private if private.starts_with('_') || private.starts_with("pvt_") => return Ok(None),
        public => public,
    };
    let mut found = document.get(first);
    for key in rest {
        found = match found {
            Some(Value::Object(object)) => object.get(key),
            // Kazoo counts elements of an array.
            Some(Value::Array(_)) => return Err(ODD),
            _ => None,
        };
    }
    match found {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty()).map(|text| encoded(text))),
        Some(Value::Bool(flag)) => Ok(Some(flag.to_string())),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        Some(_) => Err(ODD),
    }
}

/// What comes before the joined fields.
fn prefix(settings: &Settings) -> Result<Option<String>, NotOurs> {
    let text = |key: &'static str| match settings.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(NotOurs::Setting(key)),
    };
    if let Some(path) = text("path")? {
        return Ok(Some(path));
    }
    match (text("folder_base_path")?, text("folder_path")?) {
        (Some(base), Some(path)) if base.is_empty() || path.is_empty() => Err(NotOurs::Setting("folder_path")),
        // As Erlang's `filename:join`: an absolute path replaces the base, and repeated slashes become one.
        (Some(_), Some(path)) if path.starts_with('/') => Ok(Some(single_slashes(&path))),
        (Some(base), Some(path)) => Ok(Some(single_slashes(&format!("{base}/{path}")))),
        (base, path) => Ok(base.or(path)),
    }
}

fn single_slashes(path: &str) -> String {
    let mut kept = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !kept.ends_with('/') {
            kept.push(c);
        }
    }
    kept
}

/// As Kazoo's `urlencode` (`http_uri:encode`), which leaves more characters than RFC 3986: control characters, and all that is not ASCII.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_left = !c.is_ascii() || c.is_ascii_control() || c.is_ascii_alphanumeric() || "!$()*-._`~".contains(c);
        if is_left {
            out.push(c);
        } else {
            let _ = write!(out, "%{:02X}", u32::from(c));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DATABASE: &str = "account/4b/a1/f7d5a1c54a0fb0d9c9d3e1a2b3c4-202611";
    const ID: &str = "202611-7c9e0f1a2b3c4d5e6f708192a3b4c5d6";
    const OWN: &str = "202611-7c9e0f1a2b3c4d5e6f708192a3b4c5d6_call%20recording.mp3";
    const S3: &str = "account%2F4b%2Fa1%2Ff7d5a1c54a0fb0d9c9d3e1a2b3c4-202611/\
                      202611-7c9e0f1a2b3c4d5e6f708192a3b4c5d6_call%20recording.mp3";

    fn document() -> Map<String, Value> {
        let document = json!({
            "_id": ID, "owner_id": "0wn3r", "pvt_account_id": "4ba1", "from": "1001@acme.example.com", "empty": "", "nothing": null,
            "duration": 59, "whole": true, "float": 1.5, "custom_channel_vars": {"queue": "sales/north"}, "list": ["a"],
        });
        document.as_object().unwrap().clone()
    }

    fn settings(settings: &Value) -> Settings {
        Settings::of(settings.as_object().unwrap().clone())
    }

    fn of(value: &Value, usual: Usual, attachment: &str) -> Result<String, NotOurs> {
        let document = document();
        let subject = Subject {
            account_id: "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4",
            database: DATABASE,
            id: ID,
            attachment,
            document: &document,
        };
        name(&settings(value), usual, &subject)
    }

    fn s3(value: Value) -> Result<String, NotOurs> {
        of(&value, Usual::S3, "call recording.mp3")
    }

    #[test]
    fn the_usual_names_are_kazoos() {
        assert_eq!(s3(json!({})).unwrap(), S3);
        assert_eq!(of(&json!({}), Usual::Azure, "call recording.mp3").unwrap(), OWN);
        // Kazoo's http handler names its objects so.
        let http =
            json!({"field_list": [{"arg": "account_id"}, {"field": "owner_id"}, {"arg": "id"}, {"arg": "attachment"}]});
        assert_eq!(
            s3(http).unwrap(),
            format!("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4/0wn3r/{ID}/call%20recording.mp3")
        );
    }

    /// A recording's own key, and an id that a callflow gives to the recordings of many accounts.
    #[test]
    fn a_name_is_its_own_by_the_key_or_by_database_and_id() {
        const KEY: &str = "7c9e0f1a2b3c4d5e6f708192a3b4c5d6";
        let is_own = |list: Value, usual: Usual, id: &str| {
            let document = document();
            let subject = Subject {
                account_id: "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4",
                database: DATABASE,
                id,
                attachment: "call.mp3",
                document: &document,
            };
            let settings = match list {
                Value::Null => settings(&json!({})),
                list => settings(&json!({ "field_list": list })),
            };
            let name = name(&settings, usual, &subject).unwrap();
            super::is_own(&name, &settings, usual, &subject, KEY)
        };
        assert!(is_own(Value::Null, Usual::S3, ID) && is_own(Value::Null, Usual::Azure, ID));
        assert!(is_own(Value::Null, Usual::S3, "202611-announcement"));
        assert!(!is_own(Value::Null, Usual::Azure, "202611-announcement"));
        // The id is a part of the database's name.
        assert!(!is_own(json!([{"arg": "db"}]), Usual::S3, "202611"));
        for (list, own) in [
            (json!([{"arg": "db"}, {"arg": "id"}]), true),
            (json!([{"arg": "account_id"}, {"arg": "id"}]), true),
            (json!([{"arg": "db"}, {"arg": "attachment"}]), false),
            (json!([{"arg": "account_id"}, {"field": "call_id"}]), false),
        ] {
            assert_eq!(is_own(list.clone(), Usual::S3, "202611-announcement"), own, "{list}");
        }
    }

    /// The PUT of the one recording would replace the audio of the other.
    #[test]
    fn a_name_that_two_recordings_get_is_not_the_own_of_both() {
        const KEY: &str = "7c9e0f1a2b3c4d5e6f708192a3b4c5d6";
        let named = |given: &Value, (account_id, id, attachment): (&str, &str, &str), fields: &[(&str, &str)]| {
            let mut document = document();
            document.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
            let (settings, document) = (settings(given), &document);
            let database = &format!("account/{account_id}-202611");
            let subject = Subject {
                account_id,
                database,
                id,
                attachment,
                document,
            };
            let name = name(&settings, Usual::S3, &subject).unwrap();
            let is_own = super::is_own(&name, &settings, Usual::S3, &subject, KEY);
            (name, is_own)
        };
        let (a, b) = (("4ba1", "202611-a", "b_c.mp3"), ("4ba1", "202611-a_b", "c.mp3"));
        let list = |list: Value| json!({ "field_list": list });
        let (db, id, attachment) = (json!({"arg": "db"}), json!({"arg": "id"}), json!({"arg": "attachment"}));
        let optional = json!([{"field": "x"}, id, {"field": "y"}, db]);
        for (given, one, other) in [
            (json!({}), (a, &[][..]), (b, &[][..])),
            (json!({"folder_path": "rec"}), (a, &[]), (b, &[])),
            (
                json!({"field_list": [db, id, attachment], "field_separator": "_"}),
                (a, &[]),
                (b, &[]),
            ),
            (
                json!({"field_list": [db, id, attachment], "field_separator": "--"}),
                (("4ba1", "202611-a", "b--c.mp3"), &[]),
                (("4ba1", "202611-a--b", "c.mp3"), &[]),
            ),
            (list(json!([db, {"group": [id, "_", attachment]}])), (a, &[]), (b, &[])),
            (
                list(json!([db, {"group": [id, attachment]}])),
                (("4ba1", "202611-a", "bc.mp3"), &[]),
                (("4ba1", "202611-ab", "c.mp3"), &[]),
            ),
            (
                list(json!([{"group": [{"arg": "account_id"}, "-", id]}])),
                (("4ba1", "202611-202611-a", "c.mp3"), &[]),
                (("4ba1-202611", "202611-a", "c.mp3"), &[]),
            ),
            (
                list(optional),
                (("4ba1", "202611-a", "c.mp3"), &[("y", "202611-b")]),
                (("4ba1", "202611-b", "c.mp3"), &[("x", "202611-a")]),
            ),
            (
                json!({"field_list": [db, {"field": "x"}, id], "field_separator": "_"}),
                (("4ba1", "202611-a_b", "c.mp3"), &[]),
                (("4ba1", "b", "c.mp3"), &[("x", "202611-a")]),
            ),
        ] {
            let ((one, own), (other, others)) = (named(&given, one.0, one.1), named(&given, other.0, other.1));
            assert_eq!(one, other, "{given}");
            assert!(!own && !others, "{given}");
        }
        // What nothing else can be split into.
        for given in [
            json!({}),
            json!({"field_list": [db, id], "field_separator": "_"}),
            list(json!([{"group": [id, "/", db, "/", attachment]}])),
            list(json!([{"arg": "account_id"}, {"field": "owner_id"}, id, attachment])),
            list(
                json!(["a_b", {"group": ["x", db]}, {"group": [id, ".mp3"]}, {"group": [{"field": "x"}, attachment]}]),
            ),
        ] {
            assert!(named(&given, ("4ba1", "202611-a", "b.mp3"), &[]).1, "{given}");
        }
    }

    #[test]
    fn a_prefix_is_joined_as_kazoo_joins_it() {
        for (given, before) in [
            (json!({"folder_path": "/rec/"}), "/rec/"),
            (json!({"folder_path": "rec//"}), "rec/"),
            (json!({"folder_base_path": "base", "folder_path": "sub"}), "base/sub/"),
            (json!({"folder_base_path": "base/", "folder_path": "/sub"}), "/sub/"),
            (json!({"folder_path": ""}), "/"),
            (json!({"folder_base_path": "base"}), "base/"),
            (json!({"path": "p/q", "folder_path": "f"}), "p/q/"),
        ] {
            assert_eq!(s3(given.clone()).unwrap(), format!("{before}{S3}"), "{given}");
        }
        assert_eq!(s3(json!({"field_list": []})).unwrap(), "");
        assert_eq!(s3(json!({"field_list": [], "folder_path": "f"})).unwrap(), "f/");
    }

    #[test]
    fn each_byte_is_encoded_as_kazoo_encodes_it() {
        let odd = "a/b?c&d=e~f_g-h.i*j'(k)!,;:$%25#.mp3";
        let name = of(&json!({"field_list": [{"arg": "attachment"}]}), Usual::S3, odd).unwrap();
        assert_eq!(name, "a%2Fb%3Fc%26d%3De~f_g-h.i*j%27(k)!%2C%3B%3A$%2525%23.mp3");
        let left: String = (0u8..128)
            .map(char::from)
            .filter(|c| encoded(&c.to_string()) == c.to_string())
            .collect();
        let printable: String = left.chars().filter(|c| !c.is_control()).collect();
        assert_eq!(
            printable,
            "!$()*-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_`abcdefghijklmnopqrstuvwxyz~"
        );
        assert_eq!(left.len() - printable.len(), 33);
        assert_eq!(encoded("é\u{80}ÿ "), "é\u{80}ÿ%20");
    }

    #[test]
    fn a_field_gives_a_text_or_nothing() {
        for (list, rendered) in [
            (json!([{"field": "from"}, "x"]), "1001%40acme.example.com/x"),
            (json!([{"field": "duration"}, {"field": "whole"}]), "59/true"),
            (json!([{"field": "id"}]), ID),
            (json!(["a", {"field": "missing"}, {"field": "empty"}, "b"]), "a/b"),
            (json!([{"field": "pvt_account_id"}, {"field": "_id"}, "b"]), "b"),
            (json!([{"field": ["custom_channel_vars", "queue"]}]), "sales%2Fnorth"),
            (json!([{"field": ["from", "queue"]}, "b"]), "b"),
            (json!([{"arg": "owner"}, {"const": "a b/c"}]), "a b/c"),
            (
                json!([{"group": [{"arg": "id"}, "-", {"group": ["x", "y"]}]}, "z"]),
                &format!("{ID}-xy/z"),
            ),
            (json!([{"group": []}, "z"]), "/z"),
        ] {
            assert_eq!(s3(json!({"field_list": list})).as_deref(), Ok(rendered), "{list}");
        }
        let joined = s3(json!({"field_list": ["a", "b"], "field_separator": "--"}));
        assert_eq!(joined.as_deref(), Ok("a--b"));
    }

    #[test]
    fn what_kazoo_alone_can_render_is_not_ours() {
        for given in [
            json!({"file": "x"}),
            json!({"field_list": "id"}),
            json!({"field_list": [7]}),
            json!({"field_list": [{}]}),
            json!({"field_list": [{"arg": "id", "const": "x"}]}),
            json!({"field_list": [{"else": "x"}]}),
            json!({"field_list": [{"const": 7}]}),
            json!({"field_list": [{"field": "float"}]}),
            json!({"field_list": [{"field": "nothing"}]}),
            json!({"field_list": [{"field": "custom_channel_vars"}]}),
            json!({"field_list": [{"field": ["list", "1"]}]}),
            json!({"field_list": [{"field": [7]}]}),
            json!({"field_separator": 1}),
            json!({"folder_path": 1}),
            json!({"folder_base_path": "", "folder_path": "x"}),
        ] {
            assert!(s3(given.clone()).is_err(), "{given}");
        }
    }

    proptest! {
        /// The same grammar, written the other way around: texts first, separators last.
        #[test]
        fn any_list_of_constants_and_arguments_is_joined_by_its_separator(
            parts in prop::collection::vec(prop_oneof![
                "[a-z %/]{0,6}".prop_map(|text| (json!({"const": &text}), Some(text))),
                Just((json!({"arg": "id"}), Some(ID.to_owned()))),
                Just((json!({"arg": "nobody"}), None)),
                Just((json!({"field": "missing"}), None)),
            ], 0..6),
            separator in "[-_/]{0,2}",
        ) {
            let list: Vec<&Value> = parts.iter().map(|(value, _)| value).collect();
            let mut expected = String::new();
            for (n, text) in parts.iter().filter_map(|(_, text)| text.as_ref()).enumerate() {
                if n > 0 {
                    expected += &separator;
                }
                expected += text;
            }
            prop_assert_eq!(s3(json!({"field_list": list, "field_separator": separator})).unwrap(), expected);
        }
    }
}
