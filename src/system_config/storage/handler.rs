//! The attachment handler that a storage plan names, with its settings. Pure functions.

use std::fmt;

use serde_json::{Map, Value};

use crate::kazoo::json::{boolean_at, owned_text, text};

/// The handler of recordings' audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Its name in the plan.
    pub id: String,
    /// Its kind, such as `s3`, `google_drive` or `http`.
    pub kind: String,
    /// `None`: the plan does not describe the handler, or describes no settings. Kazoo crashes on both.
    pub settings: Option<Settings>,
    /// Kazoo makes the audio an ordinary attachment of the document as well, and writes nothing of the handler into the document.
    pub stub: bool,
    /// The settings come from the system's own document alone. An account, or the owner of a named plan, has written none of them.
    pub is_systems: bool,
}

/// A handler's settings as Kazoo merges them. They contain secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Settings(Map<String, Value>);

impl Handler {
    /// The handler that `attachments` of the plan names. `whole` is the merged plan, and `system` the system's own document.
    pub(super) fn read(attachments: &Value, whole: &Value, system: &Value) -> Option<Self> {
        let id = text(attachments, "handler")?;
        let params = attachments.get("params");
        let found = described(whole, id);
        let kind = |found: &Value| owned_text(found, "handler");
        let settings = found.and_then(|found| Settings::merged(found.get("settings"), params));
        let of_system = super::monthly_attachments(system);
        let of_system = of_system
            .get("params")
            .filter(|_| text(&of_system, "handler") == Some(id));
        let systems = described(system, id)
            .filter(|own| kind(own) == found.and_then(kind))
            .map(|own| own.get("settings"));
        let is_systems = settings.is_some()
            && systems.is_some_and(|own| {
                // An account may name the system's handler without the parameters that the system's own plan has.
                settings == Settings::merged(own, of_system) || settings == Settings::merged(own, None)
            });
        Some(Self {
            id: id.to_owned(),
            // Any name is accepted. Kazoo's proxy decides, and reports an unknown handler.
            kind: found.and_then(kind).unwrap_or_else(|| id.to_owned()),
            settings,
            stub: boolean_at(attachments, "stub") == Some(true),
            is_systems,
        })
    }
}

/// The entry of a handler in a plan.
fn described<'a>(plan: &'a Value, id: &str) -> Option<&'a Value> {
    plan.get("attachments")?.get(id)
}

impl Settings {
    pub fn of(settings: Map<String, Value>) -> Self {
        Self(settings)
    }

    /// Parameters of the plan win over settings of the handler. The merge has one level (`kzs_plan`, `maps:merge`).
    fn merged(settings: Option<&Value>, params: Option<&Value>) -> Option<Self> {
        let mut merged = settings?.as_object()?.clone();
        if let Some(params) = params.and_then(Value::as_object) {
            merged.extend(params.clone());
        }
        Some(Self(merged))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All settings, secrets included.
    pub fn expose(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// Names only. Any value may be a secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use crate::system_config::{Plan, Storage};

    use super::*;

    fn handler(documents: &[Value]) -> Handler {
        match Plan::read(documents) {
            Plan::Stored(Storage {
                handler: Some(handler), ..
            }) => *handler,
            other => panic!("{other:?}"),
        }
    }

    fn typed(attachments: Value) -> Value {
        json!({"modb": {"types": {"call_recording": {"attachments": attachments}}}})
    }

    fn whole(handler: &Handler) -> Value {
        json!(handler.settings.as_ref().unwrap().expose())
    }

    #[test]
    fn settings_are_merged_from_the_system_to_the_account_and_parameters_win() {
        let system = json!({
            "attachments": {"h": {"handler": "s3", "settings": {"bucket": "b", "host": "s", "field_list": [{"arg": "db"}]}}},
            "plan": typed(json!({"handler": "h"})),
        });
        let named = json!({"attachments": {"h": {"settings": {"host": "n", "field_list": [{"arg": "id"}]}}}});
        let account = json!({
            "attachments": {"h": {"settings": {"host": "a"}}},
            "plan": typed(json!({"params": {"folder_path": "f", "bucket": "p"}})),
        });
        let read = handler(&[system.clone(), named.clone()]);
        assert_eq!(
            whole(&read),
            json!({"bucket": "b", "host": "n", "field_list": [{"arg": "id"}]})
        );
        let read = handler(&[system, named, account]);
        assert_eq!(
            whole(&read),
            json!({"bucket": "p", "host": "a", "folder_path": "f", "field_list": [{"arg": "id"}]})
        );
        assert!(!read.stub);
    }

    #[test]
    fn a_types_attachments_replace_those_of_the_database_key_by_key() {
        let plan = json!({
            "attachments": {"h": {"handler": "s3", "settings": {"bucket": "b"}}},
            "plan": {"modb": {
                "attachments": {"handler": "h", "params": {"host": "x", "port": 1}, "stub": true},
                "types": {"call_recording": {"attachments": {"params": {"host": "y"}}}},
            }},
        });
        let read = handler(&[plan]);
        assert_eq!(whole(&read), json!({"bucket": "b", "host": "y"}));
        assert!(read.stub);
    }

    #[test]
    fn a_handler_without_a_description_or_settings_has_none() {
        for described in [
            json!({}),
            json!({"h": {"handler": "s3"}}),
            json!({"h": {"handler": "s3", "settings": 7}}),
        ] {
            let read = handler(&[json!({"attachments": described, "plan": typed(json!({"handler": "h"}))})]);
            assert_eq!(read.settings, None);
            assert!(!read.is_systems);
        }
    }

    /// An account that changes where audio goes must not reach what only the operator may name.
    #[test]
    fn a_handler_is_the_systems_only_if_no_account_changed_its_settings() {
        let system = json!({"_id": "system", "attachments": {"h": {"handler": "s3", "settings": {"bucket": "b", "host": "10.0.0.1"}}}});
        let use_it = json!({"plan": typed(json!({"handler": "h"}))});
        let systems_plan = json!({
            "_id": "system",
            "attachments": system["attachments"], "plan": typed(json!({"handler": "h", "params": {"folder_path": "f"}})),
        });
        assert!(handler(std::slice::from_ref(&systems_plan)).is_systems);
        assert!(handler(&[system.clone(), use_it.clone()]).is_systems);
        assert!(handler(&[systems_plan.clone(), json!({"pvt_type": "storage"})]).is_systems);
        for account in [
            json!({"attachments": {"h": {"settings": {"host": "127.0.0.1"}}}, "plan": use_it["plan"]}),
            json!({"attachments": {"h": {"handler": "azure"}}, "plan": use_it["plan"]}),
            json!({"plan": typed(json!({"handler": "h", "params": {"host": "127.0.0.1"}}))}),
            json!({
                "attachments": {"i": {"handler": "s3", "settings": {"bucket": "b"}}}, "plan": typed(json!({"handler": "i"})),
            }),
        ] {
            assert!(!handler(&[system.clone(), account.clone()]).is_systems, "{account}");
            assert!(
                !handler(&[systems_plan.clone(), account.clone()]).is_systems,
                "{account}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_debug_output_contains_a_value(secret in "[a-zA-Z0-9+/]{12,40}", key in "[a-z_]{1,8}") {
            let plan = json!({
                "attachments": {"h": {"handler": "s3", "settings": {&key: &secret, "nested": {"secret": &secret}}}},
                "plan": typed(json!({"handler": "h"})),
            });
            let shown = format!("{:?}", Plan::read([&plan]));
            prop_assert!(!shown.contains(&secret), "{shown}");
        }
    }
}
