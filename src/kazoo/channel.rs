//! Requests for a channel's state (`kapi_call:channel_status_req`, `query_channels_req`; `ecallmgr_fs_channels` answers them).
//!
//! Each ecallmgr answers for the channels that it knows. The first `active` wins. `terminated` from one ecallmgr does not prove that the
//! channel has ended, because another ecallmgr may know it.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::envelope::{Envelope, MessageError, Sender};
use super::json::{boolean_at, owned_text};
use super::names::Exchange;
use super::outgoing::Outgoing;
use super::routing_key::{self, MAX_BYTES};

/// The request for one channel's status. `None` for a call id that is too long for a routing key.
pub fn status_request(sender: &Sender, msg_id: &str, reply_to: &str, call_id: &str) -> Option<Outgoing> {
    let key = format!("call.status_req.{}", routing_key::encode(call_id));
    if key.len() > MAX_BYTES {
        return None;
    }
    let body = json!({ "Call-ID": call_id, "Server-ID": reply_to });
    Some(Outgoing::topic(
        Exchange::Callevt,
        key,
        sender.message("call_event", "channel_status_req", msg_id, body),
    ))
}

/// The request whether one channel is answered, and which leg is its other leg.
pub fn answered_request(sender: &Sender, msg_id: &str, reply_to: &str, call_id: &str) -> Outgoing {
    let body = json!({
        "Call-ID": call_id,
        "Active-Only": false,
        "Fields": ["Answered", "Other-Leg-Call-ID"],
        "Server-ID": reply_to,
    });
    let message = sender.message("call_event", "query_channels_req", msg_id, body);
    Outgoing::topic(Exchange::Callevt, "call.status_req.channels".to_owned(), message)
}

/// The request for all conversations with a live channel. Each ecallmgr answers with all its channels, and one short field of each.
pub fn interactions_request(sender: &Sender, msg_id: &str, reply_to: &str) -> Outgoing {
    let body = json!({ "Active-Only": false, "Fields": [INTERACTION], "Server-ID": reply_to });
    let message = sender.message("call_event", "query_channels_req", msg_id, body);
    Outgoing::topic(Exchange::Callevt, "call.status_req.channels".to_owned(), message)
}

/// The header that the legs of one conversation share (`?CALL_INTERACTION_ID`).
const INTERACTION: &str = "Call-Interaction-ID";

/// The conversations with a channel, in an answer to `interactions_request`.
///
/// # Errors
/// When the message is not `call_event`/`query_channels_resp`.
pub fn interactions(envelope: &Envelope) -> Result<HashSet<String>, MessageError> {
    if !envelope.is("call_event", "query_channels_resp") {
        return Err(envelope.unexpected());
    }
    let channels = envelope.body.get("Channels").and_then(Value::as_object);
    let of = |channel: &Value| owned_text(channel, INTERACTION);
    Ok(channels
        .into_iter()
        .flat_map(|channels| channels.values().filter_map(of))
        .collect())
}

/// The answer of one ecallmgr about one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Active,
    /// That ecallmgr does not know the channel.
    Terminated,
}

/// An answer to `status_request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReply {
    pub status: Status,
    pub other_leg_call_id: Option<String>,
    pub switch_node: Option<String>,
}

impl StatusReply {
    /// # Errors
    /// When the message is not `call_event`/`channel_status_resp`.
    pub fn of(envelope: &Envelope) -> Result<Self, MessageError> {
        if !envelope.is("call_event", "channel_status_resp") {
            return Err(envelope.unexpected());
        }
        let active = owned_text(&envelope.body, "Status").as_deref() == Some("active");
        Ok(Self {
            status: if active { Status::Active } else { Status::Terminated },
            other_leg_call_id: owned_text(&envelope.body, "Other-Leg-Call-ID"),
            switch_node: owned_text(&envelope.body, "Switch-Nodename"),
        })
    }
}

/// The state of one channel, as `answered_request` requests it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelState {
    pub answered: bool,
    pub other_leg_call_id: Option<String>,
}

/// The state of `call_id` in an answer to `answered_request`, if that ecallmgr knows the channel.
///
/// # Errors
/// When the message is not `call_event`/`query_channels_resp`.
pub fn channel_state(envelope: &Envelope, call_id: &str) -> Result<Option<ChannelState>, MessageError> {
    if !envelope.is("call_event", "query_channels_resp") {
        return Err(envelope.unexpected());
    }
    let channel = envelope
        .body
        .get("Channels")
        .and_then(|channels| channels.get(call_id))
        .filter(|c| c.is_object());
    Ok(channel.map(|channel: &Value| ChannelState {
        answered: boolean_at(channel, "Answered").unwrap_or(false),
        other_leg_call_id: owned_text(channel, "Other-Leg-Call-ID"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_request_names_the_call_in_its_key_and_where_answers_go() {
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let sent = status_request(&sender, "5a0f", "replies", "a@b.c").unwrap();
        assert_eq!(
            (sent.exchange, sent.routing_key.as_str()),
            (Exchange::Callevt, "call.status_req.a%40b%2Ec")
        );
        assert_eq!(sent.body["Server-ID"], "replies");
        assert_eq!(status_request(&sender, "5a0f", "replies", &"@".repeat(100)), None);
    }

    #[test]
    fn the_conversations_that_live_are_read_from_all_channels() {
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let asked = interactions_request(&sender, "5a0f", "replies");
        assert_eq!(asked.body["Fields"], json!(["Call-Interaction-ID"]));
        assert!(asked.body.get("Call-ID").is_none());
        let read = |channels: Value| {
            let body =
                json!({"Event-Category": "call_event", "Event-Name": "query_channels_resp", "Channels": channels});
            let mut ids: Vec<String> = interactions(&Envelope::of(body).unwrap())
                .unwrap()
                .into_iter()
                .collect();
            ids.sort();
            ids
        };
        let channels = json!({"a": {"Call-Interaction-ID": "1"}, "b": {"Call-Interaction-ID": "1"}, "c": {}, "d": {"Call-Interaction-ID": "2"}});
        assert_eq!(read(channels), ["1", "2"]);
        assert_eq!(read(json!({})), [""; 0]);
        assert_eq!(read(json!(null)), [""; 0]);
    }

    #[test]
    fn the_answers_are_read() {
        let read = |body: Value| StatusReply::of(&Envelope::of(body).unwrap());
        let active = json!({"Event-Category": "call_event", "Event-Name": "channel_status_resp", "Status": "active",
            "Other-Leg-Call-ID": "b"});
        assert_eq!(read(active).unwrap().status, Status::Active);
        let gone = json!({"Event-Category": "call_event", "Event-Name": "channel_status_resp", "Status": "terminated",
            "Error-Msg": "no node found with channel"});
        assert_eq!(read(gone).unwrap().status, Status::Terminated);
        let channels = json!({"Event-Category": "call_event", "Event-Name": "query_channels_resp",
            "Channels": {"a@b.c": {"Answered": true, "Other-Leg-Call-ID": "b"}}});
        let envelope = Envelope::of(channels).unwrap();
        assert!(channel_state(&envelope, "a@b.c").unwrap().unwrap().answered);
        assert_eq!(channel_state(&envelope, "other").unwrap(), None);
    }
}
