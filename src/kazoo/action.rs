//! The callflow's remote action (`kapi_callflow`, `cf_remote_action`): the request, and our answers to it.

use serde_json::{Value, json};

use super::address::{Address, AddressError};
use super::call::Call;
use super::envelope::{Envelope, MessageError, Sender, check_ids};
use super::json::{owned_text, text};
use super::names::Exchange;
use super::outgoing::Outgoing;
use super::term::{Term, TermError};

const CATEGORY: &str = "callflow";

/// The address of an answer, and the ids that make the callflow accept it. The callflow ignores a result with a `Msg-ID` other than the
/// action's. It also ignores a `Call-ID` other than the call's id at that moment (`cf_remote_action:wait_for_result`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    pub address: Address,
    pub msg_id: String,
    pub call_id: String,
}

/// An `action.execute`.
#[derive(Debug, Clone, PartialEq)]
pub struct Execute {
    /// The action's id. Each message that passed Kazoo's validator has one. Without it the callflow cannot be answered.
    pub msg_id: Option<String>,
    pub call_id: String,
    pub call: Call,
    /// The address of the call's control process.
    pub control: Address,
    /// The action's data, of any type.
    pub data: Value,
}

/// Why an action cannot be run. The callflow is answered all the same, if its address is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the call's Control-Queue cannot be used: {0}")]
    ControlQueue(AddressError),
}

impl ExecuteError {
    /// Whether an id exceeds the length limit.
    pub fn is_too_long(&self) -> bool {
        matches!(self, Self::Message(MessageError::TooLong(_)))
    }
}

impl ReplyTo {
    /// Reads the address for an answer from any message, as far as the message is readable. If `Server-ID` is missing or not addressable,
    /// the flow's own address in the call object replaces it. A call that waits for our answer must get the answer.
    ///
    /// # Errors
    /// The missing part, as a text for the log.
    pub fn of(envelope: &Envelope) -> Result<Self, String> {
        let call = envelope.body.get("Call").unwrap_or(&Value::Null);
        let msg_id = envelope.msg_id.clone().ok_or("the message has no Msg-ID")?;
        let call_id = owned_text(&envelope.body, "Call-ID")
            .or_else(|| owned_text(call, "Call-ID"))
            .ok_or("the message has no Call-ID")?;
        let from_server = match &envelope.server_id {
            Some(written) => Address::parse(written).map_err(|error| format!("the Server-ID cannot be used: {error}")),
            None => Err("the message has no Server-ID".to_owned()),
        };
        let address = from_server.or_else(|why| {
            text(call, "Controller-Queue")
                .and_then(|written| Address::parse(written).ok())
                .ok_or(why)
        })?;
        Ok(Self {
            address,
            msg_id,
            call_id,
        })
    }
}

impl ReplyTo {
    /// Reads the address of an outstanding answer, in the form that this program wrote.
    ///
    /// # Errors
    /// The missing part, as a text for the log.
    pub fn owed(envelope: &Envelope) -> Result<Self, String> {
        let written = text(&envelope.body, "Reply-To").ok_or("it is missing")?;
        Ok(Self {
            address: Address::parse(written).map_err(|error| error.to_string())?,
            msg_id: envelope.msg_id.clone().ok_or("the message has no Msg-ID")?,
            call_id: owned_text(&envelope.body, "Call-ID").ok_or("the message has no Call-ID")?,
        })
    }
}

impl Execute {
    /// Reads an `action.execute`. `Data` may have any type: `recording::settings` interprets it.
    ///
    /// # Errors
    /// When there is no call to act on. The message is of another kind, lacks `Call-ID` or `Call`, has no usable control queue, or has an
    /// id that is too long.
    pub fn of(envelope: &Envelope) -> Result<Self, ExecuteError> {
        if !envelope.is(CATEGORY, "action.execute") {
            return Err(envelope.unexpected().into());
        }
        let json = envelope
            .body
            .get("Call")
            .filter(|call| call.is_object())
            .ok_or(MessageError::Missing("Call"))?;
        let call = Call::of(json);
        let call_id = owned_text(&envelope.body, "Call-ID")
            .or_else(|| call.call_id.clone())
            .ok_or(MessageError::Missing("Call-ID"))?;
        check_ids(&[
            ("Call-ID", Some(&call_id)),
            ("Msg-ID", envelope.msg_id.as_deref()),
            ("Fetch-ID", call.fetch_id.as_deref()),
            ("Other-Leg-Call-ID", call.other_leg_call_id.as_deref()),
            ("Switch-Nodename", call.switch_nodename.as_deref()),
        ])?;
        let written = call
            .control_queue
            .as_deref()
            .ok_or(MessageError::Missing("Control-Queue"))?;
        let control = Address::parse(written).map_err(ExecuteError::ControlQueue)?;
        let data = envelope.body.get("Data").cloned().unwrap_or(Value::Null);
        Ok(Self {
            msg_id: envelope.msg_id.clone(),
            call_id,
            call,
            control,
            data,
        })
    }
}

/// `action.accepted`. The callflow logs it and keeps waiting.
pub fn accepted(sender: &Sender, to: &ReplyTo) -> Outgoing {
    reply(sender, to, "action.accepted", json!({ "Call-ID": to.call_id }))
}

/// The flow's next step. `record_call` always continues, independent of the recording's result (`cf_record_call:handle`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    /// Go to the child with this key, if it exists.
    ContinueTo(String),
    Stop,
}

impl Verdict {
    fn term(&self) -> Term {
        match self {
            Self::Continue => Term::atom("continue"),
            Self::ContinueTo(key) => Term::Tuple(vec![Term::atom("continue"), Term::binary(key)]),
            Self::Stop => Term::atom("stop"),
        }
    }
}

/// `action.result`, which ends the callflow's wait. The callflow ignores a repeat.
///
/// # Errors
/// When the verdict's key cannot be encoded as a term.
pub fn result(sender: &Sender, to: &ReplyTo, verdict: &Verdict) -> Result<Outgoing, TermError> {
    let result = verdict.term().to_base64()?;
    Ok(reply(
        sender,
        to,
        "action.result",
        json!({ "Call-ID": to.call_id, "Result": result }),
    ))
}

/// `action.result` with `continue`, which can always be encoded.
pub fn continues(sender: &Sender, to: &ReplyTo) -> Outgoing {
    /// `term_to_binary(continue)` in base64.
    const CONTINUE: &str = "g2QACGNvbnRpbnVl";
    reply(
        sender,
        to,
        "action.result",
        json!({ "Call-ID": to.call_id, "Result": CONTINUE }),
    )
}

fn reply(sender: &Sender, to: &ReplyTo, name: &str, body: Value) -> Outgoing {
    Outgoing::to(
        Exchange::Targeted,
        &to.address,
        sender.message(CATEGORY, name, &to.msg_id, body),
    )
}

#[cfg(test)]
mod tests {
    use crate::kazoo::envelope::MAX_ID_BYTES;

    use super::*;

    fn sender() -> Sender {
        Sender {
            node: "kz_record_call@rec1".into(),
        }
    }

    fn envelope(name: &str) -> Envelope {
        let path = format!(
            "{}/tests/fixtures/action_execute/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        Envelope::read(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_true_action_is_read() {
        let envelope = envelope("02-start-all-keys");
        let action = Execute::of(&envelope).unwrap();
        assert_eq!(action.call_id, "8dfb1e20-6a3e-4b0c-8d7e-1d0f5a6b7c02");
        assert_eq!(action.control.pid(), Some("<0.9182.3>"));
        assert_eq!(action.call.flow_name.as_deref(), Some("Main Number"));
        assert_eq!(
            action.call.account_id.as_deref(),
            Some("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4")
        );
        assert_eq!(
            action.call.parties.owner_id.as_deref(),
            Some("9d8c7b6a5f4e3d2c1b0a998877665544")
        );
        assert_eq!(action.data["format"], "wav");
        let to = ReplyTo::of(&envelope).unwrap();
        assert_eq!(to.address.queue(), "callflow_route_2");
        assert_eq!(to.address.pid(), Some("<0.25657.8>"));
    }

    #[test]
    fn the_answers_have_kazoos_form_and_bytes() {
        let to = ReplyTo::of(&envelope("01-start-minimal")).unwrap();
        let accepted = accepted(&sender(), &to);
        assert_eq!(
            (accepted.exchange, accepted.routing_key.as_str()),
            (Exchange::Targeted, "callflow_route_2")
        );
        assert_eq!(accepted.deliver_to_pid.as_deref(), Some("<0.25391.3>"));
        assert_eq!(accepted.body["Event-Name"], "action.accepted");
        assert_eq!(accepted.body["Msg-ID"], "6858b97a27545b8292f323cecb0932c8");
        for (verdict, bytes) in [
            (Verdict::Continue, "g2QACGNvbnRpbnVl"),
            (Verdict::ContinueTo("key".into()), "g2gCZAAIY29udGludWVtAAAAA2tleQ=="),
            (Verdict::ContinueTo("_".into()), "g2gCZAAIY29udGludWVtAAAAAV8="),
            (Verdict::Stop, "g2QABHN0b3A="),
        ] {
            assert_eq!(result(&sender(), &to, &verdict).unwrap().body["Result"], bytes);
        }
        assert_eq!(
            continues(&sender(), &to),
            result(&sender(), &to, &Verdict::Continue).unwrap()
        );
    }

    #[test]
    fn the_flows_own_address_stands_in_for_a_server_id_that_cannot_be_used() {
        let mut body = envelope("01-start-minimal").body;
        for bad in [json!(""), json!("consumer://<0.1.2>/q"), Value::Null, json!(7)] {
            body["Server-ID"] = bad;
            let envelope = Envelope::of(body.clone()).unwrap();
            assert_eq!(ReplyTo::of(&envelope).unwrap().address.queue(), "callflow_route_2");
        }
        body["Call"] = json!({});
        assert!(ReplyTo::of(&Envelope::of(body).unwrap()).is_err());
    }

    #[test]
    fn an_action_whose_ids_are_too_long_to_be_kept_is_refused_and_can_be_answered_all_the_same() {
        let body = envelope("01-start-minimal").body;
        for (pointer, header) in [
            ("/Call-ID", "Call-ID"),
            ("/Msg-ID", "Msg-ID"),
            ("/Call/Fetch-ID", "Fetch-ID"),
        ] {
            for (length, good) in [(MAX_ID_BYTES, true), (MAX_ID_BYTES + 1, false), (3 << 20, false)] {
                let mut body = body.clone();
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                let id = "i".repeat(length);
                body.pointer_mut(parent).unwrap()[key] = json!(id);
                let envelope = Envelope::of(body).unwrap();
                let refusal = Execute::of(&envelope).err();
                let expected = (!good).then(|| ExecuteError::from(MessageError::TooLong(header)));
                assert_eq!(refusal, expected, "{pointer} {length}");
                let to = ReplyTo::of(&envelope).unwrap();
                assert_eq!(to.address.queue(), "callflow_route_2");
                assert_eq!(to.call_id == id, header == "Call-ID");
                assert_eq!(to.msg_id == id, header == "Msg-ID");
            }
        }
    }

    #[test]
    fn an_action_without_a_call_to_act_on_is_refused() {
        let body = envelope("01-start-minimal").body;
        let refused = |change: fn(&mut Value)| {
            let mut body = body.clone();
            change(&mut body);
            Execute::of(&Envelope::of(body).unwrap()).unwrap_err()
        };
        assert_eq!(
            refused(|b| b["Call"] = Value::Null),
            MessageError::Missing("Call").into()
        );
        assert_eq!(
            refused(|b| b["Call"]["Control-Queue"] = json!("")),
            MessageError::Missing("Control-Queue").into()
        );
        assert_eq!(
            refused(|b| b["Call"]["Control-Queue"] = json!("sip://x/y")),
            ExecuteError::ControlQueue(AddressError::UnknownScheme)
        );
        assert!(matches!(
            refused(|b| b["Event-Name"] = json!("action.result")),
            ExecuteError::Message(MessageError::Unexpected { .. })
        ));
    }
}
