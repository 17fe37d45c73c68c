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
    &["amqp", "couch", "webhook"],
    &["lifecycle"],
    &["entry"],
    &["recording"],
    &["kazoo"],
    &["telemetry"],
    &["config"],
    &["faults"],
];

/// Rooms that do no I/O: what they must not name.
const PURE: &[&str] = &["lifecycle", "entry", "recording", "kazoo"];
/// Files of other rooms that do none either.
const PURE_FILES: &[&str] = &[
    "config/ini.rs",
    "config/kazoo_ini.rs",
    "config/kazoo_yaml.rs",
    "destination/choose.rs",
    "destination/url/signed.rs",
    "destination/storage_plan/name.rs",
    "destination/storage_plan/not_ours.rs",
    "destination/storage_plan/refusal.rs",
    "destination/storage_plan/s3/endpoint.rs",
    "destination/storage_plan/sign.rs",
    "destination/storage_plan/stub.rs",
    "destination/url/target.rs",
    "system_config/media.rs",
    "system_config/proxy.rs",
    "system_config/recorder_tries.rs",
    "system_config/storage.rs",
    "system_config/storage/handler.rs",
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

/// The inner rooms of `flow`, from top to bottom. A file of one imports only from those below, and from files of its own.
const FLOW: &[&[&str]] = &[
    &["retention"],
    &["inbox", "reconcile"],
    &["heartbeat", "sweep"],
    &["drivers"],
    &["effects"],
    &["deliveries"],
    &["driver", "journal", "kazoo_recorder", "peer_notices", "webhooks"],
    &["in_flight", "memory", "slots"],
    &["common", "crash"],
];

/// The inner room that a file of `flow` belongs to; `None` for the file that lists them.
fn inner_room(file: &str) -> Option<&str> {
    file.strip_prefix("flow/")?.split(['/', '.']).next()
}

/// What a file of `flow` imports from `flow`, as paths from there. What it hands out of its own folder is no import.
fn flow_imports(file: &str, code: &str) -> Vec<String> {
    let children: Vec<&str> = code
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let own = file
        .trim_start_matches("flow/")
        .trim_end_matches(".rs")
        .replace('/', "::");
    let mut imports = Vec::new();
    for line in code.split(';').filter(|statement| statement.contains("use ")) {
        let path = line
            .rsplit("use ")
            .next()
            .unwrap()
            .split_whitespace()
            .collect::<String>();
        let absolute = if let Some(rest) = path.strip_prefix("crate::flow::") {
            rest.to_owned()
        } else if path.starts_with("super::") {
            let mut base: Vec<&str> = own.split("::").collect();
            let mut rest = path.as_str();
            while let Some(shorter) = rest.strip_prefix("super::") {
                base.pop();
                rest = shorter;
            }
            base.push(rest);
            base.join("::")
        } else if !line.contains("pub use ") && path.split("::").next().is_some_and(|first| children.contains(&first)) {
            format!("{own}::{path}")
        } else {
            continue;
        };
        // `a::{b, c::d}` is `a::b` and `a::c::d`.
        match absolute.split_once('{') {
            Some((base, list)) => imports.extend(
                list.trim_end_matches('}')
                    .split(',')
                    .map(|name| format!("{base}{name}")),
            ),
            None => imports.push(absolute),
        }
    }
    imports
}

#[test]
fn the_inner_rooms_of_the_flow_import_downwards() {
    let inner = |room: &str| FLOW.iter().position(|level| level.contains(&room));
    let mut breaks = Vec::new();
    for (file, text) in files() {
        let Some(room) = inner_room(&file) else { continue };
        let Some(from) = inner(room) else {
            breaks.push(format!("{file} is in no inner room"));
            continue;
        };
        for import in flow_imports(&file, &code(&text)) {
            let to = import.split("::").next().unwrap();
            if to != room && inner(to).is_some_and(|to| to <= from) {
                breaks.push(format!("{file} imports {import}"));
            }
        }
    }
    assert!(breaks.is_empty(), "{}", breaks.join("\n"));
}

/// A service is a field of those that call it, so its file is imported by theirs: a circle of calls would be a circle of imports.
#[test]
fn no_files_of_the_flow_form_a_circle() {
    let all = files();
    let names: Vec<String> = all.keys().filter(|file| inner_room(file).is_some()).cloned().collect();
    let module = |file: &str| {
        file.trim_start_matches("flow/")
            .trim_end_matches(".rs")
            .replace('/', "::")
    };
    let imports_of = |file: &String| -> Vec<String> {
        let mut found = Vec::new();
        for import in flow_imports(file, &code(&all[file])) {
            // The longest module that the path begins with is the file that is meant.
            let meant = names.iter().filter(|name| {
                let module = module(name);
                import == module || import.starts_with(&format!("{module}::"))
            });
            if let Some(meant) = meant.max_by_key(|name| name.len()).filter(|meant| *meant != file) {
                found.push(meant.clone());
            }
        }
        found
    };
    let graph: BTreeMap<&String, Vec<String>> = names.iter().map(|file| (file, imports_of(file))).collect();
    // Files that import nothing that is left are taken away, until only circles are left.
    let mut left: Vec<&String> = names.iter().collect();
    loop {
        let before = left.len();
        let rest = left.clone();
        left.retain(|file| graph[*file].iter().any(|to| rest.contains(&to)));
        if left.len() == before {
            break;
        }
    }
    let shown: Vec<String> = left
        .iter()
        .map(|file| {
            let to = graph[*file].iter().filter(|to| left.contains(to));
            format!("{file} imports {}", to.cloned().collect::<Vec<_>>().join(", "))
        })
        .collect();
    assert!(left.is_empty(), "in or above a circle:\n{}", shown.join("\n"));
}

/// Types whose methods may stand in more files: values with many questions about them, and clients with many requests. Each file has one
/// topic, and none of them calls up.
const MANY_FILES: &[&str] = &["couch::Couch", "entry::Entry", "ledger::Store", "recording::Subject"];

/// The types of a file that have methods of their own there.
fn with_methods(code: &str) -> impl Iterator<Item = String> {
    let mut blocks = code.lines().filter_map(|line| line.trim_start().strip_prefix("impl"));
    std::iter::from_fn(move || {
        blocks.find_map(|block| {
            if block.contains(" for ") {
                return None;
            }
            // Generic parameters come before the name.
            let name = match block.strip_prefix('<') {
                Some(generic) => generic.split_once("> ")?.1,
                None => block.strip_prefix(' ')?,
            };
            let path: String = name
                .chars()
                .take_while(|c| c.is_alphanumeric() || "_:".contains(*c))
                .collect();
            // The type, also where it is named by its path.
            let name = path.trim_end_matches(':').rsplit("::").next()?.to_owned();
            (!name.is_empty()).then_some(name)
        })
    })
}

#[test]
fn the_methods_of_a_type_stand_in_at_most_two_files() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in files() {
        let mut names: Vec<String> = with_methods(&code(&text)).collect();
        names.sort();
        names.dedup();
        for name in names {
            let type_name = format!("{}::{name}", room_of(&file));
            places.entry(type_name).or_default().push(file.clone());
        }
    }
    let many: Vec<String> = places
        .iter()
        .filter(|(name, files)| files.len() > 2 && !MANY_FILES.contains(&name.as_str()))
        .map(|(name, files)| format!("{name}: {}", files.join(", ")))
        .collect();
    assert!(many.is_empty(), "{}", many.join("\n"));
    for name in MANY_FILES {
        let files = places.get(*name).map_or(0, Vec::len);
        assert!(
            files > 2,
            "{name} needs no exception: its methods stand in {files} files"
        );
    }
}

/// A service's fields say what it may touch. Many fields say nothing.
#[test]
fn services_have_few_fields() {
    let mut large = Vec::new();
    for (file, text) in files() {
        if inner_room(&file).is_none() && room_of(&file) != "destination" {
            continue;
        }
        for part in code(&text).split("pub struct ").skip(1) {
            let name: String = part.chars().take_while(|c| c.is_alphanumeric()).collect();
            let Some((_, body)) = part.split_once('{') else {
                continue;
            };
            let fields = body.split("\n}").next().unwrap().lines();
            let fields = fields
                .filter(|line| line.starts_with("    ") && line.contains(": ") && line.ends_with(','))
                .count();
            let most = if name == "Common" { 5 } else { 8 };
            // What is sent to other workers, and what is remembered, is no service.
            if fields > most && !part.starts_with("Open {") && body.split("\n}").next().unwrap().contains("Arc<Common>")
            {
                large.push(format!("{file}: {name} has {fields} fields"));
            }
            if name == "Common" && fields > most {
                large.push(format!("{file}: {name} has {fields} fields"));
            }
        }
    }
    assert!(large.is_empty(), "{}", large.join("\n"));
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
