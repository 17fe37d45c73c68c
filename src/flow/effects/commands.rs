//! Commands for a recording (start, stop, mask), and the search for its call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::Entry;
use crate::entry::fact::{Fact, Route, What};
use crate::kazoo::address::Address;
use crate::kazoo::dialplan::{Control, Trigger};
use crate::kazoo::time::Moment;
use crate::ledger::{Ledger, address};
use crate::recording::controls::Why;
use crate::recording::order::Order;

use super::calls::{Calls, has_begun};
use crate::flow::common::{Common, Interrupted};
use crate::flow::in_flight::InFlight;
use crate::flow::memory::{CallIds, OpenRecordings};
use crate::lifecycle::Input;

/// Between two tries while a control queue is missing: an ecallmgr that lost its connection is back within seconds, with the same queues.
const BACK_SOON: Duration = Duration::from_secs(3);

/// How long a command may wait for a connection. After that the ledger is asked again.
const STILL_TRUE: Duration = Duration::from_secs(2);

/// Sends the commands that a recording's driver asks for.
pub struct Commands {
    pub common: Arc<Common>,
    pub calls: Arc<Calls>,
    pub call_ids: Arc<CallIds>,
    pub ledger: Ledger,
    pub memory: Arc<OpenRecordings>,
    pub in_flight: InFlight,
}

impl Commands {
    /// Sends the start command of an entry that was left uncommanded.
    pub(super) async fn command(&self, entry: &Entry) -> Result<Input, Interrupted> {
        let order = entry.order().ok_or(Interrupted::Baseless)?;
        // A stop of it was carried out, or its end was heard, while this worker waited for the broker, or for its turn: it is not to begin any
        // more. What tells that is on its way into the ledger.
        let registry = &self.memory;
        let known = registry.entry(entry.key);
        if let Some(stopped) = known.filter(|known| known.stop_asked_at().is_some() && entry.stop_asked_at().is_none())
        {
            return Ok(Input::Known(Box::new(stopped)));
        }
        if entry.stop_asked_at().is_none() && (registry.is_stopping(entry.key) || registry.was_closed(entry.key)) {
            self.common.rest().await?;
            return Ok(match self.ledger.load(&address(entry)).await {
                Ok(Some(record)) => Input::Known(Box::new(record.entry)),
                _ => Input::Due,
            });
        }
        let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
        let call_id = self.call_ids.current(&order.call_id);
        // What the ledger said of the recording is old when a connection is back late, or when this process stood still.
        let asked = Instant::now();
        let still = || asked.elapsed() < STILL_TRUE;
        match self.calls.send_start(order, &call_id, trigger, None, &still).await {
            Ok(()) => {
                self.delayed(entry, &call_id).await;
                Ok(Input::Fact(What::Commanded))
            }
            // Once more in a moment: an ecallmgr that lost its connection declares its queues again.
            Err(error) if error.is_unroutable() && entry.has_lost_command() => self.back_soon(entry).await,
            Err(error) if error.is_unroutable() => Ok(Input::Fact(What::CommandLost { why: error.to_string() })),
            Err(_) => {
                self.common.rest().await?;
                Ok(Input::Due)
            }
        }
    }

    /// The same for an order that this task took over. The task or worker that commanded it may not have come so far.
    async fn delayed(&self, entry: &Entry, call_id: &str) {
        let delayed = |order: &&Order| order.command.as_ref().is_some_and(|c| c.trigger != Trigger::Now);
        if let Some(order) = entry.order().filter(delayed)
            && !has_begun(entry)
        {
            self.memory.remember(entry);
            self.calls.start_if_so_already(order, call_id).await;
        }
    }

    /// Sends the n-th command that stops, masks or unmasks a running recording.
    pub(super) async fn control(&self, entry: &Entry, what: Control, n: u32) -> Result<Input, Interrupted> {
        let order = entry.order().ok_or(Interrupted::Baseless)?;
        let action = entry.mask_to_send().map(|(action, ..)| action.to_owned());
        let start = entry.newest_start();
        let delivered = |n| match what {
            Control::Stop => What::StopSent { n, start },
            Control::Mask | Control::Unmask => What::Masked {
                action: action.clone().unwrap_or_default(),
                on: what == Control::Mask,
                n,
                start,
                sender: Some(self.common.policy.worker.clone()),
            },
        };
        let lost = || {
            let action = action.clone().unwrap_or_default();
            match what {
                // A control queue that is gone takes no stop, now or later. The stop counts as sent, so that the alarm comes.
                Control::Stop => self.returned_stop(entry, n, start),
                Control::Mask | Control::Unmask => Input::Fact(What::NotObeyed {
                    action,
                    what,
                    why: Why::Undelivered,
                }),
            }
        };
        let Some((to, call_id)) = self.controlled_at(entry, order) else {
            return Ok(lost());
        };
        // As with a start: another worker's later action may have been carried out since.
        let asked = Instant::now();
        let still = || asked.elapsed() < STILL_TRUE;
        let (media_id, file) = (order.media_id.as_str(), order.file_name.as_str());
        match self
            .calls
            .send_control((&to, &call_id), media_id, file, what, &still)
            .await
        {
            // The switch may have obeyed before the confirmation arrived.
            Ok(at) => Ok(self.heard_at(entry, at, delivered(n))),
            // A stop is repeated anyway, and counted.
            Err(error)
                if error.is_unroutable() && what != Control::Stop && self.may_be_back(entry, action.as_deref()) =>
            {
                let action = action.unwrap_or_default();
                if entry.is_returned(&action) {
                    return self.back_soon(entry).await;
                }
                // Another action may overtake this one before a queue takes it. Then this fact tells why it came to nothing.
                Ok(Input::Fact(What::Returned { what, action, n: 0 }))
            }
            Err(error) if error.is_unroutable() => Ok(lost()),
            Err(_) => {
                self.common.rest().await?;
                Ok(Input::Due)
            }
        }
    }

    /// What this worker did at an earlier time.
    fn heard_at(&self, entry: &Entry, at: Moment, what: What) -> Input {
        let mut news = Entry::new(entry.key, &entry.call_id);
        news.add(Fact {
            at,
            ..self.common.fact(what)
        });
        Input::Known(Box::new(news))
    }

    /// A stop command that no queue took: it counts as sent, and not as delivered.
    fn returned_stop(&self, entry: &Entry, n: u32, start: Option<i64>) -> Input {
        let mut news = Entry::new(entry.key, &entry.call_id);
        let (what, action) = (Control::Stop, String::new());
        for what in [What::Returned { what, action, n }, What::StopSent { n, start }] {
            news.add(self.common.fact(what));
        }
        Input::Known(Box::new(news))
    }

    /// Waits until a control process that lost its connection may be back, or until there is news of the recording: a stop, for example.
    async fn back_soon(&self, entry: &Entry) -> Result<Input, Interrupted> {
        tokio::select! {
            () = tokio::time::sleep(BACK_SOON) => Ok(Input::Due),
            () = self.in_flight.told(entry.key) => Ok(Input::Due),
            () = self.common.stop().cancelled() => Err(Interrupted::ShuttingDown),
        }
    }

    /// Whether a mask, or unmask, was asked for so lately that its call's control process may be back soon.
    fn may_be_back(&self, entry: &Entry, action: Option<&str>) -> bool {
        let mut facts = entry.facts();
        let asked =
            facts.find(|fact| matches!(&fact.what, What::MaskAsked { action: of, .. } if Some(of.as_str()) == action));
        asked.is_some_and(|asked| self.common.now().since(asked.at) < self.common.policy.grace)
    }

    /// Where the recording's call is controlled now, and its id there. A transfer gives a call another control process, and the one before takes commands and
    /// does nothing: so what the newest action said counts, the start's only when there was none since.
    fn controlled_at(&self, entry: &Entry, order: &Order) -> Option<(Address, String)> {
        let carrier = entry.carried_by();
        let current = self.call_ids.current(&carrier.call_id);
        let heard = [&current, &carrier.call_id].map(|leg| self.memory.route(leg));
        let heard = heard.into_iter().flatten().collect();
        let (to, call_id) = controlled_by(entry, order, heard)?;
        Some((to, self.call_ids.current(&call_id)))
    }

    /// Whether the recording's call is alive. Any leg that the recording is on, or may be on, counts. If all known legs are gone, another
    /// leg of the same conversation counts, because a recording goes from leg to leg without an event. Silence of every ecallmgr proves
    /// nothing.
    pub(super) async fn look_for_channel(&self, entry: &Entry, n: u32) -> Result<Input, Interrupted> {
        let entry = self.memory.complete(entry.clone());
        self.note_legs(&entry);
        // A channel may have another id by now.
        let mut legs: Vec<String> = entry
            .living_legs()
            .into_iter()
            .flat_map(|leg| [leg.to_owned(), self.call_ids.current(leg)])
            .collect();
        legs.sort_unstable();
        legs.dedup();
        let looks = legs
            .iter()
            .map(|leg| async move { (leg, self.calls.is_alive(leg).await) });
        for (leg, seen) in futures_util::future::join_all(looks).await {
            if seen == Some(false) {
                continue;
            }
            if seen.is_some() && entry.is_commanded() && *leg == self.call_ids.current(&entry.call_id) {
                self.delayed(&entry, leg).await;
            }
            return Ok(Input::Fact(What::ChannelSeen { n, alive: true }));
        }
        let alive = match entry.interaction() {
            Some(interaction) => self.calls.converses(interaction).await.unwrap_or(true),
            None => false,
        };
        Ok(Input::Fact(What::ChannelSeen { n, alive }))
    }

    /// What this worker learned of the legs goes into the ledger with this channel query. No other write contains it.
    fn note_legs(&self, entry: &Entry) {
        for (_, leg) in entry.legs() {
            let _ = self
                .in_flight
                .tell(entry.key, Input::Fact(What::Leg(Box::new(leg.clone()))));
        }
    }
}

/// The control process that takes a command for a recording, and the id of the call there. `heard` has the routes that actions named to this
/// worker.
fn controlled_by(entry: &Entry, order: &Order, heard: Vec<(Moment, Route)>) -> Option<(Address, String)> {
    let said = entry.route().map(|(at, route)| (at, route.clone()));
    let newest = said.into_iter().chain(heard).max_by_key(|(at, _)| *at);
    if let Some((at, route)) = newest
        && at >= order.asked_at
    {
        return Some((Address::parse(&route.control).ok()?, route.call_id));
    }
    // An address that another worker heard of, else that of the start.
    let carrier = entry.carried_by();
    let told = carrier.control.and_then(|control| Address::parse(&control).ok());
    Some((told.or_else(|| order.control())?, carrier.call_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::fact::Fact;

    /// A transfer gives a call another control process; the one before takes commands and does nothing.
    #[test]
    fn a_repeat_of_a_stop_goes_where_the_call_is_controlled_now() {
        let at = |second: i64| Moment::from_unix_seconds(1_795_386_262 + second);
        let route = |control: &str, call_id: &str| Route {
            control: control.into(),
            call_id: call_id.into(),
        };
        let order = Order {
            asked_at: at(0),
            ..crate::lifecycle::tests::order()
        };
        let mut entry = Entry::of_order(order.clone(), "w");
        let to = |entry: &Entry, heard| {
            let (to, call_id) = controlled_by(entry, &order, heard).unwrap();
            (to.to_string(), call_id)
        };
        let begun_by = order.control().unwrap().to_string();
        assert_eq!(to(&entry, vec![]), (begun_by.clone(), "call".into()));
        // What was named before this recording was ordered says nothing of the time since.
        let old = vec![(at(-5), route("old", "call"))];
        assert_eq!(to(&entry, old), (begun_by, "call".into()));
        entry.add(Fact {
            at: at(10),
            by: "w".into(),
            what: What::StopAsked {
                action: "stop".into(),
                route: Some(route("at-the-stop", "call")),
            },
        });
        assert_eq!(to(&entry, vec![]), ("at-the-stop".into(), "call".into()));
        let moved = vec![(at(20), route("after-the-transfer", "other"))];
        assert_eq!(to(&entry, moved), ("after-the-transfer".into(), "other".into()));
    }
}
