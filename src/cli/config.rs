//! `kz-record-call config`: what is set and by which source; and the manual.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use toml::Value;

use crate::config::{self, Config, ConfigError, Layers, Origin};

use super::USAGE;

/// What to print.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective settings, each with its source. Secrets are masked.
    ///
    /// The exit status is 64 when there are mistakes; they are printed too.
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print every setting with its meaning and default: a file to start from.
    Default,
}

pub fn run(command: &ConfigCommand, layers: Layers) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match command {
        ConfigCommand::Default => {
            out.write_all(config::DEFAULTS.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        ConfigCommand::Show { json } => {
            let view = View::of(layers);
            if *json {
                writeln!(out, "{:#}", view.as_json())?;
            } else {
                view.write(&mut out)?;
                out.flush()?;
                view.complain();
            }
            Ok(ExitCode::from(if view.mistakes.is_empty() { 0 } else { USAGE }))
        }
    }
}

/// One value, ready to be shown.
struct Row {
    key: String,
    value: Value,
    origin: Origin,
}

struct View {
    rows: Vec<Row>,
    own_file: Option<String>,
    kazoo_file: Option<String>,
    notes: Vec<String>,
    mistakes: Vec<ConfigError>,
}

impl View {
    fn of(layers: Layers) -> Self {
        let rows = layers
            .settings()
            .into_iter()
            .map(|(key, value, origin, known)| Row {
                key: key.to_owned(),
                value: config::shown(key, value, known),
                origin: origin.clone(),
            })
            .collect();
        let (kazoo_file, notes) = (
            layers.kazoo_file().map(|file| file.path.clone()),
            layers.notes().to_vec(),
        );
        let own_file = layers.own_file().map(str::to_owned);
        Self {
            rows,
            own_file,
            kazoo_file,
            notes,
            mistakes: Config::of(layers).err().unwrap_or_default(),
        }
    }

    /// As TOML, with the origins as comments.
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "# The effective settings, each with its source. Secrets are shown as {}.",
            config::MASK
        )?;
        match &self.own_file {
            Some(path) => writeln!(out, "# Settings file: {path}")?,
            None => writeln!(out, "# Settings file: none")?,
        }
        match &self.kazoo_file {
            Some(path) => writeln!(out, "# Kazoo's file: {path}")?,
            None => writeln!(out, "# Kazoo's file: none")?,
        }
        let faulty: BTreeSet<&str> = self.mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
        let mut rows = self.rows.as_slice();
        while let Some(first) = rows.first() {
            let section = split(&first.key).0;
            let end = rows.iter().position(|row| split(&row.key).0 != section);
            let (together, rest) = rows.split_at(end.unwrap_or(rows.len()));
            rows = rest;
            writeln!(out)?;
            if !section.is_empty() {
                writeln!(out, "[{section}]")?;
            }
            let lines: Vec<String> = together
                .iter()
                .map(|row| format!("{} = {}", split(&row.key).1, literal(&row.value)))
                .collect();
            let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).min(56);
            for (row, line) in together.iter().zip(&lines) {
                let fault = if faulty.contains(row.key.as_str()) {
                    "  <-- wrong"
                } else {
                    ""
                };
                writeln!(out, "{line:width$}  # {}{fault}", row.origin)?;
            }
        }
        Ok(())
    }

    fn as_json(&self) -> serde_json::Value {
        let settings: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let mut setting = json!({ "key": row.key, "value": row.value, "origin": row.origin.kind() });
                match &row.origin {
                    Origin::Kazoo { path, line } => {
                        setting["path"] = json!(path);
                        setting["line"] = json!(line);
                    }
                    Origin::File { path, line } => {
                        setting["path"] = json!(path);
                        setting["line"] = json!(line);
                    }
                    Origin::Environment(name) => setting["variable"] = json!(name),
                    Origin::Default | Origin::Flag => {}
                }
                setting
            })
            .collect();
        let mistakes: Vec<_> = self
            .mistakes
            .iter()
            .map(|mistake| json!({ "key": mistake.key, "problem": mistake.problem, "set_by": mistake.origin.to_string() }))
            .collect();
        json!({ "file": self.own_file, "kazoo_file": self.kazoo_file, "settings": settings, "notes": self.notes, "mistakes": mistakes })
    }

    /// On standard error, so that standard output contains only the settings.
    fn complain(&self) {
        for note in &self.notes {
            eprintln!("odd: {note}");
        }
        for mistake in &self.mistakes {
            eprintln!("error: {mistake}");
        }
    }
}

/// Section and name.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// A value as TOML writes it.
fn literal(value: &Value) -> String {
    match value {
        // JSON's escapes are TOML's too.
        Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(at) => at.to_string(),
        Value::Table(_) => "{}".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn view(environment: &[(&str, &str)]) -> View {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        View::of(Layers::gather(&Sources {
            file: None,
            environment: environment.iter().map(pair).collect(),
            flags: &["log.level=debug".to_owned()],
            kazoo_places: &[],
        }))
    }

    fn text(view: &View) -> String {
        let mut out = Vec::new();
        view.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_shown_is_toml_and_tells_where_each_value_is_from() {
        let view = view(&[("KZ_RECORD_CALL__INGEST__PER_SWITCH", "3")]);
        let text = text(&view);
        let table: toml::Table = text.parse().unwrap();
        let defaults: toml::Table = config::DEFAULTS.parse().unwrap();
        assert_eq!(table.len(), defaults.len());
        assert_eq!(table["flow"], defaults["flow"]);
        assert_eq!(table["log"]["level"].as_str(), Some("debug"));
        for part in [
            "level = \"debug\"  # flag --set\n",
            "# environment KZ_RECORD_CALL__INGEST__PER_SWITCH\n",
            "# default\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let sections: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(sections[0], "[amqp]", "in the manual's order");
    }

    #[test]
    fn no_secret_is_shown_in_either_form() {
        let view = view(&[
            ("KZ_RECORD_CALL__SECRET", "hunter2hunter2hunter2"),
            ("KZ_RECORD_CALL__COUCHDB__PASSWORD", "hunter2"),
            ("KZ_RECORD_CALL__AMQP__URI", "amqp://u:hunter2@h, amqp://v:hunter2@i"),
            ("KZ_RECORD_CALL__HOLD__URL", "http://hunter2@h"),
            ("KZ_RECORD_CALL__COUCHDB__PASWORD", "hunter2"),
        ]);
        let (text, json) = (text(&view), view.as_json());
        assert!(
            !text.contains("hunter2") && !json.to_string().contains("hunter2"),
            "{text}"
        );
        assert_eq!(view.mistakes.len(), 1);
        assert!(text.contains("<-- wrong"), "{text}");
        assert_eq!(json["mistakes"][0]["key"], "couchdb.pasword");
        let uri = json["settings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|setting| setting["key"] == "amqp.uri");
        assert_eq!(uri.unwrap()["variable"], "KZ_RECORD_CALL__AMQP__URI");
    }
}
