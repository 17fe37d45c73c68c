//! Commands to a call (start, stop, mask), and queries about it: is it alive, is it answered.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::amqp::PublishError;
use crate::entry::Entry;
use crate::entry::fact::{Route, What};
use crate::kazoo::address::Address;
use crate::kazoo::channel::{self, ChannelState, Status, StatusReply};
use crate::kazoo::dialplan::{self, Control, Trigger};
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::Moment;
use crate::ledger::address;
use crate::recording::controls::Why;
use crate::recording::order::Order;
use crate::telemetry::events::CommandSent;
use crate::telemetry::trace::{self, Stage};

use super::perform::Parts;
use crate::lifecycle::Input;

/// Time limit for ecallmgrs to answer a channel query. Kazoo itself gives them this long.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries while a control queue is missing: an ecallmgr that lost its connection is back within seconds, with the same queues.
const BACK_SOON: Duration = Duration::from_secs(3);

impl Parts {
    /// Sends the start command of an order, with the call's present id.
    ///
    /// # Errors
    /// As `Publisher::publish`; unroutable means that the call's control queue is gone.
    pub async fn send_start(&self, order: &Order, call_id: &str, trigger: Trigger) -> Result<(), PublishError> {
        let Some(message) = order.command(&self.common.sender, call_id, trigger) else {
            return Ok(());
        };
        self.set_follow(order, call_id).await;
        let _pass = self.keep_pace(&message.routing_key).await;
        self.send(call_id, order.media_id.as_str(), "start", &message).await
    }

    /// Stops, masks or unmasks the recording into `file_name`.
    ///
    /// # Errors
    /// As `Publisher::publish`.
    pub async fn send_control(
        &self,
        to: &Address,
        call_id: &str,
        media_id: &str,
        file_name: &str,
        what: Control,
    ) -> Result<(), PublishError> {
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let message = dialplan::control(&self.common.sender, to, &msg_id, call_id, file_name, what);
        let _pass = self.keep_pace(to.queue()).await;
        self.send(call_id, media_id, what.name(), &message).await
    }

    pub(super) async fn send(
        &self,
        call_id: &str,
        media_id: &str,
        command: &'static str,
        message: &Outgoing,
    ) -> Result<(), PublishError> {
        let publishing = self.publisher.publish(message);
        let sent = trace::within(Stage::Command, trace::current(), publishing).await;
        let unroutable = sent.as_ref().is_err_and(PublishError::is_unroutable);
        let why = sent.as_ref().err().map(ToString::to_string);
        CommandSent {
            call_id,
            media_id,
            command,
            result: why.as_deref().map_or(Ok(()), Err),
            unroutable,
        }
        .emit();
        sent
    }

    /// Sends the start command of an entry that was left uncommanded.
    pub(super) async fn command(&self, entry: &Entry) -> Option<Input> {
        let order = entry.order()?;
        // A stop of it was carried out, or its end was heard, while this worker waited for the broker, or for its turn: it is not to begin any
        // more. What tells that is on its way into the ledger.
        let registry = &self.registry;
        let known = registry.entry(entry.key);
        if let Some(stopped) = known.filter(|known| known.stop_asked_at().is_some() && entry.stop_asked_at().is_none())
        {
            return Some(Input::Known(Box::new(stopped)));
        }
        if entry.stop_asked_at().is_none() && (registry.is_stopping(entry.key) || registry.was_closed(entry.key)) {
            self.common.rest().await?;
            return Some(match self.ledger.load(&address(entry)).await {
                Ok(Some(record)) => Input::Known(Box::new(record.entry)),
                _ => Input::Due,
            });
        }
        let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
        let call_id = self.replaced.current(&order.call_id);
        match self.send_start(order, &call_id, trigger).await {
            Ok(()) => {
                self.delayed(entry, &call_id).await;
                Some(Input::Fact(What::Commanded))
            }
            // Once more in a moment: an ecallmgr that lost its connection declares its queues again.
            Err(error) if error.is_unroutable() && entry.has_lost_command() => self.back_soon().await,
            Err(error) if error.is_unroutable() => Some(Input::Fact(What::CommandLost { why: error.to_string() })),
            Err(_) => {
                self.common.rest().await?;
                Some(Input::Due)
            }
        }
    }

    /// A delayed start never fires on a channel that is answered, or bridged, already. Then a plain start with the same name and id
    /// follows. The switch ignores the second of the two.
    pub(super) async fn start_if_so_already(&self, order: &Order, call_id: &str) {
        let Some(state) = self.channel_state(call_id).await else {
            return;
        };
        // Meanwhile the recording may have begun after all, be over already, or be unwanted. Then this start would begin another recording.
        let waits = |entry: Entry| !has_begun(&entry) && entry.stop_asked_at().is_none();
        if !self.registry.entry(order.key).is_some_and(waits) {
            return;
        }
        let so = match order.command.as_ref().map(|command| command.trigger) {
            Some(Trigger::Answer) => state.answered,
            Some(Trigger::Bridge) => state.answered && state.other_leg_call_id.is_some(),
            _ => false,
        };
        if so && let Err(error) = self.send_start(order, call_id, Trigger::Now).await {
            warn!(event = "late_start_not_sent", call_id, %error, "start for an answered call not published");
        }
    }

    /// The same for an order that this task took over. The task or worker that commanded it may not have come so far.
    async fn delayed(&self, entry: &Entry, call_id: &str) {
        let delayed = |order: &&Order| order.command.as_ref().is_some_and(|c| c.trigger != Trigger::Now);
        if let Some(order) = entry.order().filter(delayed)
            && !has_begun(entry)
        {
            self.registry.remember(entry);
            self.start_if_so_already(order, call_id).await;
        }
    }

    /// Sends the n-th command that stops, masks or unmasks a running recording.
    pub(super) async fn control(&self, entry: &Entry, what: Control, n: u32) -> Option<Input> {
        let order = entry.order()?;
        let action = entry.mask_to_send().map(|(action, ..)| action.to_owned());
        let start = entry.newest_start();
        let delivered = |n| match what {
            Control::Stop => What::StopSent { n, start },
            Control::Mask | Control::Unmask => What::Masked {
                action: action.clone().unwrap_or_default(),
                on: what == Control::Mask,
                n,
                start,
            },
        };
        let lost = |n| match what {
            // A control queue that is gone takes no stop, now or later. The stop counts as sent, so that the alarm comes.
            Control::Stop => What::StopSent { n, start },
            Control::Mask | Control::Unmask => What::NotObeyed {
                action: action.clone().unwrap_or_default(),
                what,
                why: Why::Undelivered,
            },
        };
        let Some((to, call_id)) = self.controlled_at(entry, order) else {
            return Some(Input::Fact(lost(n)));
        };
        match self
            .send_control(&to, &call_id, order.media_id.as_str(), &order.file_name, what)
            .await
        {
            Ok(()) => Some(Input::Fact(delivered(n))),
            // A stop is repeated anyway, and counted.
            Err(error)
                if error.is_unroutable() && what != Control::Stop && self.may_be_back(entry, action.as_deref()) =>
            {
                self.back_soon().await
            }
            Err(error) if error.is_unroutable() => Some(Input::Fact(lost(n))),
            Err(_) => {
                self.common.rest().await?;
                Some(Input::Due)
            }
        }
    }

    /// Waits until a control process that lost its connection may be back. `None`: the worker is going down.
    async fn back_soon(&self) -> Option<Input> {
        tokio::select! {
            () = tokio::time::sleep(BACK_SOON) => Some(Input::Due),
            () = self.common.stop.cancelled() => None,
        }
    }

    /// Whether a mask, or unmask, was asked for so lately that its call's control process may be back soon.
    fn may_be_back(&self, entry: &Entry, action: Option<&str>) -> bool {
        let mut facts = entry.facts().iter();
        let asked =
            facts.find(|fact| matches!(&fact.what, What::MaskAsked { action: of, .. } if Some(of.as_str()) == action));
        asked.is_some_and(|asked| self.common.now().since(asked.at) < self.common.policy.grace)
    }

    /// Where the recording's call is controlled now, and its id there. A transfer gives a call another control process, and the one before takes commands and
    /// does nothing: so what the newest action said counts, the start's only when there was none since.
    fn controlled_at(&self, entry: &Entry, order: &Order) -> Option<(Address, String)> {
        let carrier = entry.carried_by();
        let current = self.replaced.current(&carrier.call_id);
        let heard = [&current, &carrier.call_id].map(|leg| self.registry.route(leg));
        let heard = heard.into_iter().flatten().collect();
        let (to, call_id) = controlled_by(entry, order, heard)?;
        Some((to, self.replaced.current(&call_id)))
    }

    /// Whether the recording's call is alive. Any leg that the recording is on, or may be on, counts. If all known legs are gone, another
    /// leg of the same conversation counts, because a recording goes from leg to leg without an event. Silence of every ecallmgr proves
    /// nothing.
    pub(super) async fn look_for_channel(&self, entry: &Entry, n: u32) -> Option<Input> {
        let entry = self.registry.complete(entry.clone());
        self.note_legs(&entry);
        // A channel may have another id by now.
        let mut legs: Vec<String> = entry
            .living_legs()
            .into_iter()
            .flat_map(|leg| [leg.to_owned(), self.replaced.current(leg)])
            .collect();
        legs.sort_unstable();
        legs.dedup();
        let looks = legs.iter().map(|leg| async move { (leg, self.is_alive(leg).await) });
        for (leg, seen) in futures_util::future::join_all(looks).await {
            if seen == Some(false) {
                continue;
            }
            if seen.is_some() && entry.is_commanded() && *leg == self.replaced.current(&entry.call_id) {
                self.delayed(&entry, leg).await;
            }
            return Some(Input::Fact(What::ChannelSeen { n, alive: true }));
        }
        let alive = match entry.interaction() {
            Some(interaction) => self.converses(interaction).await.unwrap_or(true),
            None => false,
        };
        Some(Input::Fact(What::ChannelSeen { n, alive }))
    }

    /// What this worker learned of the legs goes into the ledger with this channel query. No other write contains it.
    fn note_legs(&self, entry: &Entry) {
        for (_, leg) in entry.legs() {
            let _ = self
                .hands
                .tell(entry.key, Input::Fact(What::Leg(Box::new(leg.clone()))));
        }
    }

    /// Whether any leg of a conversation is alive; `None` when no ecallmgr could be asked, or answered.
    async fn converses(&self, interaction: &str) -> Option<bool> {
        let reply_to = self.consumers.reply_queue(CHANNEL_PATIENCE).await?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = channel::interactions_request(&self.common.sender, &msg_id, &reply_to);
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.ok()?;
        let end = Instant::now() + CHANNEL_PATIENCE;
        let mut answered = false;
        while let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
            match channel::interactions(&reply) {
                Ok(living) if living.contains(interaction) => return Some(true),
                Ok(_) => answered = true,
                Err(_) => {}
            }
        }
        answered.then_some(false)
    }

    /// Whether a channel is alive; `None` when no ecallmgr could be asked, or answered.
    pub async fn is_alive(&self, call_id: &str) -> Option<bool> {
        self.seen(call_id, CHANNEL_PATIENCE).await
    }

    /// Whether an ecallmgr says within that time that a channel is gone, and no ecallmgr says that it is alive.
    pub(super) async fn is_gone(&self, call_id: &str, patience: Duration) -> bool {
        self.seen(call_id, patience).await == Some(false)
    }

    async fn seen(&self, call_id: &str, patience: Duration) -> Option<bool> {
        let reply_to = self.consumers.reply_queue(CHANNEL_PATIENCE).await?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = channel::status_request(&self.common.sender, &msg_id, &reply_to, call_id)?;
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.ok()?;
        let end = Instant::now() + patience;
        let mut gone = false;
        while let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
            match StatusReply::of(&reply) {
                Ok(StatusReply {
                    status: Status::Active, ..
                }) => return Some(true),
                Ok(StatusReply {
                    status: Status::Terminated,
                    ..
                }) => gone = true,
                Err(_) => {}
            }
        }
        gone.then_some(false)
    }

    /// The state of a channel, from the ecallmgr that knows it; `None` when no ecallmgr does.
    pub async fn channel_state(&self, call_id: &str) -> Option<ChannelState> {
        let reply_to = self.consumers.reply_queue(CHANNEL_PATIENCE).await?;
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let request = channel::answered_request(&self.common.sender, &msg_id, &reply_to, call_id);
        let mut replies = self.requests.expect(&msg_id);
        self.publisher.publish(&request).await.ok()?;
        let end = Instant::now() + CHANNEL_PATIENCE;
        while let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
            if let Ok(Some(state)) = channel::channel_state(&reply, call_id) {
                return Some(state);
            }
        }
        None
    }
}

/// Whether the switch reported the recording at all: its start event may have been lost.
fn has_begun(entry: &Entry) -> bool {
    entry.started().is_some() || entry.ended().is_some()
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
