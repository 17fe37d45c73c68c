//! Kazoo's system alert (`kz_notify:detailed_alert`, `kapi_notifications:system_alert`). teletype, or notify, sends it to the cluster's
//! operators.

use serde_json::{Value, json};

use super::envelope::Sender;
use super::names::Exchange;
use super::outgoing::Outgoing;

const CATEGORY: &str = "notification";
const NAME: &str = "system_alert";

/// `kapi_notifications`: `BINDING_STRING(system, alert)`.
pub const ROUTING_KEY: &str = "notifications.system.alert";

/// The alert. It is not mandatory, as in Kazoo, because a cluster may run no application that sends mail. `details` is an object without
/// `Format`: with `Format`, teletype would also post it to a subscriber's URL.
pub fn system_alert(sender: &Sender, msg_id: &str, subject: &str, message: &str, details: Value) -> Outgoing {
    let body = json!({
        "Subject": format!("System Alert: {subject}"),
        "Message": message,
        "Details": details,
    });
    Outgoing::topic(
        Exchange::Notifications,
        ROUTING_KEY.to_owned(),
        sender.message(CATEGORY, NAME, msg_id, body),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_kazoos_to_the_letter() {
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let alert = system_alert(
            &sender,
            "0f",
            "a recording is parked",
            "why",
            json!({"Cause": "unreachable"}),
        );
        assert_eq!(
            (alert.exchange, alert.routing_key.as_str(), alert.mandatory),
            (Exchange::Notifications, "notifications.system.alert", false)
        );
        assert_eq!(alert.body["Event-Category"], "notification");
        assert_eq!(alert.body["Event-Name"], "system_alert");
        assert_eq!(alert.body["Subject"], "System Alert: a recording is parked");
        assert_eq!(alert.body["Message"], "why");
        assert_eq!(alert.body["Details"]["Cause"], "unreachable");
    }
}
