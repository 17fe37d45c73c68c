//! The configuration: its sources, and what is wrong or odd about it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use crate::config::{Config, ConfigError, Layers, Origin};
use crate::kazoo::names::APP_NAME;

use super::report::Rows;

/// Settings that are secrets.
const SECRETS: &[&str] = &["secret", "couchdb.password"];
/// Settings that may have credentials in them.
const URLS: &[&str] = &["amqp.uri", "couchdb.url", "hold.url"];

/// What openkazoo 4.4 does with our nodes, after its name (`cf_exe`, commit 495c223b).
pub const IGNORES_REMOTE_EXECUTION: &str = "whose callflows ignore remote_execution: record_call nodes run Kazoo's own recorder, and no action comes to the worker";

/// What to do about it.
pub const REMOTE_EXECUTION: &str = "use Kazoo 5.0 or newer, or add cf_remote_action to callflow (2600hz/kazoo#6174); then test one flow, and see `kz-record-call list --newer 1h`";

/// What the layers show before they become a configuration.
pub fn sources(layers: &Layers) -> Rows {
    let mut rows = Rows::of("configuration");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, origin) in layers.keys() {
        let from = match origin {
            Origin::Default => continue,
            Origin::Kazoo { path, .. } | Origin::File { path, .. } => path.clone(),
            Origin::Environment(_) => "the environment".to_owned(),
            Origin::Flag => "--set".to_owned(),
        };
        *counts.entry(from).or_default() += 1;
    }
    let words: Vec<String> = counts
        .iter()
        .map(|(from, count)| format!("{count} from {from}"))
        .collect();
    if words.is_empty() {
        rows.warn(
            "settings",
            "no setting is given: all have their defaults",
            "write /etc/kz-record-call/config.toml (`kz-record-call config default` prints a start), or give a file with --config, or set kazoo.config_file",
        );
    } else {
        rows.good("settings", words.join(", "));
    }
    match layers.kazoo_file() {
        Some(file) if file.is_yaml => rows.warn(
            "Kazoo's config.yaml",
            format!("{}: a file of openkazoo 4.4, {IGNORES_REMOTE_EXECUTION}", file.path),
            REMOTE_EXECUTION,
        ),
        Some(file) => rows.good("Kazoo's config.ini", file.path.as_str()),
        None => rows.note(
            "Kazoo's config.ini",
            "not read: kazoo.config_file is \"none\", or not set and no file was found",
        ),
    }
    for note in layers.notes() {
        rows.warn("odd value", note.clone(), "check that the value means what you intend");
    }
    open_files(&mut rows, layers);
    rows
}

/// Reports files of ours that contain secrets and that every user of the host can read.
fn open_files(rows: &mut Rows, layers: &Layers) {
    let mut told = Vec::new();
    for key in SECRETS.iter().chain(URLS) {
        let Some((value, Origin::File { path, .. })) = layers.get(key) else {
            continue;
        };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let has = |wanted: fn(&str) -> bool| items.iter().filter_map(|item| item.as_str()).any(wanted);
        let secret = if SECRETS.contains(key) {
            has(|text| !text.is_empty())
        } else {
            has(|text| text.contains('@'))
        };
        let mode = std::fs::metadata(path).map(|file| file.permissions().mode());
        if secret && mode.is_ok_and(|mode| mode & 0o004 != 0) && !told.contains(path) {
            rows.warn(
                "file",
                format!("{path} contains secrets, and every user of this host can read it"),
                format!("chmod o-r {path}"),
            );
            told.push(path.clone());
        }
    }
}

/// Where settings were set. Of several settings, each one is listed with its key.
pub fn set_by(layers: &Layers, keys: &[&str]) -> String {
    let all = keys
        .iter()
        .filter_map(|key| layers.get(key).map(|(_, origin)| (key, origin)));
    let words: Vec<String> = match keys.len() {
        1 => all.map(|(_, origin)| origin.to_string()).collect(),
        _ => all.map(|(key, origin)| format!("{key}: {origin}")).collect(),
    };
    words.join(", ")
}

/// Every mistake.
pub fn mistakes(mistakes: &[ConfigError]) -> Rows {
    let mut rows = Rows::of("configuration");
    for mistake in mistakes {
        let advice = match mistake.origin {
            Origin::Default => "set it; `kz-record-call config default` describes it".to_owned(),
            _ => format!("correct it in: {}", mistake.origin),
        };
        rows.fail(mistake.key.clone(), mistake.problem.clone(), advice);
    }
    rows.note("the rest", "not checked before these are corrected");
    rows
}

/// What a configuration without mistakes means.
pub fn meaning(config: &Config) -> Rows {
    let mut rows = Rows::of("configuration");
    match &config.secret {
        Some(_) => rows.good("secret", "is set"),
        None => rows.warn(
            "secret",
            "not set: each start creates a new secret, and the context of recordings that run over a restart becomes unreadable",
            "set KZ_RECORD_CALL__SECRET, or secret in the file, to the same long text on all workers of the cluster",
        ),
    }
    rows.good(
        "zone",
        format!("{}; name in Kazoo: {APP_NAME}@{}", config.kazoo.zone, config.kazoo.host),
    );
    rows
}
