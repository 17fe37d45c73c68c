//! Finds and reads Kazoo's `config.ini`, or the `config.yaml` of openkazoo 4.4, and turns it into a layer.

use std::io::{ErrorKind, Read as _};

use toml::Value;

use super::ini::{Ini, Note};
use super::kazoo_ini::{self, Read, Reader, Values};
use super::kazoo_yaml;
use super::layers::{KazooFile, Layers, Origin, Sources};

/// The paths that Kazoo tries, in order (`kazoo_config_init:ini_files`), and then those of openkazoo 4.4 (`kazoo_config_init:config_path`).
pub const USUAL_PLACES: &[&str] = &[
    "/etc/kazoo/config.ini",
    "/etc/kazoo/core/config.ini",
    "/usr/local/etc/kazoo/config.yaml",
    "/etc/kazoo/config.yaml",
];

/// Kazoo's own environment variables.
const PATH_VARIABLE: &str = "KAZOO_CONFIG";
const ZONE_VARIABLE: &str = "KAZOO_ZONE";

/// The value of `kazoo.config_file` that disables reading Kazoo's file.
const OFF: &str = "none";

/// Far larger than any file of Kazoo's settings.
const MAX_BYTES: u64 = 1 << 20;

/// Adds the settings of Kazoo's file to `layers`. `above` are the layers that override it.
pub fn add(layers: &mut Layers, above: &Layers, sources: &Sources<'_>) {
    let setting = text(above, "kazoo.config_file");
    if setting == Some(OFF) {
        return;
    }
    let variable = |name: &str| {
        let found = sources.environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    };
    if let Some(zone) = variable(ZONE_VARIABLE) {
        let origin = Origin::Environment(ZONE_VARIABLE.to_owned());
        layers.set("kazoo.zone".to_owned(), Value::String(zone.to_owned()), origin);
    }
    let named = match (setting.filter(|path| !path.is_empty()), variable(PATH_VARIABLE)) {
        (Some(path), _) => {
            let origin = above.get("kazoo.config_file").map(|(_, origin)| origin.clone());
            Some((path, origin.unwrap_or(Origin::Default)))
        }
        (None, Some(path)) => Some((path, Origin::Environment(PATH_VARIABLE.to_owned()))),
        (None, None) => None,
    };
    let is_named = named.is_some();
    let found = match named {
        Some((path, origin)) => match read(path) {
            Ok(bytes) => Some((path, bytes)),
            Err(error) => {
                let problem = format!("names {path}, which cannot be read: {error}");
                layers.mistake("kazoo.config_file", origin, problem);
                None
            }
        },
        None => usual(layers, sources.kazoo_places),
    };
    let Some((path, bytes)) = found else { return };
    let zone = text(above, "kazoo.zone")
        .filter(|zone| !zone.is_empty())
        .or(variable(ZONE_VARIABLE));
    let kernel = super::host_name();
    let hosts = text(above, "kazoo.host")
        .into_iter()
        .chain([kernel.as_str()])
        .filter(|host| !host.is_empty())
        .collect();
    let (read, is_yaml) = match parse(path, &bytes, &Reader { zone, hosts }) {
        Ok(read) => read,
        // Where the operator named no file, the other sources may have all that is needed.
        Err(note) if !is_named => return layers.note(remark(path, &note)),
        Err(note) => {
            let origin = Origin::Kazoo {
                path: path.to_owned(),
                line: note.line,
            };
            return layers.mistake("kazoo.config_file", origin, note.text);
        }
    };
    if let Some(problem) = read.no_broker.filter(|_| above.get("amqp.uri").is_none()) {
        let origin = Origin::Kazoo {
            path: path.to_owned(),
            line: problem.line,
        };
        layers.mistake("amqp.uri", origin, format!("is not set: the file {}", problem.text));
    }
    for setting in read.settings {
        let origin = Origin::Kazoo {
            path: path.to_owned(),
            line: setting.line,
        };
        layers.set(setting.key.to_owned(), value(setting.value), origin);
    }
    for note in read.notes {
        layers.note(remark(path, &note));
    }
    layers.read_from_kazoo(KazooFile {
        path: path.to_owned(),
        is_yaml,
    });
}

fn remark(path: &str, note: &Note) -> String {
    format!("Kazoo's file {path}, line {} {}", note.line, note.text)
}

/// Reads a file in the one or the other form; the flag says whether it is YAML.
fn parse(path: &str, bytes: &[u8], reader: &Reader<'_>) -> Result<(Read, bool), Note> {
    let text = String::from_utf8_lossy(bytes);
    if kazoo_yaml::is_yaml(path, &text) {
        return Ok((kazoo_yaml::settings(&text, reader)?, true));
    }
    Ok((kazoo_ini::settings(&Ini::parse(bytes), reader), false))
}

/// The first usual place with a readable file. An unreadable file is reported, because its settings are missing.
fn usual<'a>(layers: &mut Layers, places: &'a [&'a str]) -> Option<(&'a str, Vec<u8>)> {
    for (at, path) in places.iter().enumerate() {
        match read(path) {
            Ok(bytes) => {
                // After an upgrade to a Kazoo with another form of the file, the older file may have older values.
                let is_other_form = |other: &&&str| other.ends_with(".yaml") && !path.ends_with(".yaml");
                let other = places[at + 1..]
                    .iter()
                    .filter(is_other_form)
                    .find(|other| std::fs::metadata(other).is_ok());
                if let Some(other) = other {
                    layers.note(format!("Kazoo's file {other} is not read, because {path} is there: set kazoo.config_file to the one that Kazoo reads"));
                }
                return Some((path, bytes));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => layers.note(format!(
                "Kazoo's file {path} cannot be read ({error}), so nothing is taken from it: let this user read it, or set \
                 kazoo.config_file to \"none\""
            )),
        }
    }
    None
}

fn read(path: &str) -> std::io::Result<Vec<u8>> {
    // Checked before the file is opened, because opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::new(
            ErrorKind::FileTooLarge,
            "it has more than 1 MiB, so it is no file of Kazoo's",
        ));
    }
    Ok(bytes)
}

fn value(values: Values) -> Value {
    match values {
        Values::One(text) => Value::String(text),
        Values::Several(texts) => Value::Array(texts.into_iter().map(Value::String).collect()),
    }
}

fn text<'a>(layers: &'a Layers, key: &str) -> Option<&'a str> {
    layers.get(key).and_then(|(value, _)| value.as_str()).map(str::trim)
}
