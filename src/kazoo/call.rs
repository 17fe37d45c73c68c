//! The parts of an action's `Call` object (`kapps_call:to_json`) that we use.

use serde_json::Value;

use super::json::{boolean_at, owned_text, text};

/// The parties of a call, from the action's `Call` or from a call event. The document lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Parties {
    /// SIP identities, `user@realm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// `inbound` or `outbound`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_id_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_id_number: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callee_id_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callee_id_number: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    /// `Call-Interaction-ID`, which the CDR and the recording of one conversation share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interaction_id: Option<String>,
}

/// Longest text of a caller or tenant that is kept, in bytes.
const MAX_TEXT: usize = 256;

impl Parties {
    /// Reads the parties from a `Call` or a call event. Both use the same names at the top level, and have a `Custom-Channel-Vars` object.
    pub fn of(json: &Value) -> Self {
        let clipped = |key: &str| text(json, key).map(|t| clip(t, MAX_TEXT).to_owned());
        let variable = |key: &str| {
            json.get("Custom-Channel-Vars")
                .and_then(|ccvs| text(ccvs, key))
                .map(|t| clip(t, MAX_TEXT).to_owned())
        };
        Self {
            from: clipped("From"),
            to: clipped("To"),
            request: clipped("Request"),
            direction: clipped("Call-Direction"),
            caller_id_name: clipped("Caller-ID-Name"),
            caller_id_number: clipped("Caller-ID-Number"),
            callee_id_name: clipped("Callee-ID-Name"),
            callee_id_number: clipped("Callee-ID-Number"),
            owner_id: variable("Owner-ID").or_else(|| clipped("Owner-ID")),
            interaction_id: variable("Call-Interaction-ID"),
        }
    }

    /// Fills missing fields from `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            from: self.from.or(other.from),
            to: self.to.or(other.to),
            request: self.request.or(other.request),
            direction: self.direction.or(other.direction),
            caller_id_name: self.caller_id_name.or(other.caller_id_name),
            caller_id_number: self.caller_id_number.or(other.caller_id_number),
            callee_id_name: self.callee_id_name.or(other.callee_id_name),
            callee_id_number: self.callee_id_number.or(other.callee_id_number),
            owner_id: self.owner_id.or(other.owner_id),
            interaction_id: self.interaction_id.or(other.interaction_id),
        }
    }
}

/// The call that an action runs on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Call {
    /// The leg's id when Kazoo built the object.
    pub call_id: Option<String>,
    /// 32 lower-case hex digits. Any other text counts as missing, because the id becomes part of a database's name.
    pub account_id: Option<String>,
    /// The address for commands, as written.
    pub control_queue: Option<String>,
    /// The flow's own address, as written. In Kazoo 5 it equals the action's `Server-ID`.
    pub controller_queue: Option<String>,
    pub fetch_id: Option<String>,
    pub other_leg_call_id: Option<String>,
    pub bridged: bool,
    pub switch_nodename: Option<String>,
    /// `cf_flow_name` of the key-value store: the flow's name, or the dialled number.
    pub flow_name: Option<String>,
    /// The channel variable `Media-Name`, if the call has one: the name of a recording that another program started.
    pub media_name: Option<String>,
    pub parties: Parties,
    /// The channel variables, with limits; see `bounded_variables`.
    pub variables: Value,
}

impl Call {
    pub fn of(json: &Value) -> Self {
        let variables = json.get("Custom-Channel-Vars");
        let account = |json: &Value| {
            text(json, "Account-ID")
                .filter(|id| is_account_id(id))
                .map(str::to_owned)
        };
        Self {
            call_id: owned_text(json, "Call-ID"),
            account_id: account(json).or_else(|| variables.and_then(account)),
            control_queue: owned_text(json, "Control-Queue"),
            controller_queue: owned_text(json, "Controller-Queue"),
            fetch_id: owned_text(json, "Fetch-ID").or_else(|| variables.and_then(|v| owned_text(v, "Fetch-ID"))),
            other_leg_call_id: owned_text(json, "Other-Leg-Call-ID"),
            bridged: boolean_at(json, "Call-Bridged").unwrap_or(false),
            switch_nodename: owned_text(json, "Switch-Nodename"),
            flow_name: json
                .get("Key-Value-Store")
                .and_then(|kvs| owned_text(kvs, "cf_flow_name")),
            media_name: variables.and_then(|v| owned_text(v, "Media-Name")),
            parties: Parties::of(json),
            variables: bounded_variables(variables),
        }
    }
}

/// A raw account id: 32 lower-case hex digits. `kz_term:is_account_id` checks only the length, but we build database names from the id.
pub fn is_account_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A text, number or boolean of a channel variable, at most 256 bytes.
fn bounded(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => Some(Value::String(clip(text, MAX_TEXT).to_owned())),
        Value::Number(_) | Value::Bool(_) => Some(value.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The channel variables: at most 64, and at most 256 bytes each, or a list of at most 64 such values. That is enough for all variables of
/// Kazoo, and limits the variables that other programs set. A value that is not an object gives an empty object.
pub fn bounded_variables(variables: Option<&Value>) -> Value {
    let Some(Value::Object(map)) = variables else {
        return Value::Object(serde_json::Map::new());
    };
    let kept = map
        .iter()
        .filter(|(key, _)| key.len() <= 128)
        .take(64)
        .filter_map(|(key, value)| {
            let value = match value {
                Value::Array(items) => Value::Array(items.iter().take(64).filter_map(bounded).collect()),
                value => bounded(value)?,
            };
            Some((key.clone(), value))
        });
    Value::Object(kept.collect())
}

/// An id, or another text from outside, shortened for a log line.
pub fn shown(text: &str) -> &str {
    clip(text, MAX_TEXT)
}

/// The longest prefix of at most `max` bytes that ends between characters.
pub fn clip(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_account_id_that_could_name_another_database_counts_as_absent() {
        for bad in [
            "",
            "..",
            "0123456789ABCDEF0123456789ABCDEF",
            "0123456789abcdef0123456789abcde/",
            "0123",
        ] {
            assert_eq!(Call::of(&json!({ "Account-ID": bad })).account_id, None, "{bad}");
        }
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(
            Call::of(&json!({ "Account-ID": good })).account_id.as_deref(),
            Some(good)
        );
        assert_eq!(
            Call::of(&json!({ "Custom-Channel-Vars": { "Account-ID": good } }))
                .account_id
                .as_deref(),
            Some(good)
        );
    }

    #[test]
    fn variables_are_bounded_and_flat() {
        let many: serde_json::Map<_, _> = (0..500).map(|i| (format!("k{i}"), json!("v".repeat(1000)))).collect();
        let kept = bounded_variables(Some(&Value::Object(many)));
        assert!(kept.as_object().unwrap().len() <= 64 && kept.to_string().len() < 64 * 400);
        assert_eq!(
            bounded_variables(Some(&json!({"l": ["a", {"b": 1}, 2], "o": {}}))),
            json!({"l": ["a", 2]})
        );
        assert_eq!(
            bounded_variables(Some(&json!({"a": {"b": 1}, "c": true}))),
            json!({"c": true})
        );
        assert_eq!(bounded_variables(Some(&json!([1]))), json!({}));
    }

    proptest! {
        #[test]
        fn clipping_never_splits_a_character(text in any::<String>(), max in 0usize..64) {
            let clipped = clip(&text, max);
            prop_assert!(clipped.len() <= max && text.starts_with(clipped));
        }
    }
}
