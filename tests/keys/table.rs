//! What each key's values come to. One block for each key: what is looked at, then a row for each value: its class, the value, what is seen,
//! and what is told of it (what is used instead; why). A text may be repeated (`"x"*200`) and put together (`"a"+"b"`).

use std::collections::{BTreeMap, BTreeSet};

use kz_record_call::recording::plan::Defaults;
use kz_record_call::recording::settings::KEYS;
use serde_json::{Value, json};

use crate::wire::{another, kazoos, message, run};

/// The classes of values that each key must have a row for.
const CLASSES: [&str; 11] = [
    "absent",
    "good",
    "numeric string",
    "boolean string",
    "out of range",
    "null",
    "array",
    "object",
    "number",
    "boolean",
    "text",
];

const TEXTS: &str = include_str!("table/texts.txt");
const NUMBERS: &str = include_str!("table/numbers.txt");
const FLAGS: &str = include_str!("table/flags.txt");
/// With a configuration that is not Kazoo's.
const CONFIGURED: &str = include_str!("table/configured.txt");

struct Row {
    key: String,
    /// What is looked at.
    what: String,
    /// The rest of the data.
    with: Value,
    class: String,
    given: Option<Value>,
    seen: Value,
    told: Option<(String, String)>,
}

/// JSON, `"x"*200`, or several of these put together.
fn value(cell: &str) -> Value {
    if let Ok(value) = serde_json::from_str(cell) {
        return value;
    }
    if !cell.starts_with('"') {
        return Value::String(cell.to_owned());
    }
    let text = cell.split('+').map(|part| {
        let (text, times) = part.split_once('*').unwrap_or((part, "1"));
        let times = times.parse().unwrap_or_else(|_| panic!("{cell}"));
        text.trim_matches('"').repeat(times)
    });
    Value::String(text.collect())
}

fn rows(table: &str) -> Vec<Row> {
    let (mut rows, mut key, mut what, mut with) = (Vec::new(), "", "", json!({}));
    for line in table
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        if !line.starts_with(' ') {
            let (head, more) = line.split_once(", with ").unwrap_or((line, "{}"));
            (key, what) = head.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            with = value(more);
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let told = cells
            .get(3)
            .map(|told| told.split_once("; ").unwrap_or_else(|| panic!("{line}")));
        rows.push(Row {
            key: key.into(),
            what: what.into(),
            with: with.clone(),
            class: cells[0].into(),
            given: (!cells[1].is_empty()).then(|| value(cells[1])),
            seen: value(cells[2]),
            told: told.map(|(used, why)| {
                let used = match value(used) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (used, why.to_owned())
            }),
        });
    }
    rows
}

fn hold(table: &str, defaults: &Defaults) {
    let mut wrong = Vec::new();
    for row in rows(table) {
        let mut data = row.with.clone();
        if let Some(given) = &row.given {
            data[&row.key] = given.clone();
        }
        let outcome = run(message(Some(&data)).to_string().as_bytes(), defaults);
        let (seen, told) = (outcome.seen(&row.what), outcome.told(&row.key));
        if seen != row.seen || told != row.told {
            wrong.push(format!("{} = {}: {seen}, told {told:?}", row.key, data[&row.key]));
        }
        // A key's value changes nothing that is told of others.
        let others = outcome
            .corrections
            .iter()
            .filter(|correction| correction.key != row.key);
        assert_eq!(others.count(), 0, "{data}: {:?}", outcome.corrections);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_key_has_a_row_for_every_class_of_values() {
    let mut classes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in [TEXTS, NUMBERS, FLAGS].into_iter().flat_map(rows) {
        classes.entry(row.key).or_default().insert(row.class);
    }
    assert_eq!(classes.keys().map(String::as_str).collect::<BTreeSet<_>>(), KEYS.into());
    for (key, has) in classes {
        let missing: Vec<&str> = CLASSES.into_iter().filter(|class| !has.contains(*class)).collect();
        assert!(missing.is_empty(), "{key} has no row for {missing:?}");
    }
}

#[test]
fn texts_come_to_what_the_table_says() {
    hold(TEXTS, &kazoos());
}

#[test]
fn numbers_come_to_what_the_table_says() {
    hold(NUMBERS, &kazoos());
}

#[test]
fn flags_come_to_what_the_table_says() {
    hold(FLAGS, &kazoos());
}

#[test]
fn what_the_configuration_says_counts_where_the_action_says_nothing() {
    hold(CONFIGURED, &another());
}

/// The same values in an action that starts nothing: they change nothing there, and none is told as corrected.
#[test]
fn a_starts_keys_are_nothing_to_a_stop_a_mask_and_an_unmask() {
    for action in ["stop", "mask", "unmask"] {
        let plain = run(
            message(Some(&json!({ "action": action }))).to_string().as_bytes(),
            &kazoos(),
        );
        assert_eq!(plain.command["Record-Action"], action);
        for row in [TEXTS, NUMBERS, FLAGS].into_iter().flat_map(rows) {
            if ["action", "skip_module"].contains(&row.key.as_str()) {
                continue;
            }
            let mut data = row.with;
            data["action"] = json!(action);
            if let Some(given) = row.given {
                data[&row.key] = given;
            }
            let outcome = run(message(Some(&data)).to_string().as_bytes(), &kazoos());
            assert_eq!(outcome.sent, plain.sent, "{data}");
            assert_eq!(outcome.corrections, [], "{data}");
        }
    }
}
