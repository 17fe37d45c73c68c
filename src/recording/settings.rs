//! Reads the action's data as Kazoo means it. Kazoo does not validate the data on the wire, so it may contain numbers as strings, values
//! out of range, other types, and unknown keys. Each value is used, corrected or dropped. A correction is reported once, and is never
//! fatal.

use serde::Serialize;
use serde_json::Value;

use crate::kazoo::call::clip;
use crate::kazoo::dialplan::{Control, Silence, Trigger};
use crate::kazoo::json::{boolean, integer};

use super::format::Format;
use super::identity::MediaId;

/// What the action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Start,
    Control(Control),
}

/// The method for sending audio to the user's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    #[default]
    Put,
    Post,
}

/// The interpreted data. `None` means that a default applies, which the plan sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub verb: Verb,
    /// The flow skips this node. Kazoo does that itself and sends no message (`cf_exe`). If one arrives, it has no effect.
    pub skip: bool,
    pub format: Option<Format>,
    /// Limited to `MAX_LABEL` bytes. The plan makes the document's origin from it.
    pub label: Option<String>,
    pub media_id: Option<MediaId>,
    /// As given, limited to 1024 bytes. The plan makes a name from it, and reports a change.
    pub media_name: Option<String>,
    pub method: Method,
    /// Seconds, 0 to 10800.
    pub min_sec: Option<u32>,
    pub trigger: Trigger,
    /// Hertz, 8000 to 48000.
    pub sample_rate: Option<u32>,
    pub follow_transfer: bool,
    pub silence: Option<Silence>,
    /// Two channels.
    pub stereo: bool,
    /// Seconds, 5 to the configured maximum.
    pub time_limit: u32,
    /// As given.
    pub url: Option<String>,
}

/// A value of the data that was changed. At most one for each key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Correction {
    pub key: &'static str,
    /// The given value; see `shown`.
    pub given: String,
    /// The value that is used instead.
    pub used: String,
    pub why: &'static str,
}

/// Each known key. All are read except `origin`, which is ignored.
pub const KEYS: [&str; 20] = [
    "action",
    "format",
    "label",
    "media_id",
    "media_name",
    "method",
    "origin",
    "record_min_sec",
    "record_on_answer",
    "record_on_bridge",
    "record_sample_rate",
    "should_follow_transfer",
    "silence_detection",
    "silence_final_timeout",
    "silence_initial_timeout",
    "silence_threshold",
    "skip_module",
    "stereo",
    "time_limit",
    "url",
];
/// Keys that apply to any action. The other keys apply to a start. `data` stands for the whole data.
pub const EVERY_VERBS: [&str; 3] = ["data", "action", "skip_module"];
pub const TIME_LIMIT_MIN: u32 = 5;
pub const TIME_LIMIT_DEFAULT: u32 = 3600;
pub const MIN_SEC_MAX: u32 = 10_800;
pub const SAMPLE_RATE: (u32, u32) = (8000, 48_000);
pub const SILENCE_THRESHOLD: (u32, u32) = (1, 32_767);
pub const SILENCE_THRESHOLD_DEFAULT: u32 = 200;
pub const SILENCE_TIMEOUT_MAX_MS: u32 = 10_800_000;
pub const SILENCE_INITIAL_DEFAULT_MS: u32 = 0;
/// The action's documentation says 5 and means seconds.
pub const SILENCE_FINAL_DEFAULT_MS: u32 = 5000;
/// Longest label that is used unshortened, in bytes.
pub const MAX_LABEL: usize = 128;
/// As much of a `media_name` is read, in bytes.
pub const MAX_GIVEN_NAME: usize = 1024;
/// Longest accepted URL, in bytes.
pub const MAX_URL: usize = 2048;

const WRONG_TYPE: &str = "not of a type that can be read";
const OUT_OF_RANGE: &str = "out of range";
const UNKNOWN: &str = "not a known value";

/// Reads the data, and returns the corrections. `max_time_limit` is the configured maximum, in seconds.
pub fn read(data: &Value, max_time_limit: u32) -> (Settings, Vec<Correction>) {
    let max_time_limit = max_time_limit.max(TIME_LIMIT_MIN);
    let mut reader = Reader {
        data,
        corrections: Vec::new(),
    };
    if !(data.is_object() || data.is_null()) {
        reader.correct("data", data, "{}".into(), "not an object");
    }
    let on_answer = reader.flag("record_on_answer", false);
    let on_bridge = reader.flag("record_on_bridge", false);
    let settings = Settings {
        verb: reader.verb(),
        skip: reader.flag("skip_module", false),
        format: reader.one_of("format", "the configured extension", Format::named),
        label: reader.label(),
        media_id: reader.one_of("media_id", "a derived id", |text| text.parse().ok()),
        media_name: reader
            .text("media_name", "a derived name")
            .map(|name| clip(&name, MAX_GIVEN_NAME).to_owned()),
        method: reader.method(),
        min_sec: reader.number("record_min_sec", (0, MIN_SEC_MAX), "the configured minimum"),
        trigger: match (on_answer, on_bridge) {
            (true, _) => Trigger::Answer,
            (false, true) => Trigger::Bridge,
            (false, false) => Trigger::Now,
        },
        sample_rate: reader.number("record_sample_rate", SAMPLE_RATE, "the switch's default"),
        follow_transfer: reader.flag("should_follow_transfer", true),
        silence: reader.silence(),
        stereo: reader.flag("stereo", true),
        time_limit: reader.time_limit(max_time_limit),
        url: reader.url(),
    };
    (settings, reader.corrections)
}

fn method_named(text: &str) -> Option<Method> {
    match text.to_ascii_lowercase().as_str() {
        "put" => Some(Method::Put),
        "post" => Some(Method::Post),
        _ => None,
    }
}

/// A value in a form that may be shown. It is shortened. Of a text that may be a URL with credentials, only the scheme is shown, in any
/// key.
pub(super) fn shown(given: &Value) -> String {
    match given {
        Value::String(text) => match text.split_once("://") {
            Some((scheme, rest)) if rest.contains('@') => format!("{}://…", clip(scheme, 16)),
            _ => clip(text, 64).to_owned(),
        },
        Value::Array(_) => "[…]".to_owned(),
        Value::Object(_) => "{…}".to_owned(),
        other => other.to_string(),
    }
}

struct Reader<'a> {
    data: &'a Value,
    corrections: Vec<Correction>,
}

impl<'a> Reader<'a> {
    /// The value at `key`. Null and empty text count as missing, as in all of Kazoo.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.data
            .get(key)
            .filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn correct(&mut self, key: &'static str, given: &Value, used: String, why: &'static str) {
        self.corrections.push(Correction {
            key,
            given: shown(given),
            used,
            why,
        });
    }

    fn verb(&mut self) -> Verb {
        let verb = self.one_of("action", "start", |text| match text {
            "start" => Some(Verb::Start),
            "stop" => Some(Verb::Control(Control::Stop)),
            "mask" => Some(Verb::Control(Control::Mask)),
            "unmask" => Some(Verb::Control(Control::Unmask)),
            _ => None,
        });
        verb.unwrap_or(Verb::Start)
    }

    fn one_of<T>(&mut self, key: &'static str, used: &str, known: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.get(key)?;
        let read = value.as_str().and_then(known);
        if read.is_none() {
            self.correct(
                key,
                value,
                used.to_owned(),
                if value.is_string() { UNKNOWN } else { WRONG_TYPE },
            );
        }
        read
    }

    /// Accepts any case, and blanks around the value: a flow with POST means POST.
    fn method(&mut self) -> Method {
        let known = self.one_of("method", "put", |text| method_named(text.trim()));
        if let (Some(method), Some(Value::String(given))) = (known, self.get("method"))
            && given.trim() != given
        {
            let used = if method == Method::Post { "post" } else { "put" };
            self.correct(
                "method",
                &Value::String(given.clone()),
                used.to_owned(),
                "blanks around it",
            );
        }
        known.unwrap_or_default()
    }

    fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        boolean(value).unwrap_or_else(|| {
            self.correct(key, value, default.to_string(), WRONG_TYPE);
            default
        })
    }

    fn number(&mut self, key: &'static str, (min, max): (u32, u32), default: &str) -> Option<u32> {
        let value = self.get(key)?;
        let Some(number) = integer(value) else {
            self.correct(key, value, default.to_owned(), WRONG_TYPE);
            return None;
        };
        let clamped = u32::try_from(number.clamp(i64::from(min), i64::from(max))).unwrap_or(min);
        if i64::from(clamped) != number {
            self.correct(key, value, clamped.to_string(), OUT_OF_RANGE);
        }
        Some(clamped)
    }

    fn time_limit(&mut self, max: u32) -> u32 {
        let default = TIME_LIMIT_DEFAULT.min(max);
        self.number("time_limit", (TIME_LIMIT_MIN, max), &default.to_string())
            .unwrap_or(default)
    }

    /// A number gives its decimal form.
    fn text(&mut self, key: &'static str, default: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            other => {
                self.correct(key, other, default.to_owned(), WRONG_TYPE);
                None
            }
        }
    }

    fn label(&mut self) -> Option<String> {
        let text = self.text("label", "the flow's name")?;
        let label = clip(&text, MAX_LABEL).to_owned();
        if label.len() < text.len() {
            let used = format!("the first {MAX_LABEL} bytes");
            self.correct("label", &Value::String(text), used, "too long");
        }
        Some(label)
    }

    fn silence(&mut self) -> Option<Silence> {
        let detect = self.flag("silence_detection", false);
        let threshold = self.number("silence_threshold", SILENCE_THRESHOLD, "200");
        let initial = self.number("silence_initial_timeout", (0, SILENCE_TIMEOUT_MAX_MS), "0");
        let end = self.number("silence_final_timeout", (0, SILENCE_TIMEOUT_MAX_MS), "5000");
        detect.then(|| Silence {
            threshold: threshold.unwrap_or(SILENCE_THRESHOLD_DEFAULT),
            initial_timeout_ms: initial.unwrap_or(SILENCE_INITIAL_DEFAULT_MS),
            final_timeout_ms: end.unwrap_or(SILENCE_FINAL_DEFAULT_MS),
        })
    }

    /// A URL is accepted as given, even if it is invalid. An action with a URL must not store the audio anywhere else. Only the delivery
    /// checks the URL.
    fn url(&mut self) -> Option<String> {
        let value = self.get("url")?;
        match value {
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) if text.len() <= MAX_URL => Some(text.trim().to_owned()),
            other => Some(clip(&other.to_string(), 64).to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(data: &Value) -> (Settings, Vec<Correction>) {
        super::read(data, 10_800)
    }

    fn keys(corrections: &[Correction]) -> Vec<&str> {
        corrections.iter().map(|c| c.key).collect()
    }

    #[test]
    fn an_absent_key_has_its_default() {
        for data in [json!({}), json!(null), json!({"time_limit": null, "format": ""})] {
            let (settings, corrections) = read(&data);
            assert_eq!(corrections, []);
            assert_eq!(settings.verb, Verb::Start);
            assert_eq!(settings.trigger, Trigger::Now);
            assert_eq!(settings.method, Method::Put);
            assert!(settings.follow_transfer && !settings.skip);
            assert_eq!(
                (settings.time_limit, settings.format, settings.silence, settings.url),
                (3600, None, None, None)
            );
        }
    }

    #[test]
    fn a_verb_may_have_capitals_and_one_with_blanks_is_put_and_told() {
        for (given, used, told) in [
            ("POST", Method::Post, 0),
            ("Put", Method::Put, 0),
            ("post", Method::Post, 0),
            (" put ", Method::Put, 1),
            ("PATCH", Method::Put, 1),
        ] {
            let (settings, corrections) = read(&json!({ "method": given }));
            assert_eq!((settings.method, corrections.len()), (used, told), "{given:?}");
        }
    }

    #[test]
    fn numbers_and_booleans_may_be_strings() {
        let (settings, corrections) = read(&json!({
            "time_limit": "600", "record_min_sec": "3", "record_sample_rate": "16000", "record_on_answer": "true",
            "should_follow_transfer": "false", "silence_detection": "true", "silence_threshold": "300",
        }));
        assert_eq!(corrections, []);
        assert_eq!(
            (settings.time_limit, settings.min_sec, settings.sample_rate),
            (600, Some(3), Some(16_000))
        );
        assert_eq!(settings.trigger, Trigger::Answer);
        assert!(!settings.follow_transfer);
        let silence = settings.silence.unwrap();
        assert_eq!(
            (silence.threshold, silence.initial_timeout_ms, silence.final_timeout_ms),
            (300, 0, 5000)
        );
    }

    #[test]
    fn numbers_out_of_range_are_clamped_and_told() {
        let (settings, corrections) = read(&json!({
            "time_limit": 1, "record_min_sec": -4, "record_sample_rate": 1, "silence_detection": true, "silence_threshold": 0,
        }));
        assert_eq!(
            (settings.time_limit, settings.min_sec, settings.sample_rate),
            (5, Some(0), Some(8000))
        );
        assert_eq!(settings.silence.unwrap().threshold, 1);
        assert_eq!(
            keys(&corrections),
            [
                "record_min_sec",
                "record_sample_rate",
                "silence_threshold",
                "time_limit"
            ]
        );
    }

    #[test]
    fn other_types_fall_back_and_are_told() {
        let (settings, corrections) = read(&json!({
            "action": 7, "format": ["mp3"], "label": {}, "media_id": 5, "media_name": [], "method": true,
            "record_min_sec": {}, "record_on_answer": "perhaps", "record_sample_rate": "fast", "time_limit": [],
        }));
        assert_eq!(settings.verb, Verb::Start);
        assert_eq!(settings.trigger, Trigger::Now);
        assert_eq!(corrections.len(), 10, "{corrections:?}");
    }

    #[test]
    fn answer_wins_over_bridge() {
        let trigger = |data| read(&data).0.trigger;
        assert_eq!(
            trigger(json!({"record_on_answer": true, "record_on_bridge": true})),
            Trigger::Answer
        );
        assert_eq!(trigger(json!({"record_on_bridge": true})), Trigger::Bridge);
    }

    #[test]
    fn an_unknown_action_starts() {
        for (action, verb) in [
            (json!("start"), Verb::Start),
            (json!("stop"), Verb::Control(Control::Stop)),
            (json!("mask"), Verb::Control(Control::Mask)),
            (json!("unmask"), Verb::Control(Control::Unmask)),
            (json!("STOP"), Verb::Start),
            (json!("pause"), Verb::Start),
        ] {
            assert_eq!(read(&json!({ "action": action })).0.verb, verb, "{action}");
        }
    }

    #[test]
    fn a_number_beyond_every_range_is_clamped_and_told_once() {
        for (given, used) in [
            (json!(u64::MAX), 600),
            (json!("99999999999999999999"), 600),
            (json!(1e300), 600),
            (json!(-1e300), 5),
        ] {
            let (settings, corrections) = super::read(&json!({ "time_limit": given }), 600);
            assert_eq!(settings.time_limit, used, "{given}");
            let told: Vec<_> = corrections.iter().map(|c| (c.key, c.used.clone())).collect();
            assert_eq!(told, [("time_limit", used.to_string())], "{given}");
        }
        // The limit applies to the default as well.
        assert_eq!(super::read(&json!({}), 600).0.time_limit, 600);
    }

    #[test]
    fn what_may_be_credentials_is_not_told() {
        let (_, corrections) = read(&json!({"method": "https://user:hunter2@h/", "format": "x://h", "label": true}));
        let given: Vec<&str> = corrections.iter().map(|c| c.given.as_str()).collect();
        assert_eq!(given, ["x://h", "true", "https://…"]);
    }

    #[test]
    fn a_silence_timeout_that_is_given_is_taken_as_milliseconds() {
        let silence = read(&json!({"silence_detection": true, "silence_final_timeout": 5}))
            .0
            .silence
            .unwrap();
        assert_eq!(silence.final_timeout_ms, 5);
    }

    #[test]
    fn data_that_is_no_object_is_an_empty_one() {
        for data in [json!([1, 2]), json!("start"), json!(7)] {
            let (settings, corrections) = read(&data);
            assert_eq!((settings.verb, keys(&corrections)), (Verb::Start, vec!["data"]));
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(known_key(), inner, 0..12)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn known_key() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned),
            any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn any_json_is_read_and_stays_in_its_bounds(data in any_json()) {
            let (settings, corrections) = read(&data);
            prop_assert!((TIME_LIMIT_MIN..=10_800).contains(&settings.time_limit));
            prop_assert!(settings.min_sec.is_none_or(|t| t <= MIN_SEC_MAX));
            prop_assert!(settings.sample_rate.is_none_or(|r| (SAMPLE_RATE.0..=SAMPLE_RATE.1).contains(&r)));
            prop_assert!(settings.url.is_none_or(|u| u.len() <= MAX_URL));
            let told: std::collections::BTreeSet<&str> = keys(&corrections).into_iter().collect();
            prop_assert_eq!(told.len(), corrections.len(), "each key once: {:?}", corrections);
            prop_assert!(corrections.iter().all(|c| c.given.len() <= 64));
        }
    }
}
