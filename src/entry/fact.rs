//! The facts of an entry.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::audio::Audio;
use crate::recording::controls::Why;
use crate::recording::ending::Told;
use crate::recording::identity::MediaId;
use crate::recording::order::Order;

use super::cause::{Cause, Outcome};
pub use super::failure::{CollectFailure, DeliveryFailure};
use super::legs::Leg;
pub use super::object::StoredObject;
pub use super::places::{Description, Destination, Holding};
pub use super::watched::KazooCopy;
use super::webhooks::{Attempted, Given, Owed, Refused};

/// Something that happened, when it happened, and which worker saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    pub at: Moment,
    pub by: String,
    #[serde(flatten)]
    pub what: What,
}

/// The `start` of a command whose sender had heard of no start.
pub const BEFORE_ANY_START: i64 = 0;

/// What happened. A fact that can happen again has a number, so that each time is a fact of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", content = "of", rename_all = "snake_case")]
pub enum What {
    /// An action ordered the recording.
    Asked(Box<Order>),
    /// The broker has the start command.
    Commanded,
    /// The start command could not be delivered: the call's control queue is gone.
    CommandLost { why: String },
    /// Call control refused the start command.
    CommandRefused { why: String },
    /// The switch began to record.
    Started(Box<Told>),
    /// A worker knew of the recording only from another worker's notice. The time of this fact is the time when the recording's action was
    /// read.
    HeardOf { media_id: String },
    /// An action asked to stop the recording. The fact has the action's id, so that a repeat of the action is the same fact.
    StopAsked {
        action: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<Route>,
    },
    /// The action `action`, which asked to stop, had been sent at `asked` by its sender's clock, a while before a worker could carry it out.
    /// Earlier versions ignore this fact.
    StopDelayed { action: String, asked: Moment },
    /// The n-th stop command was sent. `start`: the newest start that its sender knew, in the switch's order. The broker has the command, unless
    /// `Returned` says otherwise.
    StopSent {
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<i64>,
    },
    /// The switch has not ended the recording, although a stop was sent.
    StopUnconfirmed,
    /// An action asked to mask (`on`) or unmask the audio. `asked`: when it was sent, by its sender's clock. The newest action counts.
    MaskAsked {
        action: String,
        on: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked: Option<Moment>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<Route>,
    },
    /// The broker has the command that masks (`on`) or unmasks the audio. `n` is 0 for the action's own command, and higher for commands
    /// that followed a later start. `start` is as with stops, or `BEFORE_ANY_START` if the sender knew no start. `sender`: the worker that
    /// sent it, so that a second worker's command of the same action is a fact of its own. Earlier versions noted no sender.
    Masked {
        action: String,
        on: bool,
        #[serde(default, skip_serializing_if = "is_zero")]
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<i64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
    },
    /// The mask or unmask of an action had no effect, as far as is known.
    NotObeyed { action: String, what: Control, why: Why },
    /// A worker is about to send the command of an action that masks (`on`) or unmasks. Without `MaskAsked` of the same action the worker was
    /// killed before it noted the result: the switch has the command, or not. Earlier versions ignore this fact.
    Intended {
        action: String,
        on: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked: Option<Moment>,
    },
    /// The broker returned the n-th stop command, or a command of this action that masks or unmasks: no queue takes it. Earlier versions ignore
    /// this fact.
    Returned {
        what: Control,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        action: String,
        #[serde(default, skip_serializing_if = "is_zero")]
        n: u32,
    },
    /// The document contains what became known of stops and masks after it was written. With `unsaid` it does not, for that reason, and
    /// never will.
    Amended {
        n: u32,
        controls: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsaid: Option<String>,
    },
    /// A worker queried the channel. `alive` when an ecallmgr knows it, or when no ecallmgr answered.
    ChannelSeen { n: u32, alive: bool },
    /// A worker learned of a leg that the recording is on, or may be on.
    Leg(Box<Leg>),
    /// A worker read the whole file on the switch, and left it there.
    Probed {
        n: u32,
        size: u64,
        md5: String,
        /// The file's format shows that its writer has not closed it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        open: bool,
    },
    /// The switch ended the recording.
    Ended(Box<Told>),
    /// No event reported the end, but it must have come.
    PresumedEnded(Box<Told>),
    /// Where the audio goes. It is decided anew when an operator retries the recording.
    Decided {
        n: u32,
        destination: Destination,
        /// Attempts that the account, or the system, allows; `None`: as many as the daemon's own retry schedule has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempts: Option<u32>,
    },
    /// Nothing is attempted before `until`, and that counts as no failure. The circuit breaker of the target is open, or the destination
    /// cannot be decided yet.
    Postponed { n: u32, until: Moment, why: String },
    /// The switch did not upload its file.
    CollectFailed {
        attempt: u32,
        failure: CollectFailure,
        why: String,
    },
    /// A worker received the whole file.
    Collected(Audio),
    /// The audio is in the hold: off the switch, and off this host.
    Held { n: u32, holding: Holding },
    /// The document exists, without audio, because the audio goes to another place.
    Documented(Document),
    /// The audio is at its destination. Its document must still say so.
    Uploaded {
        url: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// The audio is in the object store of a storage plan. Its document does not say so yet. Earlier versions ignore this fact, and have
    /// Kazoo's store proxy put the audio there again, under the same name.
    ObjectStored(Box<StoredObject>),
    /// An attempt to deliver failed.
    DeliveryFailed {
        attempt: u32,
        destination: Destination,
        failure: DeliveryFailure,
        why: String,
        /// The target asked for this delay, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u64>,
    },
    /// Document and audio are at their destination.
    Delivered(Box<Delivery>),
    /// A worker read back a delivery that a server with too few copies took. It is there, or `why` says what is wrong.
    Looked {
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
        /// The server did not answer, which says nothing about the copy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unanswered: bool,
        /// It was there, and a user has deleted it since.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        deleted: bool,
    },
    /// Attempts are over until an operator retries the recording, or discards it.
    Parked {
        n: u32,
        cause: Cause,
        /// With `not_collected`: how many ends the switch had reported. A later report resumes the recording. Earlier versions noted none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends: Option<u32>,
    },
    /// The document that came before the audio says that the recording is parked.
    Marked { n: u32 },
    /// An operator retries the recording: attempts start again.
    Retried {
        n: u32,
        /// The numbers from which attempts count again; `None`: an older version wrote this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
    },
    /// The program panicked on the recording: a fault of the program, not of what it attempted.
    Panicked { n: u32, why: String },
    /// The recording ends without a delivery.
    Concluded { outcome: Outcome, cause: Cause },
    /// The broker confirmed a notice.
    Announced(Announcement),
    /// The broker confirmed the notice of a later parking, with the parking's number. Each parking is announced.
    RestAnnounced { n: u32 },
    /// The broker confirmed the notice of an outcome whose cause differs from that of the same outcome before.
    CauseAnnounced { cause: Cause },
    /// The audio's copy was removed from the hold.
    Unheld { n: u32 },
    /// A worker released the file: it answered the switch that the file need not be kept any more.
    Released { n: u32 },
    /// A worker asked the switch once more for a file that was never released. `left` says why the file may still be there.
    Tidied {
        n: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        left: Option<String>,
        /// The switch could not open the file.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        missing: bool,
    },
    /// Misattributed audio in the hold was split off into a recording of its own. A worker that did not know the other facts had put it
    /// there.
    Separated { name: String },
    /// Events of parts that are not in this recording's audio were handed to its continuation: this many events.
    Continued { told: u32 },
    /// Kazoo's own recorder is to store the recording, and had not done so at the first look. The worker looks again until `due`, when Kazoo's
    /// own recorder tries no more.
    Watched { due: Moment },
    /// A worker looked whether Kazoo's own recorder has stored the recording, and it had not. `last`: at `due` or later.
    Sought {
        n: u32,
        found: KazooCopy,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
    /// An outcome was published, and these endpoints of operators must get it too. Earlier versions ignore this fact and the next ones.
    WebhooksOwed(Box<Owed>),
    /// An endpoint has accepted the notice.
    WebhookSent(Given),
    /// An endpoint has not accepted the notice.
    WebhookFailed(Refused),
    /// Attempts to send the notice are over until an operator retries it.
    WebhookParked(Attempted),
    /// An operator retries the notice.
    WebhookRetried(Attempted),
    /// Nothing is left to do.
    Closed,
}

/// The first numbers that count after an operator's retry. Never times, because an operator's clock is another one than a worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub attempt: u32,
    pub postponed: u32,
    #[serde(default)]
    pub panicked: u32,
}

/// Where the command of an action goes: the call's control process at that time, and the call's id there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The address, as the action wrote it.
    pub control: String,
    pub call_id: String,
}

const fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A document that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The order's id, unless another recording had that one.
    pub id: MediaId,
    /// The database's name in CouchDB, without our prefix.
    pub database: String,
    pub rev: String,
    /// `pvt_created`.
    pub created: Moment,
}

/// A delivery that was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub destination: Destination,
    #[serde(flatten)]
    pub document: Document,
    /// The digest of the audio that is there, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The server had fewer copies than its quorum when it answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub below_quorum: bool,
    /// The audio as its document describes it and its attachment proves it. Set when the delivery was found, not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<Audio>,
    /// A user has deleted it there since. The document stays deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// Kazoo's store proxy delivered it, and has published the document's edit (`kzs_attachments`). It must not be published twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub edit_told: bool,
    /// What the document says of stops and masks; see `Controls::fingerprint`. Absent if an earlier version wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controls: Option<String>,
    /// The number of the last read-back that had not found it before this delivery. More than 0: it was delivered again. Earlier versions wrote
    /// how many such read-backs there were, which is no higher.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again: u32,
}

/// A notice that Kazoo, or another consumer, depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    /// Kazoo's `doc_created`.
    DocumentCreated,
    /// Kazoo's `doc_edited`, once a document that came first is complete.
    DocumentEdited,
    /// Our own event, for this outcome.
    Outcome(Outcome),
}

impl Announcement {
    pub const NAMES: [&str; 3] = ["doc_created", "doc_edited", "outcome"];

    pub const fn name(self) -> &'static str {
        match self {
            Self::DocumentCreated => "doc_created",
            Self::DocumentEdited => "doc_edited",
            Self::Outcome(_) => "outcome",
        }
    }
}

impl What {
    pub fn delivered(delivery: Delivery) -> Self {
        Self::Delivered(Box::new(delivery))
    }

    /// The number of a failed attempt to deliver the audio.
    pub const fn attempt(&self) -> Option<u32> {
        match self {
            Self::CollectFailed { attempt, .. } | Self::DeliveryFailed { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// The number that distinguishes the occurrences of a fact that can happen again.
    pub const fn number(&self) -> Option<u32> {
        match self {
            Self::ChannelSeen { n, .. }
            | Self::Probed { n, .. }
            | Self::StopSent { n, .. }
            | Self::Amended { n, .. }
            | Self::Held { n, .. }
            | Self::Unheld { n }
            | Self::Parked { n, .. }
            | Self::Decided { n, .. }
            | Self::Postponed { n, .. }
            | Self::Looked { n, .. }
            | Self::Marked { n }
            | Self::RestAnnounced { n }
            | Self::Released { n }
            | Self::Tidied { n, .. }
            | Self::Sought { n, .. }
            | Self::Retried { n, .. }
            | Self::Panicked { n, .. } => Some(*n),
            Self::CollectFailed { attempt, .. } | Self::DeliveryFailed { attempt, .. } => Some(*attempt),
            Self::ObjectStored(object) => Some(object.attempt),
            Self::Continued { told } => Some(*told),
            Self::WebhooksOwed(owed) => Some(owed.n),
            _ => None,
        }
    }

    /// Every kind that this version knows.
    pub const KINDS: &'static [&'static str] = &[
        "asked",
        "commanded",
        "command_lost",
        "command_refused",
        "started",
        "stop_asked",
        "stop_delayed",
        "stop_sent",
        "stop_unconfirmed",
        "heard_of",
        "mask_asked",
        "masked",
        "not_obeyed",
        "intended",
        "returned",
        "amended",
        "channel_seen",
        "leg",
        "probed",
        "ended",
        "presumed_ended",
        "decided",
        "postponed",
        "collect_failed",
        "collected",
        "held",
        "documented",
        "uploaded",
        "object_stored",
        "delivery_failed",
        "delivered",
        "looked",
        "parked",
        "marked",
        "retried",
        "panicked",
        "concluded",
        "announced",
        "rest_announced",
        "cause_announced",
        "unheld",
        "released",
        "tidied",
        "separated",
        "continued",
        "watched",
        "sought",
        "webhooks_owed",
        "webhook_sent",
        "webhook_failed",
        "webhook_parked",
        "webhook_retried",
        "closed",
    ];

    /// The kind, which limits are counted by, and which is shown to people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Asked(_) => "asked",
            Self::Commanded => "commanded",
            Self::CommandLost { .. } => "command_lost",
            Self::CommandRefused { .. } => "command_refused",
            Self::Started(_) => "started",
            Self::StopAsked { .. } => "stop_asked",
            Self::StopDelayed { .. } => "stop_delayed",
            Self::StopSent { .. } => "stop_sent",
            Self::StopUnconfirmed => "stop_unconfirmed",
            Self::HeardOf { .. } => "heard_of",
            Self::MaskAsked { .. } => "mask_asked",
            Self::Masked { .. } => "masked",
            Self::NotObeyed { .. } => "not_obeyed",
            Self::Intended { .. } => "intended",
            Self::Returned { .. } => "returned",
            Self::Amended { .. } => "amended",
            Self::ChannelSeen { .. } => "channel_seen",
            Self::Leg(_) => "leg",
            Self::Probed { .. } => "probed",
            Self::Ended(_) => "ended",
            Self::PresumedEnded(_) => "presumed_ended",
            Self::Decided { .. } => "decided",
            Self::Postponed { .. } => "postponed",
            Self::CollectFailed { .. } => "collect_failed",
            Self::Collected(_) => "collected",
            Self::Held { .. } => "held",
            Self::Documented(_) => "documented",
            Self::Uploaded { .. } => "uploaded",
            Self::ObjectStored(_) => "object_stored",
            Self::DeliveryFailed { .. } => "delivery_failed",
            Self::Delivered(_) => "delivered",
            Self::Looked { .. } => "looked",
            Self::Parked { .. } => "parked",
            Self::Marked { .. } => "marked",
            Self::Retried { .. } => "retried",
            Self::Panicked { .. } => "panicked",
            Self::Concluded { .. } => "concluded",
            Self::Announced(_) => "announced",
            Self::RestAnnounced { .. } => "rest_announced",
            Self::CauseAnnounced { .. } => "cause_announced",
            Self::Unheld { .. } => "unheld",
            Self::Released { .. } => "released",
            Self::Tidied { .. } => "tidied",
            Self::Separated { .. } => "separated",
            Self::Continued { .. } => "continued",
            Self::Watched { .. } => "watched",
            Self::Sought { .. } => "sought",
            Self::WebhooksOwed(_) => "webhooks_owed",
            Self::WebhookSent(_) => "webhook_sent",
            Self::WebhookFailed(_) => "webhook_failed",
            Self::WebhookParked(_) => "webhook_parked",
            Self::WebhookRetried(_) => "webhook_retried",
            Self::Closed => "closed",
        }
    }
}

impl Fact {
    /// A total order, so that every worker sorts in the same way: by time, then kind, then worker, then content.
    pub fn order(&self, other: &Self) -> Ordering {
        self.at
            .cmp(&other.at)
            .then_with(|| self.what.kind().cmp(other.what.kind()))
            .then_with(|| self.by.cmp(&other.by))
            .then_with(|| match self.what == other.what {
                true => Ordering::Equal,
                false => format!("{:?}", self.what).cmp(&format!("{:?}", other.what)),
            })
    }
}
