//! An account's storage plan (`kzs_plan`), built from its documents in `system_data`. Pure functions.
//!
//! Kazoo merges three documents: `system`, the plan that the account's document names in `pvt_plan_id`, and the account's document. It then
//! takes the settings for the type `call_recording` in monthly databases.

use serde_json::{Map, Value};

use crate::couch::Server;
use crate::kazoo::json::{boolean_at, integer_at, text};

mod handler;

pub use handler::{Handler, Settings};

/// The id of the system's own document.
const SYSTEM: &str = "system";

/// The connection to the cluster's own databases.
const LOCAL: &str = "local";

/// What the storage plan says about an account's recordings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: recordings are stored like all other documents.
    None,
    Stored(Storage),
    /// The plan is unreadable now.
    Unknown,
}

/// Where a plan stores recordings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The handler of the audio. `None`: the audio is an attachment of its document.
    pub handler: Option<Box<Handler>>,
    /// The other connection for documents of this type, if there is one.
    pub connection: Option<Connection>,
}

/// A connection outside the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub tag: String,
    /// `None`: the plan does not describe the connection, or does not describe it as a CouchDB server.
    pub server: Option<Server>,
    /// The system's own document describes the server so. No account, and no owner of a named plan, has changed it.
    pub is_systems: bool,
}

impl Plan {
    /// Builds the plan from its documents, the most general first.
    pub fn read<'a>(documents: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut whole = Value::Object(Map::new());
        let mut system = Value::Null;
        for document in documents {
            if text(document, "_id") == Some(SYSTEM) {
                system = document.clone();
            }
            merge(&mut whole, document);
        }
        let empty = Value::Null;
        let monthly = whole.pointer("/plan/modb").unwrap_or(&empty);
        let of_type = monthly.pointer("/types/call_recording").unwrap_or(&empty);
        let tag = text(of_type, "connection")
            .or_else(|| text(monthly, "connection"))
            .unwrap_or(LOCAL);
        let handler = Handler::read(&monthly_attachments(&whole), &whole, &system).map(Box::new);
        let place = format!("/connections/{}", pointer(tag));
        let of = |plan: &Value| plan.pointer(&place).and_then(server);
        let connection = (tag != LOCAL).then(|| Connection {
            tag: tag.to_owned(),
            server: of(&whole),
            is_systems: of(&system).is_some() && of(&system) == of(&whole),
        });
        if handler.is_none() && connection.is_none() {
            return Self::None;
        }
        Self::Stored(Storage { handler, connection })
    }
}

/// What a plan says of the attachments of recordings. This merge has one level: a type's `attachments` replace the entries of the database's
/// `attachments` that they name.
fn monthly_attachments(plan: &Value) -> Value {
    let at = |pointer: &str| plan.pointer(pointer).cloned().unwrap_or(Value::Null);
    let mut attachments = at("/plan/modb/attachments");
    if let Value::Object(own) = at("/plan/modb/types/call_recording/attachments") {
        match &mut attachments {
            Value::Object(all) => all.extend(own),
            other => *other = Value::Object(own),
        }
    }
    attachments
}

/// Whether a document of `system_data` counts. A soft-deleted document does not.
pub(super) fn is_alive(document: &Value) -> bool {
    boolean_at(document, "pvt_deleted") != Some(true)
}

/// A plan's connection as a server (`kz_couch_util:new_connection`): host or ip, port, and credentials, beside `settings` or inside.
fn server(connection: &Value) -> Option<Server> {
    let driver = text(connection, "driver").unwrap_or("kazoo_couch");
    if driver != "kazoo_couch" {
        return None;
    }
    let settings = connection
        .get("settings")
        .filter(|settings| settings.is_object())
        .unwrap_or(connection);
    let host = text(settings, "ip").or_else(|| text(settings, "host"))?;
    let port = integer_at(settings, "port").and_then(|port| u16::try_from(port).ok())?;
    let mut server = Server::parse(host, port).ok()?;
    let credentials = settings.get("credentials").unwrap_or(settings);
    if let Some(username) = text(credentials, "username") {
        server.username = username.to_owned();
        let password = crate::kazoo::json::text_or_number(credentials, "password").unwrap_or_default();
        server.password = password.into();
    }
    Some(server)
}

/// Objects are merged key by key. Any other value is replaced. Null replaces nothing.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// A key as part of a JSON pointer.
fn pointer(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Kazoo's plan without any stored document.
    fn system() -> Value {
        json!({
            "_id": "system", "attachments": {}, "connections": {"local": {}},
            "plan": {"modb": {"attachments": {}, "connection": "local", "types": {}}}, "pvt_type": "storage",
        })
    }

    fn kind(kind: &str) -> (Option<String>, Option<Connection>) {
        (Some(kind.to_owned()), None)
    }

    /// The kind of the handler, and the connection.
    fn read(documents: &[&Value]) -> (Option<String>, Option<Connection>) {
        match Plan::read(documents.iter().copied()) {
            Plan::Stored(storage) => (storage.handler.map(|handler| handler.kind), storage.connection),
            Plan::None => (None, None),
            Plan::Unknown => panic!("unknown"),
        }
    }

    #[test]
    fn the_plan_is_found_where_kazoo_finds_it() {
        let s3 = json!({"a1b2": {"handler": "s3", "settings": {"bucket": "x"}}});
        for (what, account, plan) in [
            ("nothing", json!({}), (None, None)),
            ("a handler that no type names", json!({"attachments": s3}), (None, None)),
            (
                "the type names one",
                json!({"attachments": s3, "plan": {"modb": {"types": {"call_recording": {"attachments": {"handler": "a1b2"}}}}}}),
                kind("s3"),
            ),
            (
                "another type names one",
                json!({"attachments": s3, "plan": {"modb": {"types": {"mailbox_message": {"attachments": {"handler": "a1b2"}}}}}}),
                (None, None),
            ),
            (
                "the whole database names one",
                json!({"attachments": s3, "plan": {"modb": {"attachments": {"handler": "a1b2"}}}}),
                kind("s3"),
            ),
            (
                "the account's own database names one",
                json!({"attachments": s3, "plan": {"account": {"attachments": {"handler": "a1b2"}}}}),
                (None, None),
            ),
            (
                "it names one that is not described",
                json!({"plan": {"modb": {"attachments": {"handler": "a1b2"}}}}),
                kind("a1b2"),
            ),
            (
                "a connection of its own",
                json!({
                    "connections": {"c1": {"driver": "kazoo_couch", "settings": {
                        "ip": "10.0.0.9", "port": 5984, "credentials": {"username": "u", "password": "p"},
                    }}},
                    "plan": {"modb": {"types": {"call_recording": {"connection": "c1"}}}},
                }),
                (
                    None,
                    Some(Connection {
                        tag: "c1".into(),
                        server: Some(Server::parse("http://u:p@10.0.0.9:5984", 0).unwrap()),
                        is_systems: false,
                    }),
                ),
            ),
            (
                "a connection that is not described",
                json!({"plan": {"modb": {"connection": "c1"}}}),
                (
                    None,
                    Some(Connection {
                        tag: "c1".into(),
                        server: None,
                        is_systems: false,
                    }),
                ),
            ),
            (
                "the type goes back to the cluster",
                json!({"plan": {"modb": {"connection": "c1", "types": {"call_recording": {"connection": "local"}}}}}),
                (None, None),
            ),
            (
                "nonsense",
                json!({"plan": {"modb": {"types": [], "attachments": 7}}, "attachments": "x"}),
                (None, None),
            ),
        ] {
            assert_eq!(read(&[&system(), &account]), plan, "{what}");
        }
        assert_eq!(Plan::read([]), Plan::None);
    }

    #[test]
    fn the_more_special_document_wins() {
        let general = json!({
            "attachments": {"h": {"handler": "s3", "settings": {"bucket": "x"}}},
            "plan": {"modb": {"types": {"call_recording": {"attachments": {"handler": "h"}}}}},
        });
        let special = json!({"attachments": {"h": {"handler": "azure", "settings": null}}});
        assert_eq!(read(&[&system(), &general]), kind("s3"));
        assert_eq!(read(&[&system(), &general, &special]), kind("azure"));
    }

    #[test]
    fn a_connection_is_the_systems_until_an_account_changes_it() {
        let connection = |ip: &str| json!({"c1": {"driver": "kazoo_couch", "settings": {"ip": ip, "port": 5984}}});
        let mut system = system();
        system["connections"] = connection("10.0.0.9");
        let names = json!({"plan": {"modb": {"connection": "c1"}}});
        let is_systems = |account: &Value| read(&[&system, &names, account]).1.unwrap().is_systems;
        assert!(is_systems(&json!({})));
        assert!(!is_systems(&json!({"connections": connection("10.0.0.10")})));
        assert!(
            !read(&[
                &super::tests::system(),
                &names,
                &json!({"connections": connection("10.0.0.9")})
            ])
            .1
            .unwrap()
            .is_systems
        );
    }

    proptest! {
        #[test]
        fn any_handler_id_is_looked_up_literally(id in "[a-z/~%]{1,8}") {
            let plan = json!({
                "attachments": {&id: {"handler": "s3"}},
                "plan": {"modb": {"attachments": {"handler": &id}}},
            });
            prop_assert_eq!(read(&[&plan]), kind("s3"));
        }
    }
}
