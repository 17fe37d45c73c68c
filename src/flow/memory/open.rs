//! A running recording, in the form that workers tell each other.

use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::kazoo::time::Moment;
use crate::recording::identity::Key;

/// An open recording, with what its control needs. Notices between workers contain it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub key: Key,
    pub call_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_id: Option<String>,
    pub media_id: String,
    /// The file on the switch, by which the switch knows the recording.
    pub file_name: String,
    /// `Call-Interaction-ID`, which the call's other legs share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interaction: Option<String>,
    pub asked_at: Moment,
    /// A stop was sent. Another stop is for the recording before it.
    #[serde(default)]
    pub stopping: bool,
    /// Its action said that it does not go along with a transfer, and the call's channel was set so.
    #[serde(default)]
    pub stays: bool,
    /// In the notice of an end: the end, in the switch's order. Earlier versions send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<i64>,
}

impl Open {
    /// The `Open` of an entry; `None` if its order is unknown. `None` also for a recording that Kazoo's own recorder began: no action of
    /// ours is for it.
    pub fn of(entry: &Entry) -> Option<Self> {
        Self::of_any(entry).filter(|_| !entry.is_adopted())
    }

    pub(super) fn of_any(entry: &Entry) -> Option<Self> {
        let order = entry.order()?;
        Some(Self {
            key: order.key,
            call_id: order.call_id.clone(),
            fetch_id: order.command.as_ref().and_then(|command| command.fetch_id.clone()),
            media_id: order.media_id.to_string(),
            file_name: order.file_name.clone(),
            interaction: entry.interaction().map(str::to_owned),
            asked_at: order.asked_at,
            stopping: entry.stop_asked_at().is_some(),
            stays: order.command.as_ref().is_some_and(|command| !command.follow_transfer),
            ended: None,
        })
    }
}
