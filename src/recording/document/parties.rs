//! The parties of the call, and which channel is whose, as at the start. The end's event may describe another leg, or a party that joined
//! later.

use serde_json::{Value, json};

use crate::kazoo::call::Parties;
use crate::kazoo::time::Moment;

use super::Subject;

impl Subject<'_> {
    /// The id of the call's CDR. Kazoo's cdr application takes the month from `Call-Interaction-ID`, whose first part is the conversation's
    /// start in Gregorian seconds (`cdr_channel_destroy:set_interaction`). A call without that header gets it when it ends.
    pub(super) fn cdr_id(&self) -> String {
        if self.order.adopted.is_some() {
            // As Kazoo's own recorder does (`media_recording`).
            return format!("{}-{}", self.ended.at.month(), self.call_id());
        }
        let began = self.parties().interaction_id.as_deref().and_then(began_at);
        let month = began.unwrap_or(self.ended.at).month();
        format!("{month}-{}", self.order.call_id)
    }

    /// The call's id in the document. Kazoo's own recorder takes all that its document says of the call from the end's event.
    pub(super) fn call_id(&self) -> &str {
        match self.order.adopted {
            Some(_) => &self.ended.call_id,
            None => &self.order.call_id,
        }
    }

    /// Whether the recording ended on another leg than the one where it began. The end's event then describes that other leg.
    pub(super) fn moved(&self) -> bool {
        let started_on = self.started.map_or(&self.order.call_id, |s| &s.call_id);
        *started_on != self.ended.call_id
    }

    /// The parties of the call when the recording began, as far as events reported them. The end's event fills the gaps.
    pub(super) fn parties(&self) -> Parties {
        if self.order.adopted.is_some() {
            return self.ended.parties.clone();
        }
        let ordered = self.order.parties.clone();
        let started = self.started.map(|s| s.parties.clone()).unwrap_or_default();
        let ended = self.ended.parties.clone();
        let (name, number) = callee([&started, &ordered, &ended], self.has_other_peer());
        Parties {
            callee_id_name: name,
            callee_id_number: number,
            ..started.or(ordered).or(ended)
        }
    }

    /// Whether the recorded leg is known to have had another peer at the end than at the start.
    fn has_other_peer(&self) -> bool {
        let at_end = self.ended.other_leg_call_id.as_deref();
        self.peer_at_start()
            .zip(at_end)
            .is_some_and(|(start, end)| start != end)
    }

    /// The leg that the recorded leg was bridged with at the start, else at first: a start before the bridge names none.
    fn peer_at_start(&self) -> Option<&str> {
        let told = self.started.and_then(|told| told.other_leg_call_id.as_deref());
        told.or(self.first_peer)
    }

    pub(super) fn variables(&self) -> &Value {
        match self.started {
            Some(started) if self.moved() && self.order.adopted.is_none() => &started.variables,
            _ => &self.ended.variables,
        }
    }

    /// Which channel is whose, and from when on. The left channel is what the recorded leg says, the right one is what that leg hears. Null
    /// when there is one channel, or when their number is unknown.
    pub(super) fn channels(&self) -> Value {
        if !self.order.command.as_ref().is_some_and(|command| command.stereo) {
            return Value::Null;
        }
        let parties = self.parties();
        // On an incoming call, the recorded leg is the caller's.
        let (ours, theirs) = match parties.direction.as_deref() {
            Some("outbound") => ("callee", "caller"),
            _ => ("caller", "callee"),
        };
        let began = self.started.unwrap_or(self.ended);
        let peer = match self.started {
            Some(_) => self.peer_at_start(),
            None => self.first_peer.or(began.other_leg_call_id.as_deref()),
        };
        let leg = if self.moved() && self.started.is_none() {
            &self.order.call_id
        } else {
            &began.call_id
        };
        let mut channels = vec![json!({
            "left": ours, "right": theirs, "left_call_id": leg, "right_call_id": peer,
        })];
        if self.moved() {
            channels.push(json!({
                "left": theirs, "right": "other", "left_call_id": self.ended.call_id,
                "right_call_id": self.ended.other_leg_call_id,
            }));
        }
        for known in channels.iter_mut().filter_map(Value::as_object_mut) {
            known.retain(|_, value| !value.is_null());
        }
        Value::Array(channels)
    }
}

/// Name and number of the callee. Kazoo's own document takes them from the end's event, and has neither when that event has none. Here the
/// start's event wins. If a recording began before its leg was bridged, the end's event shows who answered. After a hold or another bridge,
/// however, the end's event names the caller, or the new peer's caller, as the callee. In that case the call itself names the callee.
fn callee([started, ordered, ended]: [&Parties; 3], other_peer: bool) -> (Option<String>, Option<String>) {
    let of = |parties: &Parties| (parties.callee_id_name.clone(), parties.callee_id_number.clone());
    if started.callee_id_number.is_some() {
        return of(started);
    }
    let Some(at_end) = &ended.callee_id_number else {
        return (started.callee_id_name.clone().or(ended.callee_id_name.clone()), None);
    };
    let caller = started.caller_id_number.as_ref().or(ordered.caller_id_number.as_ref());
    if other_peer || caller == Some(at_end) {
        of(ordered)
    } else {
        of(ended)
    }
}

/// The start of a conversation: `<Gregorian seconds, 11 digits>-<hex digits>`.
fn began_at(interaction_id: &str) -> Option<Moment> {
    let (seconds, key) = interaction_id.split_once('-')?;
    let right = seconds.len() == 11 && seconds.bytes().all(|b| b.is_ascii_digit()) && !key.is_empty();
    let seconds = seconds.parse().ok().filter(|_| right)?;
    Some(Moment::from_gregorian_seconds(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interaction_tells_the_month_of_its_cdr_and_nonsense_does_not() {
        let month = |id: &str| began_at(id).map(|at| at.month().to_string());
        assert_eq!(month("63923845331-9f3ad9cd").as_deref(), Some("202508"));
        // The last second of a March of 31 days, of a leap day, and the seconds after them.
        for (seconds, wanted) in [
            (63973756799_i64, "202703"),
            (63973756800, "202704"),
            (64002700799, "202802"),
            (64002700800, "202803"),
        ] {
            assert_eq!(month(&format!("{seconds}-a")).as_deref(), Some(wanted));
        }
        for bad in [
            "",
            "63923845331",
            "63923845331-",
            "6392384533-a",
            "639238453311-a",
            "-63923845331-a",
            "x-y",
        ] {
            assert_eq!(began_at(bad), None, "{bad}");
        }
    }
}
