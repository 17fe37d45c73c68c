use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use super::*;
use crate::config::Config;

/// A folder that is removed after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("kz-record-call-layers-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const KAZOO: &str = "[zone]\nname = west\nuri = amqp://w1\nuri = \"amqp://w2\"\n[zone]\nname = east\nuri = amqp://e\n\
                     [kazoo_apps]\nhost = rec1\nzone = west\n[bigcouch]\nip = db\nport = 15984\nusername = kazoo\npassword = \"se;cret\"\n";

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn gather(file: Option<&str>, environment: &[(&str, &str)], flags: &[String], places: &[&str]) -> Layers {
    Layers::gather(&Sources {
        file: file.map(Path::new),
        environment: pairs(environment),
        flags,
        kazoo_places: places,
    })
}

fn told(layers: Layers) -> Vec<String> {
    let mistakes = Config::of(layers).unwrap_err();
    mistakes.iter().map(ToString::to_string).collect()
}

const HOST: (&str, &str) = ("KZ_RECORD_CALL__KAZOO__HOST", "rec1.example.com");

#[test]
fn the_usual_file_is_read_unless_another_or_none_is_named() {
    let folder = Folder::new();
    let (usual, missing) = (
        folder.file("config.toml", ""),
        folder.0.join("no.toml").display().to_string(),
    );
    let chosen = |named: Option<&str>, usual: &str| own_file(named.map(OsStr::new), usual);
    assert_eq!(chosen(None, &usual), (Some(PathBuf::from(&usual)), None));
    assert_eq!(chosen(None, &missing), (None, None));
    assert_eq!(chosen(Some("other.toml"), &usual), (Some("other.toml".into()), None));
    for none in ["", "none"] {
        assert_eq!(chosen(Some(none), &usual), (None, None));
    }
    let (file, note) = chosen(None, &format!("{usual}/below-a-file"));
    assert!(file.is_none() && note.unwrap().contains("cannot be read"));
}

#[test]
fn kazoos_file_is_above_the_defaults_and_below_everything_else() {
    let folder = Folder::new();
    let (kazoo, empty) = (
        folder.file("config.ini", KAZOO),
        folder.0.join("nothing").display().to_string(),
    );
    let places = [empty.as_str(), kazoo.as_str()];
    let layers = gather(None, &[HOST], &[], &places);
    assert_eq!(layers.kazoo_file().unwrap().path, kazoo);
    assert!(layers.notes().is_empty(), "{:?}", layers.notes());
    let origin = |line| Origin::Kazoo {
        path: kazoo.clone(),
        line,
    };
    for (key, line) in [
        ("amqp.uri", 3),
        ("kazoo.zone", 10),
        ("couchdb.url", 12),
        ("couchdb.username", 14),
        ("couchdb.password", 15),
    ] {
        assert_eq!(layers.get(key).unwrap().1, origin(line), "{key}");
    }
    let config = Config::of(layers).unwrap();
    let uris: Vec<&str> = config.amqp.uris.iter().map(|uri| uri.expose_secret()).collect();
    assert_eq!(uris, ["amqp://w1", "amqp://w2"]);
    assert_eq!(config.kazoo.zone, "west");
    assert_eq!(config.couchdb.url.as_str(), "http://db:15984/");
    assert_eq!(config.couchdb.password.expose_secret(), "se;cret");

    let ours = folder.file(
        "ours.toml",
        "[kazoo]\nzone = \"x\"\n[couchdb]\n\nusername = \"file\"\n[log]\nlevel = \"warn\"\n",
    );
    let flags = ["log.level=debug".to_owned(), " kazoo.zone = z".to_owned()];
    let environment = [
        HOST,
        ("KZ_RECORD_CALL__KAZOO__ZONE", "y"),
        ("KZ_RECORD_CALL__LOG__LEVEL", "error"),
        // Kazoo's file has no zone z.
        ("KZ_RECORD_CALL__AMQP__URI", "amqp://own"),
    ];
    let layers = gather(Some(&ours), &environment, &flags, &places);
    assert_eq!(layers.get("log.level").unwrap().1, Origin::Flag);
    let file = Origin::File {
        path: ours.clone(),
        line: Some(5),
    };
    assert_eq!(layers.get("couchdb.username").unwrap().1, file);
    let config = Config::of(layers).unwrap();
    assert_eq!((config.kazoo.zone.as_str(), config.log.level.as_str()), ("z", "debug"));
}

#[test]
fn the_zone_that_we_are_set_to_decides_which_brokers_are_taken() {
    let folder = Folder::new();
    let kazoo = folder.file("config.ini", KAZOO);
    for zone in [("KZ_RECORD_CALL__KAZOO__ZONE", "east"), ("KAZOO_ZONE", "east")] {
        let layers = gather(None, &[HOST, zone], &[], &[&kazoo]);
        assert_eq!(layers.get("kazoo.zone").unwrap().1, Origin::Environment(zone.0.into()));
        let config = Config::of(layers).unwrap();
        assert_eq!(config.amqp.uris[0].expose_secret(), "amqp://e");
        assert_eq!(config.kazoo.zone, "east");
    }
}

#[test]
fn the_file_can_be_named_and_left_alone() {
    let folder = Folder::new();
    let (one, two) = (
        folder.file("1", "[bigcouch]\nip = one\n"),
        folder.file("2", "[bigcouch]\nip = two\n"),
    );
    let url = |environment: &[(&str, &str)]| {
        let config = Config::of(gather(None, environment, &[], &[&one])).unwrap();
        config.couchdb.url.host_str().unwrap().to_owned()
    };
    assert_eq!(url(&[]), "one");
    assert_eq!(url(&[("KAZOO_CONFIG", &two)]), "two");
    assert_eq!(
        url(&[("KAZOO_CONFIG", &one), ("KZ_RECORD_CALL__KAZOO__CONFIG_FILE", &two)]),
        "two"
    );
    let off = ("KZ_RECORD_CALL__KAZOO__CONFIG_FILE", "none");
    assert_eq!(url(&[off, ("KAZOO_CONFIG", &two), ("KAZOO_ZONE", "x")]), "127.0.0.1");
}

#[test]
fn a_named_file_that_is_not_there_is_a_mistake_and_a_usual_one_that_cannot_be_read_is_told() {
    let folder = Folder::new();
    let gone = folder.0.join("gone").display().to_string();
    for variable in ["KAZOO_CONFIG", "KZ_RECORD_CALL__KAZOO__CONFIG_FILE"] {
        let told = told(gather(None, &[(variable, &gone)], &[], &[]));
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("kazoo.config_file names") && told[0].contains(variable),
            "{told:?}"
        );
    }
    let place = folder.0.display().to_string();
    let layers = gather(None, &[], &[], &[&place]);
    assert_eq!(layers.notes().len(), 1);
    assert!(layers.notes()[0].contains("cannot be read"), "{:?}", layers.notes());
    assert!(Config::of(layers).is_ok());
    let large = folder.file("large", &";".repeat(2 << 20));
    let layers = gather(None, &[], &[], &[&large]);
    assert!(layers.notes()[0].contains("1 MiB"), "{:?}", layers.notes());
}

#[test]
fn mistakes_of_every_layer_are_told_at_once_with_file_and_line_and_without_secrets() {
    let folder = Folder::new();
    let kazoo = folder.file(
        "config.ini",
        "[amqp]\nuri = amqp://ok\nuri = ampq://u:hunter2@h\n[bigcouch]\nip = db\nport = \"hunter2\"\nnonsense hunter2\n",
    );
    let ours = folder.file("ours.toml", "\n[log]\nformat = \"xml\"\n\n[admin]\nlisten = \"x\"\n");
    let flags = ["hunter2".to_owned(), "spool.dir=".to_owned()];
    let layers = gather(
        Some(&ours),
        &[("KZ_RECORD_CALL__NO__KEY", "hunter2")],
        &flags,
        &[&kazoo],
    );
    assert_eq!(layers.notes().len(), 1);
    let notes = layers.notes().join(" ");
    let told = told(layers);
    assert_eq!(told.len(), 7, "{told:#?}");
    for part in [
        "--set is not key=value (number 1 of them)",
        "amqp.uri number 1: is not an amqp",
        &format!("Kazoo's file {kazoo}:3"),
        &format!("Kazoo's file {kazoo}:5"),
        &format!("file {ours}:3"),
        &format!("file {ours}:6"),
        "environment KZ_RECORD_CALL__NO__KEY",
        "spool.dir is empty (set by flag --set)",
    ] {
        assert!(
            told.iter().any(|line| line.contains(part)),
            "{part} is not in {told:#?}"
        );
    }
    assert!(
        !told.join(" ").contains("hunter2") && !notes.contains("hunter2"),
        "{told:#?}"
    );
}

#[test]
fn a_file_that_is_not_toml_is_told_with_its_line_and_without_its_text() {
    let folder = Folder::new();
    let ours = folder.file("ours.toml", "[couchdb]\npassword = hunter2\n");
    let told = told(gather(Some(&ours), &[("KZ_RECORD_CALL__LOG__FORMAT", "xml")], &[], &[]));
    assert_eq!(told.len(), 2, "the rest is told too: {told:#?}");
    assert!(
        told[0].contains("is not TOML") && told[0].contains(&format!("{ours}:2")),
        "{told:#?}"
    );
    assert!(!told.join(" ").contains("hunter2"), "{told:#?}");
    let gone = folder.0.join("gone").display().to_string();
    let told = self::told(gather(Some(&gone), &[], &[], &[]));
    assert!(told[0].contains("--config cannot be read"), "{told:#?}");
}

#[test]
fn credentials_in_a_url_win_over_those_of_kazoos_file() {
    let folder = Folder::new();
    let kazoo = folder.file("config.ini", KAZOO);
    let credentials = |environment: &[(&str, &str)]| {
        let environment = [&[HOST], environment].concat();
        let couchdb = Config::of(gather(None, &environment, &[], &[&kazoo])).unwrap().couchdb;
        (couchdb.username, couchdb.password.expose_secret().to_owned())
    };
    let url = ("KZ_RECORD_CALL__COUCHDB__URL", "http://u:p@other:5984");
    assert_eq!(credentials(&[url]), ("u".into(), "p".into()));
    let apart = ("KZ_RECORD_CALL__COUCHDB__USERNAME", "v");
    assert_eq!(
        credentials(&[url, apart]).0,
        "v",
        "said in the same layer, what stands apart wins"
    );
    assert_eq!(credentials(&[]).0, "kazoo");
}

#[test]
fn a_host_that_kazoos_file_gives_no_broker_does_not_start_at_the_defaults() {
    let folder = Folder::new();
    let kazoo = folder.file("config.ini", KAZOO);
    let other = ("KZ_RECORD_CALL__KAZOO__HOST", "other.example.net");
    let mistakes = told(gather(None, &[other], &[], &[&kazoo]));
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("amqp.uri is not set") && mistakes[0].contains("kazoo.zone"),
        "{mistakes:?}"
    );
    let own = ("KZ_RECORD_CALL__AMQP__URI", "amqps://own?verify=verify_none");
    let layers = gather(None, &[other, own], &[], &[&kazoo]);
    let notes = layers.notes().join("\n");
    assert!(notes.contains("verify_none is not followed"), "{notes}");
    assert!(Config::of(layers).is_ok());
}

#[test]
fn a_filter_that_a_worker_refuses_is_a_mistake_like_all_others() {
    let mistakes = told(gather(None, &[], &["log.level=info,foo=loud".into()], &[]));
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].starts_with("log.level is not a filter"), "{mistakes:?}");
    let empty = told(gather(None, &[], &["log.level=".into()], &[]));
    assert_eq!(empty, ["log.level is empty (set by flag --set)"]);
}

#[test]
fn a_variable_that_only_looks_like_a_setting_is_noted_without_its_value() {
    let environment = [
        ("KZ_RECORD_CALL_AMQP_URI", "amqp://u:hunter2@h"),
        ("KZ_RECORD_CALL_CONFIG", "x.toml"),
        ("KZ_RECORD_CALL_TEST_CRASH", "1"),
        ("KZ_RECORD_CALL__LOG__LEVEL", "debug"),
        ("KZ_RECORD_CALLS", "1"),
    ];
    let layers = gather(None, &environment, &[], &[]);
    let [note] = layers.notes() else {
        panic!("{:?}", layers.notes());
    };
    assert!(
        note.starts_with("KZ_RECORD_CALL_AMQP_URI ") && !note.contains("hunter2"),
        "{note}"
    );
}

#[test]
fn a_config_yaml_is_a_layer_as_a_config_ini_is() {
    const YAML: &str = "zones:\n  west:\n    local: true\n    amqp:\n      uri: [amqp://w1]\ncouchdb:\n  ip: db\n";
    let folder = Folder::new();
    let (yaml, broken) = (
        folder.file("config.yaml", YAML),
        folder.file("broken.yaml", "zones: [\n"),
    );
    let layers = gather(None, &[HOST], &[], &[&yaml]);
    assert!(layers.notes().is_empty(), "{:?}", layers.notes());
    assert!(layers.kazoo_file().unwrap().is_yaml);
    let origin = |line| Origin::Kazoo {
        path: yaml.clone(),
        line,
    };
    assert_eq!(layers.get("amqp.uri").unwrap().1, origin(5));
    let config = Config::of(layers).unwrap();
    assert_eq!(
        (config.kazoo.zone.as_str(), config.couchdb.url.as_str()),
        ("west", "http://db:5984/")
    );

    // Where Kazoo was upgraded, the older file wins, and the worker says so.
    let ini = folder.file("config.ini", KAZOO);
    let both = gather(None, &[HOST], &[], &[&ini, &yaml]);
    assert_eq!(both.kazoo_file().unwrap().path, ini);
    assert!(
        both.notes()[0].contains(&format!("{yaml} is not read")),
        "{:?}",
        both.notes()
    );

    // A file that the operator named must be readable. One that is only found need not be.
    let found = gather(None, &[HOST], &[], &[&broken]);
    assert!(
        found.notes()[0].contains("not valid YAML") && found.kazoo_file().is_none(),
        "{:?}",
        found.notes()
    );
    let named = gather(None, &[HOST, ("KAZOO_CONFIG", &broken)], &[], &[]);
    let mistakes = told(named);
    assert!(
        mistakes[0].starts_with("kazoo.config_file is not valid YAML"),
        "{mistakes:?}"
    );
}
