//! Notices of a changed document (`kapi_conf:doc_update`, `kzs_publish:publish_doc`). Webhooks and the cache of each node depend on them.

use serde_json::{Value, json};

use super::envelope::Sender;
use super::names::Exchange;
use super::outgoing::Outgoing;
use super::routing_key;
use super::time::Moment;

/// Routing-key patterns of the notices that `system_config/media` changed, on exchange `configuration`.
pub const MEDIA_CONFIG_KEYS: [&str; 1] = ["*.system_config.*.media"];

/// What happened to the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Created,
    Edited,
}

/// One changed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange<'a> {
    pub change: Change,
    /// The encoded name as Kazoo writes it: `account%2Fab%2Fcd%2F…-YYYYMM`.
    pub database: &'a str,
    pub document_type: &'a str,
    pub id: &'a str,
    pub rev: &'a str,
    pub account_id: &'a str,
    pub created: Moment,
    pub modified: Moment,
}

/// The notice. It is not mandatory. `Origin-Cache` is left out, so that each node flushes its cache.
pub fn document_change(sender: &Sender, msg_id: &str, doc: &DocumentChange<'_>) -> Outgoing {
    let name = match doc.change {
        Change::Created => "doc_created",
        Change::Edited => "doc_edited",
    };
    let body = json!({
        "ID": doc.id,
        "Database": doc.database,
        "Type": doc.document_type,
        "Rev": doc.rev,
        "Account-ID": doc.account_id,
        "Date-Created": doc.created.gregorian_seconds(),
        "Date-Modified": doc.modified.gregorian_seconds(),
        "Is-Soft-Deleted": false,
    });
    // The key takes the database's name unchanged, because the name is encoded already (`kz_amqp_util:document_routing_key`).
    let key = format!(
        "{name}.{}.{}.{}",
        doc.database,
        doc.document_type,
        routing_key::encode(doc.id)
    );
    Outgoing::topic(
        Exchange::Configuration,
        key,
        sender.message("configuration", name, msg_id, body),
    )
}

/// The notice that a database was created (`kzs_publish:publish_db`).
pub fn database_created(sender: &Sender, msg_id: &str, database: &str, account_id: &str) -> Outgoing {
    let body = json!({
        "ID": database,
        "Database": database,
        "Type": "database",
        "Account-ID": account_id,
    });
    let key = format!("db_created.{database}.database.{}", routing_key::encode(database));
    Outgoing::topic(
        Exchange::Configuration,
        key,
        sender.message("configuration", "db_created", msg_id, body),
    )
}

/// Our own notice of a recording's outcome, on exchange `kapps`: `recording.<outcome>.<account>`.
///
/// No part of Kazoo binds to it. `msg_id` is the same in each repeat, so that a consumer can drop repeats.
pub fn recording_outcome(
    sender: &Sender,
    msg_id: &str,
    outcome: &str,
    account_id: Option<&str>,
    body: Value,
) -> Outgoing {
    let key = format!("recording.{outcome}.{}", account_id.unwrap_or("unknown"));
    Outgoing {
        persistent: true,
        ..Outgoing::topic(Exchange::Kapps, key, sender.message("recording", outcome, msg_id, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_kazoos_to_the_letter() {
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let at = Moment::from_gregorian_seconds(63_917_019_664);
        let sent = document_change(
            &sender,
            "5a0f",
            &DocumentChange {
                change: Change::Created,
                database: "account%2F01%2F23%2F456789abcdef0123456789abcdef-202506",
                document_type: "call_recording",
                id: "202506-7c9e6679f4a14b0f9c3ad2e8b5f1a007",
                rev: "1-967a",
                account_id: "0123456789abcdef0123456789abcdef",
                created: at,
                modified: at,
            },
        );
        assert_eq!(
            sent.routing_key,
            "doc_created.account%2F01%2F23%2F456789abcdef0123456789abcdef-202506.call_recording.202506-7c9e6679f4a14b0f9c3ad2e8b5f1a007"
        );
        assert_eq!(sent.body["Date-Created"], 63_917_019_664_i64);
        assert_eq!(sent.body["Is-Soft-Deleted"], false);
        assert!(!sent.mandatory && sent.body.get("Origin-Cache").is_none());
    }
}
