//! System alerts for Kazoo's operators, if `kazoo.system_alerts` is set: a recording is parked, or ended without its audio. Kazoo sends a
//! mail for each alert, so a burst becomes few alerts. For each outcome and cause the first one is published at once. Then, every few
//! minutes, one alert says how many more there were.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::warn;

use crate::amqp::Publisher;
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::flow::common::Tasks;
use crate::kazoo::alert::system_alert;
use crate::kazoo::dialplan::Control;
use crate::kazoo::envelope::Sender;
use crate::recording::controls::Why;
use crate::telemetry::events::Announced;

/// Interval between two alerts of one kind.
const WINDOW: Duration = Duration::from_secs(300);

/// What operators are alerted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The recording is parked, or ended without its audio.
    Ended(Outcome, Cause),
    /// The switch did not obey a stop, a mask or an unmask.
    NotObeyed(Control, Why),
}

/// Alerts that were counted and not published yet, for each kind that was published lately.
type Untold = Mutex<HashMap<Kind, u64>>;

/// Publishes the alerts, or does nothing. Cheap to clone.
#[derive(Clone)]
pub struct Alerts(Option<Arc<Inner>>);

struct Inner {
    publisher: Publisher,
    sender: Sender,
    tasks: Tasks,
    untold: Untold,
}

impl Alerts {
    pub fn new(wanted: bool, publisher: &Publisher, sender: &Sender, tasks: &Tasks) -> Self {
        Self(wanted.then(|| {
            Arc::new(Inner {
                publisher: publisher.clone(),
                sender: sender.clone(),
                tasks: tasks.clone(),
                untold: Untold::default(),
            })
        }))
    }

    /// Alerts operators of a recording that is parked, ended without its audio, or runs on as it should not. Does not wait.
    pub fn raise(&self, entry: &Entry, kind: Kind) {
        let Some(inner) = self.0.clone() else { return };
        if !admit(&inner.untold, kind) {
            return;
        }
        let first = first(entry, kind);
        let tasks = inner.tasks.clone();
        let telling = async move {
            inner.publish(&first).await;
            loop {
                let going_down = tokio::select! {
                    () = tokio::time::sleep(WINDOW) => false,
                    () = inner.tasks.stop().cancelled() => true,
                };
                match settle(&inner.untold, kind) {
                    Some(more) => inner.publish(&summary(more, kind)).await,
                    None => return,
                }
                if going_down {
                    return;
                }
            }
        };
        tasks.spawn("alerts", telling);
    }
}

/// What an alert says.
#[derive(Debug, PartialEq)]
struct Alert {
    media_id: String,
    subject: String,
    message: String,
    details: Value,
}

impl Inner {
    async fn publish(&self, alert: &Alert) {
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let message = system_alert(
            &self.sender,
            &msg_id,
            &alert.subject,
            &alert.message,
            alert.details.clone(),
        );
        match self.publisher.publish(&message).await {
            Ok(()) => Announced {
                media_id: &alert.media_id,
                kind: "system_alert",
            }
            .emit(),
            // The log and the metrics report the recording too.
            Err(error) => {
                warn!(event = "system_alert_not_published", media_id = alert.media_id, %error, "system alert not published")
            }
        }
    }
}

/// Whether this alert is published at once. Otherwise it is counted.
fn admit(untold: &Untold, kind: Kind) -> bool {
    let mut untold = untold.lock().unwrap_or_else(PoisonError::into_inner);
    match untold.get_mut(&kind) {
        Some(count) => {
            *count += 1;
            false
        }
        None => untold.insert(kind, 0).is_none(),
    }
}

/// How many alerts were counted since the last one of this kind. If there were none, the next one is published at once again.
fn settle(untold: &Untold, kind: Kind) -> Option<u64> {
    let mut untold = untold.lock().unwrap_or_else(PoisonError::into_inner);
    let count = untold.remove(&kind).filter(|count| *count > 0)?;
    untold.insert(kind, 0);
    Some(count)
}

impl Kind {
    /// What happened to a recording, as a predicate.
    fn happened(self) -> String {
        match self {
            Self::Ended(Outcome::Parked, _) => "is parked".to_owned(),
            Self::Ended(..) => "ended without its audio".to_owned(),
            Self::NotObeyed(Control::Stop, _) => "was not stopped".to_owned(),
            Self::NotObeyed(Control::Mask, _) => "was not masked".to_owned(),
            Self::NotObeyed(Control::Unmask, _) => "was not unmasked".to_owned(),
        }
    }

    const fn cause(self) -> &'static str {
        match self {
            Self::Ended(_, cause) => cause.name(),
            Self::NotObeyed(_, why) => why.name(),
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Ended(_, cause) => cause.meaning(),
            Self::NotObeyed(what, why) => why.meaning(what),
        }
    }

    /// What an operator does next.
    fn advice(self, media_id: &str) -> String {
        match self {
            Self::Ended(..) => format!("Run `kz-record-call explain {media_id}` for its history."),
            Self::NotObeyed(..) => {
                format!(
                    "Run `kz-record-call explain {media_id}` for the switch and the file. If the switch still records, stop the recording there."
                )
            }
        }
    }

    /// The fields that the alert's details have for this kind.
    fn details(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Ended(outcome, cause) => [("Outcome", outcome.name()), ("Cause", cause.name())],
            Self::NotObeyed(what, why) => [("Not-Obeyed", what.name()), ("Cause", why.name())],
        }
    }
}

fn first(entry: &Entry, kind: Kind) -> Alert {
    let media_id = entry.order().map_or("unknown", |order| order.media_id.as_str());
    let account_id = entry.account_id();
    let (what, cause) = (kind.happened(), kind.cause());
    let mut details = Map::new();
    for (key, value) in kind.details() {
        details.insert(key.into(), json!(value));
    }
    for (key, value) in [
        ("Call-ID", Some(entry.call_id.as_str())),
        ("Account-ID", account_id),
        ("Media-ID", Some(media_id)),
    ] {
        if let Some(value) = value {
            details.insert(key.into(), json!(value));
        }
    }
    Alert {
        media_id: media_id.to_owned(),
        subject: format!("a recording {what} ({cause})"),
        message: format!(
            "Recording {media_id} of call {} (account {}) {what}: {}. {}",
            entry.call_id,
            account_id.unwrap_or("unknown"),
            kind.meaning(),
            kind.advice(media_id)
        ),
        details: Value::Object(details),
    }
}

fn summary(more: u64, kind: Kind) -> Alert {
    let (what, cause, minutes) = (kind.happened(), kind.cause(), WINDOW.as_secs() / 60);
    let names = match kind {
        Kind::Ended(outcome, cause) => format!("Run `kz-record-call list --state {outcome} --cause {cause}`."),
        Kind::NotObeyed(..) => "Search the log for event=control_not_obeyed and event=stop_unconfirmed.".to_owned(),
    };
    let mut details = Map::new();
    for (key, value) in kind.details() {
        details.insert(key.into(), json!(value));
    }
    details.insert("Count".into(), json!(more));
    Alert {
        media_id: String::new(),
        subject: format!("{more} more recordings: each {what} ({cause})"),
        message: format!(
            "{more} more recordings within {minutes} minutes. Each {what}: {}. {names}",
            kind.meaning()
        ),
        details: Value::Object(details),
    }
}

#[cfg(test)]
mod tests {
    use crate::recording::identity::Key;

    use super::*;

    #[test]
    fn a_storm_is_told_once_and_then_in_numbers() {
        let untold = Untold::default();
        let (one, other) = (
            Kind::Ended(Outcome::Parked, Cause::Unreachable),
            Kind::Ended(Outcome::Failed, Cause::FileGone),
        );
        assert!(admit(&untold, one));
        for _ in 0..1000 {
            assert!(!admit(&untold, one));
        }
        assert!(admit(&untold, other), "another cause is told at once");
        assert_eq!(settle(&untold, one), Some(1000));
        assert!(!admit(&untold, one), "it goes on");
        assert_eq!(settle(&untold, one), Some(1));
        assert_eq!(settle(&untold, one), None, "it is over");
        assert!(admit(&untold, one));
        assert_eq!(settle(&untold, other), None);
    }

    #[test]
    fn an_alert_names_the_recording_and_nothing_that_is_confidential() {
        let entry = Entry::new(Key::of("call", "action"), "call");
        let alert = first(&entry, Kind::Ended(Outcome::Parked, Cause::Unreachable));
        assert_eq!(alert.subject, "a recording is parked (unreachable)");
        assert!(
            alert.message.contains("of call call (account unknown) is parked"),
            "{}",
            alert.message
        );
        assert_eq!(
            alert.details,
            json!({"Outcome": "parked", "Cause": "unreachable", "Call-ID": "call", "Media-ID": "unknown"})
        );
        let alert = summary(37, Kind::Ended(Outcome::Failed, Cause::FileGone));
        assert_eq!(
            alert.subject,
            "37 more recordings: each ended without its audio (file_gone)"
        );
        assert!(
            alert.message.contains("--state failed --cause file_gone"),
            "{}",
            alert.message
        );
    }

    #[test]
    fn what_the_switch_did_not_obey_is_told_to_operators() {
        let entry = Entry::new(Key::of("call", "action"), "call");
        let alert = first(&entry, Kind::NotObeyed(Control::Mask, Why::Moved));
        assert_eq!(alert.subject, "a recording was not masked (moved)");
        assert_eq!(
            alert.details,
            json!({"Not-Obeyed": "mask", "Cause": "moved", "Call-ID": "call", "Media-ID": "unknown"})
        );
        let alert = summary(3, Kind::NotObeyed(Control::Stop, Why::Unconfirmed));
        assert_eq!(
            alert.details,
            json!({"Not-Obeyed": "stop", "Cause": "unconfirmed", "Count": 3})
        );
    }
}
