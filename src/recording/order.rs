//! The order: all values that an action fixed for its recording. It is kept until the recording is closed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kazoo::address::Address;
use crate::kazoo::call::Parties;
use crate::kazoo::dialplan::{self, RecordStart, Silence, Trigger};
use crate::kazoo::envelope::Sender;
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::Moment;

use super::adopt::Adopted;
use super::carry;
use super::ending::Told;
use super::format::Format;
use super::identity::{Key, MediaId};
use super::names;
use super::settings::Method;

/// The order of a recording. `plan` makes it from an action, or it is read from the recording context that the switch returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub key: Key,
    /// The recording's id on the switch. The document has it too, unless another recording has that id already.
    pub media_id: MediaId,
    /// The call's id when the action ran.
    pub call_id: String,
    /// The raw account id. Absent when the action has no usable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    /// Our zone when the action ran. The call's broker is the one of this zone.
    #[serde(default)]
    pub zone: String,
    /// The file's base name on the switch.
    pub file_name: String,
    /// The document's and the attachment's name.
    pub media_name: String,
    pub format: Format,
    /// `callflow : ` and the label, else the flow's name, else `unnamed`.
    pub origin: String,
    #[serde(default)]
    pub method: Method,
    #[serde(default)]
    pub url: Url,
    /// Seconds; a shorter recording is discarded.
    #[serde(default)]
    pub min_sec: u32,
    pub asked_at: Moment,
    #[serde(default)]
    pub parties: Parties,
    /// In a continuation: the recording that it continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
    /// The W3C context of the action's message, or of its handling: `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// The data for commands to the recording. Absent in an order that the switch returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Set for a recording that Kazoo's own recorder would have stored, and that the worker stores in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// Origin of a continuation: the switch started again to record into the file of a recording whose audio was safe already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continues {
    pub key: Key,
    pub media_id: MediaId,
    /// The number of this recording within its action. The first is 1.
    pub part: u32,
    /// Milliseconds of the audio of the recording before, as far as they were counted. The file may begin with that audio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_ms: Option<u64>,
}

/// The user's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Url {
    #[default]
    None,
    Given(String),
    /// There was a URL that was too long for the recording context, and no other copy of it is left.
    Lost,
}

/// The data for commands to the recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The address of the control process, as the action contains it.
    pub control: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_id: Option<String>,
    pub trigger: Trigger,
    /// Seconds.
    pub time_limit: u32,
    pub follow_transfer: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_rate: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Two channels. This is Kazoo's own default, so it applies to an order without a value.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub stereo: bool,
    /// The sealed recording context.
    pub carry: String,
    /// The call's switch when the action ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The expected path of the file on the switch, in case no event reports it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

const fn yes() -> bool {
    true
}

const fn is_yes(value: &bool) -> bool {
    *value
}

impl Order {
    /// Whether silence ended the recording. The action must have enabled silence detection, as far as the order still shows that.
    pub fn ends_by_silence(&self, ended: &Told) -> bool {
        let asked = self.command.as_ref().is_none_or(|command| command.silence.is_some());
        asked && ended.is_by_silence()
    }

    /// The start command, for the call's present id. `None` when the order came from the switch.
    pub fn start(&self, call_id: &str) -> Option<RecordStart> {
        let command = self.command.as_ref()?;
        Some(RecordStart {
            call_id: call_id.to_owned(),
            media_name: self.file_name.clone(),
            media_id: self.media_id.to_string(),
            time_limit: command.time_limit,
            follow_transfer: command.follow_transfer,
            min_sec: self.min_sec,
            sample_rate: command.sample_rate,
            silence: command.silence,
            stereo: command.stereo,
            carry: command.carry.clone(),
        })
    }

    /// Whether the switch may start the recording again by itself, at each later bridge, as far as is known.
    pub fn may_begin_again(&self) -> bool {
        if let Some(adopted) = &self.adopted {
            return adopted.at_bridges;
        }
        let at_bridge = |command: &Command| command.trigger == Trigger::Bridge;
        self.command.as_ref().is_none_or(at_bridge)
    }

    /// Whether the switch is known to start the recording again at each bridge.
    pub fn begins_at_bridges(&self) -> bool {
        self.command.is_some() && self.may_begin_again()
    }

    /// Whether the switch surely writes the recording's file once, and no other recording has a file of its name.
    pub fn is_written_once(&self) -> bool {
        self.adopted.is_none() && !self.may_begin_again()
    }

    /// Whether a path from an event can be the one of the recording's file on its switch.
    pub fn is_path(&self, path: &str) -> bool {
        match self.adopted {
            // A callflow may have chosen the name.
            Some(_) => names::is_path_to(path, &self.file_name),
            None => names::is_path_of(path, &self.file_name),
        }
    }

    /// The recording's time limit, in seconds, as far as is known.
    pub fn time_limit(&self) -> Option<u32> {
        let adopted = self.adopted.as_ref().and_then(|adopted| adopted.time_limit);
        self.command.as_ref().map(|command| command.time_limit).or(adopted)
    }

    /// The start command's message, for the call's present id and the given trigger. `None` when the order came from the switch.
    pub fn command(&self, sender: &Sender, call_id: &str, trigger: Trigger) -> Option<Outgoing> {
        let (start, to) = self.start(call_id).zip(self.control())?;
        Some(dialplan::start(sender, &to, &self.command_id(), &start, trigger))
    }

    /// The command that sets on the call's channel whether its recordings follow a transfer. `None` when the order came from the switch.
    pub fn follow_transfer(&self, sender: &Sender, call_id: &str) -> Option<Outgoing> {
        let (command, to) = self.command.as_ref().zip(self.control())?;
        let id = self.key.derived("follow transfer");
        Some(dialplan::follow_transfer(
            sender,
            &to,
            &id,
            call_id,
            command.follow_transfer,
        ))
    }

    /// Whether each value stays a single word on the switch's command line. This holds for each order that the worker makes.
    pub fn is_harmless(&self) -> bool {
        self.command.as_ref().is_none_or(|command| {
            let carry = command.carry.bytes();
            names::is_plain(&self.file_name)
                && command.carry.len() <= carry::MAX_BYTES
                && carry
                    .into_iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
    }

    /// The address of the call's control process, as the action contains it.
    pub fn control(&self) -> Option<Address> {
        Address::parse(&self.command.as_ref()?.control).ok()
    }

    /// The order of this recording's continuation. Each worker derives the same order at any time.
    #[must_use]
    pub fn continuation(&self) -> Self {
        self.followed_by(self.key.continuation())
    }

    /// The order of other audio with the same name. Each worker derives the same order at any time.
    #[must_use]
    pub fn of_audio(&self, sha256: &str) -> Self {
        self.followed_by(self.key.of_audio(sha256))
    }

    fn followed_by(&self, key: Key) -> Self {
        // The time makes it the newest, which a stop looks for. The file keeps its name, by which the switch knows it.
        let asked_at = self.asked_at.plus(Duration::from_micros(1));
        let part = self
            .continues
            .as_ref()
            .map_or(1, |before| before.part)
            .saturating_add(1);
        let derived = self.media_name == self.file_name;
        Self {
            key,
            media_id: MediaId::derived(key, self.asked_at),
            media_name: if derived {
                names::file_name(key, self.format)
            } else {
                self.media_name.clone()
            },
            asked_at,
            continues: Some(Continues {
                key: self.key,
                media_id: self.media_id.clone(),
                part,
                before_ms: None,
            }),
            ..self.clone()
        }
    }

    /// The `Msg-ID` of the start command. It is the same in each repeat, so that an error can be assigned to its recording.
    pub fn command_id(&self) -> String {
        self.key.derived("command")
    }
}
