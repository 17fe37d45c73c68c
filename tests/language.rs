//! Plain words: how often pages, settings' comments and the code's texts still use words that name no agent, or that the field does not know.
//! The limits only go down.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};

/// Agents without a name.
const NAMELESS: [&str; 5] = ["somebody", "nobody", "whoever", "everybody", "anybody"];

/// Private words for what the field has a term for.
const PRIVATE: [&str; 16] = [
    "not to be had",
    "not to be found",
    "moved on",
    "move it on",
    "in hand",
    "sign of life",
    "signs of life",
    "stands still",
    "left alone",
    "goes on with",
    "takes up",
    "taken up",
    "first road",
    "second road",
    "killed handler",
    "not there yet",
];

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // The simulator is not installed.
            if !path.ends_with("bin") {
                files(&path, into);
            }
        } else if path
            .extension()
            .is_some_and(|kind| kind == "rs" || kind == "md" || kind == "toml")
        {
            into.push(path);
        }
    }
}

/// Lines of these places with one of the words, outside of tests.
fn lines(places: &[&str], words: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for place in places {
        let path = root.join(place);
        if path.is_dir() {
            files(&path, &mut all);
        } else {
            all.push(path);
        }
    }
    let mut found = Vec::new();
    for file in all.iter().filter(|file| !file.to_string_lossy().contains("tests")) {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let lower = line.to_lowercase();
            let has = |word: &&&str| {
                lower.match_indices(**word).any(|(at, _)| {
                    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                    let (before, after) = (lower[..at].chars().next_back(), lower[at + word.len()..].chars().next());
                    !is_part(before) && !is_part(after)
                })
            };
            if words.iter().any(|word| has(&word)) {
                found.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn agents_have_names() {
    let found = lines(&["src", "docs", "README.md", "config"], &NAMELESS);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_fields_terms_are_used() {
    const LIMIT: usize = 9;
    let found = lines(&["src", "docs", "README.md", "config"], &PRIVATE);
    assert!(found.len() <= LIMIT, "{} of {LIMIT}\n{}", found.len(), found.join("\n"));
}
