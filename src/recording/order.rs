//! The order: all that an action fixed about its recording, kept until the recording is closed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kazoo::address::Address;
use crate::kazoo::call::Parties;
use crate::kazoo::dialplan::{self, RecordStart, Silence, Trigger};
use crate::kazoo::envelope::Sender;
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::Moment;

use super::carry;
use super::ending::Told;
use super::format::Format;
use super::identity::{Key, MediaId};
use super::names;
use super::settings::Method;

/// What was ordered. Made by `plan` from an action, or read back from what the recording carried through the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub key: Key,
    /// The id that the recording has on the switch, and its document unless another recording has that id already.
    pub media_id: MediaId,
    /// The call's id when the action ran.
    pub call_id: String,
    /// The raw account id; absent when the action named none that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    /// Our zone when the action ran: the one whose broker the call lives on.
    #[serde(default)]
    pub zone: String,
    /// The file's base name on the switch.
    pub file_name: String,
    /// The document's and the attachment's name.
    pub media_name: String,
    pub format: Format,
    /// `callflow : <label>`.
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
    /// Of a continuation: the recording that it goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
    /// The W3C context that the action's message came with, or that its handling began: `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What it takes to command the recording; absent in an order that came back from the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
}

/// Where a continuation comes from: the switch began to record again into the file of a recording whose audio was safe already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continues {
    pub key: Key,
    pub media_id: MediaId,
    /// Which recording of the action this is; its first is 1.
    pub part: u32,
}

/// The user's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Url {
    #[default]
    None,
    Given(String),
    /// There was one, too long to be carried through the switch, and nobody else remembers it.
    Lost,
}

/// How the recording is commanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The control process' address, as written in the action.
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
    /// Two channels. Kazoo's own default, so an order that does not say has them.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub stereo: bool,
    /// The sealed field that the recording carries.
    pub carry: String,
    /// The switch that the call was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where the file should be on it, should nobody ever tell.
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
    /// Whether silence ended it: the switch must have been asked to listen for that, as far as the order still tells.
    pub fn ends_by_silence(&self, ended: &Told) -> bool {
        let asked = self.command.as_ref().is_none_or(|command| command.silence.is_some());
        asked && ended.is_by_silence()
    }

    /// The start command for the call's id as it is now; `None` when the order came back from the switch.
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

    /// Whether the switch may begin it again by itself, as far as is known: at every bridge that comes.
    pub fn may_begin_again(&self) -> bool {
        let at_bridge = |command: &Command| command.trigger == Trigger::Bridge;
        self.command.as_ref().is_none_or(at_bridge)
    }

    /// Whether it is known that the switch begins it again at every bridge.
    pub fn begins_at_bridges(&self) -> bool {
        self.command.is_some() && self.may_begin_again()
    }

    /// The start command as it is sent, for the call's id as it is now and whenever it is to take effect; `None` when the order came back from
    /// the switch.
    pub fn command(&self, sender: &Sender, call_id: &str, trigger: Trigger) -> Option<Outgoing> {
        let (start, to) = self.start(call_id).zip(self.control())?;
        Some(dialplan::start(sender, &to, &self.command_id(), &start, trigger))
    }

    /// The command that sets on the call's channel whether its recordings go along with a transfer; `None` when the order came back from the switch.
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

    /// Whether nothing in it would be more than a word on the switch's command line; so it is with every order that we make.
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

    /// The address of the call's control process, as the action wrote it.
    pub fn control(&self) -> Option<Address> {
        Address::parse(&self.command.as_ref()?.control).ok()
    }

    /// The order of this recording's continuation: the same whoever makes it, and whenever.
    #[must_use]
    pub fn continuation(&self) -> Self {
        self.followed_by(self.key.continuation())
    }

    /// The order of other audio of the same name: the same whoever makes it, and whenever.
    #[must_use]
    pub fn of_audio(&self, sha256: &str) -> Self {
        self.followed_by(self.key.of_audio(sha256))
    }

    fn followed_by(&self, key: Key) -> Self {
        // A stop looks for the newest; the file keeps its name, by which the switch knows it.
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
            }),
            ..self.clone()
        }
    }

    /// The `Msg-ID` of the start command: the same at every repeat, so that an error finds its recording.
    pub fn command_id(&self) -> String {
        self.key.derived("command")
    }
}
