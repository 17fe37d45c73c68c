use proptest::prelude::*;

use super::*;

const HOST: &str = "kz1.example.com";

fn reader<'a>(zone: Option<&'a str>) -> Reader<'a> {
    Reader {
        zone,
        hosts: vec![HOST],
    }
}

fn read(text: &str, zone: Option<&str>) -> (Vec<(&'static str, String, usize)>, Vec<usize>) {
    let Read { settings, notes, .. } = settings(&Ini::parse(text.as_bytes()), &reader(zone));
    let settings = settings
        .into_iter()
        .map(|setting| match setting.value {
            Values::One(text) => (setting.key, text, setting.line),
            Values::Several(texts) => (setting.key, texts.join(" "), setting.line),
        })
        .collect();
    (settings, notes.into_iter().map(|note| note.line).collect())
}

fn value(text: &str, key: &str) -> Option<String> {
    let (settings, _) = read(text, None);
    settings
        .into_iter()
        .find(|(k, ..)| *k == key)
        .map(|(_, value, _)| value)
}

#[test]
fn the_packaged_file_is_read() {
    let text = "[amqp]\nuri = amqp://guest:guest@127.0.0.1:5672\n\n[bigcouch]\ncompact_automatically = true\ncookie = change_me\n\
                ip = \"127.0.0.1\"\nport = 15984\n; username = \"kazoo\"\nadmin_port = 15986\n\n[kazoo_apps]\ncookie = change_me\n\n\
                [ecallmgr]\ncookie = change_me\n\n[log]\nsyslog = info\n";
    let (settings, notes) = read(text, None);
    assert_eq!(
        settings,
        [
            ("amqp.uri", "amqp://guest:guest@127.0.0.1:5672".to_owned(), 2),
            ("couchdb.url", "http://127.0.0.1:15984".to_owned(), 7),
        ]
    );
    assert!(notes.is_empty(), "{notes:?}");
}

const ZONES: &str = "[zone]\nname = \"east\"\nuri = \"amqp://e1\"\nuri = \"amqp://e2\"\n\
                     [zone]\nname = west\namqp_uri = \"amqp://w1\"\n\
                     [amqp]\nuri = \"amqp://no\"\n\
                     [kazoo_apps]\nhost = \"kz1.example.com\"\nzone = west\n\
                     [kazoo_apps]\nhost = \"kz2.example.com\"\nzone = \"east\"\n\
                     [ecallmgr]\nhost = \"kz1.example.com\"\nzone = west\n";

#[test]
fn the_zone_is_that_of_this_hosts_nodes_and_its_brokers_are_tried_in_order() {
    let (settings, notes) = read(ZONES, None);
    assert_eq!(
        settings,
        [
            ("kazoo.zone", "west".to_owned(), 12),
            ("amqp.uri", "amqp://w1".to_owned(), 7)
        ]
    );
    assert!(notes.is_empty(), "{notes:?}");
    let (settings, notes) = read(ZONES, Some("east"));
    assert_eq!(settings, [("amqp.uri", "amqp://e1 amqp://e2".to_owned(), 3)]);
    assert!(notes.is_empty(), "{notes:?}");
}

/// One file for all hosts, as in older Kazoos. A broker of another zone, or one on this host, has no calls of this zone, so nothing would
/// be recorded.
#[test]
fn a_host_that_one_file_for_all_zones_does_not_name_gets_no_broker() {
    let text = "[zone]\nname = \"zone_1\"\namqp_uri = \"amqp://kz:a@192.0.2.10:5672\"\n\
                [zone]\nname = \"zone_2\"\namqp_uri = \"amqp://kz:b@192.0.2.20:5672\"\n\
                [bigcouch]\nip = \"127.0.0.1\"\n\
                [whistle_apps]\nhost = \"apps001.example.com\"\nzone = \"zone_1\"\n\
                [whistle_apps]\nhost = \"apps002.example.com\"\nzone = \"zone_2\"\n\
                [ecallmgr]\nhost = \"apps002.example.com\"\nzone = \"zone_2\"\n";
    let of = |hosts: Vec<&str>, zone: Option<&str>| {
        let read = settings(&Ini::parse(text.as_bytes()), &Reader { zone, hosts });
        let value = |key: &str| {
            read.settings
                .iter()
                .find(|setting| setting.key == key)
                .map(|s| s.value.clone())
        };
        assert_eq!(value("couchdb.url"), Some(Values::One("http://127.0.0.1:5984".into())));
        (
            value("kazoo.zone"),
            value("amqp.uri"),
            read.no_broker.map(|note| (note.line, note.text)),
        )
    };
    for (host, zone, broker) in [
        ("apps001.example.com", "zone_1", "amqp://kz:a@192.0.2.10:5672"),
        ("apps002.example.com", "zone_2", "amqp://kz:b@192.0.2.20:5672"),
        ("apps002", "zone_2", "amqp://kz:b@192.0.2.20:5672"),
    ] {
        let uri = Values::Several(vec![broker.into()]);
        assert_eq!(of(vec![host], None), (Some(Values::One(zone.into())), Some(uri), None));
    }
    for (hosts, zone) in [
        (vec!["other.example.com"], None),
        (vec![], None),
        (vec!["apps001"], Some("zone_3")),
    ] {
        let (_, uri, why) = of(hosts, zone);
        let (line, words) = why.unwrap();
        assert!(
            uri.is_none() && line == 3 && words.contains("kazoo.zone") && words.contains("amqp.uri"),
            "{words}"
        );
    }
    let (_, uri, why) = of(vec!["other.example.com"], Some("zone_1"));
    assert!(uri.is_some() && why.is_none());
}

#[test]
fn a_short_name_is_the_full_one_and_letters_case_is_none() {
    for host in ["kz1", "KZ1.Example.com", "kz1.example.com"] {
        assert_eq!(
            value(
                &format!("[kazoo_apps]\nhost = {host}\nzone = west\n[zone]\nname = west\nuri = amqp://w\n"),
                "kazoo.zone"
            ),
            Some("west".into()),
            "{host}"
        );
    }
    let (settings, notes) = read("[kazoo_apps]\nhost = kz1.other.com\nzone = west\n", None);
    assert!(settings.is_empty() && notes.is_empty());
}

#[test]
fn a_node_without_host_is_meant_for_every_host() {
    let text = "[apps]\nzone = east\n[zone]\nname = east\nuri = amqp://e\n";
    assert_eq!(value(text, "kazoo.zone"), Some("east".into()));
    let text = format!("{text}[kazoo_apps]\nhost = kz1\nzone = west\n[zone]\nname = west\nuri = amqp://w\n");
    assert_eq!(
        value(&text, "kazoo.zone"),
        Some("west".into()),
        "one for this host is nearer"
    );
}

#[test]
fn nodes_that_differ_are_told_and_kazoo_apps_counts() {
    let text = "[ecallmgr]\nhost = kz1\nzone = east\n[kazoo_apps]\nhost = kz1\nzone = west\n[zone]\nname = west\nuri = amqp://w\n";
    let (settings, notes) = read(text, None);
    assert_eq!(settings[0], ("kazoo.zone", "west".to_owned(), 6));
    assert_eq!(notes, [3]);
    let own = format!("{text}[kz_record_call]\nzone = east\nhost = kz1\n");
    assert_eq!(value(&own, "kazoo.zone"), Some("east".into()), "our own section first");
}

#[test]
fn zones_of_which_none_is_ours_are_told_and_amqp_counts_as_for_kazoo() {
    let text = "[zone]\nname = east\nuri = amqp://e\n[amqp]\nuri = amqp://a\n";
    let (settings, notes) = read(text, None);
    assert_eq!(settings, [("amqp.uri", "amqp://a".to_owned(), 5)]);
    assert_eq!(notes, [1]);
    assert_eq!(read(text, Some("wset")).1, [1], "a zone that is not there is told too");
}

#[test]
fn a_uri_that_is_there_twice_is_tried_once_and_sections_may_be_repeated() {
    let text = "[amqp]\nuri = amqp://a\nuri = amqp://a\n[amqp]\nuri = amqp://b\n[amqp]\nzone = west\nuri = amqp://w\n";
    assert_eq!(value(text, "amqp.uri"), Some("amqp://a amqp://b".into()));
    assert_eq!(
        read(text, Some("west")).0,
        [("amqp.uri", "amqp://w".to_owned(), 8)],
        "an [amqp] of the zone"
    );
}

#[test]
fn certificates_in_a_broker_uri_are_taken_over() {
    let text =
        "[amqp]\nuri = \"amqps://h:5671?cacertfile=/etc/ca.pem&certfile=/c.pem&keyfile=/k.pem&verify=verify_peer\"\n";
    let (settings, _) = read(text, None);
    let keys: Vec<(&str, &str)> = settings.iter().map(|(key, value, _)| (*key, value.as_str())).collect();
    assert_eq!(
        keys[..3],
        [
            ("amqp.ca_file", "/etc/ca.pem"),
            ("amqp.client_certificate", "/c.pem"),
            ("amqp.client_key", "/k.pem")
        ]
    );
    assert_eq!(value("[amqp]\nuri = amqp://h?cacertfile=/x\n", "amqp.ca_file"), None);
}

#[test]
fn the_database_is_where_the_data_section_says() {
    let text = "[bigcouch]\nip = old\n[data]\nconfig = CouchDB3\n[couchdb3]\nusername = admin\npassword = \"p;w\"\n";
    let (settings, notes) = read(text, None);
    assert_eq!(
        settings,
        [
            ("couchdb.username", "admin".to_owned(), 6),
            ("couchdb.password", "p;w".to_owned(), 7)
        ]
    );
    assert!(notes.is_empty(), "{notes:?}");
    let (settings, notes) = read("[bigcouch]\nip = db\ndriver = kazoo_fixturedb\n", None);
    assert!(settings.is_empty());
    assert_eq!(notes, [3]);
}

#[test]
fn the_database_may_have_any_kind_of_address() {
    for (section, url) in [
        ("ip = db", "http://db:5984"),
        ("port = 15984", "http://localhost:15984"),
        ("ip = \"fd00::1\"\nport = 5984", "http://[fd00::1]:5984"),
        ("ip = db\nport = 6984\nis_ssl = true", "https://db:6984"),
    ] {
        assert_eq!(
            value(&format!("[bigcouch]\n{section}\n"), "couchdb.url").as_deref(),
            Some(url)
        );
    }
}

#[test]
fn a_name_without_a_password_does_not_borrow_one() {
    assert_eq!(
        value("[bigcouch]\nusername = u\n", "couchdb.password"),
        Some(String::new())
    );
}

#[test]
fn what_is_set_again_counts_and_is_told() {
    let (settings, notes) = read("[bigcouch]\nip = a\nip = b\n", None);
    assert_eq!(settings, [("couchdb.url", "http://b:5984".to_owned(), 3)]);
    assert_eq!(notes, [3]);
}

#[test]
fn a_database_section_of_another_host_is_not_ours() {
    let text = "[bigcouch]\nhost = kz9\nip = far\n";
    let (settings, notes) = read(text, None);
    assert!(settings.is_empty());
    assert_eq!(notes, [1]);
    assert_eq!(
        value(&format!("{text}[bigcouch]\nip = near\n"), "couchdb.url"),
        Some("http://near:5984".into())
    );
    let (_, notes) = read("[bigcouch]\nhost = kz1\n", None);
    assert_eq!(
        notes,
        [2],
        "a section with host alone means something else than it does"
    );
}

proptest! {
    #[test]
    fn any_file_makes_settings_or_none(
        lines in proptest::collection::vec(prop_oneof![
            Just("[zone]"), Just("[amqp]"), Just("[bigcouch]"), Just("[data]"), Just("[kazoo_apps]"), Just("[x]"), Just("[]"),
            Just("name = a"), Just("zone = a"), Just("zone = b"), Just("host = kz1"), Just("host = other"), Just("uri = amqp://h"),
            Just("amqp_uri = \"amqps://h?cacertfile=x\""), Just("ip = h"), Just("port = x"), Just("config = x"), Just("config = zone"),
            Just("username = u"), Just("password = p"), Just("driver = d"), Just("= ;"), Just("\"")], 0..25),
        zone in prop_oneof![Just(None), Just(Some("a")), Just(Some("c"))],
    ) {
        let ini = Ini::parse(lines.join("\n").as_bytes());
        let Read { settings, .. } = settings(&ini, &reader(zone));
        let mut keys: Vec<&str> = settings.iter().map(|setting| setting.key).collect();
        keys.sort_unstable();
        keys.dedup();
        prop_assert_eq!(keys.len(), settings.len(), "each key once");
        for setting in &settings {
            prop_assert!(setting.line >= 1 && setting.line <= lines.len());
            prop_assert!(setting.value != Values::Several(Vec::new()));
            prop_assert!(zone.is_none() || setting.key != "kazoo.zone");
        }
    }
}
