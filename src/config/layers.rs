//! The layers of settings, merged, with the origin of each value: defaults, Kazoo's own file, our own file, the environment, flags.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::{broker, kazoo_file};

/// Prefix of environment variables that set a key.
pub const ENV_PREFIX: &str = "KZ_RECORD_CALL__";

/// Our own file from the package. It is read when the operator names no other file.
pub const USUAL_FILE: &str = "/etc/kz-record-call/config.toml";

/// Our own file. A given name is used. `none` or an empty name means no file. Without a name, `usual` is used if it can be read. The text
/// is a remark for the operator.
pub fn own_file(named: Option<&OsStr>, usual: &str) -> (Option<PathBuf>, Option<String>) {
    match named {
        Some(named) if named.is_empty() || named == "none" => (None, None),
        Some(named) => (Some(PathBuf::from(named)), None),
        None => match std::fs::File::open(usual) {
            Ok(_) => (Some(PathBuf::from(usual)), None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (None, None),
            Err(error) => (
                None,
                Some(format!(
                    "{usual} is there, and is not used: it cannot be read ({error}); run this as root, or as the worker's user"
                )),
            ),
        },
    }
}

/// Where a value was set. A later origin wins over an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// Kazoo's `config.ini` or `config.yaml`.
    Kazoo {
        path: String,
        line: usize,
    },
    /// Our own file, with the line if it is known.
    File {
        path: String,
        line: Option<usize>,
    },
    /// The variable's name.
    Environment(String),
    /// `--set`.
    Flag,
}

impl Origin {
    /// The rank of this origin. A higher rank wins between values of different keys.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Kazoo { .. } => 1,
            Self::File { .. } => 2,
            Self::Environment(_) => 3,
            Self::Flag => 4,
        }
    }

    /// One word, for programs.
    pub fn kind(&self) -> &'static str {
        ["default", "kazoo", "file", "environment", "flag"][usize::from(self.rank())]
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Kazoo { path, line } => write!(f, "Kazoo's file {path}:{line}"),
            Self::File { path, line: Some(line) } => write!(f, "file {path}:{line}"),
            Self::File { path, line: None } => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag --set"),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key} {problem} (set by {origin})")]
pub struct ConfigError {
    pub key: String,
    pub origin: Origin,
    /// Follows the key in a sentence. It never contains a secret.
    pub problem: String,
}

/// The sources of settings.
#[derive(Debug, Clone)]
pub struct Sources<'a> {
    /// Our own file.
    pub file: Option<&'a Path>,
    pub environment: Vec<(String, String)>,
    /// Each is `key=value`.
    pub flags: &'a [String],
    /// The paths to try for Kazoo's file when neither `kazoo.config_file` nor `KAZOO_CONFIG` names it.
    pub kazoo_places: &'a [&'a str],
}

impl<'a> Sources<'a> {
    /// The environment of this process, and Kazoo's usual places.
    pub fn of_process(file: Option<&'a Path>, flags: &'a [String]) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            file,
            environment,
            flags,
            kazoo_places: kazoo_file::USUAL_PLACES,
        }
    }
}

/// All values, by dotted key.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<String, (Value, Origin)>,
    /// All known keys, with their lines in the manual, `config/default.toml`.
    manual: BTreeMap<String, usize>,
    /// Sources that cannot be read.
    mistakes: Vec<ConfigError>,
    notes: Vec<String>,
    /// Our own file, if there is one.
    own_file: Option<String>,
    /// Kazoo's file, if one was read.
    kazoo_file: Option<KazooFile>,
}

/// Kazoo's file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KazooFile {
    pub path: String,
    /// It is the `config.yaml` of openkazoo 4.4.
    pub is_yaml: bool,
}

impl Layers {
    /// Merges the compiled-in defaults, `file` and `environment`, in that order. Kazoo's usual places are not read.
    ///
    /// # Errors
    /// When a file cannot be read or is not TOML.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let layers = Self::gather(&Sources {
            file,
            environment: environment.collect(),
            flags: &[],
            kazoo_places: &[],
        });
        if layers.mistakes.is_empty() {
            Ok(layers)
        } else {
            Err(layers.mistakes)
        }
    }

    /// Merges all sources. An unreadable source is reported as a mistake, and the other sources are merged all the same.
    pub fn gather(sources: &Sources<'_>) -> Self {
        let mut layers = Self::default();
        layers.add_toml(super::DEFAULTS, |_| Origin::Default);
        layers.manual = lines(super::DEFAULTS).unwrap_or_default();
        let mut above = Self::default();
        if let Some(path) = sources.file {
            layers.own_file = Some(path.display().to_string());
            above.add_file(path);
        }
        for (name, value) in &sources.environment {
            if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                let key = path.to_ascii_lowercase().replace("__", ".");
                above.set(key, Value::String(value.clone()), Origin::Environment(name.clone()));
            } else if is_stray(name) {
                // The value is left out, because it may be a secret.
                above.note(format!(
                    "{name} in the environment is not read: a setting's variable begins with {ENV_PREFIX}, and has two underscores before the key too"
                ));
            }
        }
        for (index, flag) in sources.flags.iter().enumerate() {
            match flag.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    above.set(key.trim().to_owned(), Value::String(value.to_owned()), Origin::Flag);
                }
                // The flag is left out, because it may contain a secret.
                _ => above.mistake(
                    "--set",
                    Origin::Flag,
                    format!("is not key=value (number {} of them)", index + 1),
                ),
            }
        }
        // The upper layers decide which of Kazoo's files is read, and for which zone.
        kazoo_file::add(&mut layers, &above, sources);
        layers.values.extend(above.values);
        layers.mistakes.extend(above.mistakes);
        layers.notes.extend(above.notes);
        layers.remark_on_brokers();
        layers
    }

    /// Adds notes about parameters of brokers' URIs that are not followed.
    fn remark_on_brokers(&mut self) {
        let Some((value, origin)) = self.get("amqp.uri") else {
            return;
        };
        let uris: Vec<&str> = match value {
            Value::Array(uris) => uris.iter().filter_map(Value::as_str).collect(),
            Value::String(uris) => uris.split([',', ' ', '\t', '\n']).collect(),
            _ => Vec::new(),
        };
        let mut remarks: Vec<&str> = uris.into_iter().flat_map(broker::remarks).collect();
        remarks.sort_unstable();
        remarks.dedup();
        let notes: Vec<String> = remarks
            .into_iter()
            .map(|remark| format!("amqp.uri ({origin}): {remark}"))
            .collect();
        self.notes.extend(notes);
    }

    fn add_file(&mut self, path: &Path) {
        let shown = path.display().to_string();
        let origin = |line| Origin::File {
            path: shown.clone(),
            line,
        };
        match std::fs::read_to_string(path) {
            Ok(text) => self.add_toml(&text, origin),
            Err(error) => self.mistake("--config", origin(None), format!("cannot be read: {error}")),
        }
    }

    fn add_toml(&mut self, text: &str, origin: impl Fn(Option<usize>) -> Origin) {
        let parsed = text.parse::<toml::Table>().and_then(|table| Ok((table, lines(text)?)));
        match parsed {
            Ok((table, lines)) => self.add_table("", table, &|key| origin(lines.get(key).copied())),
            Err(error) => {
                // The error's own text is left out. It shows the line, which may contain a secret.
                let line = error.span().map(|span| line_at(text, span.start));
                let problem = format!("is not TOML: {}", error.message());
                self.mistake("the file", origin(line), problem);
            }
        }
    }

    fn add_table(&mut self, prefix: &str, table: toml::Table, origin: &dyn Fn(&str) -> Origin) {
        for (name, value) in table {
            let key = dotted(prefix, &name);
            match value {
                Value::Table(inner) => self.add_table(&key, inner, origin),
                value => {
                    let origin = origin(&key);
                    self.set(key, value, origin);
                }
            }
        }
    }

    pub(super) fn set(&mut self, key: String, value: Value, origin: Origin) {
        self.values.insert(key, (value, origin));
    }

    pub(super) fn mistake(&mut self, key: &str, origin: Origin, problem: String) {
        self.mistakes.push(ConfigError {
            key: key.to_owned(),
            origin,
            problem,
        });
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(super) fn read_from_kazoo(&mut self, file: KazooFile) {
        self.kazoo_file = Some(file);
    }

    pub(super) fn take_mistakes(&mut self) -> Vec<ConfigError> {
        std::mem::take(&mut self.mistakes)
    }

    pub fn get(&self, key: &str) -> Option<&(Value, Origin)> {
        self.values.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.values.iter().map(|(key, (_, origin))| (key.as_str(), origin))
    }

    /// All keys with their values, in the order of the manual, with unknown keys at the end. The flag says whether the manual has the key.
    pub fn settings(&self) -> Vec<(&str, &Value, &Origin, bool)> {
        let line = |key: &str| self.manual.get(key).copied();
        let mut all: Vec<_> = self
            .values
            .iter()
            .map(|(key, (value, origin))| (key.as_str(), value, origin, line(key).is_some()))
            .collect();
        all.sort_by_key(|(key, ..)| (line(key).unwrap_or(usize::MAX), (*key).to_owned()));
        all
    }

    /// Remarks that are not mistakes, for the log and the operator.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The path of our own file, if there is one.
    pub fn own_file(&self) -> Option<&str> {
        self.own_file.as_deref()
    }

    /// Kazoo's file, if one was read.
    pub fn kazoo_file(&self) -> Option<&KazooFile> {
        self.kazoo_file.as_ref()
    }
}

/// Whether a variable looks like one of ours, and is not.
fn is_stray(name: &str) -> bool {
    name.strip_prefix("KZ_RECORD_CALL_")
        .is_some_and(|rest| !rest.starts_with('_') && rest != "CONFIG" && !rest.starts_with("TEST_"))
}

fn dotted(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The line of each value, by dotted key.
fn lines(text: &str) -> Result<BTreeMap<String, usize>, toml::de::Error> {
    fn collect(prefix: &str, table: &DeTable<'_>, text: &str, into: &mut BTreeMap<String, usize>) {
        for (name, value) in table {
            let key = dotted(prefix, name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => collect(&key, inner, text, into),
                _ => {
                    into.insert(key, line_at(text, value.span().start));
                }
            }
        }
    }
    let mut lines = BTreeMap::new();
    collect("", DeTable::parse(text)?.get_ref(), text, &mut lines);
    Ok(lines)
}

#[cfg(test)]
mod tests;
