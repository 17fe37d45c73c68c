//! The legs of a call that its recording is on, or may be on. At transfers the switch moves a recording from leg to leg, without an event
//! and without another start. Only the end names the last leg.

use serde::{Deserialize, Serialize};

use crate::kazoo::address::Address;
use crate::kazoo::leg::{LegEvent, LegNews};
use crate::kazoo::time::Moment;

use super::Entry;
use super::fact::What;

/// What was learned of a leg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    pub call_id: String,
    pub event: LegEvent,
    /// The leg that it was bridged with, or that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The address of its control process, as the action on this leg named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// For `Gone`: whether the leg had been answered, if the event said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_answered: Option<bool>,
    /// The event's own stamp, Unix microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<i64>,
}

/// The leg that a recording is on, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    pub call_id: String,
    /// Where commands to that leg go, if an action named it.
    pub control: Option<String>,
    /// When the recording came to that leg, if an event reported it.
    pub since: Option<Moment>,
    /// The recording began on another leg. On this leg the switch obeys no stop and no mask.
    pub moved: bool,
}

impl Entry {
    /// Whether the leg that the recording was ordered on was answered, as the leg's end tells. Without that end a bridge counts as an
    /// answer. (A bridge alone is not certain: early media is bridged too.)
    pub fn was_answered(&self) -> bool {
        let told = self.facts().find_map(|fact| match &fact.what {
            What::Leg(leg) if leg.call_id == self.call_id => leg.was_answered,
            _ => None,
        });
        told.unwrap_or_else(|| self.is_bridged_since_command())
    }

    /// Whether the leg that the recording was ordered on was bridged after its command.
    pub fn is_bridged_since_command(&self) -> bool {
        let commanded = self.facts().find(|fact| fact.what == What::Commanded);
        let is_bridge = |what: &What| matches!(what, What::Leg(leg) if leg.event == LegEvent::Bridged && leg.call_id == self.call_id);
        commanded.is_some_and(|commanded| {
            let mut facts = self.facts();
            facts.any(|fact| fact.at > commanded.at && is_bridge(&fact.what))
        })
    }
}

impl Entry {
    /// Whether events reported that nothing more can come into the recording's file: the leg on which the switch ended the recording was hung up,
    /// or the ordered leg is gone, and no other leg is known that may have the recording. The answer of an ecallmgr that does not know the
    /// call is no such report: an ecallmgr that has just started knows no call.
    pub fn has_hung_up(&self) -> bool {
        let end = self.told_end();
        end.is_some_and(|end| end.hung_up == Some(true) || self.is_gone(&end.call_id))
            || self.is_gone(&self.call_id) && self.living_legs().is_empty()
    }
}

impl From<LegNews> for Leg {
    fn from(news: LegNews) -> Self {
        Self {
            call_id: news.call_id,
            event: news.event,
            other: news.other,
            control: None,
            was_answered: news.was_answered,
            stamp: news.stamp,
        }
    }
}

impl Leg {
    /// The leg that an action ran on, and its control process then.
    pub fn of_action(call_id: &str, control: &Address) -> Self {
        Self {
            call_id: call_id.to_owned(),
            event: LegEvent::Action,
            other: None,
            control: Some(control.to_string()),
            was_answered: None,
            stamp: None,
        }
    }
}

impl Entry {
    /// `Call-Interaction-ID` of the call. All its legs share it, including later ones.
    pub fn interaction(&self) -> Option<&str> {
        let ordered = self.order().and_then(|order| order.parties.interaction_id.as_deref());
        let told = || self.started().and_then(|told| told.parties.interaction_id.as_deref());
        ordered.or_else(told).filter(|id| !id.is_empty())
    }

    /// What was learned of its legs, in the order in which it happened.
    pub fn legs(&self) -> Vec<(Moment, &Leg)> {
        let mut legs: Vec<(Moment, &Leg)> = self
            .facts()
            .filter_map(|fact| match &fact.what {
                What::Leg(leg) => Some((fact.at, leg.as_ref())),
                _ => None,
            })
            .collect();
        legs.sort_by_key(|(heard, leg)| (leg.stamp.unwrap_or(heard.unix_micros()), *heard));
        legs
    }

    /// The leg that the recorded leg was bridged with first after the recording began. Of the bridge before its start, the start tells.
    pub fn first_peer(&self) -> Option<&str> {
        let started = self.started()?;
        let (began, since) = (started.call_id.as_str(), started.stamp?);
        let legs = self.legs().into_iter();
        let bridged = legs.filter(|(_, leg)| leg.event == LegEvent::Bridged && leg.stamp >= Some(since));
        let peers = bridged.map(|(_, leg)| (leg.call_id.as_str(), leg.other.as_deref()));
        let mut of_it = peers.filter_map(|(leg, other)| match other {
            Some(other) if leg == began => Some(other),
            Some(other) if other == began => Some(leg),
            _ => None,
        });
        of_it.next()
    }

    /// The ids of all legs that the recording is on, or may be on, each once. Legs that are known to be gone are left out.
    pub fn living_legs(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = vec![&self.call_id];
        for told in [self.started(), self.latest_start()].into_iter().flatten() {
            ids.push(&told.call_id);
            ids.extend(told.other_leg_call_id.as_deref());
        }
        let legs = self.legs();
        for (_, leg) in &legs {
            ids.push(&leg.call_id);
            ids.extend(leg.other.as_deref());
        }
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| !self.is_gone(id));
        ids
    }

    /// Whether the switch reported that a leg is gone.
    pub fn is_gone(&self, call_id: &str) -> bool {
        self.has(|what| matches!(what, What::Leg(leg) if leg.event == LegEvent::Gone && leg.call_id == call_id))
    }

    /// When the switch destroyed a leg, by the switch's own clock if the event has a stamp.
    pub fn gone_at(&self, call_id: &str) -> Option<Moment> {
        let mut legs = self.legs().into_iter();
        legs.find(|(_, leg)| leg.event == LegEvent::Gone && leg.call_id == call_id)
            .map(|(heard, leg)| leg.stamp.map_or(heard, |stamp| self.by_our_clock(stamp)))
    }

    /// When the switch destroyed a leg, by the clock of one worker. `None`: that worker's facts do not tell its clock.
    pub fn gone_at_by(&self, call_id: &str, worker: &str) -> Option<Moment> {
        self.facts().find_map(|fact| match &fact.what {
            What::Leg(leg) if leg.event == LegEvent::Gone && leg.call_id == call_id => match leg.stamp {
                Some(stamp) => self.by_clock_of(worker, stamp),
                None => (fact.by == worker).then_some(fact.at),
            },
            _ => None,
        })
    }

    /// The leg that the recording is on now, as far as is known.
    pub fn carried_by(&self) -> Carrier {
        let began = self.started().map_or(self.call_id.as_str(), |told| &told.call_id);
        let mut carrier = Carrier {
            call_id: began.to_owned(),
            control: None,
            since: self.started().map(|told| told.at),
            moved: false,
        };
        for (heard, leg) in self.legs() {
            let moves = matches!(
                leg.event,
                LegEvent::Transferor | LegEvent::Replaced | LegEvent::Direct | LegEvent::Gone
            );
            if let (true, Some(other)) = (moves && leg.call_id == carrier.call_id, &leg.other) {
                carrier.call_id.clone_from(other);
                carrier.since = Some(leg.stamp.map_or(heard, |stamp| self.by_our_clock(stamp)));
            }
        }
        if let Some(end) = self.told_end() {
            // The end event names the last leg.
            if end.call_id != carrier.call_id {
                carrier.call_id.clone_from(&end.call_id);
                carrier.since = None;
            }
        }
        carrier.moved = carrier.call_id != began;
        carrier.control = self.control_of(&carrier.call_id);
        carrier
    }

    /// Where commands to a leg go: to the control process of the last action that ran on it. A call that is transferred gets another
    /// control process.
    pub fn control_of(&self, call_id: &str) -> Option<String> {
        let told = self
            .legs()
            .into_iter()
            .rev()
            .find_map(|(_, leg)| leg.control.clone().filter(|_| leg.call_id == call_id));
        let ordered = || {
            let order = self.order().filter(|order| order.call_id == call_id)?;
            Some(order.command.as_ref()?.control.clone())
        };
        told.or_else(ordered)
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::Fact;
    use crate::recording::ending::Told;
    use crate::recording::identity::Key;

    use super::*;

    fn at(second: i64) -> Moment {
        Moment::from_unix_seconds(1_795_386_262 + second)
    }

    fn leg(second: i64, call_id: &str, event: LegEvent, other: Option<&str>) -> (i64, What) {
        let leg = Leg {
            call_id: call_id.into(),
            event,
            other: other.map(str::to_owned),
            control: None,
            was_answered: None,
            stamp: Some(at(second).unix_micros()),
        };
        (second, What::Leg(Box::new(leg)))
    }

    fn entry(facts: impl IntoIterator<Item = (i64, What)>) -> Entry {
        let mut entry = Entry::new(Key::of("a", "action"), "a");
        let started = What::Started(Box::new(Told::presumed("a", at(0), "fs", "/tmp/a.wav")));
        for (second, what) in [(0, started)].into_iter().chain(facts) {
            entry.add(Fact {
                at: at(second),
                by: "w".into(),
                what,
            });
        }
        entry
    }

    #[test]
    fn a_recording_goes_with_the_leg_that_is_left_when_its_own_transfers_and_leaves() {
        let before = entry([leg(5, "a", LegEvent::Bridged, Some("b"))]);
        assert_eq!(before.carried_by().call_id, "a");
        let blind = entry([
            leg(5, "a", LegEvent::Bridged, Some("b")),
            leg(9, "a", LegEvent::Transferor, Some("b")),
            leg(10, "a", LegEvent::Gone, Some("b")),
        ]);
        let carrier = blind.carried_by();
        assert_eq!(
            (carrier.call_id.as_str(), carrier.moved, carrier.since),
            ("b", true, Some(at(9)))
        );
        assert_eq!(blind.living_legs(), ["b"], "A is gone for certain");
        // Only the end of A was reported. It names B as well.
        let gone = entry([leg(10, "a", LegEvent::Gone, Some("b"))]);
        assert_eq!(gone.carried_by().call_id, "b");
        // B transfers A: the recording stays on A.
        let other = entry([
            leg(5, "a", LegEvent::Bridged, Some("b")),
            leg(9, "b", LegEvent::Transferor, Some("a")),
            leg(10, "b", LegEvent::Gone, Some("a")),
        ]);
        assert_eq!(other.carried_by().call_id, "a");
        // A loopback leg that leaves the call, and what comes after it.
        let direct = entry([
            leg(5, "a", LegEvent::Direct, Some("endpoint")),
            leg(9, "endpoint", LegEvent::Transferor, Some("c")),
        ]);
        assert_eq!(direct.carried_by().call_id, "c");
    }

    #[test]
    fn the_first_peer_is_the_one_at_the_first_bridge_after_the_start() {
        let mut entry = entry([
            leg(-5, "a", LegEvent::Bridged, Some("before")),
            leg(5, "b", LegEvent::Bridged, Some("a")),
            leg(9, "a", LegEvent::Bridged, Some("c")),
        ]);
        assert_eq!(entry.first_peer(), None, "a start without a stamp tells no order");
        let mut told = Told::presumed("a", at(0), "fs", "/tmp/a.wav");
        told.stamp = Some(at(0).unix_micros());
        entry.facts.clear();
        for (second, what) in [
            (0, What::Started(Box::new(told))),
            leg(-5, "a", LegEvent::Bridged, Some("before")),
            leg(5, "b", LegEvent::Bridged, Some("a")),
            leg(9, "a", LegEvent::Bridged, Some("c")),
        ] {
            let (at, by) = (at(second), "w".to_owned());
            entry.add(Fact { at, by, what });
        }
        assert_eq!(entry.first_peer(), Some("b"));
    }

    #[test]
    fn the_order_in_which_events_come_does_not_matter() {
        let mut facts = vec![
            leg(5, "a", LegEvent::Bridged, Some("b")),
            leg(9, "a", LegEvent::Transferor, Some("b")),
            leg(20, "b", LegEvent::Bridged, Some("c")),
            leg(30, "b", LegEvent::Transferor, Some("c")),
        ];
        assert_eq!(entry(facts.clone()).carried_by().call_id, "c");
        facts.reverse();
        assert_eq!(entry(facts).carried_by().call_id, "c");
    }

    #[test]
    fn commands_go_to_the_control_process_that_a_leg_had_last() {
        let action = |second: i64, call_id: &str, queue: &str| {
            let address = Address::parse(queue).unwrap();
            (second, What::Leg(Box::new(Leg::of_action(call_id, &address))))
        };
        let entry = entry([
            action(3, "a", "pid://<0.1.0>/first"),
            action(9, "a", "pid://<0.2.0>/second"),
            action(10, "b", "pid://<0.3.0>/other"),
        ]);
        assert_eq!(entry.control_of("a").as_deref(), Some("pid://<0.2.0>/second"));
        assert_eq!(entry.control_of("c"), None);
        assert_eq!(entry.carried_by().control.as_deref(), Some("pid://<0.2.0>/second"));
    }
}
