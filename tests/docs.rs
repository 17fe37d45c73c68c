//! Compares the pages with the code: numbers, links, metrics, alerts, settings, commands, scripts,
//! queues, states, and the links to schemas. With `UPDATE_DOCS=1`: writes `docs/configuration.md`, and the states' diagram.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::error::ErrorKind;
use kz_record_call::cli;
use kz_record_call::config::{Config, DEFAULTS, Layers};
use kz_record_call::entry::LOOKS;
use kz_record_call::entry::cause::Outcome;
use kz_record_call::kazoo::names::Exchange;
use kz_record_call::lifecycle::STATES;
use kz_record_call::recording::{names, settings};
use kz_record_call::telemetry::events::METRICS;
use kz_record_call::worker;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page, by its path in the repository.
fn pages() -> BTreeMap<String, String> {
    let mut names: Vec<String> = [
        "README.md",
        "docker/README.md",
        "fuzz/README.md",
        "docker/couchdb-standin/README.md",
    ]
    .map(str::to_owned)
    .to_vec();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        names.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// A piece of code in a page: a line of a block, or what stands between backticks.
struct Code {
    text: String,
    in_block: bool,
}

fn code(page: &str) -> Vec<Code> {
    let mut all = Vec::new();
    let (mut fenced, mut held) = (false, String::new());
    let mut prose = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        // Four blanks begin a block where no list goes on.
        if fenced || line.starts_with("    ") {
            // Lines that go on in the next one are one.
            if let Some(begun) = line.strip_suffix('\\') {
                held.push_str(begun);
                continue;
            }
            held.push_str(line);
            all.push(Code {
                text: std::mem::take(&mut held).trim().to_owned(),
                in_block: true,
            });
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    for (n, text) in prose.split('`').enumerate() {
        if n % 2 == 1 {
            all.push(Code {
                text: text.split_whitespace().collect::<Vec<_>>().join(" "),
                in_block: false,
            });
        }
    }
    all
}

/// The words of a shell's command, up to its end; `<what to put here>` is one word.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut quote, mut begun, mut place) = (Vec::new(), String::new(), None, false, 0);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '<') => {
                place += 1;
                begun = true;
                word.push('x');
            }
            (None, '>') if place > 0 => place -= 1,
            (None, _) if place > 0 => {}
            (None, '\'' | '"') => {
                quote = Some(c);
                begun = true;
            }
            (None, '|' | ';' | '&' | '>') => break,
            (None, '#') if !begun => break,
            (None, c) if c.is_whitespace() => {
                if begun {
                    all.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (None, c) => {
                begun = true;
                word.push(c);
            }
        }
    }
    if begun {
        all.push(word);
    }
    all
}

/// The arguments of `program`, if the piece of code runs it: as the first word, behind settings, `sudo`, or in a container.
fn arguments(text: &str, program: &str) -> Option<Vec<String>> {
    // The last of several commands, such as behind `&&`, is looked at too.
    let all = words(text);
    let at = all.iter().rposition(|word| {
        let name = word.rsplit('/').next().unwrap_or(word);
        name == program || *word == format!("{program}:local")
    })?;
    let wrapped = all[..at].iter().all(|word| {
        word.contains('=')
            || word.starts_with('-')
            || [
                "$",
                "sudo",
                "docker",
                "compose",
                "exec",
                "run",
                "worker",
                "simulator",
                "timeout",
                "-u",
                "kz-record-call",
            ]
            .contains(&word.as_str())
    });
    (wrapped && !text.starts_with("docker build")).then(|| all[at + 1..].to_vec())
}

/// Every command line in a piece of code: behind `&&` and `;` too.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split("&&").flat_map(|part| part.split("; ")).map(str::trim)
}

#[test]
fn every_command_that_is_told_can_be_given() {
    let mut seen = BTreeSet::new();
    for (page, text) in pages() {
        for code in code(&text) {
            for line in lines(&code.text) {
                let Some(arguments) = arguments(line, "kz-record-call") else {
                    continue;
                };
                let named = arguments
                    .first()
                    .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase() || c == '-'));
                if !named {
                    continue;
                }
                let given = std::iter::once("kz-record-call".to_owned()).chain(arguments.iter().cloned());
                if let Err(fault) = cli::definition().try_get_matches_from(given) {
                    let harmless = match fault.kind() {
                        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
                        // In a sentence a command may be named without what it is given.
                        ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                            !code.in_block
                        }
                        _ => false,
                    };
                    assert!(harmless, "{page}: {line}\n{fault}");
                }
                seen.extend(arguments.into_iter().find(|word| !word.starts_with('-')));
            }
        }
    }
    // All that there is, is told somewhere.
    let definition = cli::definition();
    for command in definition.get_subcommands().filter(|command| !command.is_hide_set()) {
        assert!(
            seen.contains(command.get_name()),
            "no page tells of {}",
            command.get_name()
        );
    }
}

#[test]
fn every_command_of_the_simulator_that_is_told_can_be_given() {
    let mut seen = 0;
    for (page, text) in pages() {
        for code in code(&text) {
            for line in lines(&code.text) {
                let Some(arguments) = arguments(line, "kazoo-sim").filter(|all| !all.is_empty()) else {
                    continue;
                };
                let output = Command::new(env!("CARGO_BIN_EXE_kazoo-sim"))
                    .args(&arguments)
                    .arg("--help")
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "{page}: {line}\n{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn every_target_of_make_and_every_script_that_is_told_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').map(|(name, _)| name))
        .collect();
    let mut told = BTreeSet::new();
    for (page, text) in pages() {
        for code in code(&text) {
            for line in lines(&code.text) {
                if let Some(arguments) = arguments(line, "make") {
                    for target in arguments.iter().filter(|word| !word.contains('=')) {
                        assert!(targets.contains(target.as_str()), "{page}: make has no {target}");
                        told.insert(target.clone());
                    }
                }
                for word in words(line) {
                    let is_script = ["docker/", "packaging/", ".ci/", "config/", "schemas/"]
                        .iter()
                        .any(|folder| word.starts_with(folder));
                    let path = word.trim_end_matches(['.', ',']);
                    assert!(
                        !is_script
                            || path.contains(['*', '='])
                            || path.ends_with("generated")
                            || root().join(path).exists(),
                        "{page}: {path} is not there"
                    );
                }
            }
        }
    }
    for target in ["demo", "test", "up", "down", "load"] {
        assert!(told.contains(target), "no page tells of make {target}");
        assert!(
            makefile
                .lines()
                .any(|line| line.starts_with(".PHONY") && line.split(' ').any(|word| word == target)),
            "{target} is not phony"
        );
    }
}

/// The anchor that a heading gets where pages are shown.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = page.lines().filter(|line| {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        !fenced && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut seen = 0;
    for (name, text) in &pages {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (file, section) = link.split_once('#').map_or((link, None), |(file, at)| (file, Some(at)));
            let to = if file.is_empty() {
                root().join(name)
            } else {
                root().join(name).parent().unwrap().join(file)
            };
            let to = to
                .canonicalize()
                .unwrap_or_else(|_| panic!("{name} links to {link}, which is not there"));
            if let Some(section) = section {
                let page = std::fs::read_to_string(&to).unwrap();
                assert!(
                    anchors(&page).contains(section),
                    "{name} links to {link}, which has no such heading"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 60, "only {seen} links were found");
    // Whoever reads the front page finds all the others.
    for page in pages.keys().filter(|page| page.starts_with("docs/")) {
        assert!(
            pages["README.md"].contains(&format!("]({page})")),
            "README.md does not link to {page}"
        );
    }
}

/// Where the package installs a file of the repository, if it does.
fn installed(path: &str) -> Option<String> {
    const BASE: &str = "/usr/share/doc/kz-record-call/";
    read("packaging/files")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let [_, _, _, from, to] = line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            let to = to.strip_prefix(BASE)?;
            let (folder, ending) = match from.split_once('*') {
                // What a pattern matches keeps its path behind the pattern's folder.
                Some((folder, pattern)) => (folder, pattern.rsplit('*').next()?),
                None => (&from[..from.rfind('/').map_or(0, |at| at + 1)], ""),
            };
            let fits = if from.contains('*') {
                path.ends_with(ending)
            } else {
                path == from
            };
            let name = path.strip_prefix(folder).filter(|_| fits)?;
            Some(format!("{to}{name}"))
        })
}

#[test]
fn links_lead_somewhere_where_the_package_installs_the_pages() {
    let mut seen = 0;
    for (name, text) in &pages() {
        let Some(here) = installed(name) else {
            panic!("{name} is not installed");
        };
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || link.starts_with("http") {
                continue;
            }
            let to = root().join(name).parent().unwrap().join(file).canonicalize().unwrap();
            let path = to
                .strip_prefix(root().canonicalize().unwrap())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let there = installed(&path).unwrap_or_else(|| panic!("{name} links to {path}, which is not installed"));
            // Relative to each other as in the repository.
            let depth = |path: &str| path.matches('/').count();
            assert_eq!(
                (here.as_str(), there.as_str(), depth(&here)),
                (name.as_str(), path.as_str(), depth(name))
            );
            seen += 1;
        }
    }
    assert!(seen > 60, "only {seen} links were found");
}

fn defaults() -> toml::Table {
    DEFAULTS.parse().unwrap()
}

/// Each key with its section.
fn keys() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (name, value) in &defaults() {
        match value.as_table() {
            Some(section) => all.extend(section.keys().map(|key| format!("{name}.{key}"))),
            None => {
                all.insert(name.clone());
            }
        }
    }
    all
}

fn variable(key: &str) -> String {
    format!("KZ_RECORD_CALL__{}", key.replace('.', "__").to_uppercase())
}

/// Words made of these characters that begin with `start`.
fn named<'a>(text: &'a str, start: &'a str, of: impl Fn(char) -> bool + 'a) -> impl Iterator<Item = &'a str> + 'a {
    text.match_indices(start).filter_map(move |(at, _)| {
        let free = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        let rest = &text[at..];
        let end = rest.find(|c: char| !of(c)).unwrap_or(rest.len());
        free.then(|| &rest[..end])
    })
}

#[test]
fn every_setting_that_is_named_exists() {
    let keys = keys();
    let variables: BTreeSet<String> = keys.iter().map(|key| variable(key)).collect();
    let mut texts = pages();
    for file in [
        "docker/compose.yml",
        "docker/demo.sh",
        "docker/load.sh",
        "docker/bench.sh",
        "packaging/environment",
        "packaging/systemd/kz-record-call.service",
        "packaging/systemd/kz-record-call@.service",
        "packaging/prometheus/alerts.yml",
        "config/default.toml",
        "config/sample.toml",
    ] {
        texts.insert(file.into(), read(file));
    }
    let sections: Vec<String> = defaults()
        .iter()
        .filter(|(_, value)| value.is_table())
        .map(|(name, _)| format!("{name}."))
        .collect();
    let mut seen = 0;
    for (page, text) in &texts {
        let text = &text.replace("\\_", "_");
        for name in named(text, "KZ_RECORD_CALL__", |c| c.is_ascii_uppercase() || c == '_') {
            assert!(variables.contains(name), "{page}: {name} is no setting");
            seen += 1;
        }
        for section in &sections {
            for key in named(text, section, |c| c.is_ascii_lowercase() || c == '_' || c == '.') {
                let key = key.trim_end_matches('.');
                let is_file =
                    key.ends_with(".rs") || key.ends_with(".json") || key.ends_with(".md") || key.ends_with(".toml");
                // The end of a sentence that ends with a section's name.
                // An endpoint's table has a name of the operator's.
                if key.contains('.') && !is_file && !key.starts_with("webhooks.endpoint") {
                    assert!(keys.contains(key), "{page}: {key} is no setting");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 200, "only {seen} were found");
}

#[test]
fn every_metric_and_every_alert_that_is_named_exists() {
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let alerts = read("packaging/prometheus/alerts.yml");
    let mut seen = 0;
    for (page, text) in pages() {
        for name in named(&text, "kz_record_call_", |c| c.is_ascii_lowercase() || c == '_') {
            let plain = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            // A prefix; databases and their views; the keys of `check`.
            let other = [
                "kz_record_call_",
                "kz_record_call_hold",
                "kz_record_call_lookup",
                "kz_record_call_fields",
                "kz_record_call_legs",
                "kz_record_call_check_",
            ]
            .contains(&name);
            assert!(other || known.contains(plain), "{page}: no metric is called {name}");
            seen += 1;
        }
        for name in named(&text, "KzRecordCall", |c| c.is_ascii_alphanumeric()) {
            assert!(
                alerts.contains(&format!("alert: {name}\n")),
                "{page}: no alert is called {name}"
            );
        }
    }
    assert!(seen > 60, "only {seen} were found");
}

#[test]
fn every_message_queue_and_document_is_told_of() {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else {
                into.push(path);
            }
        }
    }
    let (messages, documents) = (read("docs/messages.md"), read("docs/documents.md"));
    let mut schemas = Vec::new();
    walk(&root().join("schemas"), &mut schemas);
    assert!(schemas.len() > 20);
    for schema in schemas {
        let path = schema.strip_prefix(root()).unwrap().to_str().unwrap();
        let page = if path.contains("/documents/") {
            &documents
        } else {
            &messages
        };
        assert!(page.contains(&format!("](../{path})")), "no page links to {path}");
    }
    for exchange in Exchange::ALL {
        assert!(messages.contains(&format!("`{exchange}`")), "{exchange}");
    }
    let config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
    for queue in worker::topology(&config) {
        assert!(messages.contains(&format!("`{}", queue.name)), "{}", queue.name);
        for key in queue.bindings.iter().filter_map(|binding| binding.key.as_deref()) {
            assert!(messages.contains(&format!("`{key}`")), "{key}");
        }
    }
    let named = |page: &str, of: &str, schema: &Value| {
        for key in schema.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{key}`")), "{of}: {key} is not told of");
        }
    };
    let schema = |path: &str| -> Value { serde_json::from_str(&read(path)).unwrap() };
    let recording = schema("schemas/documents/call_recording.json");
    named(&documents, "call_recording", &recording["properties"]);
    named(
        &documents,
        "pvt_recording",
        &recording["properties"]["pvt_recording"]["properties"],
    );
    named(&documents, "held", &schema("schemas/documents/held.json")["properties"]);
    let ledger = schema("schemas/documents/ledger_entry.json");
    named(&documents, "ledger", &ledger["properties"]);
    for form in ledger["properties"]["facts"]["items"]["oneOf"].as_array().unwrap() {
        let kind = form["properties"]["fact"]["const"].as_str().unwrap();
        assert!(
            documents.contains(&format!("`{kind}`")),
            "the fact {kind} is not told of"
        );
    }
    let event = schema("schemas/messages/recording.outcome.json");
    named(&messages, "recording.outcome", &event["properties"]);
    for outcome in Outcome::ALL {
        assert!(messages.contains(outcome.name()), "{outcome}");
    }
}

/// What a key takes, in the words of the program itself: they come from refusing nonsense.
fn accepted(key: &str, default: &toml::Value) -> String {
    let path = ["_file", "_certificate", ".tls_key", "client_key"];
    if key == "kazoo.config_file" || path.iter().any(|end| key.ends_with(end)) {
        return "a path".into();
    }
    if key == "log.level" {
        return "a filter".into();
    }
    let nonsense = [(variable(key), "?".to_owned())];
    let mistakes = match Layers::load(None, nonsense.into_iter()) {
        Ok(layers) => Config::of(layers).err().unwrap_or_default(),
        Err(mistakes) => mistakes,
    };
    let told = mistakes.iter().find(|mistake| mistake.key == key);
    let Some(told) = told.map(|mistake| mistake.problem.as_str()) else {
        return "text".into();
    };
    match told {
        "is neither true nor false" => "`true` or `false`".into(),
        told if told.starts_with("has less than") => told.replace("has less than", "nothing, or at least"),
        _ if key == "destination.headers" => "a list of texts".into(),
        _ if key == "storage.drivers" => "a list of s3 and azure".into(),
        told if told.starts_with("has an item") => "a list of networks, addresses and names".into(),
        told => {
            let told = told.strip_prefix("is not ").unwrap_or(told).to_owned();
            let empty = default.as_str() == Some("") && told.contains("URL");
            let told = if empty { format!("nothing, or {told}") } else { told };
            // Powers of two that stand for no bound.
            told.replace(&(u64::MAX / 4).to_string(), "2^62")
        }
    }
}

fn markdown(text: &str) -> String {
    let mut out = String::new();
    for (n, part) in text.split('`').enumerate() {
        if n % 2 == 1 {
            let _ = write!(out, "`{part}`");
        } else {
            out.push_str(&part.replace('<', "\\<").replace('*', "\\*").replace('_', "\\_"));
        }
    }
    out
}

/// `docs/configuration.md`, from `config/default.toml` and what the program refuses.
fn configuration() -> String {
    let mut out = String::from(
        "# Every setting\n\n\
         This page lists every key of the configuration: what it means, what it takes, its default, and the variable that sets it. A test makes this page from\n\
         [config/default.toml](../config/default.toml), which is compiled into the program, and from the errors of the program itself. The test fails if the page differs.\n\
         (`UPDATE_DOCS=1 cargo test --test docs` writes the page again.)\n\n\
         The end of a key's name is its unit: `_ms` milliseconds, `_s` seconds, `_days` days, `_bytes` bytes.\n\n\
         A later source in this list overrides an earlier one:\n\n\
         1. the default\n\
         2. Kazoo's own `config.ini`\n\
         3. the file that `--config` or `KZ_RECORD_CALL_CONFIG` names, else `/etc/kz-record-call/config.toml` if it is readable; `none` means no file\n\
         4. the environment\n\
         5. `--set`\n\n\
         Lists are TOML arrays in the file, and words with commas or blanks between them in the environment.\n\
         `kz-record-call config show` prints the resulting settings, each value with its source.\n\
         A configuration with mistakes, such as an unknown key, is rejected with exit status 64. The program reports all mistakes at once.\n",
    );
    let defaults = defaults();
    let (mut section, mut comment, mut rows) = (String::new(), Vec::new(), Vec::new());
    let flush = |out: &mut String, comment: &mut Vec<String>, rows: &mut Vec<String>| {
        if rows.is_empty() {
            return;
        }
        let _ = write!(
            out,
            "\n| key | variable | default | takes |\n|---|---|---|---|\n{}",
            rows.concat()
        );
        let _ = write!(out, "\n{}\n", markdown(&comment.join("\n")));
        rows.clear();
        comment.clear();
    };
    // The head is for whoever reads the file itself.
    let body = DEFAULTS.split_once("\n\n").unwrap().1;
    out.push_str("\n## All workers of a cluster\n");
    for line in body.lines() {
        if let Some(text) = line.strip_prefix('#') {
            flush(&mut out, &mut comment, &mut rows);
            comment.push(text.trim_start().to_owned());
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            flush(&mut out, &mut comment, &mut rows);
            name.clone_into(&mut section);
            let _ = write!(out, "\n## {name}\n");
        } else if let Some((key, value)) = line.split_once(" = ") {
            let (key, default) = if section.is_empty() {
                (key.to_owned(), &defaults[key])
            } else {
                (format!("{section}.{key}"), &defaults[&section][key])
            };
            rows.push(format!(
                "| `{key}` | `{}` | `{value}` | {} |\n",
                variable(&key),
                accepted(&key, default)
            ));
        }
    }
    flush(&mut out, &mut comment, &mut rows);
    out.push_str("\n## Combinations that are rejected\n\nThe program rejects these combinations as mistakes, with these texts:\n\n");
    for contradiction in [
        &[("amqp.reconnect_min_ms", "5000")][..],
        &[("ingest.token_ttl_s", "60")],
        &[("ledger.lease_s", "60")],
        &[("hold.kind", "folder")],
        &[
            ("destination.silence_timeout_ms", "60000"),
            ("destination.send_timeout_s", "10"),
        ],
    ] {
        let set = contradiction
            .iter()
            .map(|(key, value)| (variable(key), (*value).to_owned()));
        let mistakes = Config::of(Layers::load(None, set).unwrap()).expect_err("they contradict each other");
        for mistake in mistakes {
            let _ = writeln!(out, "* `{}` {}", mistake.key, markdown(&mistake.problem));
        }
    }
    out
}

#[test]
fn the_page_of_all_settings_is_made_from_them() {
    let made = configuration();
    for key in keys() {
        assert!(made.contains(&format!("| `{key}` |")), "{key} is not in it");
    }
    let path = root().join("docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == written,
        "docs/configuration.md is not what config/default.toml says: UPDATE_DOCS=1 cargo test --test docs"
    );
}

/// The diagram of the states is made from the table of the code.
#[test]
fn the_diagram_of_the_states_is_the_table_of_the_code() {
    const BEGIN: &str = "```mermaid\nstateDiagram-v2\n";
    let page = read("docs/architecture.md");
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once("```").unwrap();
    let mut diagram = String::from("    [*] --> asked\n");
    for state in STATES {
        for next in state.next() {
            let _ = writeln!(diagram, "    {} --> {}", state.name(), next.name());
        }
    }
    let made = format!("{before}{BEGIN}{diagram}```{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(root().join("docs/architecture.md"), &made).unwrap();
    } else {
        assert!(
            made == page,
            "the diagram in docs/architecture.md differs: UPDATE_DOCS=1 cargo test --test docs"
        );
    }
}

/// Files of the sources that pages name.
#[test]
fn the_source_files_that_pages_name_exist() {
    let mut missing = Vec::new();
    for page in ["docs/architecture.md", "CONTRIBUTING.md"] {
        let text = read(page);
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
            let places = ["", "src/"].map(|base| root().join(base).join(name));
            if !name.contains([' ', '*', '<']) && !places.iter().any(|place| place.is_file()) {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Numbers that pages tell and the code has.
#[test]
fn the_numbers_that_are_told_are_those_of_the_code() {
    let told =
        |page: &str, sentence: String| assert!(read(page).contains(&sentence), "{page} does not say: {sentence}");
    told("docs/when-it-goes-wrong.md", format!("After {LOOKS} read-backs"));
    let name = names::MAX_MEDIA_NAME;
    told(
        "docs/record_call.md",
        format!("cut to {name} bytes with the format's extension"),
    );
    told("schemas/record_call.json", format!("extension and {name} bytes"));
    let given = settings::MAX_GIVEN_NAME;
    told("docs/record_call.md", format!("| `media_name` | text, {given} bytes |"));
    let schema: Value = serde_json::from_str(&read("schemas/record_call.json")).unwrap();
    assert_eq!(schema["properties"]["media_name"]["maxLength"], given);
    assert_eq!(schema["properties"]["label"]["maxLength"], settings::MAX_LABEL);
    told(
        "docs/record_call.md",
        format!("| `label` | text, {} bytes |", settings::MAX_LABEL),
    );
}
