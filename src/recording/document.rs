//! The `call_recording` document (`media_recording:save_media_doc`, `kz_doc:update_pvt_parameters`), as Crossbar, webhooks and CDRs expect it.

use serde_json::{Map, Value, json};

use crate::kazoo::time::Moment;

use super::audio::Audio;
use super::ending::Told;
use super::identity::MediaId;
use super::names;
use super::order::{Order, Url};

/// `pvt_type` of the document, and `Type` of its change notices.
pub const DOCUMENT_TYPE: &str = "call_recording";

/// `source_type`: which program made the document. Kazoo's own say `media_recording`.
pub const SOURCE_TYPE: &str = "kz_record_call";

/// All that a document is made of.
pub struct Subject<'a> {
    pub order: &'a Order,
    /// The document's id; the order's unless another recording has that one already.
    pub id: &'a MediaId,
    pub account_id: &'a str,
    pub started: Option<&'a Told>,
    pub ended: &'a Told,
    /// Milliseconds that the switch told, over all stretches that are in the audio.
    pub told_ms: Option<u64>,
    pub audio: Option<&'a Audio>,
    /// `account`, `third_party`, `url` or `storage_plan`.
    pub destination: &'static str,
    /// Our node's name.
    pub node: &'a str,
    pub now: Moment,
    /// When the audio was masked (`true`) and unmasked.
    pub masks: Vec<(Moment, bool)>,
}

/// The action's URL as whoever may list recordings may read it: without credentials, and without what signs it.
fn public(given: &str) -> String {
    const SECRET: [&str; 5] = [
        "x-amz-signature",
        "x-goog-signature",
        "x-amz-security-token",
        "signature",
        "sig",
    ];
    let Ok(mut url) = ::url::Url::parse(given.trim()) else {
        // Nothing that could be served; what it was meant to be nobody knows.
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
    // Neither fails for a URL with a host, and one without has none.
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
    /// The database that the document belongs to: the month of its id, whenever the recording ended.
    pub fn database(&self) -> String {
        names::modb(self.account_id, self.id.month())
    }

    /// The moment that counts as the document's creation: the recording's end, inside of the id's month.
    pub fn created(&self) -> Moment {
        self.id.month().clamp(self.ended.at)
    }

    /// The document without attachments.
    pub fn document(&self) -> Map<String, Value> {
        let (order, ended) = (self.order, self.ended);
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
        put("source_type", json!(SOURCE_TYPE));
        put("start", json!(ended.at.gregorian_seconds() - seconds));
        put("duration", json!(seconds));
        put("duration_ms", json!(length_ms));
        put("call_id", json!(order.call_id));
        put("cdr_id", json!(format!("{}-{}", ended.at.month(), order.call_id)));
        put("origin", json!(order.origin));
        if let Url::Given(url) = &order.url {
            put("url", json!(public(url)));
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
        // Events' times are rounded up: the end may lie in our future.
        put(
            "pvt_modified",
            json!(self.now.gregorian_seconds().max(self.created().gregorian_seconds())),
        );
        put("pvt_node", json!(self.node));
        put("pvt_recording", self.private());
        doc
    }

    /// What Kazoo has no field for: the proof of what was stored, and the key that tells our recording from another with the same id.
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
            if !self.masks.is_empty() {
                let masks: Vec<Value> = self
                    .masks
                    .iter()
                    .map(|(at, on)| json!({"at": at.rfc3339(), "masked": on}))
                    .collect();
                map.insert("masks".into(), json!(masks));
            }
            if let Some(continues) = &self.order.continues {
                map.insert("continues".into(), json!(continues.media_id));
                map.insert("part".into(), json!(continues.part));
            }
            map.retain(|_, value| !value.is_null());
        }
        private
    }

    /// Milliseconds: what the switch told, else what the file has, else the time between its start and its end.
    fn length_ms(&self) -> u64 {
        let counted = || self.audio.and_then(|audio| audio.duration_ms);
        let measured = || {
            self.started
                .map(|s| u64::try_from(self.ended.at.since(s.at).as_millis()).unwrap_or(0))
        };
        self.told_ms.or_else(counted).or_else(measured).unwrap_or(0)
    }

    /// Whether the recording ended on another leg than it was ordered on: the end's event then speaks of somebody else's leg.
    fn moved(&self) -> bool {
        let started_on = self.started.map_or(&self.order.call_id, |s| &s.call_id);
        *started_on != self.ended.call_id
    }

    /// Who was on the call. The event of the end knows best, unless the recording has moved to another leg meanwhile.
    fn parties(&self) -> crate::kazoo::call::Parties {
        let ordered = self.order.parties.clone();
        let started = self.started.map(|s| s.parties.clone()).unwrap_or_default();
        let ended = self.ended.parties.clone();
        if self.moved() {
            started.or(ordered).or(ended)
        } else {
            ended.or(started).or(ordered)
        }
    }

    fn variables(&self) -> &Value {
        match self.started {
            Some(started) if self.moved() => &started.variables,
            _ => &self.ended.variables,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kazoo::envelope::Envelope;
    use crate::kazoo::event::RecordEvent;
    use crate::kazoo::time::Month;
    use crate::recording::digest::Digests;
    use crate::recording::format::Format;
    use crate::recording::identity::Key;
    use crate::recording::settings::Method;

    use super::*;

    const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

    fn told() -> Told {
        let path = format!(
            "{}/tests/fixtures/call_events/02-record-stop.json",
            env!("CARGO_MANIFEST_DIR")
        );
        let event = RecordEvent::of(&Envelope::read(&std::fs::read(path).unwrap()).unwrap()).unwrap();
        Told::of(
            &event,
            "9f8e7d6c5b4a39281706f5e4d3c2b1a0.mp3",
            Moment::from_unix_seconds(0),
        )
    }

    fn order(call_id: &str) -> Order {
        let key = Key::of(call_id, "action");
        Order {
            key,
            media_id: MediaId::derived(key, Moment::from_gregorian_seconds(63_962_610_331)),
            call_id: call_id.into(),
            account_id: Some(ACCOUNT.into()),
            zone: "local".into(),
            file_name: format!("{key}.mp3"),
            media_name: "desk.mp3".into(),
            format: Format::Mp3,
            origin: "callflow : desk".into(),
            method: Method::Put,
            url: Url::None,
            min_sec: 0,
            asked_at: Moment::from_gregorian_seconds(63_962_610_330),
            parties: crate::kazoo::call::Parties {
                callee_id_number: Some("*97".into()),
                ..Default::default()
            },
            continues: None,
            trace: None,
            command: None,
        }
    }

    fn document(order: &Order, started: Option<&Told>, ended: &Told) -> Value {
        let audio = Audio {
            size: 7,
            digests: Digests {
                md5: "00".into(),
                sha256: "11".into(),
            },
            duration_ms: Some(59_000),
            findings: vec![],
            as_written: None,
        };
        let subject = Subject {
            order,
            id: &order.media_id,
            account_id: ACCOUNT,
            started,
            ended,
            told_ms: ended.length_ms,
            audio: Some(&audio),
            destination: "ours",
            node: "kz_record_call@rec1",
            now: Moment::from_gregorian_seconds(63_962_610_400),
            masks: Vec::new(),
        };
        Value::Object(subject.document())
    }

    #[test]
    fn the_document_has_kazoos_fields() {
        let ended = told();
        let doc = document(&order(&ended.call_id), None, &ended);
        assert_eq!(doc["start"], 63_962_610_391_i64 - 59);
        assert_eq!((&doc["duration"], &doc["duration_ms"]), (&json!(59), &json!(59_840)));
        assert_eq!(doc["media_type"], ".mp3");
        assert_eq!(doc["content_type"], "audio/mpeg");
        assert_eq!(doc["callee_id_number"], "2000");
        assert_eq!(doc["owner_id"], "9d8c7b6a5f4e3d2c1b0a998877665544");
        assert_eq!(doc["cdr_id"], "202611-8dfb1e20-6a3e-4b0c-8d7e-1d0f5a6b7c02");
        assert_eq!(doc["interaction_id"], "63923845331-9f3ad9cd");
        assert_eq!(
            doc["pvt_account_db"],
            "account%2F4b%2Fa1%2Ff7d5a1c54a0fb0d9c9d3e1a2b3c4-202611"
        );
        assert_eq!(doc["pvt_type"], "call_recording");
        assert!(doc.get("url").is_none() && doc.get("_attachments").is_none());
    }

    #[test]
    fn a_recording_that_moved_is_told_from_the_callers_side() {
        let started = Told {
            call_id: "caller".into(),
            ..told()
        };
        let mut ended = Told {
            call_id: "other-leg".into(),
            ..told()
        };
        ended.parties.caller_id_number = Some("999".into());
        ended.parties.owner_id = Some("somebody-else".into());
        let doc = document(&order("caller"), Some(&started), &ended);
        assert_eq!(
            (&doc["call_id"], &doc["caller_id_number"]),
            (&json!("caller"), &json!("1000"))
        );
        assert_eq!(doc["owner_id"], "9d8c7b6a5f4e3d2c1b0a998877665544");
        assert_eq!(doc["pvt_recording"]["ended_call_id"], "other-leg");
    }

    #[test]
    fn an_end_after_the_turn_of_the_month_stays_in_the_ids_month() {
        let mut ended = told();
        ended.at = Month::of_id("202612-x")
            .unwrap()
            .start()
            .plus(std::time::Duration::from_secs(100));
        let doc = document(&order(&ended.call_id), None, &ended);
        let december = Month::of_id("202612-x").unwrap().start().gregorian_seconds();
        assert_eq!(doc["pvt_created"], december - 1);
        assert!(doc["pvt_account_db"].as_str().unwrap().ends_with("-202611"));
        assert!(doc["cdr_id"].as_str().unwrap().starts_with("202612-"));
    }

    #[test]
    fn an_id_of_the_last_month_that_there_is_makes_a_document_too() {
        let ended = told();
        for id in ["999912-frontdesk", "000001-frontdesk"] {
            let mut order = order(&ended.call_id);
            order.media_id = id.parse().unwrap();
            assert_eq!(document(&order, None, &ended)["_id"], id);
        }
    }

    #[test]
    fn credentials_of_a_url_are_not_in_its_documents_public_field() {
        for (given, shown) in [
            ("https://h/in?a=1#x", "https://h/in?a=1#x"),
            ("https://u:p%40@h/in?a=1", "https://h/in?a=1"),
            ("https://u@h", "https://h/"),
            (
                "https://h/k?X-Amz-Date=1&X-Amz-Signature=00ff&b",
                "https://h/k?X-Amz-Date=1&X-Amz-Signature=***&b",
            ),
            ("https://h/k?se=1&sig=a%2B", "https://h/k?se=1&sig=***"),
            ("ftp://u:p@h/x", "ftp://h/x"),
            ("u:p@h:99999999/x", "***@h:99999999/x"),
        ] {
            assert_eq!(public(given), shown, "{given}");
        }
    }
}
