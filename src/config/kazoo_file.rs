//! Finds and reads Kazoo's `config.ini`, and turns it into a layer.

use std::io::{ErrorKind, Read as _};

use toml::Value;

use super::ini::Ini;
use super::kazoo_ini::{self, Reader, Values};
use super::layers::{Layers, Origin, Sources};

/// The paths that Kazoo tries, in order (`kazoo_config_init:ini_files`).
pub const USUAL_PLACES: &[&str] = &["/etc/kazoo/config.ini", "/etc/kazoo/core/config.ini"];

/// Kazoo's own environment variables.
const PATH_VARIABLE: &str = "KAZOO_CONFIG";
const ZONE_VARIABLE: &str = "KAZOO_ZONE";

/// The value of `kazoo.config_file` that disables reading Kazoo's file.
const OFF: &str = "none";

/// Far larger than any `config.ini`. A larger file is not a `config.ini`.
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
    let read = kazoo_ini::settings(&Ini::parse(&bytes), &Reader { zone, hosts });
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
        layers.note(format!("Kazoo's file {path}, line {} {}", note.line, note.text));
    }
    layers.read_from_kazoo(path.to_owned());
}

/// The first usual place with a readable file. An unreadable file is reported, because its settings are missing.
fn usual<'a>(layers: &mut Layers, places: &'a [&'a str]) -> Option<(&'a str, Vec<u8>)> {
    for path in places {
        match read(path) {
            Ok(bytes) => return Some((path, bytes)),
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
            "it has more than 1 MiB, so it is no config.ini",
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
