//! Orders of recordings that Kazoo's own recorder started (`kz_media_recording`), made from the switch's events alone.
//!
//! Kazoo puts all settings of such a recording into its start command, and the switch returns them in each event (`Recording.Data`,
//! `kapps_call_recording:start_recording`). They are not sealed: any client of the broker can read and forge them. Such a client can send
//! the switch the same commands by itself.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kazoo::call::clip;
use crate::kazoo::event::RecordEvent;
use crate::kazoo::names::KAZOO_RECORDER;
use crate::kazoo::term::{Term, TermError};
use crate::kazoo::time::{Moment, Month};

use super::format::Format;
use super::identity::{Key, MediaId};
use super::order::{Order, Url};
use super::settings::{MAX_URL, Method};

/// What an order has only if Kazoo's own recorder would have stored its recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The endpoint whose settings asked for the recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<String>,
    /// The switch begins the recording again at each bridge, as far as is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_bridges: bool,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<u32>,
    /// A callflow chose the file's name, so the switch may append two calls to one file. The recording is parked, unless the operator
    /// accepts that (`adopt.shared_names`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_name: bool,
    /// Kazoo 4 started it: its events name neither its settings nor its URL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kazoo_4: bool,
    /// Its own settings say whether it is stored, which later versions of Kazoo obey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<bool>,
    /// It ended on a loopback leg that had left the call. Later versions of Kazoo do not store it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bowed_out: bool,
    /// The database into which later versions of Kazoo write it, in CouchDB's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_db: Option<String>,
    /// The number of rounds in its own settings, which later versions of Kazoo obey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_times: Option<u32>,
}

/// Why an event's recording cannot be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAdoptable {
    #[error("the event of Kazoo's own recording names no file")]
    NoFile,
    #[error("the file of Kazoo's own recording is neither .mp3 nor .wav")]
    Format,
}

/// All inputs of an order besides the event.
pub struct Circumstances<'a> {
    pub zone: &'a str,
    /// Whether recordings whose name a callflow chose are stored as they are.
    pub shared_names: bool,
    /// The months that a recording of today can be of.
    pub months: RangeInclusive<Month>,
    /// When the recording happened, if the event's time can be right; else when the event was received.
    pub at: Moment,
}

/// The settings that Kazoo's own recorder was started with, as far as the worker uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Data {
    pub url: Option<String>,
    pub method: Method,
    pub origin: Option<String>,
    pub endpoint_id: Option<String>,
    pub at_bridges: bool,
    pub time_limit: Option<u32>,
    /// As `Adopted::wanted`.
    pub wanted: Option<bool>,
    /// As `Adopted::media_db`.
    pub media_db: Option<String>,
    /// As `Adopted::retry_times`.
    pub retry_times: Option<u32>,
}

/// Longest text of a tenant that is kept, in bytes.
const MAX_TEXT: usize = 256;
/// Longest id of an endpoint that is kept, in bytes.
const MAX_ID: usize = 64;
/// Longest name of a file on a switch, in bytes.
const MAX_FILE_NAME: usize = 255;

/// The `origin` of a recording whose settings have none (`media_recording`).
const NO_ORIGIN: &str = "no origin";

impl Data {
    /// Reads `Recording.Data`: base64 of a JSON object as an Erlang term. Depth, elements and length are bounded before anything is
    /// allocated, and compressed terms are refused; see `kazoo::term`.
    ///
    /// # Errors
    /// When the text is not such a term.
    pub fn read(text: &str) -> Result<Self, TermError> {
        let term = Term::from_base64(text)?;
        let object = Object::of(&term).ok_or(TermError::NotATerm)?;
        Ok(Self {
            url: object.text("url"),
            method: match object.text("method") {
                Some(method) if method.eq_ignore_ascii_case("post") => Method::Post,
                _ => Method::Put,
            },
            origin: object.text("origin"),
            endpoint_id: object.text("endpoint_id").filter(|id| id.len() <= MAX_ID),
            at_bridges: object.flag("record_on_bridge").unwrap_or(false),
            time_limit: object.number("time_limit"),
            wanted: object.flag("should_store_recording"),
            media_db: object.text("media_db").and_then(|name| database(&name)),
            retry_times: object.number("storage_retry_times").filter(|times| *times > 0),
        })
    }
}

/// A JSON object in one of the two forms that Kazoo has had for it: `{[{Key, Value}]}` and a map.
struct Object<'a>(Vec<(&'a Term, &'a Term)>);

impl<'a> Object<'a> {
    fn of(term: &'a Term) -> Option<Self> {
        let pairs = match term {
            Term::Map(pairs) => pairs.iter().map(|(key, value)| (key, value)).collect(),
            Term::Tuple(parts) => {
                let [Term::List(pairs)] = &parts[..] else { return None };
                let pair = |pair: &'a Term| match pair {
                    Term::Tuple(parts) => match &parts[..] {
                        [key, value] => Some((key, value)),
                        _ => None,
                    },
                    _ => None,
                };
                pairs.iter().map(pair).collect::<Option<Vec<_>>>()?
            }
            _ => return None,
        };
        Some(Self(pairs))
    }

    fn get(&self, key: &str) -> Option<&'a Term> {
        let is_it = |term: &Term| matches!(term, Term::Binary(bytes) if bytes == key.as_bytes());
        self.0.iter().find(|(known, _)| is_it(known)).map(|(_, value)| *value)
    }

    /// A text that is not empty.
    fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Term::Binary(bytes) => String::from_utf8(bytes.clone()).ok().filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        let text = match self.get(key)? {
            Term::Atom(name) => name.as_bytes(),
            Term::Binary(bytes) => bytes,
            _ => return None,
        };
        match text {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u32> {
        match self.get(key)? {
            Term::Integer(value) => u32::try_from(*value).ok(),
            Term::Binary(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            _ => None,
        }
    }
}

/// The order of a recording that Kazoo's own recorder started, and why its settings cannot be read if they cannot. Each event of the
/// recording gives the same key, id and file.
///
/// # Errors
/// When the worker cannot store such a recording at all.
pub fn order(
    event: &RecordEvent,
    circumstances: &Circumstances<'_>,
) -> Result<(Order, Option<TermError>), NotAdoptable> {
    let recording = &event.recording;
    let path = recording.file_path.as_deref();
    // The switch may have changed the name that the recording was started with: a blank becomes a plus sign.
    let base = path.and_then(|path| path.rsplit('/').next());
    let file_name = base.or(recording.name.as_deref()).filter(|name| is_file_name(name));
    let file_name = file_name.ok_or(NotAdoptable::NoFile)?;
    let format = Format::of_file(file_name).ok_or(NotAdoptable::Format)?;
    let given: Option<MediaId> = recording.id.as_deref().and_then(|id| id.parse().ok());
    let given = given.filter(|id| circumstances.months.contains(&id.month()));
    let key = match &given {
        Some(id) if is_drawn(id) => Key::of(KAZOO_RECORDER, id.as_str()),
        Some(id) => {
            // The switch appends all calls to a file whose name a callflow chose.
            let by = if is_random(file_name) {
                KAZOO_RECORDER
            } else {
                &event.call_id
            };
            Key::of(by, &format!("{id}/{file_name}"))
        }
        None => Key::of(&event.call_id, path.unwrap_or(file_name)),
    };
    let media_id = given.unwrap_or_else(|| MediaId::derived(key, circumstances.at));
    // Both events of a recording must give the same month: the ledger files the recording under the month.
    let asked_at = media_id.month().clamp(circumstances.at);
    let (data, unreadable) = match recording.data.as_deref().map_or(Ok(Data::default()), Data::read) {
        Ok(data) => (data, None),
        Err(error) => (Data::default(), Some(error)),
    };
    let url = match data.url {
        _ if unreadable.is_some() || recording.kazoo_4 => Url::Lost,
        // Such a recording goes into the database.
        _ if data.wanted == Some(true) => Url::None,
        Some(url) if url.len() > MAX_URL => Url::Lost,
        Some(url) => Url::Given(url.trim().to_owned()),
        None => Url::None,
    };
    let is_chosen = !is_random(file_name);
    let order = Order {
        key,
        media_id,
        call_id: event.call_id.clone(),
        account_id: event.account_id.clone(),
        zone: circumstances.zone.to_owned(),
        media_name: file_name.to_owned(),
        file_name: file_name.to_owned(),
        format,
        origin: clip(data.origin.as_deref().unwrap_or(NO_ORIGIN), MAX_TEXT).to_owned(),
        method: data.method,
        url,
        min_sec: 0,
        asked_at,
        parties: event.parties.clone(),
        continues: None,
        trace: None,
        command: None,
        adopted: Some(Adopted {
            endpoint_id: data.endpoint_id,
            at_bridges: data.at_bridges || unreadable.is_some(),
            time_limit: data.time_limit,
            shared_name: is_chosen && !circumstances.shared_names,
            kazoo_4: recording.kazoo_4,
            wanted: data.wanted,
            bowed_out: event.bowed_out,
            media_db: data.media_db,
            retry_times: data.retry_times,
        }),
    };
    Ok((order, unreadable))
}

/// Whether a name has the form of the names that Kazoo draws at random. Any other name comes from a callflow, and can be the name of
/// recordings of several calls at once.
pub fn is_random(file_name: &str) -> bool {
    file_name.rsplit_once('.').is_some_and(|(stem, _)| is_hex(stem))
}

/// Whether an id has the form of the ids that Kazoo draws at random. A callflow of later versions of Kazoo can choose the id (`media_id`), and
/// can choose one id for all its calls.
fn is_drawn(id: &MediaId) -> bool {
    id.as_str().split_once('-').is_some_and(|(_, drawn)| is_hex(drawn))
}

/// 16 random bytes, as Kazoo writes them (`kz_binary:rand_hex`).
fn is_hex(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A database's name in CouchDB's form, if it can be one. Kazoo has two forms of it.
fn database(name: &str) -> Option<String> {
    let name = name.replace("%2F", "/").replace("%2f", "/");
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_$()+-/".contains(&b);
    let is_one = name.len() <= MAX_FILE_NAME && name.starts_with(|first: char| first.is_ascii_lowercase());
    (is_one && name.bytes().all(is_plain)).then_some(name)
}

fn is_file_name(name: &str) -> bool {
    (1..=MAX_FILE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains('/')
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
