//! Compares the tables in `docs/` with the code: causes, metrics, and the keys of the action.
//! Also compares `config/sample.toml` with the settings that exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::Path;

use kz_record_call::entry::cause::Outcome;
use kz_record_call::recording::settings;
use kz_record_call::telemetry::events::METRICS;
use serde_json::Value;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rows of a document's tables, cell by cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    lines
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[test]
fn every_cause_is_documented_with_its_outcomes() {
    let rows = rows(&read("docs/when-it-goes-wrong.md"));
    for outcome in Outcome::ALL {
        for cause in outcome.causes() {
            let named = format!("`{}`", cause.name());
            let row = rows.iter().find(|row| row.get(1) == Some(&named));
            let row = row.unwrap_or_else(|| panic!("{named} is not documented"));
            assert!(
                row[0].split(", ").any(|known| known == outcome.name()),
                "{named}: {outcome} is not in {}",
                row[0]
            );
            assert!(row.len() == 4 && !row[2].is_empty() && !row[3].is_empty(), "{row:?}");
        }
    }
}

#[test]
fn every_cause_is_in_the_schema_of_the_event_and_nothing_else() {
    let schema: Value = serde_json::from_str(&read("schemas/messages/recording.outcome.json")).unwrap();
    let listed = schema["properties"]["Cause"]["enum"].as_array().unwrap();
    let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let known: BTreeSet<&str> = Outcome::ALL
        .iter()
        .flat_map(|outcome| outcome.causes())
        .map(|cause| cause.name())
        .collect();
    assert_eq!(listed, known);
}

#[test]
fn every_metric_is_documented_in_its_own_words_and_no_other() {
    let rows = rows(&read("docs/metrics.md"));
    for (name, help) in METRICS {
        let row = [format!("`{name}`"), (*help).to_owned()];
        assert!(rows.iter().any(|known| known[..] == row), "{name} is not documented");
    }
    let documented: BTreeSet<&str> = rows
        .iter()
        .map(|row| row[0].trim_matches('`'))
        .filter(|name| name.starts_with("kz_record_call_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect();
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    assert_eq!(documented, known);
}

/// The names that the code gives to `counter!`, `gauge!` and `histogram!`.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    ["counter!(", "gauge!(", "histogram!("].into_iter().flat_map(|call| {
        text.split(call)
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
    })
}

#[test]
fn every_metric_of_the_code_is_listed_and_nothing_else_is() {
    fn walk(dir: &Path, texts: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, texts);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut texts = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let used: BTreeSet<&str> = texts.iter().flat_map(|text| metrics_in(text)).collect();
    let listed: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    assert!(used.len() > 40, "only {} were found", used.len());
    assert_eq!(used, listed);
}

#[test]
fn every_key_of_the_action_is_documented_with_its_bounds() {
    let rows = rows(&read("docs/record_call.md"));
    let schema: Value = serde_json::from_str(&read("schemas/record_call.json")).unwrap();
    let documented: BTreeSet<String> = rows
        .iter()
        .skip(1)
        .map(|row| row[0].trim_matches('`').to_owned())
        .collect();
    let known: BTreeSet<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(documented, known);
    let read: BTreeSet<String> = settings::KEYS.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(read, known);
    for (key, bounds) in [
        ("record_min_sec", format!("0 to {}", settings::MIN_SEC_MAX)),
        (
            "record_sample_rate",
            format!("{} to {}", settings::SAMPLE_RATE.0, settings::SAMPLE_RATE.1),
        ),
        (
            "silence_threshold",
            format!("{} to {}", settings::SILENCE_THRESHOLD.0, settings::SILENCE_THRESHOLD.1),
        ),
        (
            "silence_initial_timeout",
            format!("0 to {}", settings::SILENCE_TIMEOUT_MAX_MS),
        ),
        (
            "silence_final_timeout",
            format!("0 to {}", settings::SILENCE_TIMEOUT_MAX_MS),
        ),
        ("time_limit", format!("{} to", settings::TIME_LIMIT_MIN)),
        ("url", format!("{} bytes", settings::MAX_URL)),
    ] {
        let row = rows.iter().find(|row| row[0] == format!("`{key}`")).unwrap();
        assert!(row[1].contains(&bounds), "{key}: {} does not say {bounds}", row[1]);
    }
    for (key, default) in [
        ("time_limit", settings::TIME_LIMIT_DEFAULT),
        ("silence_threshold", settings::SILENCE_THRESHOLD_DEFAULT),
        ("silence_initial_timeout", settings::SILENCE_INITIAL_DEFAULT_MS),
        ("silence_final_timeout", settings::SILENCE_FINAL_DEFAULT_MS),
    ] {
        let row = rows.iter().find(|row| row[0] == format!("`{key}`")).unwrap();
        assert_eq!(row[2], default.to_string(), "{key}");
        assert_eq!(schema["properties"][key]["default"], default, "{key}");
    }
}

#[test]
fn the_sample_of_a_configuration_sets_nothing_and_names_only_keys_that_exist() {
    fn table(text: &str) -> toml::Table {
        text.parse().expect("the text is TOML")
    }
    let sample = read("config/sample.toml");
    let set = table(&sample);
    assert!(
        set.values()
            .all(|section| section.as_table().is_some_and(toml::Table::is_empty)),
        "{set:?}"
    );
    // As it is when every setting is taken in.
    let is_setting = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let lines = sample
        .lines()
        .map(|line| if is_setting(line) { &line[1..] } else { line });
    let offered = table(&lines.collect::<Vec<_>>().join("\n"));
    let known = table(kz_record_call::config::DEFAULTS);
    let mut seen = 0;
    for (name, value) in &offered {
        assert!(known.contains_key(name), "{name} is not in default.toml");
        for (key, value) in value.as_table().into_iter().flatten() {
            let default = known[name].get(key);
            let default = default.unwrap_or_else(|| panic!("{name}.{key} is not in default.toml"));
            assert!(default.same_type(value), "{name}.{key} is of another type");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} settings were found");
}
