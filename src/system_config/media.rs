//! The content of `system_config/media`. Pure functions.

use serde_json::Value;

use crate::couch::{NoServer, Server};
use crate::kazoo::json::{boolean, integer};
use crate::recording::format::Format;
use crate::recording::plan::Defaults;
use crate::recording::settings::TIME_LIMIT_MIN;

use super::proxy::Proxy;

/// Port of a third party's server without a port in its value (`third_party_bigcouch_port`).
const THIRD_PARTY_PORT: u16 = 5984;

/// The settings for recordings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// `store_recordings`: whether recordings without a URL of their own are stored.
    pub store_recordings: bool,
    pub defaults: Defaults,
    pub third_party: ThirdParty,
    /// Kazoo's store proxy, which stores for accounts with a storage plan.
    pub proxy: Proxy,
    /// `call_recording.storage_retry_times` (`kz_media_config`), which accounts may override. `None`: the worker's own retry schedule.
    pub storage_retry_times: Option<u32>,
    /// `call_recording.workers`: how many processes of Kazoo's own recorder media_mgr starts (`media_recording_sup`).
    pub recorder_workers: u32,
}

/// `third_party_bigcouch_host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThirdParty {
    NotSet,
    Server(Server),
    /// The value does not name a server. Nothing may be stored in our own cluster then.
    Unusable(NoServer),
}

/// The sections of a configuration document: the zone's, then `default`. The first section with a key wins, for each key separately.
pub(super) struct Sections<'a>(Vec<&'a Value>);

impl<'a> Sections<'a> {
    pub(super) fn of(document: &'a Value, zone: &str) -> Self {
        let found = [zone, "default"].into_iter().filter_map(|name| document.get(name));
        Self(found.collect())
    }

    pub(super) fn find(&self, path: &[&str]) -> Option<&'a Value> {
        self.0.iter().find_map(|section| {
            let found = path.iter().try_fold(*section, |at, key| at.get(key))?;
            (!found.is_null()).then_some(found)
        })
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        self.find(&[key]).and_then(boolean).unwrap_or(default)
    }

    /// A text value. A number gives its decimal form. Empty text, and the text `undefined` that Kazoo's tools leave behind, give `None`.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let text = match self.find(&[key])? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        (!matches!(text.as_str(), "" | "undefined" | "null")).then_some(text)
    }

    pub(super) fn number<T: TryFrom<i64>>(&self, path: &[&str]) -> Option<T> {
        self.find(path)
            .and_then(integer)
            .and_then(|value| T::try_from(value).ok())
    }
}

impl Media {
    /// Reads the document's sections. Missing keys and invalid values get Kazoo's defaults (`kz_media_config`, `kz_media_util`).
    pub fn read(document: &Value, zone: &str) -> Self {
        let sections = Sections::of(document, zone);
        let number = |key: &str, default: u32| sections.number(&[key]).unwrap_or(default);
        let fallback = Defaults::default();
        Self {
            store_recordings: sections.flag("store_recordings", false),
            defaults: Defaults {
                format: sections
                    .find(&["call_recording", "extension"])
                    .and_then(Value::as_str)
                    .and_then(Format::named)
                    .unwrap_or(fallback.format),
                min_sec: number("record_min_sec", fallback.min_sec),
                // A value below the shortest possible recording is invalid. It would cut off each recording.
                max_time_limit: Some(number("max_recording_time_limit", fallback.max_time_limit))
                    .filter(|max| *max >= TIME_LIMIT_MIN)
                    .unwrap_or(fallback.max_time_limit),
            },
            third_party: third_party(&sections),
            proxy: Proxy::read(&sections),
            storage_retry_times: sections.number(&["call_recording", "storage_retry_times"]),
            recorder_workers: sections.number(&["call_recording", "workers"]).unwrap_or(1),
        }
    }
}

fn third_party(sections: &Sections<'_>) -> ThirdParty {
    let port = sections.number(&["third_party_bigcouch_port"]).filter(|port| *port > 0);
    match sections.text("third_party_bigcouch_host") {
        None => ThirdParty::NotSet,
        Some(text) => match Server::parse(&text, port.unwrap_or(THIRD_PARTY_PORT)) {
            Ok(mut server) => {
                // A URL without a port gets the configured port. If no port is configured, it gets its scheme's.
                if let (Some(port), true) = (port, text.contains("://") && !names_port(&text)) {
                    let _ = server.url.set_port(Some(port));
                }
                ThirdParty::Server(server)
            }
            Err(error) => ThirdParty::Unusable(error),
        },
    }
}

/// Whether a URL contains a port, including its scheme's default.
fn names_port(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.rsplit(']').next().unwrap_or_default().contains(':')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_zones_section_wins_over_default_key_by_key() {
        let document = json!({
            "default": {"store_recordings": "true", "record_min_sec": 2, "call_recording": {"extension": "wav"}},
            "zone-a": {"record_min_sec": "4", "max_recording_time_limit": 600},
        });
        let media = Media::read(&document, "zone-a");
        assert!(media.store_recordings);
        assert_eq!(
            media.defaults,
            Defaults {
                format: Format::Wav,
                min_sec: 4,
                max_time_limit: 600
            }
        );
        assert_eq!(Media::read(&document, "elsewhere").defaults.min_sec, 2);
    }

    #[test]
    fn nothing_and_nonsense_have_kazoos_defaults() {
        for document in [
            json!(null),
            json!({}),
            json!({"default": {
                "store_recordings": 7, "record_min_sec": -1, "max_recording_time_limit": 0, "call_recording": {"extension": "ogg"},
            }}),
        ] {
            let media = Media::read(&document, "local");
            assert!(!media.store_recordings);
            assert_eq!(media.defaults, Defaults::default());
            assert_eq!(media.third_party, ThirdParty::NotSet);
            assert_eq!(media.storage_retry_times, None);
        }
    }

    #[test]
    fn a_third_party_is_set_only_by_a_value_that_means_something() {
        let read = |section| Media::read(&json!({ "default": section }), "local").third_party;
        for unset in [
            json!(null),
            json!(""),
            json!(" "),
            json!("undefined"),
            json!("null"),
            json!(false),
            json!({}),
        ] {
            let section = json!({ "third_party_bigcouch_host": unset });
            assert_eq!(read(section), ThirdParty::NotSet, "{unset}");
        }
        let url = |section| match read(section) {
            ThirdParty::Server(server) => server.url.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(url(json!({"third_party_bigcouch_host": "rec"})), "http://rec:5984/");
        for port in [json!(6984), json!("6984")] {
            let section = json!({"third_party_bigcouch_host": "rec", "third_party_bigcouch_port": port});
            assert_eq!(url(section), "http://rec:6984/");
        }
        let section = json!({"third_party_bigcouch_host": "https://u:p@rec", "third_party_bigcouch_port": 6984});
        assert_eq!(url(section), "https://rec:6984/");
        // The URL's own port wins. Without a configured port, the scheme's default applies.
        for (host, expected) in [
            ("https://rec:6985", "https://rec:6985/"),
            ("http://u:p:w@rec:80/", "http://rec/"),
            ("http://[::1]", "http://[::1]:6984/"),
            ("rec:5985", "http://rec:5985/"),
        ] {
            let section = json!({"third_party_bigcouch_host": host, "third_party_bigcouch_port": 6984});
            assert_eq!(url(section), expected, "{host}");
        }
        assert_eq!(url(json!({"third_party_bigcouch_host": "https://rec"})), "https://rec/");
        let unusable = read(json!({"third_party_bigcouch_host": "http://rec/couch"}));
        assert_eq!(unusable, ThirdParty::Unusable(NoServer::HasPath));
    }

    #[test]
    fn a_zone_can_take_back_what_default_sets() {
        let document = json!({
            "default": {"third_party_bigcouch_host": "rec"},
            "zone-a": {"third_party_bigcouch_host": ""},
            "zone-b": {"third_party_bigcouch_host": null},
        });
        // As in Kazoo: an empty text is a value, and null is not.
        let of_zone = |zone| Media::read(&document, zone).third_party;
        assert_eq!(of_zone("zone-a"), ThirdParty::NotSet);
        assert!(matches!(of_zone("zone-b"), ThirdParty::Server(_)));
    }

    #[test]
    fn no_password_is_logged_with_the_settings() {
        let media = Media::read(
            &json!({"default": {
                "third_party_bigcouch_host": "http://u:hunter2@rec", "proxy_hostname": "m1", "proxy_username": "p", "proxy_password": "hunter2",
            }}),
            "local",
        );
        assert!(!format!("{media:?}").contains("hunter2"));
    }
}
