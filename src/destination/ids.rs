//! The ids that a recording's document may have.

use crate::recording::audio::Audio;
use crate::recording::identity::MediaId;
use crate::recording::order::Order;

/// The result of `ids`, and one more id. It is used if other audio of the same recording is there already,
/// so that both are kept.
pub(super) fn ids_with_other(order: &Order, audio: &Audio) -> Vec<MediaId> {
    let mut ids = ids(order);
    let other = order.key.of_audio(&audio.digests.sha256);
    ids.push(MediaId::derived(other, order.asked_at));
    ids
}

/// The ids that the document may have, in order: the ordered one, then the derived one.
pub(super) fn ids(order: &Order) -> Vec<MediaId> {
    let derived = MediaId::derived(order.key, order.asked_at);
    let ordered = order.media_id.clone();
    if ordered == derived {
        vec![ordered]
    } else {
        vec![ordered, derived]
    }
}
