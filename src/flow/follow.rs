//! Whether a recording goes along when its leg transfers the call. At the transfer the switch reads the channel's own variables, and its
//! global ones if the channel has none. It does not read the start command then. So the channel's variable is set before the recording
//! begins.

use tracing::warn;

use crate::recording::order::Order;

use super::perform::Parts;

impl Parts {
    /// Sets the call's channel to what the order says, unless that is the switch's default. The recording begins whatever the result is.
    pub(super) async fn set_follow(&self, order: &Order, call_id: &str) {
        let Some(follow) = order.command.as_ref().map(|command| command.follow_transfer) else {
            return;
        };
        // False is always sent, because another action of the call may have set its channel to true. True is sent only if the channel may
        // have false.
        let may_be_false = !self.common.config.kazoo.follow_transfers || self.registry.is_unfollowing(&order.call_id);
        if follow && !may_be_false {
            return;
        }
        let Some(message) = order.follow_transfer(&self.common.sender, call_id) else {
            return;
        };
        let _pass = self.keep_pace(&message.routing_key).await;
        let media_id = order.media_id.as_str();
        if let Err(error) = self.send(call_id, media_id, "set", &message).await {
            warn!(
                event = "follow_transfer_not_set",
                call_id,
                media_id,
                follow,
                %error,
                "follow_transfer not set on the channel"
            );
        }
    }
}
