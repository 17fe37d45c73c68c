//! The layers that settings come from, merged, with where each value was set.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use thiserror::Error;
use toml::Value;

/// Variables of the environment that set a key begin with this.
pub const ENV_PREFIX: &str = "KZ_RECORD_CALL__";

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(String),
    /// The variable's name.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key} {problem} (set by {origin})")]
pub struct ConfigError {
    pub key: String,
    pub origin: Origin,
    /// Follows the key in a sentence; never has a secret in it.
    pub problem: String,
}

/// All values, by dotted key.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<String, (Value, Origin)>,
}

impl Layers {
    /// Merges the compiled-in defaults, `file` and `environment`, in that order.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut layers = Self::default();
        layers.add_toml(super::DEFAULTS, &Origin::Default)?;
        if let Some(path) = file {
            let origin = Origin::File(path.display().to_string());
            let text = std::fs::read_to_string(path).map_err(|error| {
                vec![ConfigError {
                    key: "--config".into(),
                    origin: origin.clone(),
                    problem: error.to_string(),
                }]
            })?;
            layers.add_toml(&text, &origin)?;
        }
        for (name, value) in environment {
            if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                let key = path.to_ascii_lowercase().replace("__", ".");
                layers
                    .values
                    .insert(key, (Value::String(value), Origin::Environment(name)));
            }
        }
        Ok(layers)
    }

    fn add_toml(&mut self, text: &str, origin: &Origin) -> Result<(), Vec<ConfigError>> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let problem = format!("is not TOML: {}", error.to_string().trim());
            vec![ConfigError {
                key: "the file".into(),
                origin: origin.clone(),
                problem,
            }]
        })?;
        self.add_table("", table, origin);
        Ok(())
    }

    fn add_table(&mut self, prefix: &str, table: toml::Table, origin: &Origin) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}.{name}")
            };
            match value {
                Value::Table(inner) => self.add_table(&key, inner, origin),
                value => {
                    self.values.insert(key, (value, origin.clone()));
                }
            }
        }
    }

    pub fn get(&self, key: &str) -> Option<&(Value, Origin)> {
        self.values.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.values.iter().map(|(key, (_, origin))| (key.as_str(), origin))
    }
}
