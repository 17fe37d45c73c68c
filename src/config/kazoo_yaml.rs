//! The settings for this host in `config.yaml`, the file of openkazoo 4.4: the local zone, that zone's brokers, the database. They are read as
//! that Kazoo reads them (`kazoo_config_init`, `kz_config`, `kz_dataconfig`).
//!
//! Zones are a map. The local zone is the one that says `local: true`.

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};

use super::broker;
use super::ini::Note;
use super::kazoo_ini::{Read, Reader, Setting, Values, certificates, database_url};

/// The section of the database, where `data.config` names none (`kz_dataconfig:connection`).
const DATABASE: &str = "couchdb";

/// Whether a file is YAML: by its name, else by its first line with content. A `config.ini` begins with a section.
pub fn is_yaml(path: &str, text: &str) -> bool {
    if path.ends_with(".yaml") || path.ends_with(".yml") {
        return true;
    }
    let content = text.lines().map(str::trim);
    let first = content
        .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        .find(|line| !line.starts_with('%'))
        .unwrap_or_default();
    let key = first.split([':', '=']).next().unwrap_or_default();
    first.starts_with("---") || (first[key.len()..].starts_with(':') && !first.starts_with('['))
}

/// Reads the settings from a file.
///
/// # Errors
/// When the file is not one that Kazoo could read. The text never shows a value, which may be a secret.
pub fn settings(text: &str, reader: &Reader<'_>) -> Result<Read, Note> {
    let documents = MarkedYaml::load_from_str(text)
        .map_err(|error| Note::new(error.marker().line(), "is not valid YAML: nothing is read of the file"))?;
    let Some(root) = documents.first().filter(|root| entries(root).is_some()) else {
        return Err(Note::new(
            1,
            "begins no mapping of sections: nothing is read of the file",
        ));
    };
    let mut file = File {
        reader,
        read: Read {
            settings: Vec::new(),
            notes: Vec::new(),
            no_broker: None,
        },
    };
    file.zone(root);
    file.database(root);
    file.read.notes.sort_by_key(|note| note.line);
    Ok(file.read)
}

struct File<'a> {
    reader: &'a Reader<'a>,
    read: Read,
}

impl File<'_> {
    fn set(&mut self, key: &'static str, value: Values, line: usize) {
        self.read.settings.push(Setting { key, value, line });
    }

    fn note(&mut self, node: &MarkedYaml<'_>, text: impl Into<String>) {
        self.read.notes.push(Note::new(line(node), text));
    }

    /// Reads the zone and its brokers.
    fn zone(&mut self, root: &MarkedYaml<'_>) {
        let Some(zones) = get(root, "zones") else {
            self.note(root, "begins a file without `zones`: zone and brokers are not read");
            return;
        };
        let all: Vec<_> = entries(zones).into_iter().flatten().collect();
        let local = |zone: &MarkedYaml<'_>| get(zone, "local").and_then(scalar).is_some_and(|value| value == "true");
        let marked: Vec<_> = all.iter().filter(|(_, zone)| local(zone)).collect();
        if let Some((second, zone)) = marked.get(1) {
            let text = format!("begins {second:?}, which is marked as the local zone too: the first one counts");
            self.note(zone, text);
        }
        let found = match self.reader.zone {
            Some(ours) => all.iter().find(|(name, _)| name == ours),
            None => marked.first().copied(),
        };
        let Some((name, zone)) = found else {
            let text = match self.reader.zone {
                Some(ours) => format!("begins the zones, and none of them is named {ours:?}, which this worker's is"),
                None => {
                    "begins the zones, and none of them has `local: true`: set kazoo.zone, or KAZOO_ZONE".to_owned()
                }
            };
            let is_named = all.iter().any(|(_, zone)| !uris(zone).is_empty());
            self.read.no_broker = is_named.then(|| {
                let text = "names brokers, and none of them for this worker's zone: set kazoo.zone (or KAZOO_ZONE), or amqp.uri itself";
                Note::new(line(zones), text)
            });
            self.note(zones, text);
            return;
        };
        if self.reader.zone.is_none() {
            self.set("kazoo.zone", Values::One(name.clone()), line(zone));
        }
        self.brokers(zone);
    }

    /// The brokers of a zone. Kazoo leaves out what is no broker's URI, and uses the first one by the alphabet, as with `config.ini`.
    fn brokers(&mut self, zone: &MarkedYaml<'_>) {
        let mut brokers: Vec<(String, usize)> = Vec::new();
        for (uri, node) in uris(zone) {
            match broker::broker(&uri) {
                Ok(_) => brokers.push((uri, line(node))),
                Err(why) => self.note(node, format!("has a broker that is not used, as its URI is {why}")),
            }
        }
        brokers.sort();
        brokers.dedup_by(|one, other| one.0 == other.0);
        let Some((first, line)) = brokers.first().cloned() else {
            self.note(zone, "begins this worker's zone, which has no broker (amqp.uri)");
            return;
        };
        for (key, path) in certificates(&first) {
            self.set(key, Values::One(path), line);
        }
        let values = brokers.into_iter().map(|(uri, _)| uri).collect();
        self.set("amqp.uri", Values::Several(values), line);
    }

    fn database(&mut self, root: &MarkedYaml<'_>) {
        let named = get(root, "data").and_then(|data| get(data, "config")).and_then(scalar);
        let name = named.unwrap_or_else(|| DATABASE.to_owned());
        let Some(section) = get(root, &name) else {
            self.note(
                root,
                format!("begins a file without `{name}`, the section of the database"),
            );
            return;
        };
        let value = |key: &str| get(section, key).and_then(|node| Some((scalar(node)?, line(node))));
        if value("driver").is_some_and(|(driver, _)| driver != "kazoo_couch") {
            self.note(
                section,
                "begins a section with another driver than kazoo_couch: nothing is read of it",
            );
            return;
        }
        match value("ip").or_else(|| value("host")) {
            Some((host, line)) => {
                let port = value("port").map_or_else(|| "5984".to_owned(), |(port, _)| port);
                let secure = value("is_ssl").is_some_and(|(is_ssl, _)| is_ssl == "true");
                self.set("couchdb.url", Values::One(database_url(&host, &port, secure)), line);
            }
            None => self.note(
                section,
                "begins the database without ip or host: its address is not read",
            ),
        }
        if let Some((username, line)) = value("username") {
            self.set("couchdb.username", Values::One(username), line);
            // A user without a password has an empty one, never the password of another layer.
            let (password, line) = value("password").unwrap_or_else(|| (String::new(), line));
            self.set("couchdb.password", Values::One(password), line);
        }
    }
}

/// The brokers of a zone: one, or a list.
fn uris<'a>(zone: &'a MarkedYaml<'a>) -> Vec<(String, &'a MarkedYaml<'a>)> {
    let Some(given) = get(zone, "amqp").and_then(|amqp| get(amqp, "uri")) else {
        return Vec::new();
    };
    let nodes = match &given.data {
        YamlData::Sequence(all) => all.iter().collect(),
        _ => vec![given],
    };
    let text = |node: &'a MarkedYaml<'a>| Some((scalar(node).filter(|uri| !uri.is_empty())?, node));
    nodes.into_iter().filter_map(text).collect()
}

fn line(node: &MarkedYaml<'_>) -> usize {
    node.span.start.line()
}

/// The entries of a mapping, whose keys are texts.
fn entries<'a>(node: &'a MarkedYaml<'a>) -> Option<impl Iterator<Item = (String, &'a MarkedYaml<'a>)>> {
    let YamlData::Mapping(map) = &node.data else {
        return None;
    };
    Some(map.iter().filter_map(|(key, value)| Some((scalar(key)?, value))))
}

fn get<'a>(node: &'a MarkedYaml<'a>, key: &str) -> Option<&'a MarkedYaml<'a>> {
    entries(node)?.find(|(name, _)| name == key).map(|(_, value)| value)
}

/// The text of a value, as Kazoo turns it into one. `null` is no value.
fn scalar(node: &MarkedYaml<'_>) -> Option<String> {
    match &node.data {
        YamlData::Value(Scalar::String(text)) if text != "null" => Some(text.trim().to_owned()),
        YamlData::Value(Scalar::Integer(number)) => Some(number.to_string()),
        YamlData::Value(Scalar::FloatingPoint(number)) => Some(number.to_string()),
        YamlData::Value(Scalar::Boolean(is_true)) => Some(is_true.to_string()),
        YamlData::Tagged(_, inner) => scalar(inner),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
log:
  syslog: info
data:
  config: couchdb
couchdb:
  ip: 10.0.0.1
  port: 5984
  username: admin
  password: \"12345\"
zones:
  east:
    amqp:
      uri: amqp://guest:guest@east
  west:
    local: true
    amqp:
      uri:
        - amqp://guest:guest@b
        - amqp://guest:guest@a
    vms:
      - kazoo_apps:
          host: localhost
          cookie: change_me
";

    fn read(text: &str, zone: Option<&str>) -> Read {
        let reader = Reader { zone, hosts: vec!["w"] };
        settings(text, &reader).unwrap()
    }

    fn value(read: &Read, key: &str) -> Option<(Values, usize)> {
        let found = read.settings.iter().find(|setting| setting.key == key);
        found.map(|setting| (setting.value.clone(), setting.line))
    }

    fn one(text: &str) -> Values {
        Values::One(text.to_owned())
    }

    #[test]
    fn the_local_zone_its_brokers_and_the_database_are_read() {
        let read = read(FILE, None);
        assert_eq!(read.notes, []);
        let brokers = Values::Several(vec!["amqp://guest:guest@a".into(), "amqp://guest:guest@b".into()]);
        for (key, expected, line) in [
            ("kazoo.zone", one("west"), 15),
            ("amqp.uri", brokers, 19),
            ("couchdb.url", one("http://10.0.0.1:5984"), 6),
            ("couchdb.username", one("admin"), 8),
            ("couchdb.password", one("12345"), 9),
        ] {
            assert_eq!(value(&read, key), Some((expected, line)), "{key}");
        }
    }

    #[test]
    fn a_zone_that_is_named_wins_over_the_local_one() {
        let east = read(FILE, Some("east"));
        assert_eq!(value(&east, "kazoo.zone"), None);
        let uri = Values::Several(vec!["amqp://guest:guest@east".into()]);
        assert_eq!(value(&east, "amqp.uri").map(|(uri, _)| uri), Some(uri));
        let none = read(FILE, Some("north"));
        assert_eq!(value(&none, "amqp.uri"), None);
        assert_eq!(none.no_broker.map(|note| note.line), Some(11));
        assert!(none.notes[0].text.contains("\"north\""), "{:?}", none.notes);
    }

    #[test]
    fn without_a_local_zone_no_broker_is_guessed() {
        let text = FILE.replace("    local: true\n", "    local: false\n");
        let read = read(&text, None);
        assert!(read.no_broker.is_some() && value(&read, "amqp.uri").is_none() && value(&read, "kazoo.zone").is_none());
    }

    #[test]
    fn what_kazoo_leaves_out_is_left_out_and_said() {
        let text = "couchdb: { host: db, port: null }\nzones:\n  z:\n    local: \"true\"\n    amqp: { uri: [nonsense, ~, amqp://h] }\n";
        let read = read(text, None);
        assert_eq!(
            value(&read, "amqp.uri").unwrap().0,
            Values::Several(vec!["amqp://h".into()])
        );
        assert_eq!(value(&read, "couchdb.url").unwrap().0, one("http://db:5984"));
        assert_eq!(read.notes.len(), 1, "{:?}", read.notes);
        assert!(read.notes[0].text.contains("not used"));
        for (text, words) in [
            ("zones: {}\n", "none of them has `local: true`"),
            ("couchdb: {ip: h}\n", "without `zones`"),
            ("zones: {z: {local: true}}\n", "has no broker"),
            ("zones: {z: {local: true}}\n", "without `couchdb`"),
        ] {
            let notes = super::tests::read(text, None).notes;
            assert!(notes.iter().any(|note| note.text.contains(words)), "{text}: {notes:?}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_told_with_its_line_and_without_its_text() {
        let error = settings("couchdb:\n  ip: h\n  password: \"se cret\nzones:\n", &Reader::default()).unwrap_err();
        assert!(
            error.line >= 3 && error.text.contains("not valid YAML") && !error.text.contains("cret"),
            "{error:?}"
        );
        assert_eq!(settings("- a\n- b\n", &Reader::default()).unwrap_err().line, 1);
        assert!(settings("", &Reader::default()).is_err());
    }

    #[test]
    fn a_file_is_known_by_its_name_or_its_first_line() {
        for (path, text, expected) in [
            ("/etc/kazoo/config.yaml", "", true),
            ("/etc/kazoo/config", "# c\n\nlog:\n  syslog: info\n", true),
            ("/etc/kazoo/config", "---\nzones:\n", true),
            ("/etc/kazoo/config.ini", "; c\n[amqp]\nuri = amqp://h\n", false),
            ("/etc/kazoo/config.ini", "uri = amqp://h:1\n", false),
            ("/etc/kazoo/config.ini", "", false),
        ] {
            assert_eq!(is_yaml(path, text), expected, "{path} {text:?}");
        }
    }
}
