//! What the simulator saw: the timeline of everything sent and received, and the breaks of the contract.

use std::{fmt, sync::Arc, time::Instant};

use serde_json::Value;

use super::{
    term,
    wire::{Object, is_hex32, text},
};

/// A break of the contract by the worker.
#[derive(Clone, Debug)]
pub struct Violation {
    /// A short fixed name, e.g. `insert-at`; see [`super::check`].
    pub rule: &'static str,
    pub message: String,
    /// The offending message or what else helps.
    pub detail: String,
    pub at: Instant,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.rule, self.message)?;
        if !self.detail.is_empty() {
            write!(f, "\n      {}", self.detail)?;
        }
        Ok(())
    }
}

/// Who of the cluster saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Callflow,
    Ecallmgr,
    Switch,
    /// The observer: messages of the worker to others than the cluster's call parts.
    Cluster,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Callflow => "callflow",
            Self::Ecallmgr => "ecallmgr",
            Self::Switch => "switch",
            Self::Cluster => "cluster",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the cluster to the worker.
    Sent,
    /// From the worker to the cluster.
    Received,
    /// Inside the cluster: a file was written, a fault struck, an upload went on.
    Note,
}

/// One line of the timeline.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: Instant,
    pub role: Role,
    pub direction: Direction,
    pub exchange: String,
    pub key: String,
    pub category: String,
    pub name: String,
    pub call_id: Option<String>,
    /// For people.
    pub summary: String,
    pub body: Option<Arc<Object>>,
}

impl Entry {
    pub fn note(role: Role, call_id: Option<&str>, summary: impl Into<String>) -> Self {
        Self {
            at: Instant::now(),
            role,
            direction: Direction::Note,
            exchange: String::new(),
            key: String::new(),
            category: String::new(),
            name: String::new(),
            call_id: call_id.map(str::to_owned),
            summary: summary.into(),
            body: None,
        }
    }

    pub fn message(role: Role, direction: Direction, exchange: &str, key: &str, body: Arc<Object>) -> Self {
        let of = |k: &str| text(&body, k).unwrap_or_default().to_owned();
        Self {
            at: Instant::now(),
            role,
            direction,
            exchange: exchange.to_owned(),
            key: key.to_owned(),
            category: of("Event-Category"),
            name: of("Event-Name"),
            call_id: text(&body, "Call-ID").map(str::to_owned),
            summary: summarise(&body),
            body: Some(body),
        }
    }

    pub fn header(&self, key: &str) -> Option<&Value> {
        self.body.as_ref().and_then(|b| b.get(key))
    }
}

/// One line about a message, without its name.
fn summarise(body: &Object) -> String {
    let of = |k: &str| text(body, k).unwrap_or_default();
    let recording = |key: &str| {
        body.get("Recording")
            .and_then(|r| r.get(key))
            .and_then(Value::as_str)
            .unwrap_or("")
    };
    match of("Event-Name") {
        "action.execute" => {
            let mut words = vec!["record_call".to_owned()];
            let data = body.get("Data").and_then(Value::as_object);
            for (key, value) in data.into_iter().flatten() {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                words.push(if key == "action" {
                    value
                } else {
                    format!("{key}={value}")
                });
            }
            words.join(" ")
        }
        "action.result" => match term::decision(of("Result")) {
            Ok(decision) => format!("{decision:?}").to_lowercase(),
            Err(_) => of("Result").to_owned(),
        },
        "command" if body.contains_key("Command") => {
            let arg = |k: &str| {
                body.get("Args")
                    .and_then(|a| a.get(k))
                    .and_then(Value::as_str)
                    .unwrap_or("?")
            };
            format!(
                "{} {} to {}",
                of("Command"),
                brief(file_name(arg("File-Name"))),
                origin(arg("Url"))
            )
        }
        "command" => match of("Application-Name") {
            "record_call" => format!("record_call {} {}", of("Record-Action"), brief(of("Media-Name"))),
            other => other.to_owned(),
        },
        "RECORD_START" => recording("ID").to_owned(),
        "RECORD_STOP" => {
            let length = of("Length").parse::<f64>().unwrap_or(0.0) / 1_000.0;
            format!("{} {length:.1} s {}", recording("ID"), recording("Completion-Cause"))
        }
        "CHANNEL_DESTROY" => of("Hangup-Cause").to_owned(),
        "CHANNEL_REPLACED" => format!("by {}", of("Replaced-By")),
        "dialplan" => of("Error-Message").to_owned(),
        "reply" => format!("{} {}", of("Result"), of("Error")).trim().to_owned(),
        "channel_status_resp" => of("Status").to_owned(),
        "doc_created" | "doc_edited" => format!("{} {}", of("Type"), of("ID")),
        _ => ["ID", "Media-Recording-ID", "Recording-ID", "Media-ID", "Cause"]
            .iter()
            .filter_map(|k| text(body, k))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// A generated name shortened for people: `9d1f0c3b….mp3`.
pub fn brief(name: &str) -> String {
    match name.split_once('.') {
        Some((stem, ext)) if is_hex32(stem) => format!("{}….{ext}", &stem[..8]),
        _ => name.to_owned(),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Scheme, host and port: the path of an upload address is a secret and long.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |i| &url[..host + i])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_tells_what_matters_and_keeps_the_token_out() {
        let body = json!({"Event-Category": "switch_event", "Event-Name": "command", "Command": "send_http",
            "Args": {"Url": "http://10.0.0.1:8080/ingest/secret", "File-Name": "/tmp/a.mp3"}});
        let entry = Entry::message(
            Role::Switch,
            Direction::Received,
            "switch",
            "k",
            Arc::new(body.as_object().unwrap().clone()),
        );
        assert_eq!(entry.summary, "send_http a.mp3 to http://10.0.0.1:8080");
    }
}
