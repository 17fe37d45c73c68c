//! Whether a file that the switch uploaded is complete, and may be deleted. A recording that begins at every bridge is appended to the
//! existing file, and the event that would report it may be late, or lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::entry::Entry;
use crate::faults::{Fault, is_back};
use crate::kazoo::channel::ChannelState;
use crate::lifecycle::is_left_open;
use crate::recording::audio::Audio;
use crate::recording::order::Order;

use crate::flow::common::Common;
use crate::flow::effects::calls::Calls;
use crate::flow::memory::CallIds;

/// Time limit for ecallmgrs to say whether a call is alive or over: the switch waits for its answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Within this time no bridge comes and goes unseen between two queries of the call.
const SHORT: Duration = Duration::from_secs(1);

/// A file that is being written grows within this time, unless its leg is on hold: the switch's encoders write at least every 2.1 seconds.
const GROWS_WITHIN: Duration = Duration::from_secs(5);

/// A call has this many moments to hang up.
const HANGS_UP_WITHIN: u32 = 5;
const MOMENT: Duration = Duration::from_millis(200);

/// The state of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    /// An ecallmgr says that the call does not exist, and no ecallmgr knows it.
    Over,
    /// It is not bridged.
    Apart,
    /// It is bridged, or no ecallmgr answers.
    Bridged,
}

/// What ecallmgrs say of channels.
pub trait Channels: Send + Sync {
    /// The state of an order's call.
    fn call(&self, order: &Order) -> impl Future<Output = CallState> + Send;

    /// Whether an ecallmgr says that a leg is gone, and no ecallmgr says that it is alive.
    fn is_gone(&self, leg: &str) -> impl Future<Output = bool> + Send;
}

/// Asks the ecallmgrs.
pub struct Ecallmgrs {
    pub calls: Arc<Calls>,
    pub call_ids: Arc<CallIds>,
}

impl Channels for Ecallmgrs {
    async fn call(&self, order: &Order) -> CallState {
        let call_id = self.call_ids.current(&order.call_id);
        let knowing = timeout(PATIENCE, self.calls.channel_state(&call_id));
        let (known, gone) = tokio::join!(knowing, self.calls.is_gone(&call_id, PATIENCE));
        judged(known.ok().flatten(), gone)
    }

    async fn is_gone(&self, leg: &str) -> bool {
        self.calls.is_gone(leg, PATIENCE).await
    }
}

/// The state of a call before its file was asked for.
pub struct Look {
    at: Instant,
    /// `None`: the switch appends nothing to this recording's file.
    call: Option<CallState>,
}

impl Look {
    /// Whether too much may have happened since.
    fn is_old(&self) -> bool {
        self.call == Some(CallState::Apart) && self.at.elapsed() > MOMENT
    }

    /// Whether such a file can be judged to be complete only when its call is over.
    pub(super) fn awaits(&self, entry: &Entry, audio: &Audio) -> bool {
        let lives = matches!(self.call, Some(CallState::Apart | CallState::Bridged));
        !is_back(Fault::OpenFilesReleased) && lives && entry.order().is_some_and(|order| audio.seems_open(order.format))
    }
}

/// Finds out whether the switch may still write a file.
pub struct Quiescence<C> {
    pub common: Arc<Common>,
    pub channels: C,
}

impl<C: Channels> Quiescence<C> {
    /// Queries the call before its file is asked for.
    pub(super) async fn look_at_call(&self, entry: &Entry) -> Look {
        let call = match entry.order().filter(|order| order.may_begin_again()) {
            Some(order) => Some(self.channels.call(order).await),
            None => None,
        };
        Look {
            at: Instant::now(),
            call,
        }
    }

    /// `look`, or a new one if `look` is too old.
    pub(super) async fn renewed(&self, entry: &Entry, look: Look) -> Look {
        if look.is_old() {
            self.look_at_call(entry).await
        } else {
            look
        }
    }

    /// Queries the call of a recording that has just ended: a call that hangs up stays bridged for some moments more.
    pub(super) async fn look_at_ended_call(&self, entry: &Entry) -> Look {
        for _ in 0..HANGS_UP_WITHIN {
            let look = self.look_at_call(entry).await;
            if look.call != Some(CallState::Bridged) {
                return look;
            }
            tokio::time::sleep(MOMENT).await;
        }
        self.look_at_call(entry).await
    }

    /// Whether nothing can have been appended to the file since `look`. A file that its writer did not close is being written as long as
    /// its call is alive, and may be until the call has been gone for long. It need not grow, because it does not grow while the recorded leg
    /// is on hold.
    pub(super) async fn is_still(&self, entry: &Entry, look: &Look, audio: &Audio) -> bool {
        if look.awaits(entry, audio) {
            return false;
        }
        match (look.call, entry.order()) {
            (None, _) | (_, None) => true,
            // An ecallmgr that has just started says so of every call.
            (Some(CallState::Over), Some(order)) => {
                let open = audio.seems_open(order.format) && !is_back(Fault::OpenFilesReleased);
                let left_open = is_left_open(entry, &self.common.policy);
                (entry.has_hung_up() || left_open)
                    && self.channels.call(order).await == CallState::Over
                    && !(open && (!left_open || self.lives_elsewhere(entry).await))
            }
            (Some(CallState::Bridged), _) => false,
            (Some(CallState::Apart), Some(order)) => {
                self.channels.call(order).await != CallState::Bridged && look.at.elapsed() < SHORT
            }
        }
    }

    /// Whether ecallmgrs say twice that the call is over, and the file was closed. That is no proof that the file may go, but enough to take a
    /// copy of it.
    pub(super) async fn seems_over(&self, entry: &Entry, look: &Look, audio: &Audio) -> bool {
        let Some(order) = entry.order() else { return false };
        look.call == Some(CallState::Over)
            && !audio.seems_open(order.format)
            && self.channels.call(order).await == CallState::Over
    }

    /// Whether another leg is alive that the recording may be on.
    async fn lives_elsewhere(&self, entry: &Entry) -> bool {
        for leg in entry.living_legs() {
            if leg != entry.call_id && !self.channels.is_gone(leg).await {
                return true;
            }
        }
        false
    }

    /// How long to wait before a worker asks again for a file that may have been in writing.
    pub(super) fn until_it_has_grown(&self) -> Duration {
        self.common.policy.probe_gap.min(GROWS_WITHIN)
    }
}

/// `known`: the state of the call, if an ecallmgr answered in time. `gone`: an ecallmgr said that the call does not exist.
fn judged(known: Option<ChannelState>, gone: bool) -> CallState {
    match known {
        Some(state) if state.answered && state.other_leg_call_id.is_some() => CallState::Bridged,
        Some(_) => CallState::Apart,
        None if gone => CallState::Over,
        // No ecallmgr answers. The call may be bridged, and the switch may be writing its file.
        None => CallState::Bridged,
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use crate::config::{Config, Layers};
    use crate::entry::fact::{Fact, What};
    use crate::entry::legs::Leg;
    use crate::flow::common::Tasks;
    use crate::kazoo::dialplan::Trigger;
    use crate::kazoo::envelope::Sender;
    use crate::kazoo::leg::LegEvent;
    use crate::kazoo::time::{Clock, Moment};
    use crate::lifecycle::Policy;
    use crate::lifecycle::tests::{audio, order, told};

    use super::*;

    /// An ecallmgr that says of each call that it does not exist.
    struct Ignorant;

    impl Channels for Ignorant {
        async fn call(&self, _: &Order) -> CallState {
            CallState::Over
        }

        async fn is_gone(&self, _: &str) -> bool {
            true
        }
    }

    /// An ecallmgr that has just started says that of calls that are alive, and at the next bridge the switch records into the file again.
    #[tokio::test]
    async fn a_file_of_bridges_may_go_only_after_a_hang_up_or_a_long_time() {
        let config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
        let policy = Policy::of(&config, "w".into());
        let tasks = Tasks::new(TaskTracker::new(), CancellationToken::new());
        let quiescence = Quiescence {
            common: Arc::new(Common {
                sender: Sender { node: "n".into() },
                clock: Clock::default(),
                policy: policy.clone(),
                config,
                tasks,
            }),
            channels: Ignorant,
        };
        let grace = policy.grace.as_secs();
        for (hung_up, gone_for, may_go) in [
            (Some(true), 0, true),
            (Some(false), 0, false),
            (None, 0, false),
            (None, 2 * grace, false),
            (None, 16 * grace, true),
        ] {
            let mut order = order();
            order.command.as_mut().unwrap().trigger = Trigger::Bridge;
            let began = order.asked_at;
            let mut entry = Entry::of_order(order, "w");
            let mut end = told(5000);
            end.hung_up = hung_up;
            let looks = [(1, 0), (2, gone_for)];
            let looks = looks.map(|(n, second)| (20 + second, What::ChannelSeen { n, alive: false }));
            for (second, what) in [(1, What::Started(told(0))), (6, What::Ended(end))]
                .into_iter()
                .chain(looks)
            {
                let (at, by): (Moment, _) = (began.plus(Duration::from_secs(second)), "w".to_owned());
                entry.add(Fact { at, by, what });
            }
            let look = quiescence.look_at_call(&entry).await;
            let still = quiescence.is_still(&entry, &look, &audio(5000)).await;
            assert_eq!(still, may_go, "hung up: {hung_up:?}, gone for {gone_for} s");
        }
    }

    /// The end was lost, and presumed. The events of the legs' ends arrived.
    #[test]
    fn a_call_whose_legs_are_all_gone_has_hung_up() {
        let gone = |call_id: &str| {
            What::Leg(Box::new(Leg {
                call_id: call_id.into(),
                event: LegEvent::Gone,
                other: None,
                control: None,
                was_answered: None,
                stamp: None,
            }))
        };
        let mut start = told(0);
        start.other_leg_call_id = Some("other".into());
        for (legs, hung_up) in [
            (vec![], false),
            (vec!["call"], false),
            (vec!["other"], false),
            (vec!["other", "call"], true),
        ] {
            let mut entry = Entry::of_order(order(), "w");
            let legs = legs.iter().map(|leg| gone(leg));
            for what in [What::Started(start.clone()), What::PresumedEnded(start.clone())]
                .into_iter()
                .chain(legs)
            {
                let (at, by) = (order().asked_at, "w".to_owned());
                entry.add(Fact { at, by, what });
            }
            assert_eq!(entry.has_hung_up(), hung_up);
        }
    }

    #[test]
    fn a_call_of_which_no_ecallmgr_tells_is_not_over() {
        let known = |answered, other: Option<&str>| {
            let other_leg_call_id = other.map(str::to_owned);
            Some(ChannelState {
                answered,
                other_leg_call_id,
            })
        };
        assert_eq!(
            judged(None, false),
            CallState::Bridged,
            "silence tells nothing: its file may be written"
        );
        assert_eq!(judged(None, true), CallState::Over);
        assert_eq!(judged(known(true, Some("b")), false), CallState::Bridged);
        assert_eq!(
            judged(known(false, Some("b")), false),
            CallState::Apart,
            "not answered: nothing is recorded yet"
        );
        assert_eq!(
            judged(known(true, None), true),
            CallState::Apart,
            "one ecallmgr knows it, whatever another says"
        );
    }
}
