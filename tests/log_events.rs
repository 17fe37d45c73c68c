//! Every log line has an `event`, and docs/log-events.md lists all of them with their levels.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The log macros of the worker, with their level: what stands between their brackets.
fn log_calls(source: &str) -> Vec<(String, String)> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut calls = Vec::new();
    for level in ["error", "warn", "info", "debug", "trace"] {
        for (at, name) in code.match_indices(&format!("{level}!(")) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_ascii_alphanumeric() || before == '_' {
                continue;
            }
            let (mut depth, mut quoted, mut escaped) = (1, false, false);
            let arguments: String = code[at + name.len()..]
                .chars()
                .take_while(|c| {
                    match c {
                        '"' if !escaped => quoted = !quoted,
                        '(' if !quoted => depth += 1,
                        ')' if !quoted => depth -= 1,
                        _ => {}
                    }
                    escaped = *c == '\\' && !escaped;
                    depth > 0
                })
                .collect();
            calls.push((level.to_owned(), arguments));
        }
    }
    calls
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("bin") {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_log_line_has_an_event_and_the_page_has_them_all() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let (mut logged, mut without) = (BTreeMap::<String, BTreeSet<String>>::new(), Vec::new());
    for file in files {
        for (level, arguments) in log_calls(&fs::read_to_string(&file).unwrap()) {
            match arguments
                .split("event = \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
            {
                Some(event) => drop(logged.entry(event.to_owned()).or_default().insert(level)),
                None => without.push(format!("{}: {level}!({arguments}", file.display())),
            }
        }
    }
    assert!(without.is_empty(), "{}", without.join("\n"));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/log-events.md")).unwrap();
    let told: BTreeMap<String, BTreeSet<String>> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let event = cells.next()?.trim_end_matches('`').to_owned();
            let levels = cells.next()?.split(", ").map(str::to_owned).collect();
            let (meaning, cure) = (cells.next()?, cells.next()?);
            assert!(meaning.len() > 10 && cure.len() > 3, "{line}");
            Some((event, levels))
        })
        .collect();
    assert_eq!(told, logged);
}
