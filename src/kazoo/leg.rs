//! Call events that report where a call goes (`CHANNEL_BRIDGE`, `CHANNEL_TRANSFEROR`, `CHANNEL_TRANSFEREE`, `CHANNEL_DESTROY`,
//! `CHANNEL_REPLACED`, `CHANNEL_DIRECT`). The switch moves a recording to another leg without an event of the recording. The worker
//! therefore learns the recording's legs from these events.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::envelope::{Envelope, MAX_ID_BYTES};
use super::event::{event_time, numbered};
use super::json::{integer_at, owned_text};
use super::routing_key;
use super::time::Moment;

/// An event in the life of a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LegEvent {
    /// The leg is bridged with the other leg.
    Bridged,
    /// The leg transfers the other leg away. A recording on it moves to the other leg.
    Transferor,
    /// The leg is transferred.
    Transferee,
    /// The other leg replaces this leg.
    Replaced,
    /// A loopback leaves the call. The other leg takes its place, and its recording.
    Direct,
    /// The leg has ended. A recording on it moved to the other leg, or its end was reported just before.
    Gone,
    /// An action ran on the leg, so its control process is known.
    Action,
}

/// An event of one leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegNews {
    pub call_id: String,
    pub event: LegEvent,
    /// The leg that this leg is, or was, bridged with. For `Replaced` and `Direct`, the leg that takes its place.
    pub other: Option<String>,
    /// `Call-Interaction-ID`, which the legs of one conversation share.
    pub interaction: Option<String>,
    /// For `Gone`: whether the leg had been answered (`Billing-Seconds` above zero, which the switch counts from the answer).
    pub was_answered: Option<bool>,
    /// The switch's own time of the event, in Unix microseconds, in steps of 20 ms. It is equal in each copy of an event.
    pub stamp: Option<i64>,
    pub at: Option<Moment>,
}

impl LegEvent {
    /// The call events that are read, named as in their routing keys.
    pub const NAMES: [&str; 6] = [
        "CHANNEL_BRIDGE",
        "CHANNEL_TRANSFEROR",
        "CHANNEL_TRANSFEREE",
        "CHANNEL_DESTROY",
        "CHANNEL_REPLACED",
        "CHANNEL_DIRECT",
    ];

    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "CHANNEL_BRIDGE" => Self::Bridged,
            "CHANNEL_TRANSFEROR" => Self::Transferor,
            "CHANNEL_TRANSFEREE" => Self::Transferee,
            "CHANNEL_REPLACED" => Self::Replaced,
            "CHANNEL_DIRECT" => Self::Direct,
            "CHANNEL_DESTROY" => Self::Gone,
            _ => return None,
        })
    }
}

impl LegNews {
    /// Reads one of these events. `None` for any other message, and for ids that are too long.
    pub fn of(envelope: &Envelope) -> Option<Self> {
        if envelope.category != "call_event" {
            return None;
        }
        let event = LegEvent::of(&envelope.name)?;
        let body = &envelope.body;
        let id = |json: &Value, key: &str| owned_text(json, key).filter(|id| id.len() <= MAX_ID_BYTES);
        let call_id = id(body, "Call-ID")?;
        let bridged = || id(body, "Other-Leg-Call-ID").or_else(|| id(body, "Bridge-B-Unique-ID"));
        let other = match event {
            LegEvent::Replaced => id(body, "Replaced-By"),
            // The switch moves the recording to the A leg of the connection. Kazoo's control moves to the B leg.
            LegEvent::Direct => id(body, "Connecting-Leg-A-UUID").or_else(|| id(body, "Replaced-By")),
            _ => bridged(),
        };
        let variables = body.get("Custom-Channel-Vars").unwrap_or(&Value::Null);
        let billed = || integer_at(body, "Billing-Seconds").map(|seconds| seconds > 0);
        Some(Self {
            was_answered: (event == LegEvent::Gone).then(billed).flatten(),
            other: other.filter(|other| *other != call_id),
            call_id,
            event,
            interaction: id(variables, "Call-Interaction-ID"),
            stamp: numbered(body).map(Moment::unix_micros),
            at: event_time(body),
        })
    }
}

/// The last word of a leg's routing keys. Events are assigned to legs by this word before they are decoded.
pub fn encoded_leg(call_id: &str) -> String {
    routing_key::encode(call_id)
}

/// The leg in an event's routing key, encoded.
pub fn leg_of_key(routing_key: &str) -> &str {
    routing_key.rsplit('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn news(body: Value) -> Option<LegNews> {
        let mut whole =
            json!({"Event-Category": "call_event", "Msg-ID": "1795945164876700", "Timestamp": 63_963_164_365_i64});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        LegNews::of(&Envelope::of(whole).unwrap())
    }

    #[test]
    fn the_other_leg_is_read_from_where_each_event_tells_it() {
        let bridged = news(
            json!({"Event-Name": "CHANNEL_BRIDGE", "Call-ID": "a", "Bridge-B-Unique-ID": "b",
            "Other-Leg-Call-ID": "b", "Custom-Channel-Vars": {"Call-Interaction-ID": "63963164363-c19045b1"}}),
        )
        .unwrap();
        assert_eq!(
            (bridged.event, bridged.other.as_deref()),
            (LegEvent::Bridged, Some("b"))
        );
        assert_eq!(bridged.interaction.as_deref(), Some("63963164363-c19045b1"));
        assert_eq!(bridged.stamp, Some(1_795_945_164_876_700));
        let direct = news(
            json!({"Event-Name": "CHANNEL_DIRECT", "Call-ID": "loop-b", "Connecting-Leg-A-UUID": "endpoint",
            "Connecting-Leg-B-UUID": "caller"}),
        );
        assert_eq!(direct.unwrap().other.as_deref(), Some("endpoint"));
        let replaced = news(json!({"Event-Name": "CHANNEL_REPLACED", "Call-ID": "a", "Replaced-By": "c"}));
        assert_eq!(replaced.unwrap().other.as_deref(), Some("c"));
        let gone = news(json!({"Event-Name": "CHANNEL_DESTROY", "Call-ID": "a", "Other-Leg-Call-ID": "a"}));
        assert_eq!(gone.unwrap().other, None, "no leg is its own other leg");
        assert_eq!(news(json!({"Event-Name": "CHANNEL_ANSWER", "Call-ID": "a"})), None);
        let long = "i".repeat(MAX_ID_BYTES + 1);
        assert_eq!(news(json!({"Event-Name": "CHANNEL_BRIDGE", "Call-ID": long})), None);
    }

    #[test]
    fn legs_whose_ids_begin_alike_are_told_apart_by_their_keys() {
        let (one, other) = ("1234567890111213@192.0.2.3", "1234567890111213@192.0.2.3_b2b-1");
        let key = |id: &str| format!("call.CHANNEL_DESTROY.{}", encoded_leg(id));
        assert_eq!(leg_of_key(&key(one)), encoded_leg(one));
        assert_ne!(leg_of_key(&key(other)), encoded_leg(one));
    }
}
