//! The `call_recording` document (`media_recording:save_media_doc`, `kz_doc:update_pvt_parameters`), in the form that Crossbar, webhooks
//! and CDRs expect.

use serde_json::{Map, Value, json};

use crate::kazoo::time::Moment;

use super::audio::Audio;
use super::controls::Controls;
use super::ending::Told;
use super::identity::MediaId;
use super::names;
use super::order::{Order, Url};

mod parties;

/// `pvt_type` of the document, and `Type` of its change notices.
pub const DOCUMENT_TYPE: &str = "call_recording";

/// `source_type`: the program that created the document. Kazoo's own documents contain `media_recording`.
pub const SOURCE_TYPE: &str = "kz_record_call";

/// `source_type` of Kazoo's own documents (`media_recording:save_media_doc`), and of those that the worker writes in place of Kazoo's own
/// recorder.
pub const KAZOO_SOURCE_TYPE: &str = "media_recording";

/// The data that a document is built from.
pub struct Subject<'a> {
    pub order: &'a Order,
    /// The document's id. It is the order's id, unless another recording has that id already.
    pub id: &'a MediaId,
    pub account_id: &'a str,
    pub started: Option<&'a Told>,
    pub ended: &'a Told,
    /// No event reported the end.
    pub presumed: bool,
    /// The leg that the recorded leg was bridged with first, if the start named none.
    pub first_peer: Option<&'a str>,
    /// Milliseconds that the switch reported, summed over all stretches in the audio.
    pub told_ms: Option<u64>,
    pub audio: Option<&'a Audio>,
    /// `account`, `third_party`, `url` or `storage_plan`.
    pub destination: &'static str,
    /// Our node name.
    pub node: &'a str,
    /// The operator wants the URL's credentials and signature in the public field.
    pub url_credentials: bool,
    pub now: Moment,
    /// The results of the stop, mask and unmask commands.
    pub controls: Controls,
}

/// Start, end and length are rounded, each for itself: what differs by this many seconds is no difference.
const ROUNDED_S: i64 = 2;

/// The action's URL for users who may list recordings: without credentials and without its signature.
fn public(given: &str) -> String {
    const SECRET: [&str; 5] = [
        "x-amz-signature",
        "x-goog-signature",
        "x-amz-security-token",
        "signature",
        "sig",
    ];
    let Some(mut url) = ::url::Url::parse(given.trim()).ok().filter(::url::Url::has_host) else {
        // The text is not a URL that can be served. Its intended form is unknown.
        return match given.rsplit_once('@') {
            Some((_, rest)) => format!("***@{rest}"),
            None => given.to_owned(),
        };
    };
    let is_secret = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default().to_ascii_lowercase();
        SECRET.contains(&name.as_str())
    };
    let signed = url.query().is_some_and(|query| query.split('&').any(is_secret));
    if url.username().is_empty() && url.password().is_none() && !signed {
        return given.to_owned();
    }
    // Neither call fails for a URL with a host, and a URL without one has no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if let Some(query) = url.query().map(str::to_owned) {
        let shown: Vec<String> = query
            .split('&')
            .map(|parameter| match parameter.split_once('=') {
                Some((name, _)) if is_secret(parameter) => format!("{name}=***"),
                _ => parameter.to_owned(),
            })
            .collect();
        url.set_query(Some(&shown.join("&")));
    }
    url.to_string()
}

impl Subject<'_> {
    /// The document's database. It is the one of the month in the id, independent of when the recording ended.
    pub fn database(&self) -> String {
        names::modb(self.account_id, self.id.month())
    }

    /// The document's creation time: the recording's end, limited to the month of the id.
    pub fn created(&self) -> Moment {
        self.id.month().clamp(self.ended.at)
    }

    /// When the recording began, in Gregorian seconds. As Kazoo computes it, from the end and the length; but the length lacks the time on
    /// hold, and the time between two parts.
    fn start(&self, seconds: i64) -> i64 {
        let computed = self.ended.at.gregorian_seconds() - seconds;
        // A start that no event reported has the time of its command. media_mgr never has the start.
        let told = self
            .started
            .filter(|told| told.stamp.is_some() && self.order.adopted.is_none());
        told.map(|told| told.at.gregorian_seconds())
            .filter(|told| told + ROUNDED_S < computed)
            .unwrap_or(computed)
    }

    /// The document without attachments.
    pub fn document(&self) -> Map<String, Value> {
        let order = self.order;
        let mut doc = Map::new();
        let mut put = |key: &str, value: Value| {
            if !(value.is_null() || value.as_str() == Some("")) {
                doc.insert(key.to_owned(), value);
            }
        };
        let length_ms = self.length_ms();
        let seconds = i64::try_from(length_ms / 1000).unwrap_or(0);
        put("_id", json!(self.id));
        put("name", json!(order.media_name));
        put("description", json!(format!("recording {}", order.media_name)));
        put("content_type", json!(order.format.content_type()));
        put("media_type", json!(format!(".{}", order.format)));
        put("media_source", json!("recorded"));
        put(
            "source_type",
            json!(if order.adopted.is_some() {
                KAZOO_SOURCE_TYPE
            } else {
                SOURCE_TYPE
            }),
        );
        put("start", json!(self.start(seconds)));
        put("duration", json!(seconds));
        put("duration_ms", json!(length_ms));
        put("call_id", json!(self.call_id()));
        put("cdr_id", json!(self.cdr_id()));
        put("origin", json!(order.origin));
        let adopted = order.adopted.as_ref();
        put(
            "endpoint_id",
            json!(adopted.and_then(|adopted| adopted.endpoint_id.as_deref())),
        );
        if let Url::Given(url) = &order.url {
            put(
                "url",
                if self.url_credentials {
                    json!(url)
                } else {
                    json!(public(url))
                },
            );
        }
        let parties = self.parties();
        put("from", json!(parties.from));
        put("to", json!(parties.to));
        put("request", json!(parties.request));
        put("direction", json!(parties.direction));
        put("caller_id_name", json!(parties.caller_id_name));
        put("caller_id_number", json!(parties.caller_id_number));
        put("callee_id_name", json!(parties.callee_id_name));
        put("callee_id_number", json!(parties.callee_id_number));
        put("owner_id", json!(parties.owner_id));
        put("interaction_id", json!(parties.interaction_id));
        put("custom_channel_vars", self.variables().clone());
        put("pvt_type", json!(DOCUMENT_TYPE));
        put("pvt_account_id", json!(self.account_id));
        put("pvt_account_db", json!(names::encoded(&self.database())));
        put("pvt_created", json!(self.created().gregorian_seconds()));
        // Times of events are rounded up, so the end may be in the future.
        put(
            "pvt_modified",
            json!(self.now.gregorian_seconds().max(self.created().gregorian_seconds())),
        );
        put("pvt_node", json!(self.node));
        put("pvt_recording", self.private());
        doc
    }

    /// Fields that Kazoo does not have: the digests of the stored audio, and the key that distinguishes our recording from another one with
    /// the same id.
    fn private(&self) -> Value {
        let mut private = json!({
            "key": self.order.key,
            "destination": self.destination,
            "media_id": self.order.media_id,
            "switch": self.ended.node,
            "file": self.ended.path,
            "ended_call_id": self.ended.call_id,
            "completion_cause": self.ended.completion_cause,
            "asked_at": self.order.asked_at.rfc3339(),
            "ended_at": self.ended.at.rfc3339(),
        });
        if let (Some(map), Some(audio)) = (private.as_object_mut(), self.audio) {
            map.insert("size".into(), json!(audio.size));
            map.insert("md5".into(), json!(audio.digests.md5));
            map.insert("sha256".into(), json!(audio.digests.sha256));
            map.insert("audio_ms".into(), json!(audio.duration_ms));
            map.insert("findings".into(), json!(audio.findings));
            if let Some(written) = &audio.as_written {
                let fields = ["riff_size", "data_size"];
                let repaired = json!({"fields": fields, "md5": written.md5, "sha256": written.sha256});
                map.insert("repaired".into(), repaired);
            }
        }
        if let Some(map) = private.as_object_mut() {
            self.controls.write(map);
            if self.presumed {
                map.insert("end_presumed".into(), json!(true));
            }
            if self.order.ends_by_silence(self.ended) {
                map.insert("ended_by".into(), json!("silence"));
            }
            map.insert("channels".into(), self.channels());
            if let Some(continues) = &self.order.continues {
                map.insert("continues".into(), json!(continues.media_id));
                map.insert("part".into(), json!(continues.part));
            }
            map.retain(|_, value| !value.is_null());
        }
        private
    }

    /// Milliseconds: the switch's report, else the length counted in the file, else the time between start and end.
    fn length_ms(&self) -> u64 {
        let counted = || self.audio.and_then(|audio| audio.duration_ms);
        let measured = || {
            self.started
                .map(|s| u64::try_from(self.ended.at.since(s.at).as_millis()).unwrap_or(0))
        };
        self.told_ms.or_else(counted).or_else(measured).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
