//! Decides where a recording goes. The decision is a pure function of the configuration at the moment when the recording ends.
//!
//! The first match decides: nowhere, when a recording of Kazoo's own says so by itself; the action's `url`; the account's storage plan; nowhere, when `store_recordings` is off; the third party's
//! server; the account's own monthly database. The first, second and last rule are Kazoo's (`kapps_call_recording:should_store_recording`).
//! The third party's rule is from 3.22 (`wh_media_recording`). The decision waits if it depends on a part of the configuration that is
//! unreadable now or invalid. A default in its place could discard the recording, or store it in the wrong place.

use thiserror::Error;

use crate::couch::NoServer;
use crate::entry::fact::Destination;
use crate::recording::order::{Order, Url};
use crate::system_config::{Media, Plan, ThirdParty};

/// Where a recording goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To that destination. The route is looked up at each attempt.
    To(Destination),
    /// Nowhere: `store_recordings` is off.
    Discard,
}

/// What the decision waits for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Undecided {
    #[error("system_config/media could not be read yet")]
    Media,
    #[error("the account's storage plan cannot be read")]
    Plan,
    #[error("third_party_bigcouch_host cannot be used: {0}")]
    ThirdParty(NoServer),
    /// The recording context cannot be opened, and the ledger does not have the action's data.
    #[error("the ledger does not tell the action's url")]
    Ledger,
}

/// Makes the decision.
///
/// # Errors
/// What an operator or the database must provide first.
pub fn choose(order: &Order, media: Option<&Media>, plan: &Plan) -> Result<Decision, Undecided> {
    let wanted = order.adopted.as_ref().and_then(|adopted| adopted.wanted);
    if wanted == Some(false) {
        return Ok(Decision::Discard);
    }
    match &order.url {
        // A URL that cannot be used is refused when it is tried: its audio is kept by then.
        Url::Given(_) | Url::Lost => return Ok(Decision::To(Destination::Url)),
        Url::None => {}
    }
    match plan {
        Plan::Stored(_) => return Ok(Decision::To(Destination::StoragePlan)),
        Plan::Unknown => return Err(Undecided::Plan),
        Plan::None => {}
    }
    let media = media.ok_or(Undecided::Media)?;
    if !media.store_recordings && wanted.is_none() {
        return Ok(Decision::Discard);
    }
    match &media.third_party {
        ThirdParty::NotSet => Ok(Decision::To(Destination::Account)),
        ThirdParty::Server(_) => Ok(Decision::To(Destination::ThirdParty)),
        ThirdParty::Unusable(error) => Err(Undecided::ThirdParty(*error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kazoo::call::Parties;
    use crate::kazoo::time::Moment;
    use crate::recording::format::Format;
    use crate::recording::identity::{Key, MediaId};
    use crate::recording::settings::Method;
    use crate::system_config::Storage;

    use super::*;

    fn order(url: Url) -> Order {
        let key = Key::of("call", "action");
        let now = Moment::from_unix_seconds(1_795_386_262);
        Order {
            key,
            media_id: MediaId::derived(key, now),
            call_id: "call".into(),
            account_id: None,
            zone: "local".into(),
            file_name: format!("{key}.mp3"),
            media_name: format!("{key}.mp3"),
            format: Format::Mp3,
            origin: "callflow : desk".into(),
            method: Method::Put,
            url,
            min_sec: 0,
            asked_at: now,
            parties: Parties::default(),
            continues: None,
            trace: None,
            command: None,
            adopted: None,
        }
    }

    fn media(section: Value) -> Option<Media> {
        Some(Media::read(&json!({ "default": section }), "local"))
    }

    /// `should_store_recording` of the recording's own settings, which later versions of Kazoo obey.
    #[test]
    fn a_recordings_own_settings_come_first() {
        let of = |wanted: Value, url: Url| {
            let mut order = order(url);
            order.adopted = serde_json::from_value(json!({ "wanted": wanted })).ok();
            let off = media(json!({"store_recordings": false}));
            choose(&order, off.as_ref(), &Plan::None)
        };
        assert_eq!(of(json!(true), Url::None), Ok(Decision::To(Destination::Account)));
        assert_eq!(
            of(json!(false), Url::Given("https://h/in".into())),
            Ok(Decision::Discard)
        );
        assert_eq!(of(json!(null), Url::None), Ok(Decision::Discard));
    }

    #[test]
    fn every_row_of_the_table() {
        let storage = Storage {
            handler: None,
            connection: None,
        };
        let plan = || Plan::Stored(storage.clone());
        let given = |url: &str| Url::Given(url.to_owned());
        let none = || Url::None;
        let on = || media(json!({"store_recordings": true}));
        let off = || media(json!({"store_recordings": false}));
        let third = || media(json!({"store_recordings": true, "third_party_bigcouch_host": "rec.example.com"}));
        let third_off = || media(json!({"store_recordings": false, "third_party_bigcouch_host": "rec.example.com"}));
        let nonsense = || media(json!({"store_recordings": true, "third_party_bigcouch_host": "http://rec/path"}));
        let to = |destination| Ok(Decision::To(destination));
        let target = || to(Destination::Url);
        let disabled = || Ok(Decision::Discard);
        let no_server = Undecided::ThirdParty(NoServer::HasPath);
        let rows = [
            // A URL wins over everything else.
            ("url", given("https://h/in"), on(), Plan::None, target()),
            ("url, storing off", given("https://h/in"), off(), Plan::None, target()),
            ("url, plan", given("https://h/in"), on(), plan(), target()),
            ("url, third party", given("https://h/in"), third(), Plan::None, target()),
            (
                "url, nothing known",
                given("https://h/in"),
                None,
                Plan::Unknown,
                target(),
            ),
            (
                "url, nonsense set",
                given("https://h/in"),
                nonsense(),
                Plan::None,
                target(),
            ),
            ("no scheme of ours", given("ftp://h/in"), on(), plan(), target()),
            ("no url at all", given("nonsense"), on(), Plan::None, target()),
            ("url forgotten", Url::Lost, on(), plan(), target()),
            // Next is the storage plan, independent of store_recordings.
            ("plan", none(), on(), plan(), to(Destination::StoragePlan)),
            ("plan, storing off", none(), off(), plan(), to(Destination::StoragePlan)),
            (
                "plan, third party",
                none(),
                third(),
                plan(),
                to(Destination::StoragePlan),
            ),
            (
                "plan, media unknown",
                none(),
                None,
                plan(),
                to(Destination::StoragePlan),
            ),
            ("plan unknown", none(), off(), Plan::Unknown, Err(Undecided::Plan)),
            // Next is the ending without a destination.
            ("storing off", none(), off(), Plan::None, disabled()),
            ("nothing set", none(), media(json!({})), Plan::None, disabled()),
            ("off, third party", none(), third_off(), Plan::None, disabled()),
            ("media unknown", none(), None, Plan::None, Err(Undecided::Media)),
            // Next is the third party, and last the account.
            ("third party", none(), third(), Plan::None, to(Destination::ThirdParty)),
            ("third party nonsense", none(), nonsense(), Plan::None, Err(no_server)),
            ("account", none(), on(), Plan::None, to(Destination::Account)),
        ];
        for (what, url, media, plan, decision) in rows {
            assert_eq!(choose(&order(url), media.as_ref(), &plan), decision, "{what}");
        }
    }

    #[test]
    fn no_decision_tells_a_password() {
        let order = order(Url::Given("https://user:hunter2@h/in?token=hunter2".into()));
        let decision = choose(&order, None, &Plan::None);
        assert!(!format!("{decision:?}").contains("hunter2"));
        let media = media(json!({"store_recordings": true, "third_party_bigcouch_host": "http://u:hunter2@rec"}));
        let order = super::tests::order(Url::None);
        let decision = choose(&order, media.as_ref(), &Plan::None);
        assert!(!format!("{decision:?}").contains("hunter2"));
    }
}
