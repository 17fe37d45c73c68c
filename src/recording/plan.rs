//! The plan for an action. One pure function from (action, circumstances) to (plan, corrections).

use crate::kazoo::action::Execute;
use crate::kazoo::call::clip;
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::{Moment, message_time};

use super::carry::Seal;
use super::format::Format;
use super::identity::{Key, MediaId};
use super::names;
use super::order::{Command, Order, Url};
use super::settings::{self, Correction, Verb};

/// The cluster's configuration for values that the action does not set (`system_config/media`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// `call_recording.extension`.
    pub format: Format,
    /// `record_min_sec`, seconds.
    pub min_sec: u32,
    /// `max_recording_time_limit`, seconds.
    pub max_time_limit: u32,
}

impl Default for Defaults {
    /// Kazoo's own defaults (`kz_media_config`, `kz_media_util`).
    fn default() -> Self {
        Self {
            format: Format::Mp3,
            min_sec: 0,
            max_time_limit: 10_800,
        }
    }
}

/// All inputs of a plan except the action.
pub struct Circumstances<'a> {
    pub defaults: &'a Defaults,
    pub seal: &'a Seal,
    pub zone: &'a str,
    /// The folder of recordings on switches (`ecallmgr.recording_file_path`), with a slash at the end.
    pub recordings: &'a str,
    /// The AMQP `timestamp` property of the action's message.
    pub timestamp: Option<u64>,
    pub now: Moment,
}

/// The result for an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The flow skips the node.
    Skip,
    Start(Box<Order>),
    /// Stop, mask or unmask the newest running recording of the call.
    Control(Control),
}

/// Makes the plan. It never fails, because there is a sensible result for any data.
pub fn plan(action: &Execute, circumstances: &Circumstances<'_>) -> (Plan, Vec<Correction>) {
    let defaults = circumstances.defaults;
    let (settings, mut corrections) = settings::read(&action.data, defaults.max_time_limit);
    let other = match (settings.skip, settings.verb) {
        (true, _) => Some(Plan::Skip),
        (false, Verb::Control(control)) => Some(Plan::Control(control)),
        (false, Verb::Start) => None,
    };
    if let Some(other) = other {
        // The values of a start do not apply here, so their corrections are dropped.
        corrections.retain(|correction| settings::EVERY_VERBS.contains(&correction.key));
        return (other, corrections);
    }
    // An action without an id did not pass Kazoo's validator. Its content then replaces the id.
    let content;
    let action_id = match &action.msg_id {
        Some(id) => id,
        None => {
            content = action.data.to_string();
            &content
        }
    };
    let key = Key::of(&action.call_id, action_id);
    let asked_at = circumstances
        .timestamp
        .and_then(|t| message_time(t, circumstances.now))
        .unwrap_or(circumstances.now);
    let format = settings.format.unwrap_or(defaults.format);
    let file_name = names::file_name(key, format);
    let media_name = match settings
        .media_name
        .as_deref()
        .map(|given| (given, names::media_name(given, format)))
    {
        None => file_name.clone(),
        Some((given, flat)) => {
            let used = flat.unwrap_or_else(|| file_name.clone());
            if used != given {
                corrections.push(Correction {
                    key: "media_name",
                    given: settings::shown(&given.into()),
                    used: used.clone(),
                    why: "only A-Z a-z 0-9 . _ - and the format's extension",
                });
            }
            used
        }
    };
    let media_id = match settings.media_id {
        Some(given) if !asked_at.month().may_file_under(given.month()) => {
            corrections.push(Correction {
                key: "media_id",
                given: given.to_string(),
                used: "a derived id".into(),
                why: "its month is over ten years ago, or after the next one",
            });
            MediaId::derived(key, asked_at)
        }
        given => given.unwrap_or_else(|| MediaId::derived(key, asked_at)),
    };
    let mut order = Order {
        key,
        media_id,
        call_id: action.call_id.clone(),
        account_id: action.call.account_id.clone(),
        zone: circumstances.zone.to_owned(),
        file_name,
        media_name,
        format,
        origin: origin(settings.label.as_deref(), action.call.flow_name.as_deref()),
        method: settings.method,
        url: settings.url.map_or(Url::None, Url::Given),
        min_sec: settings.min_sec.unwrap_or(defaults.min_sec),
        asked_at,
        parties: action.call.parties.clone(),
        continues: None,
        trace: None,
        command: None,
        adopted: None,
    };
    order.command = Some(Command {
        control: action.control.to_string(),
        fetch_id: action.call.fetch_id.clone(),
        trigger: settings.trigger,
        time_limit: settings.time_limit,
        follow_transfer: settings.follow_transfer,
        sample_rate: settings.sample_rate,
        silence: settings.silence,
        stereo: settings.stereo,
        carry: circumstances.seal.seal(&order),
        node: action.call.switch_nodename.clone(),
        path: format!("{}{}", circumstances.recordings, order.file_name),
    });
    (Plan::Start(Box::new(order)), corrections)
}

/// `callflow : ` and the label, else the flow's name, else `unnamed` (`cf_record_call` crashes without both).
fn origin(label: Option<&str>, flow_name: Option<&str>) -> String {
    format!("callflow : {}", clip(label.or(flow_name).unwrap_or("unnamed"), 128))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::kazoo::dialplan::Trigger;
    use crate::kazoo::envelope::Envelope;

    use super::*;

    fn action(name: &str) -> Execute {
        let path = format!(
            "{}/tests/fixtures/action_execute/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        Execute::of(&Envelope::read(&std::fs::read(path).unwrap()).unwrap()).unwrap()
    }

    fn planned_at(action: &Execute, timestamp: Option<u64>, now: Moment) -> (Plan, Vec<Correction>) {
        let (defaults, seal) = (Defaults::default(), Seal::new(b"secret"));
        plan(
            action,
            &Circumstances {
                defaults: &defaults,
                seal: &seal,
                zone: "local",
                recordings: "/tmp/",
                timestamp,
                now,
            },
        )
    }

    fn started(action: &Execute) -> (Order, Command) {
        let (plan, _) = planned_at(action, None, Moment::from_unix_seconds(1_795_386_262));
        let Plan::Start(order) = plan else { panic!("{plan:?}") };
        let command = order.command.clone().unwrap();
        (*order, command)
    }

    fn with_data(data: Value) -> Execute {
        Execute {
            data,
            ..action("01-start-minimal")
        }
    }

    #[test]
    fn a_minimal_start_has_every_default() {
        let (order, command) = started(&action("01-start-minimal"));
        assert_eq!(order.format, Format::Mp3);
        assert_eq!(order.origin, "callflow : Main Number");
        assert_eq!(order.media_name, order.file_name);
        assert_eq!(order.media_id.as_str(), format!("202611-{}", order.key));
        assert_eq!(
            (command.time_limit, command.trigger, command.follow_transfer),
            (3600, Trigger::Now, true)
        );
        assert_eq!((order.min_sec, order.url), (0, Url::None));
    }

    #[test]
    fn every_key_of_kazoos_schema_is_taken() {
        let (order, command) = started(&action("02-start-all-keys"));
        assert_eq!(
            (order.format, order.media_name.as_str()),
            (Format::Wav, "front-desk-0001.wav")
        );
        assert_eq!(order.file_name, format!("{}.wav", order.key));
        assert_eq!(order.origin, "callflow : front desk");
        assert_eq!(
            order.url,
            Url::Given("https://rec.example.com/in?token=abc&file=".into())
        );
        assert_eq!(
            (command.time_limit, command.sample_rate, order.min_sec),
            (900, Some(16_000), 3)
        );
        assert_eq!((command.trigger, command.follow_transfer), (Trigger::Answer, false));
    }

    #[test]
    fn a_stop_is_a_control_and_a_skipped_node_is_skipped() {
        let now = Moment::from_unix_seconds(0);
        assert_eq!(
            planned_at(&action("03-stop"), None, now).0,
            Plan::Control(Control::Stop)
        );
        assert_eq!(
            planned_at(&with_data(json!({"skip_module": true})), None, now).0,
            Plan::Skip
        );
    }

    #[test]
    fn the_time_limit_is_bounded_on_both_sides() {
        for (given, sent) in [
            (json!(null), 3600),
            (json!(4), 5),
            (json!(900), 900),
            (json!("20000"), 10_800),
            (json!("x"), 3600),
        ] {
            assert_eq!(
                started(&with_data(json!({ "time_limit": given }))).1.time_limit,
                sent,
                "{given}"
            );
        }
    }

    #[test]
    fn a_redelivery_after_the_turn_of_the_month_keeps_its_id() {
        let action = action("01-start-minimal");
        let (sent, later) = (1_796_083_199_i64, 1_796_083_260);
        let timestamp = u64::try_from((sent + 62_167_219_200) * 1_000_000).unwrap();
        let ids: Vec<_> = [sent, later]
            .map(|now| planned_at(&action, Some(timestamp), Moment::from_unix_seconds(now)).0)
            .into_iter()
            .map(|plan| {
                if let Plan::Start(order) = plan {
                    order.media_id.to_string()
                } else {
                    String::new()
                }
            })
            .collect();
        assert_eq!(ids[0], ids[1]);
        assert!(ids[0].starts_with("202611-"));
    }

    #[test]
    fn the_origin_falls_back_from_label_to_flow_to_a_word() {
        assert_eq!(origin(Some("desk"), Some("flow")), "callflow : desk");
        assert_eq!(origin(None, Some("flow")), "callflow : flow");
        assert_eq!(origin(None, None), "callflow : unnamed");
    }

    fn safe(text: &str) -> bool {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }

    #[test]
    fn an_id_of_a_month_that_nobody_is_in_is_not_taken() {
        let planned = |id: &str| {
            let action = with_data(json!({"media_id": id}));
            let (plan, corrections) = planned_at(&action, None, Moment::from_unix_seconds(1_795_386_262));
            let Plan::Start(order) = plan else { panic!("{plan:?}") };
            (order.media_id.to_string(), order.key, corrections.len())
        };
        for month in ["201611", "202610", "202611", "202612"] {
            let id = format!("{month}-frontdesk");
            assert_eq!(planned(&id).0, id);
        }
        for month in ["000001", "201610", "202701", "999912"] {
            let (id, key, corrections) = planned(&format!("{month}-frontdesk"));
            assert_eq!((id, corrections), (format!("202611-{key}"), 1), "{month}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_tenant_wrote_reaches_the_switchs_command_line(
            media_id in ".{0,80}", media_name in ".{0,80}", label in ".{0,80}", url in ".{0,80}", call_id in ".{1,80}",
        ) {
            let mut action = with_data(json!({"media_id": media_id, "media_name": media_name, "label": label, "url": url}));
            action.call_id = call_id;
            let (order, _) = started(&action);
            let start = order.start(&order.call_id).unwrap();
            prop_assert!(safe(&start.media_name) && safe(&start.media_id) && safe(&start.carry));
            prop_assert!(start.carry.len() <= 1024);
        }
    }
}
