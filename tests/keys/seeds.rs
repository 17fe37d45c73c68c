//! What fuzzing starts from, and what it found once: it must hold at every change. The rest is in `fuzz/README.md`.

use std::path::Path;

use crate::{messages, terms};

fn each(folder: &str, prefix: &[u8], mut run: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        run(&[prefix, &bytes].concat());
        seen += 1;
    }
    assert!(seen > 3, "only {seen} were found");
}

#[test]
fn every_seed_of_the_messages_holds() {
    each("fuzz/seeds/messages", b"", messages::messages);
    for fixtures in [
        "tests/fixtures/action_execute",
        "tests/fixtures/call_events",
        "tests/fixtures/kazoo_recorder",
    ] {
        each(fixtures, &[0, 0], messages::messages);
        each(fixtures, &[3, 0], messages::messages);
    }
}

#[test]
fn every_value_holds_in_every_place_of_a_true_message() {
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    for value in [
        "null",
        "true",
        "7",
        "-1e400",
        "\"\"",
        "\"7\"",
        "\"${system id}\"",
        "\"\\ud800\"",
        "[]",
        "{}",
        "[[{}]]",
        &deep,
        "",
        "}",
    ] {
        for packing in [0, 3, 96, 128, 192] {
            for place in 1..=64 {
                messages::messages(&[&[packing, place], value.as_bytes()].concat());
            }
        }
    }
}

#[test]
fn every_seed_of_the_terms_holds() {
    each("fuzz/seeds/terms", b"", terms::terms);
}
