//! Commands to a call's control process, and queries to ecallmgr about channels.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::amqp::{Consumers, PublishError, Publisher, Requests, Still};
use crate::entry::Entry;
use crate::kazoo::address::Address;
use crate::kazoo::call::shown;
use crate::kazoo::channel::{self, ChannelState, Status, StatusReply};
use crate::kazoo::dialplan::{self, Control, Trigger};
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::Moment;
use crate::recording::order::Order;
use crate::telemetry::events::CommandSent;
use crate::telemetry::trace::{self, Stage};

use crate::flow::common::Common;
use crate::flow::memory::{OpenRecordings, Pass, RateLimit};

/// Time limit for ecallmgrs to answer a channel query. Kazoo itself gives them this long.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(2);

/// `action.accepted` may delay the result for this long. Callflow only logs it.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// Sends commands to calls, and queries channels.
pub struct Calls {
    pub common: Arc<Common>,
    pub publisher: Publisher,
    /// Has the queue for replies.
    pub consumers: Consumers,
    pub requests: Requests,
    /// No queue of Kazoo's gets more than it has room for.
    pub rate_limit: RateLimit,
    pub memory: Arc<OpenRecordings>,
}

impl Calls {
    /// Sends the start command of an order, with the call's present id, and `first` before it. All of it shares one round trip. Nothing is
    /// sent unless `still` says so when the broker is there to take it.
    ///
    /// # Errors
    /// As `Publisher::publish`; unroutable means that the call's control queue is gone.
    pub async fn send_start(
        &self,
        order: &Order,
        call_id: &str,
        trigger: Trigger,
        mut first: Option<First>,
        still: Still<'_>,
    ) -> Result<(), PublishError> {
        let Some(command) = order.command(&self.common.sender, call_id, trigger) else {
            self.send_first(first).await;
            return Ok(());
        };
        let follow = self.follow(order, call_id);
        let mut passes = Vec::new();
        for message in follow.iter().chain([&command]) {
            let at_once = self.pass_at_once(&message.routing_key);
            passes.push(match at_once {
                Some(pass) => pass,
                None => {
                    // The queue may have no room for a while, and `first` does not wait for it.
                    self.send_first(first.take()).await;
                    self.keep_pace(&message.routing_key).await
                }
            });
        }
        let before = first.as_ref().map(|first| &first.message);
        let messages: Vec<&Outgoing> = before.into_iter().chain(&follow).chain([&command]).collect();
        let publishing = self.publisher.publish_all_if(&messages, still);
        let mut results = trace::within(Stage::Command, trace::current(), publishing).await;
        let sent = results.pop().unwrap_or(Err(PublishError::Refused));
        let media_id = order.media_id.as_str();
        if follow.is_some()
            && let Some(set) = results.pop()
        {
            report(call_id, media_id, "set", &set);
            if let Err(error) = set {
                warn!(
                    event = "follow_transfer_not_set",
                    call_id,
                    media_id,
                    follow = order.command.as_ref().is_some_and(|command| command.follow_transfer),
                    %error,
                    "follow_transfer not set on the channel"
                );
            }
        }
        if let (Some(first), Some(told)) = (first, results.pop()) {
            first.end(&told);
        }
        report(call_id, media_id, "start", &sent);
        sent
    }

    /// Sends a message that cannot wait for what was to follow it. What follows does not wait for it for long.
    pub async fn send_first(&self, first: Option<First>) {
        let Some(first) = first else { return };
        match timeout(FIRST_PATIENCE, self.publisher.publish(&first.message)).await {
            Ok(sent) => first.end(&sent),
            Err(_) => warn!(
                event = "accepted_not_published",
                call_id = shown(&first.call_id),
                "action.accepted not published in time"
            ),
        }
    }

    /// Stops, masks or unmasks the recording into `file_name`. Nothing is sent unless `still` says so when the broker is there to take it.
    /// Returns when the command was sent, by this worker's clock: the switch may obey it before the broker's confirmation arrives.
    ///
    /// # Errors
    /// As `Publisher::publish`.
    pub async fn send_control(
        &self,
        (to, call_id): (&Address, &str),
        media_id: &str,
        file_name: &str,
        what: Control,
        still: Still<'_>,
    ) -> Result<Moment, PublishError> {
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let message = dialplan::control(&self.common.sender, to, &msg_id, call_id, file_name, what);
        let _pass = self.keep_pace(to.queue()).await;
        let messages = [&message];
        let at = Mutex::new(self.common.now());
        let still = || {
            *at.lock().unwrap_or_else(PoisonError::into_inner) = self.common.now();
            still()
        };
        let publishing = self.publisher.publish_all_if(&messages, &still);
        let mut results = trace::within(Stage::Command, trace::current(), publishing).await;
        let sent = results.pop().unwrap_or(Err(PublishError::Refused));
        report(call_id, media_id, what.name(), &sent);
        let at = *at.lock().unwrap_or_else(PoisonError::into_inner);
        sent.map(|()| at)
    }

    /// What sets the call's channel to what the order says, unless that is the switch's default. The recording begins whatever becomes
    /// of it.
    fn follow(&self, order: &Order, call_id: &str) -> Option<Outgoing> {
        let follow = order.command.as_ref().map(|command| command.follow_transfer)?;
        // False is always sent, because another action of the call may have set its channel to true. True is sent only if the channel may
        // have false.
        let may_be_false = !self.common.config.kazoo.follow_transfers || self.memory.is_unfollowing(&order.call_id);
        if follow && !may_be_false {
            return None;
        }
        order.follow_transfer(&self.common.sender, call_id)
    }

    /// A delayed start never fires on a channel that is answered, or bridged, already. Then a plain start with the same name and id
    /// follows. The switch ignores the second of the two.
    pub async fn start_if_so_already(&self, order: &Order, call_id: &str) {
        let Some(state) = self.channel_state(call_id).await else {
            return;
        };
        // Meanwhile the recording may have begun after all, be over already, or be unwanted. Then this start would begin another recording.
        let waits = |entry: Entry| !has_begun(&entry) && entry.stop_asked_at().is_none();
        if !self.memory.entry(order.key).is_some_and(waits) {
            return;
        }
        let so = match order.command.as_ref().map(|command| command.trigger) {
            Some(Trigger::Answer) => state.answered,
            Some(Trigger::Bridge) => state.answered && state.other_leg_call_id.is_some(),
            _ => false,
        };
        // What the channel was like is old when this process stood still, or when a connection is back late.
        let seen = Instant::now();
        let still = || seen.elapsed() < CHANNEL_PATIENCE;
        if so && let Err(error) = self.send_start(order, call_id, Trigger::Now, None, &still).await {
            warn!(event = "late_start_not_sent", call_id, %error, "start for an answered call not published");
        }
    }

    /// Whether any leg of a conversation is alive; `None` when no ecallmgr could be asked, or answered.
    pub async fn converses(&self, interaction: &str) -> Option<bool> {
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
    pub async fn is_gone(&self, call_id: &str, patience: Duration) -> bool {
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

    /// Waits until a message may go to a queue of Kazoo's. The caller must keep the returned value until the message is there.
    pub async fn keep_pace(&self, queue: &str) -> Pass {
        let (pass, ahead) = self.rate_limit.keep(queue, || self.publisher.depth(queue)).await;
        if let Some(ahead) = ahead {
            let (publisher, queue) = (self.publisher.clone(), queue.to_owned());
            let asking = async move { ahead.end(publisher.depth(&queue).await) };
            self.common.tasks.spawn("queue_depth", asking);
        }
        pass
    }

    /// The same without waiting: `None` when there is no room at once.
    pub fn pass_at_once(&self, queue: &str) -> Option<Pass> {
        self.rate_limit.at_once(queue)
    }

    /// Messages that wait until `queue` has room.
    pub fn waiting_for(&self, queue: &str) -> usize {
        self.rate_limit.waiting(queue)
    }
}

/// A message that goes out before a command, in the same round trip.
pub struct First {
    pub message: Outgoing,
    /// Its place in its queue.
    pub pass: Pass,
    pub call_id: String,
}

impl First {
    /// Reports what became of it.
    pub fn end(self, sent: &Result<(), PublishError>) {
        let Err(error) = sent else { return };
        warn!(event = "accepted_not_published", call_id = shown(&self.call_id), %error, "action.accepted not published");
        if error.is_unroutable() {
            self.pass.give_back();
        }
    }
}

fn report(call_id: &str, media_id: &str, command: &'static str, sent: &Result<(), PublishError>) {
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
}

/// Whether the switch reported the recording at all: its start event may have been lost.
pub(super) fn has_begun(entry: &Entry) -> bool {
    entry.started().is_some() || entry.ended().is_some()
}
