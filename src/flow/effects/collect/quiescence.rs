//! Whether a file that the switch uploaded is complete, and may be deleted. A recording that begins at every bridge is appended to the
//! existing file, and the event that would report it may be late, or lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::entry::Entry;
use crate::kazoo::channel::ChannelState;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// An ecallmgr says that the call does not exist, and no ecallmgr knows it.
    Over,
    Apart,
    Bridged,
}

/// The state of a call before its file was asked for.
pub struct Look {
    at: Instant,
    /// `None`: the switch appends nothing to this recording's file.
    call: Option<Call>,
}

impl Look {
    /// Whether too much may have happened since.
    fn is_old(&self) -> bool {
        self.call == Some(Call::Apart) && self.at.elapsed() > MOMENT
    }

    /// Whether such a file can be judged to be complete only when its call is over.
    pub(super) fn awaits(&self, entry: &Entry, audio: &Audio) -> bool {
        let lives = matches!(self.call, Some(Call::Apart | Call::Bridged));
        lives && entry.order().is_some_and(|order| audio.seems_open(order.format))
    }
}

/// Finds out whether the switch may still write a file.
pub struct Quiescence {
    pub common: Arc<Common>,
    pub calls: Arc<Calls>,
    pub call_ids: Arc<CallIds>,
}

impl Quiescence {
    /// Queries the call before its file is asked for.
    pub(super) async fn look_at_call(&self, entry: &Entry) -> Look {
        let call = match entry.order().filter(|order| order.may_begin_again()) {
            Some(order) => Some(self.call(order).await),
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
            if look.call != Some(Call::Bridged) {
                return look;
            }
            tokio::time::sleep(MOMENT).await;
        }
        self.look_at_call(entry).await
    }

    /// Whether nothing can have been appended to the file since `look`. A file that its writer did not close is being written as long as
    /// its call is alive. It need not grow, because it does not grow while the recorded leg is on hold.
    pub(super) async fn is_still(&self, entry: &Entry, look: &Look, audio: &Audio) -> bool {
        if look.awaits(entry, audio) {
            return false;
        }
        match (look.call, entry.order()) {
            (None, _) | (_, None) => true,
            // `look` was one answer, a while ago. An ecallmgr that has just started says so of calls that it has not learned of yet.
            (Some(Call::Over), Some(order)) => {
                self.call(order).await == Call::Over
                    && !(audio.seems_open(order.format) && self.lives_elsewhere(entry).await)
            }
            (Some(Call::Bridged), _) => false,
            (Some(Call::Apart), Some(order)) => self.call(order).await != Call::Bridged && look.at.elapsed() < SHORT,
        }
    }

    /// Whether another leg is alive that the recording may be on.
    async fn lives_elsewhere(&self, entry: &Entry) -> bool {
        for leg in entry.living_legs() {
            if leg != entry.call_id && !self.calls.is_gone(leg, PATIENCE).await {
                return true;
            }
        }
        false
    }

    /// How long to wait before a worker asks again for a file that may have been in writing.
    pub(super) fn until_it_has_grown(&self) -> Duration {
        self.common.policy.probe_gap.min(GROWS_WITHIN)
    }

    async fn call(&self, order: &Order) -> Call {
        let call_id = self.call_ids.current(&order.call_id);
        let knowing = timeout(PATIENCE, self.calls.channel_state(&call_id));
        let (known, gone) = tokio::join!(knowing, self.calls.is_gone(&call_id, PATIENCE));
        judged(known.ok().flatten(), gone)
    }
}

/// `known`: the state of the call, if an ecallmgr answered in time. `gone`: an ecallmgr said that the call does not exist.
fn judged(known: Option<ChannelState>, gone: bool) -> Call {
    match known {
        Some(state) if state.answered && state.other_leg_call_id.is_some() => Call::Bridged,
        Some(_) => Call::Apart,
        None if gone => Call::Over,
        // No ecallmgr answers. The call may be bridged, and the switch may be writing its file.
        None => Call::Bridged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Call::Bridged,
            "silence tells nothing: its file may be written"
        );
        assert_eq!(judged(None, true), Call::Over);
        assert_eq!(judged(known(true, Some("b")), false), Call::Bridged);
        assert_eq!(
            judged(known(false, Some("b")), false),
            Call::Apart,
            "not answered: nothing is recorded yet"
        );
        assert_eq!(
            judged(known(true, None), true),
            Call::Apart,
            "one ecallmgr knows it, whatever another says"
        );
    }
}
