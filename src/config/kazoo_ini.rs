//! The settings for this host in Kazoo's `config.ini`: its zone, that zone's brokers, the database. They are read as Kazoo 5.0 reads them
//! (`kz_config`, `kz_amqp_bootstrap`, `kz_dataconfig`).
//!
//! Kazoo finds a node's zone in the section with the node's name (`[kazoo_apps]`, `[ecallmgr]`), by its `host`. The worker is not such a
//! node, but runs beside one. What a node's section says about this host therefore applies to the worker.

use super::ini::{Ini, Note, Property, Section};

/// Sections that do not describe a node. Any other section may, because Kazoo's nodes can have any name.
const NO_NODES: &[&str] = &["amqp", "zone", "bigcouch", "data", "log"];

/// The sections that win, in this order, when a host's nodes have different zones.
const NODES: &[&str] = &["kz_record_call", "kazoo_apps", "ecallmgr"];

/// The zone of nodes without a configured zone (`kz_config:find_zone`).
const DEFAULT_ZONE: &str = "local";

/// The host that reads the file.
#[derive(Debug, Clone, Default)]
pub struct Reader<'a> {
    /// The zone from another source than the file: our own settings, or `KAZOO_ZONE`.
    pub zone: Option<&'a str>,
    /// This host's names, short or full.
    pub hosts: Vec<&'a str>,
}

/// One of our own settings, taken from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// A key of ours, such as `couchdb.url`.
    pub key: &'static str,
    pub value: Values,
    /// The line in the file. For several lines, the first.
    pub line: usize,
}

/// The value of a setting. It may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    One(String),
    /// For keys with several values. It holds at least one.
    Several(Vec<String>),
}

/// The result of reading a file for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub settings: Vec<Setting>,
    /// Remarks on the file.
    pub notes: Vec<Note>,
    /// The file has brokers, and none of them is for this host. A guess could choose another zone's broker.
    pub no_broker: Option<Note>,
}

/// Reads the settings from a file.
pub fn settings(ini: &Ini, reader: &Reader<'_>) -> Read {
    let mut file = File {
        ini,
        reader,
        notes: ini.notes.clone(),
        settings: Vec::new(),
        no_broker: None,
    };
    let zone = file.zone();
    file.database(&zone);
    file.notes.sort_by_key(|note| note.line);
    Read {
        settings: file.settings,
        notes: file.notes,
        no_broker: file.no_broker,
    }
}

struct File<'a> {
    ini: &'a Ini,
    reader: &'a Reader<'a>,
    notes: Vec<Note>,
    settings: Vec<Setting>,
    no_broker: Option<Note>,
}

/// Which host a section applies to, by its `host`.
#[derive(PartialEq, Eq)]
enum Host {
    Ours,
    NotSaid,
    Another,
}

impl<'a> File<'a> {
    fn set(&mut self, key: &'static str, value: String, line: usize) {
        let value = Values::One(value);
        self.settings.push(Setting { key, value, line });
    }

    fn sections(&self, name: &str) -> Vec<&'a Section> {
        self.ini
            .sections
            .iter()
            .filter(|section| section.name == name)
            .collect()
    }

    /// Kazoo compares full names. Which of our names is full is unknown. If one side has only a first label, equal first labels are enough.
    fn host(&self, section: &Section) -> Host {
        let Some(host) = section.last("host") else {
            return Host::NotSaid;
        };
        let same = |ours: &str| {
            let label = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
            let short = !ours.contains('.') || !host.value.contains('.');
            ours.eq_ignore_ascii_case(&host.value) || (short && label(ours) == label(&host.value))
        };
        if self.reader.hosts.iter().any(|ours| same(ours)) {
            Host::Ours
        } else {
            Host::Another
        }
    }

    /// Of the sections with one name, those for this host. If there are none, those for its zone, else those without host and zone
    /// (`kz_config`: `format_sections`, `local_sections`).
    fn ours(&self, name: &str, zone: &str) -> Vec<&'a Section> {
        let sections = self.sections(name);
        let pick = |wanted: &dyn Fn(&Section) -> bool| -> Vec<&'a Section> {
            sections.iter().copied().filter(|section| wanted(section)).collect()
        };
        let of_host = pick(&|section| self.host(section) == Host::Ours);
        if !of_host.is_empty() {
            return of_host;
        }
        let of_zone = pick(&|section| self.host(section) == Host::NotSaid && named(section, "zone", zone));
        if !of_zone.is_empty() {
            return of_zone;
        }
        pick(&|section| self.host(section) == Host::NotSaid && section.last("zone").is_none())
    }

    /// Reads the zone and its brokers.
    fn zone(&mut self) -> String {
        let found = match self.reader.zone {
            Some(_) => None,
            None => self.nodes_zone(),
        };
        let zone = match (self.reader.zone, found) {
            (Some(zone), _) => zone.to_owned(),
            (None, Some(property)) => {
                self.set("kazoo.zone", property.value.clone(), property.line);
                property.value.clone()
            }
            (None, None) => DEFAULT_ZONE.to_owned(),
        };
        let zones = self.sections("zone");
        let mine: Vec<&Section> = zones
            .iter()
            .copied()
            .filter(|section| self.host(section) != Host::Another)
            .filter(|section| named(section, "name", &zone) || named(section, "zone", &zone))
            .collect();
        if let (Some(first), true) = (zones.first(), mine.is_empty()) {
            let text = if self.reader.zone.is_none() && zone == DEFAULT_ZONE {
                "begins the zones, and no node's section gives this host (by host and zone) one of them: set kazoo.zone, or KAZOO_ZONE"
                    .to_owned()
            } else {
                format!("begins the zones, and none of them is named {zone:?}, which this worker's is")
            };
            self.notes.push(Note::new(first.line, text));
        }
        let of_zone = brokers(&mine);
        let uris = if of_zone.is_empty() {
            brokers(&self.ours("amqp", &zone))
        } else {
            of_zone
        };
        let Some(first) = uris.first() else {
            let all = zones.iter().copied().chain(self.sections("amqp")).collect::<Vec<_>>();
            self.no_broker = brokers(&all).first().map(|broker| {
                let text = format!(
                    "names brokers, and none of them for this host ({}) in zone {zone:?}: set kazoo.zone (or KAZOO_ZONE), or amqp.uri itself",
                    self.reader.hosts.join(", ")
                );
                Note::new(broker.line, text)
            });
            return zone;
        };
        for (key, path) in certificates(&first.value) {
            self.set(key, path, first.line);
        }
        let mut values: Vec<String> = Vec::new();
        for uri in &uris {
            // For Kazoo, a repeated URI means two connections. For us, the list is an order of attempts.
            if !values.contains(&uri.value) {
                values.push(uri.value.clone());
            }
        }
        self.settings.push(Setting {
            key: "amqp.uri",
            value: Values::Several(values),
            line: first.line,
        });
        zone
    }

    /// The zone that a node's section gives this host.
    fn nodes_zone(&mut self) -> Option<&'a Property> {
        let data = self.data_section();
        let nodes: Vec<&'a Section> = self
            .ini
            .sections
            .iter()
            .filter(|section| !NO_NODES.contains(&section.name.as_str()) && section.name != data)
            .filter(|section| section.last("zone").is_some())
            .collect();
        let of = |wanted: Host| -> Vec<&'a Section> {
            nodes
                .iter()
                .copied()
                .filter(|section| self.host(section) == wanted)
                .collect()
        };
        let mut candidates = of(Host::Ours);
        if candidates.is_empty() {
            candidates = of(Host::NotSaid);
        }
        let rank = |section: &&Section| {
            let known = NODES.iter().position(|name| *name == section.name);
            known.unwrap_or(NODES.len())
        };
        candidates.sort_by_key(rank);
        let (first, others) = candidates.split_first()?;
        let zone = first.last("zone")?;
        let differs = others
            .iter()
            .filter_map(|section| section.last("zone"))
            .find(|other| other.value != zone.value);
        if let Some(other) = differs {
            let text = format!(
                "gives this host another zone than [{}] in line {}, which counts: set kazoo.zone if that is wrong",
                first.name, zone.line
            );
            self.notes.push(Note::new(other.line, text));
        }
        Some(zone)
    }

    /// `[data] config` names the section of the database (`kz_dataconfig:connection`).
    fn data_section(&self) -> String {
        let named = self
            .sections("data")
            .into_iter()
            .filter_map(|section| section.last("config"))
            .next_back();
        named.map_or_else(|| "bigcouch".to_owned(), |property| property.value.to_ascii_lowercase())
    }

    fn database(&mut self, zone: &str) {
        let name = self.data_section();
        let Some(section) = self.ours(&name, zone).pop() else {
            if let Some(other) = self.sections(&name).last() {
                let text =
                    format!("begins [{name}], which is for another host or zone than this one: nothing is read of it");
                self.notes.push(Note::new(other.line, text));
            }
            return;
        };
        if let Some(driver) = section.last("driver").filter(|driver| driver.value != "kazoo_couch") {
            self.notes.push(Note::new(
                driver.line,
                "names another driver than kazoo_couch: nothing is read of this section",
            ));
            return;
        }
        for key in ["ip", "port", "username", "password"] {
            if let Some(last) = section.all(key).skip(1).last() {
                let text = format!("sets {key} of [{name}] again, and counts, as for Kazoo");
                self.notes.push(Note::new(last.line, text));
            }
        }
        let (ip, port) = (section.last("ip"), section.last("port"));
        if let Some(first) = ip.or(port) {
            let host = ip.map_or("localhost", |ip| ip.value.as_str());
            let secure = section.last("is_ssl").is_some_and(|is_ssl| is_ssl.value == "true");
            let port = port.map_or("5984", |port| port.value.as_str());
            self.set("couchdb.url", database_url(host, port, secure), first.line);
        } else if let Some(host) = section.last("host") {
            self.notes.push(Note::new(
                host.line,
                "says which host the section is for; where the database is, is said by ip and port",
            ));
        }
        if let Some(username) = section.last("username") {
            self.set("couchdb.username", username.value.clone(), username.line);
            // A user without a password has an empty one, never the password of another layer.
            let password = section.last("password");
            let value = password.map(|password| password.value.clone()).unwrap_or_default();
            self.set("couchdb.password", value, password.unwrap_or(username).line);
        }
    }
}

fn named(section: &Section, key: &str, name: &str) -> bool {
    section.last(key).is_some_and(|property| property.value == name)
}

/// `amqp_uri` and `uri`, in the order in which Kazoo uses them. Of the brokers that it reaches, Kazoo uses the first one by the alphabet
/// (`kz_amqp_connections:primary_broker/0`), wherever the file has it.
fn brokers<'a>(sections: &[&'a Section]) -> Vec<&'a Property> {
    let mut brokers: Vec<&Property> = sections
        .iter()
        .flat_map(|section| &section.properties)
        .filter(|property| matches!(property.key.as_str(), "amqp_uri" | "uri"))
        .collect();
    brokers.sort_by(|one, other| one.value.cmp(&other.value));
    brokers
}

/// `amqps` URIs may name certificates, with the parameter names of RabbitMQ's Erlang client (`amqp_uri`).
pub(super) fn certificates(uri: &str) -> Vec<(&'static str, String)> {
    let Some(uri) = url::Url::parse(uri).ok().filter(|uri| uri.scheme() == "amqps") else {
        return Vec::new();
    };
    let keys = [
        ("cacertfile", "amqp.ca_file"),
        ("certfile", "amqp.client_certificate"),
        ("keyfile", "amqp.client_key"),
    ];
    let path = |name: &str| {
        uri.query_pairs()
            .find(|(query, path)| query == name && !path.is_empty())
    };
    keys.into_iter()
        .filter_map(|(name, key)| path(name).map(|(_, path)| (key, path.into_owned())))
        .collect()
}

/// The address of a database.
pub(super) fn database_url(host: &str, port: &str, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    if is_ipv6(host) {
        format!("{scheme}://[{host}]:{port}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

fn is_ipv6(host: &str) -> bool {
    host.matches(':').count() >= 2 && host.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
}

#[cfg(test)]
mod tests;
