//! The contract, as rules over received messages. Pure: every function says what it found, the caller records it.
//!
//! Some rules are Kazoo's own (its validators, its crashes), others are promises of this worker that go further; both
//! count as violations, for a drop-in must keep them all.

mod announcement;
mod command;
mod start;

pub use announcement::announcement;
pub use command::{FOLLOW_VARIABLES, event_actions, is_valid_record_call, record_call, set};

use std::io::Read as _;

use serde_json::Value;

use super::{
    amqp::Received,
    wire::{Object, encode, is_hex32, is_pid, text},
};

/// What was found: the rule's name and a sentence.
pub type Findings = Vec<(&'static str, String)>;

pub(super) fn found(into: &mut Findings, rule: &'static str, message: impl Into<String>) {
    into.push((rule, message.into()));
}

/// Decodes a message and checks what all of them share.
pub fn envelope(message: &Received, worker_app: &str) -> (Option<Object>, Findings) {
    let mut findings = Findings::new();
    if message.content_type.as_deref() != Some("application/json") {
        found(
            &mut findings,
            "content-type",
            format!("content type is {:?}", message.content_type),
        );
    }
    let mut plain = Vec::new();
    let bytes = match message.content_encoding.as_deref() {
        None => &message.body,
        Some("gzip") => {
            // Kazoo accepts it; a message is small, so a bomb shows as a failure to parse.
            let mut unzip = flate2::read::GzDecoder::new(message.body.as_slice()).take(1 << 22);
            let _ = unzip.read_to_end(&mut plain);
            &plain
        }
        Some(other) => {
            found(&mut findings, "content-type", format!("content encoding is {other:?}"));
            &message.body
        }
    };
    let body = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(body)) => body,
        Ok(_) => {
            found(&mut findings, "json", "the body is not an object");
            return (None, findings);
        }
        Err(e) => {
            found(&mut findings, "json", format!("the body is not JSON: {e}"));
            return (None, findings);
        }
    };
    default_headers(&body, worker_app, &mut findings);
    if let Some(pid) = &message.to_pid
        && !is_pid(pid)
    {
        found(
            &mut findings,
            "deliver-to-pid",
            format!("Deliver-To-PID {pid:?} would crash Kazoo's listener"),
        );
    }
    (Some(body), findings)
}

/// The five required headers, `Node`, and what Kazoo never sends: nulls and empty strings.
fn default_headers(body: &Object, worker_app: &str, findings: &mut Findings) {
    for key in [
        "App-Name",
        "App-Version",
        "Event-Category",
        "Event-Name",
        "Msg-ID",
        "Node",
    ] {
        match body.get(key) {
            None => found(findings, "envelope", format!("{key} is missing")),
            Some(Value::String(s)) if !s.is_empty() => {}
            Some(other) => found(findings, "envelope", format!("{key} is {other}")),
        }
    }
    for (key, value) in body {
        match value {
            Value::Null => found(findings, "empty-header", format!("{key} is null")),
            Value::String(s) if s.is_empty() && !["App-Name", "Msg-ID"].contains(&key.as_str()) => {
                found(findings, "empty-header", format!("{key} is an empty string"));
            }
            _ => {}
        }
    }
    for key in ["Server-ID", "Call-ID"] {
        if body.get(key).is_some_and(|v| !v.is_string()) {
            found(findings, "envelope", format!("{key} is not a string"));
        }
    }
    if let Some(id) = text(body, "Msg-ID")
        && !is_hex32(id)
    {
        found(
            findings,
            "msg-id",
            format!("Msg-ID {id:?} is not 32 lower-case hex digits"),
        );
    }
    if let Some(app) = text(body, "App-Name")
        && app != worker_app
    {
        found(findings, "app-name", format!("App-Name is {app:?}, not {worker_app:?}"));
    }
}

/// Category and name, and that the message came by the right exchange.
pub fn kind(message: &Received, body: &Object, exchange: &str, category: &str, names: &[&str]) -> Findings {
    let mut findings = Findings::new();
    if message.exchange != exchange {
        found(
            &mut findings,
            "exchange",
            format!("came by exchange {:?}, must come by {exchange:?}", message.exchange),
        );
    }
    let (is_category, is_name) = (
        text(body, "Event-Category"),
        text(body, "Event-Name").unwrap_or_default(),
    );
    if is_category != Some(category) || !names.contains(&is_name) {
        found(
            &mut findings,
            "category",
            format!("{is_category:?}/{is_name:?} is not {category}/{names:?}"),
        );
    }
    findings
}

/// `action.accepted` and `action.result`.
pub fn reply(message: &Received, body: &Object) -> Findings {
    let mut findings = kind(
        message,
        body,
        "targeted",
        "callflow",
        &["action.accepted", "action.result"],
    );
    if text(body, "Call-ID").is_none() {
        found(&mut findings, "envelope", "Call-ID is missing");
    }
    if text(body, "Event-Name") == Some("action.result") {
        match text(body, "Result") {
            None => found(&mut findings, "result-encoding", "Result is missing"),
            Some(result) => {
                if let Err(e) = super::term::decision(result) {
                    found(
                        &mut findings,
                        "result-encoding",
                        format!("Result would crash the call's process: {e}"),
                    );
                }
            }
        }
    } else if body.contains_key("Result") {
        found(&mut findings, "envelope", "action.accepted carries a Result");
    }
    findings
}

/// `send_http` and other commands to a switch.
pub fn switch_command(message: &Received, body: &Object, node: &str) -> Findings {
    let mut findings = kind(message, body, "switch", "switch_event", &["command"]);
    if text(body, "Command").is_none() {
        found(&mut findings, "kazoo-validator", "Command is missing");
    }
    if !body.get("Args").is_some_and(Value::is_object) {
        found(&mut findings, "kazoo-validator", "Args is missing or not an object");
    }
    if text(body, "FreeSWITCH-Node") != Some(node) {
        found(
            &mut findings,
            "switch-node",
            format!("FreeSWITCH-Node is {:?}", body.get("FreeSWITCH-Node")),
        );
    }
    if message.key != format!("switch.command.{}", encode(node)) {
        found(&mut findings, "routing-key", format!("routing key {:?}", message.key));
    }
    if text(body, "Server-ID").is_none() {
        found(&mut findings, "server-id", "a command without Server-ID gets no reply");
    }
    let arg = |k: &str| body.get("Args").and_then(|a| a.get(k)).and_then(Value::as_str);
    for key in ["Url", "File-Name"] {
        match arg(key) {
            None | Some("") => found(&mut findings, "send-http-argument", format!("{key} is missing")),
            Some(value) if value.contains([' ', '\t', '\n', '\r', '\'', '"', '\\']) => {
                found(
                    &mut findings,
                    "send-http-argument",
                    format!("{key} {value:?} is split or unquoted by the switch"),
                );
            }
            Some(_) => {}
        }
    }
    if arg("Url").is_some_and(|u| u.starts_with('{')) {
        found(
            &mut findings,
            "send-http-argument",
            "Url begins with {: the switch reads parameters there",
        );
    }
    if arg("Http-Method") != Some("put") {
        found(
            &mut findings,
            "send-http-argument",
            format!("Http-Method is {:?}, only put exists", arg("Http-Method")),
        );
    }
    findings
}

/// `channel_status_req` and `query_channels_req`.
pub fn status_request(message: &Received, body: &Object) -> Findings {
    let mut findings = kind(
        message,
        body,
        "callevt",
        "call_event",
        &["channel_status_req", "query_channels_req"],
    );
    if text(body, "Server-ID").is_none() {
        found(&mut findings, "server-id", "a request without Server-ID gets no reply");
    }
    let key = match (text(body, "Event-Name"), text(body, "Call-ID")) {
        (Some("query_channels_req"), _) => "call.status_req.channels".to_owned(),
        (_, Some(id)) => format!("call.status_req.{}", encode(id)),
        (_, None) => {
            found(&mut findings, "kazoo-validator", "Call-ID is missing");
            return findings;
        }
    };
    if message.key != key {
        found(
            &mut findings,
            "routing-key",
            format!("routing key {:?} should be {key:?}", message.key),
        );
    }
    if let Some(fields) = body.get("Fields")
        && !fields.is_array()
        && fields != "all"
    {
        found(&mut findings, "kazoo-validator", format!("Fields is {fields}"));
    }
    if body.get("Active-Only").is_some_and(|v| !v.is_boolean()) {
        found(&mut findings, "kazoo-validator", "Active-Only is not a boolean");
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn message(exchange: &str, key: &str, body: &Value) -> Received {
        Received {
            at: Instant::now(),
            queue: "q".into(),
            exchange: exchange.into(),
            key: key.into(),
            to_pid: Some("<0.1.2>".into()),
            traceparent: None,
            content_type: Some("application/json".into()),
            content_encoding: None,
            body: body.to_string().into_bytes(),
        }
    }

    fn accepted() -> Value {
        json!({"App-Name": "w", "App-Version": "1", "Node": "w@h", "Event-Category": "callflow",
            "Event-Name": "action.accepted", "Msg-ID": "0f3c9a7be1d24c5d8a6b7c8d9e0f1a2b", "Call-ID": "c"})
    }

    fn rules(message: &Received) -> Vec<&'static str> {
        let (body, mut findings) = envelope(message, "w");
        findings.extend(reply(message, &body.unwrap_or_default()));
        findings.into_iter().map(|(rule, _)| rule).collect()
    }

    #[test]
    fn a_right_reply_breaks_nothing() {
        assert!(rules(&message("targeted", "callflow_route_1", &accepted())).is_empty());
        let mut result = accepted();
        result["Event-Name"] = json!("action.result");
        result["Result"] = json!("g2QACGNvbnRpbnVl");
        assert!(rules(&message("targeted", "callflow_route_1", &result)).is_empty());
    }

    #[test]
    fn each_break_has_its_rule() {
        let good = message("targeted", "k", &accepted());
        let changed = |key: &str, value: Value| {
            let mut body = accepted();
            body[key] = value;
            message("targeted", "k", &body)
        };
        assert_eq!(
            rules(&Received {
                content_type: Some("application/json; charset=utf-8".into()),
                ..good.clone()
            }),
            ["content-type"]
        );
        assert_eq!(
            rules(&Received {
                to_pid: Some("0.1.2".into()),
                ..good.clone()
            }),
            ["deliver-to-pid"]
        );
        assert_eq!(
            rules(&Received {
                exchange: "kapps".into(),
                ..good.clone()
            }),
            ["exchange"]
        );
        assert_eq!(rules(&changed("Msg-ID", json!("XYZ"))), ["msg-id"]);
        assert_eq!(rules(&changed("App-Name", json!("callflow"))), ["app-name"]);
        assert_eq!(rules(&changed("Extra", json!(""))), ["empty-header"]);
        assert_eq!(rules(&changed("Call-ID", json!(7))), ["envelope", "envelope"]);
        assert!(rules(&changed("Event-Name", json!("action.result"))).contains(&"result-encoding"));
        assert!(
            rules(&Received {
                body: b"{".to_vec(),
                ..good
            })
            .contains(&"json")
        );
    }

    #[test]
    fn a_notice_of_a_document_is_checked() {
        let mut body = accepted();
        for (key, value) in [
            ("Event-Category", json!("configuration")),
            ("Event-Name", json!("doc_created")),
            ("ID", json!("202506-7c9e6679f4a14b0f9c3ad2e8b5f1a007")),
            ("Database", json!("account%2F01%2F23%2F456789-202506")),
            ("Type", json!("call_recording")),
            ("Rev", json!("1-aa")),
            ("Date-Created", json!(63_917_019_664_u64)),
        ] {
            body[key] = value;
        }
        let key =
            "doc_created.account%2F01%2F23%2F456789-202506.call_recording.202506-7c9e6679f4a14b0f9c3ad2e8b5f1a007";
        let good = message("configuration", key, &body);
        assert!(announcement(&good, body.as_object().unwrap()).is_empty());
        assert_eq!(
            announcement(&message("configuration", "x", &body), body.as_object().unwrap())[0].0,
            "routing-key"
        );
        body["Date-Created"] = json!(1_750_000_000);
        assert_eq!(announcement(&good, body.as_object().unwrap())[0].0, "doc-notice");
    }
}
