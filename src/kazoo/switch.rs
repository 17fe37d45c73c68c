//! Commands to a media switch (`kapi_switch:fs_command`, `ecallmgr_fs_node_command`). The only command here is `send_http`, which makes the
//! switch PUT a file from its disk to a URL.
//!
//! The switch deletes the file when the answer is 200, 201, 202 or 204 (mod_kazoo, `kz_http_put`). It supports only `put`. The URL and the
//! file's path are two words of one line, so neither may contain a space, a quote or a backslash.

use serde_json::{Value, json};

use super::envelope::{Envelope, MessageError, Sender};
use super::json::owned_text;
use super::names::Exchange;
use super::outgoing::Outgoing;
use super::routing_key::{self, MAX_BYTES};

/// Why a file cannot be requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendHttpError {
    #[error("the path of the file on the switch would break the switch's command line")]
    UnsafePath,
    #[error("the URL would break the switch's command line")]
    UnsafeUrl,
    #[error("the switch's name is empty or too long for a routing key")]
    BadNode,
}

/// The request to PUT `path`, a file on the switch `node`, to `url`. `reply_to` is the queue for the reply. The message is mandatory: the
/// broker returns it when no ecallmgr serves that switch.
///
/// # Errors
/// A value that the switch would misread. The switch answers a wrong number of words with `success`, and uploads nothing.
pub fn send_http(
    sender: &Sender,
    msg_id: &str,
    reply_to: &str,
    node: &str,
    path: &str,
    url: &str,
) -> Result<Outgoing, SendHttpError> {
    let one_word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '\'' | '"' | '\\'))
    };
    if !one_word(path) || path.contains("${") {
        return Err(SendHttpError::UnsafePath);
    }
    if !one_word(url) || url.contains("${") {
        return Err(SendHttpError::UnsafeUrl);
    }
    let key = format!("switch.command.{}", routing_key::encode(node));
    if node.is_empty() || matches!(node, "*" | "#") || key.len() > MAX_BYTES {
        return Err(SendHttpError::BadNode);
    }
    let body = json!({
        "Server-ID": reply_to,
        "FreeSWITCH-Node": node,
        "Command": "send_http",
        "Args": { "File-Name": path, "Url": url, "Http-Method": "put" },
    });
    Ok(Outgoing::mandatory_topic(
        Exchange::Switch,
        key,
        sender.message("switch_event", "command", msg_id, body),
    ))
}

/// ecallmgr's reply to a `send_http`. It is only a hint. The upload that our ingest received is the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendHttpReply {
    pub success: bool,
    /// The error in the switch's own words.
    pub error: Option<String>,
}

impl SendHttpReply {
    /// # Errors
    /// When the message is not `switch_event`/`reply`.
    pub fn of(envelope: &Envelope) -> Result<Self, MessageError> {
        if !envelope.is("switch_event", "reply") {
            return Err(envelope.unexpected());
        }
        let body = &envelope.body;
        let data = body.get("Event-Data").unwrap_or(&Value::Null);
        let words: Vec<String> = [
            owned_text(body, "Error"),
            owned_text(data, "API-Error"),
            super::json::text_or_number(data, "API-HTTP-Error"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let error = (!words.is_empty()).then(|| super::call::clip(&words.join(" / "), 300).to_owned());
        Ok(Self {
            success: owned_text(body, "Result").as_deref() == Some("success"),
            error,
        })
    }

    /// Whether the switch reports that it cannot open the file (`kz_http_put`).
    pub fn says_file_missing(&self) -> bool {
        self.error
            .as_deref()
            .is_some_and(|error| error.contains("error opening file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(node: &str, path: &str, url: &str) -> Result<Outgoing, SendHttpError> {
        send_http(
            &Sender {
                node: "kz_record_call@rec1".into(),
            },
            "5a0f",
            "replies",
            node,
            path,
            url,
        )
    }

    #[test]
    fn a_request_is_addressed_to_the_switch() {
        let sent = request("freeswitch@fs1.example.com", "/tmp/a.mp3", "http://rec1:1/r/abc").unwrap();
        assert_eq!(sent.routing_key, "switch.command.freeswitch%40fs1%2Eexample%2Ecom");
        assert_eq!(sent.exchange, Exchange::Switch);
        assert!(sent.mandatory);
        assert_eq!(sent.body["Args"]["Http-Method"], "put");
        assert_eq!(sent.body["Server-ID"], "replies");
    }

    #[test]
    fn what_would_break_the_switchs_command_line_is_never_sent() {
        for path in [
            "",
            "/tmp/a b.mp3",
            "/tmp/a\t.mp3",
            "/tmp/'a'.mp3",
            "/tmp/${system id}.mp3",
            "/tmp/a\\.mp3",
            "/tmp/a\n",
        ] {
            assert_eq!(
                request("fs", path, "http://r/x"),
                Err(SendHttpError::UnsafePath),
                "{path:?}"
            );
        }
        assert_eq!(
            request("fs", "/tmp/a.mp3", "http://r/x y"),
            Err(SendHttpError::UnsafeUrl)
        );
        for node in ["", "*", "#", &"n".repeat(300)] {
            assert_eq!(
                request(node, "/tmp/a.mp3", "http://r/x"),
                Err(SendHttpError::BadNode),
                "{node}"
            );
        }
    }

    #[test]
    fn a_reply_tells_success_or_the_switchs_words() {
        let reply = |body: Value| {
            let mut whole = json!({"Event-Category": "switch_event", "Event-Name": "reply"});
            whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            SendHttpReply::of(&Envelope::of(whole).unwrap()).unwrap()
        };
        assert_eq!(
            reply(json!({"Result": "success"})),
            SendHttpReply {
                success: true,
                error: None
            }
        );
        let failed =
            reply(json!({"Result": "error", "Event-Data": {"API-Error": "error opening file", "API-HTTP-Error": 0}}));
        assert!(!failed.success && failed.says_file_missing());
        assert!(!reply(json!({})).success);
    }
}
