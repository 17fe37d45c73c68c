//! Checks the layers of `src`: a module (here: a room) imports only from modules below it.
//! Also checks that pure modules do no I/O, that spawned tasks cannot panic unnoticed, and the
//! length of files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From top to bottom, as in `src/lib.rs`. Rooms on one line are neighbours: they may not know each other.
const HOUSE: &[&[&str]] = &[
    &["cli"],
    &["worker"],
    &["admin"],
    &["flow"],
    &["destination"],
    &["hold"],
    &["ingest", "ledger", "system_config"],
    &["amqp", "couch"],
    &["lifecycle"],
    &["entry"],
    &["recording"],
    &["kazoo"],
    &["telemetry"],
    &["config"],
];

/// Rooms that do no I/O: what they must not name.
const PURE: &[&str] = &["lifecycle", "entry", "recording", "kazoo"];
/// Files of other rooms that do none either.
const PURE_FILES: &[&str] = &[
    "config/ini.rs",
    "config/kazoo_ini.rs",
    "destination/choose.rs",
    "destination/url/target.rs",
    "system_config/media.rs",
    "system_config/proxy.rs",
    "system_config/storage.rs",
];
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::net",
    "reqwest::",
    "lapin::",
    "couch_rs::",
    "uuid::Uuid::new_v4",
    "fastrand::",
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("bin") {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn files() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    paths
        .into_iter()
        .map(|path| {
            (
                path.strip_prefix(&src).unwrap().display().to_string(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect()
}

fn room_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The code, without its tests and comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn level(room: &str) -> Option<usize> {
    HOUSE.iter().position(|level| level.contains(&room))
}

#[test]
fn every_room_has_its_place() {
    for file in files().keys() {
        let room = room_of(file);
        assert!(
            matches!(room, "lib" | "main") || level(room).is_some(),
            "{file} is in no room of the house"
        );
    }
}

#[test]
fn no_room_imports_from_above() {
    let mut breaks = Vec::new();
    for (file, text) in files() {
        let Some(from) = level(room_of(&file)) else { continue };
        for part in code(&text).split("crate::").skip(1) {
            let name: String = part
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            match level(&name) {
                Some(to) if to > from || name == room_of(&file) => {}
                Some(_) => breaks.push(format!("{file} imports crate::{name}")),
                None => {}
            }
        }
    }
    assert!(breaks.is_empty(), "{}", breaks.join("\n"));
}

#[test]
fn the_pure_rooms_do_no_io() {
    let mut breaks = Vec::new();
    for (file, text) in files() {
        if PURE.contains(&room_of(&file)) || PURE_FILES.contains(&file.as_str()) {
            let code = code(&text);
            breaks.extend(
                IMPURE
                    .iter()
                    .filter(|word| code.contains(**word))
                    .map(|word| format!("{file} names {word}")),
            );
        }
    }
    assert!(breaks.is_empty(), "{}", breaks.join("\n"));
}

/// A panic in a task that nothing watches is seen by nobody, and what the task did is never done again.
#[test]
fn no_task_is_spawned_bare() {
    // What catches a panic: by itself, or by the heartbeat that the service manager and `/livez` look at.
    const WATCHED: [&str; 4] = ["survive", "guard.watch(", ".beat(", "begin("];
    // A session's own set, which looks at how each of its tasks ended.
    const SETS: [&str; 1] = ["amqp/consumer.rs"];
    let mut bare = Vec::new();
    for (file, text) in files() {
        let is_test = ["tests", "testing"].iter().any(|word| file.contains(word));
        if is_test || room_of(&file) == "cli" || SETS.contains(&file.as_str()) {
            continue;
        }
        let code = code(&text);
        for (at, _) in code.match_indices("spawn(") {
            // The statement, as far as its own semicolon, and the line that names what is spawned.
            let statement = code[at..].split(";\n").next().unwrap();
            // `flow::common::Tasks` takes a name, and catches panics itself.
            if code[..at].ends_with("tasks.")
                && (statement.starts_with("spawn(\"") || statement.starts_with("spawn(name,"))
                && room_of(&file) == "flow"
            {
                continue;
            }
            if !WATCHED.iter().any(|word| statement.contains(word)) {
                bare.push(format!("{file}: {}", statement.lines().next().unwrap()));
            }
        }
    }
    assert!(bare.is_empty(), "{}", bare.join("\n"));
}

#[test]
fn files_stay_small_enough_to_be_read() {
    let long: Vec<String> = files()
        .into_iter()
        .map(|(file, text)| (file, code(&text).lines().count()))
        .filter(|(_, lines)| *lines > 420)
        .map(|(file, lines)| format!("{file}: {lines}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}
