//! Whatever comes: no panic, and every command that goes out is one that Kazoo takes and the switch's shell never sees.

use kz_record_call::kazoo::action::ExecuteError;
use kz_record_call::kazoo::envelope::{MAX_ID_BYTES, MessageError};
use kz_record_call::recording::format::Format;
use kz_record_call::recording::plan::Defaults;
use kz_record_call::recording::settings::KEYS;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::wire::{Outcome, kazoos, message, refusal, run};

fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ".{0,40}",
        1 => Just("${system id}".to_owned()),
        1 => Just("202611-a_B-9".to_owned()),
        1 => "[0-9]{6}-.{0,70}",
        1 => "-?[0-9]{1,25}(\\.[0-9]{1,3})?",
        1 => "https?://[a-z${}@:/ ]{0,30}",
        1 => prop::sample::select(vec!["start", "stop", "mask", "unmask", "true", "false", "mp3", "wav", "put", "POST"]).prop_map(str::to_owned),
        1 => "[a-z~'#}]{1000,3000}",
    ]
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        2 => (-10i64..20_000).prop_map(Value::from),
        6 => words().prop_map(Value::from),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 16, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,12}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Mostly the keys that there are.
fn any_data() -> impl Strategy<Value = Value> {
    let key = prop_oneof![9 => prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned), 1 => ".{0,12}"];
    let object = prop::collection::btree_map(key, any_json(), 0..12);
    prop_oneof![
        8 => object.prop_map(|map| Value::Object(map.into_iter().collect())),
        1 => any_json(),
    ]
}

fn any_defaults() -> impl Strategy<Value = Defaults> {
    let format = prop::sample::select(vec![Format::Mp3, Format::Wav]);
    let max_time_limit = prop_oneof![Just(10_800), any::<u32>(), 0u32..10];
    (format, any::<u32>(), max_time_limit).prop_map(|(format, min_sec, max_time_limit)| Defaults {
        format,
        min_sec,
        max_time_limit,
    })
}

/// What must hold beside what `run` holds every command against.
fn consistent(outcome: &Outcome) -> Result<(), TestCaseError> {
    for (n, correction) in outcome.corrections.iter().enumerate() {
        prop_assert!(correction.given.len() <= 64, "{:?}", correction);
        prop_assert!(outcome.corrections[..n].iter().all(|other| other.key != correction.key));
    }
    if let Some(order) = &outcome.order {
        prop_assert!(order.media_name.len() <= 128 && !order.media_name.starts_with('_'));
        prop_assert!(order.media_name.ends_with(order.format.extension()));
        prop_assert!(order.origin.starts_with("callflow : "));
        let back = serde_json::from_value(serde_json::to_value(order).expect("JSON")).expect("an order");
        prop_assert_eq!(order, &back);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_data_comes_to_a_command_that_kazoo_takes(data in any_data(), defaults in any_defaults()) {
        consistent(&run(message(Some(&data)).to_string().as_bytes(), &defaults))?;
    }

    #[test]
    fn any_call_comes_to_a_command_that_kazoo_takes(
        call in prop::collection::btree_map(
            prop::sample::select(vec!["Account-ID", "Call-ID", "Fetch-ID", "Owner-ID", "From", "Switch-Nodename", "Caller-ID-Name", "Call-Bridged"]),
            any_json(), 0..6),
        variables in any_json(), flow_name in any_json(), call_id in ".{1,80}", msg_id in ".{0,40}",
    ) {
        let mut message = message(Some(&json!({"record_on_bridge": true})));
        for (key, value) in call {
            message["Call"][key] = value;
        }
        message["Call"]["Custom-Channel-Vars"] = variables;
        message["Call"]["Key-Value-Store"] = json!({ "cf_flow_name": flow_name });
        message["Call-ID"] = json!(call_id);
        // One without an id cannot be answered, which `run` asks for.
        message["Msg-ID"] = json!(format!("m{msg_id}"));
        let body = message.to_string();
        // An id that is too long to be kept is refused by its name: whoever sent it is answered, nothing is recorded.
        let long = |key: &&&str| message["Call"][**key].as_str().is_some_and(|id| id.len() > MAX_ID_BYTES);
        if let Some(header) = ["Fetch-ID", "Switch-Nodename"].iter().find(long) {
            prop_assert_eq!(refusal(body.as_bytes()), ExecuteError::from(MessageError::TooLong(header)));
            return Ok(());
        }
        let outcome = run(body.as_bytes(), &kazoos());
        consistent(&outcome)?;
        prop_assert_eq!(&outcome.command["Call-ID"], &json!(call_id));
    }

    /// The bounds of every number, whichever way it is written.
    #[test]
    fn a_number_is_clamped_however_it_is_written(number in any::<i64>(), small in -10i64..60_000, text in any::<bool>(), pick in any::<bool>()) {
        let number = if pick { number } else { small };
        let given = if text { json!(number.to_string()) } else { json!(number) };
        for (key, header, low, high) in [
            ("time_limit", "Time-Limit", 5, 10_800),
            ("record_sample_rate", "Record-Sample-Rate", 8_000, 48_000),
            ("record_min_sec", "Record-Min-Sec", 0, 10_800),
            ("silence_threshold", "Record-Silence-Detection/Threshold", 1, 32_767),
            ("silence_initial_timeout", "Record-Silence-Detection/Initial-Timeout", 0, 10_800_000),
            ("silence_final_timeout", "Record-Silence-Detection/Final-Timeout", 0, 10_800_000),
        ] {
            let mut data = Map::new();
            data.insert("silence_detection".into(), json!(true));
            data.insert(key.into(), given.clone());
            let outcome = run(message(Some(&Value::Object(data))).to_string().as_bytes(), &kazoos());
            let clamped = number.clamp(low, high);
            let sent = if key == "record_min_sec" { json!(clamped.to_string()) } else { json!(clamped) };
            prop_assert_eq!(outcome.seen(header), sent, "{}", key);
            let told = outcome.told(key).map(|(used, _)| used);
            prop_assert_eq!(told, (clamped != number).then(|| clamped.to_string()), "{}", key);
        }
    }
}
