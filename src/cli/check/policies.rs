//! RabbitMQ's policies. AMQP does not show them, so the check reads them from the broker's management API, if that answers. It finds which
//! policy is in force on our queues and on `kapps`, and with which priority. Of several matching policies only the one with the highest
//! priority is in force.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use url::Url;

use crate::amqp::{QueueKind, QueueSpec};
use crate::config::{self, Config};
use crate::flow::inbox::dead_letters::DEAD_LETTERS;
use crate::kazoo::names::Exchange;

use super::report::Rows;

const LIMIT: Duration = Duration::from_secs(5);

/// The port of the management API, if no setting names another one.
const PORT: u16 = 15672;

/// The policy key for the exchange that gets messages which no queue is bound for.
const KEEPS: &str = "alternate-exchange";

/// Ordinary redeliveries can use up a `delivery-limit` below this.
const FEW_DELIVERIES: u64 = 1000;

/// A worker that waits for a database may have a message for minutes.
const SHORT_TIMEOUT_MS: u64 = 600_000;

/// The name, priority and content of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    name: String,
    priority: i64,
    definition: Map<String, Value>,
}

/// What the management API answered.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In force on `kapps`.
    kapps: Option<Policy>,
    /// Why the policies are unknown.
    unknown: Option<String>,
}

/// Reads the policies of the vhost of `uri`, and reports what ours must not have.
pub(super) async fn look(
    rows: &mut Rows,
    config: &Config,
    uri: &SecretString,
    vhost: &str,
    specs: &[QueueSpec],
) -> Found {
    let api = match Api::of(config, uri, vhost) {
        Ok(api) => api,
        Err(why) => return Found::unknown(rows, &why, vhost),
    };
    let policies = match api.get(&["policies", vhost]).await {
        Ok(policies) => policies.unwrap_or_default(),
        Err(why) => return Found::unknown(rows, &format!("{}: {why}", api.base), vhost),
    };
    let shared = specs.iter().filter(|spec| spec.kind != QueueKind::Exclusive);
    let mut foreign = 0;
    for spec in shared {
        let Ok(Some(queue)) = api.get(&["queues", vhost, &spec.name]).await else {
            continue;
        };
        for (kind, field) in [("policy", "policy"), ("operator policy", "operator_policy")] {
            let Some(name) = queue[field].as_str().filter(|name| !name.is_empty()) else {
                continue;
            };
            let definition = match kind {
                "policy" => find(&policies, name).map(|policy| policy.definition),
                // The effective definition of both policies together. Only an administrator can list operator policies.
                _ => queue["effective_policy_definition"].as_object().cloned(),
            };
            let harm = harm(&spec.name, &definition.unwrap_or_default());
            if harm.is_empty() {
                continue;
            }
            foreign += 1;
            let cure = match kind {
                "policy" => cure(vhost, find(&policies, name).map_or(0, |policy| policy.priority)),
                _ => format!(
                    "change its pattern with `rabbitmqctl set_operator_policy`; `rabbitmqctl list_operator_policies{}` shows it",
                    place(vhost)
                ),
            };
            rows.warn(
                format!("queue {}", spec.name),
                format!("the {kind} {name:?} applies: {}", harm.join("; ")),
                cure,
            );
        }
    }
    if foreign == 0 {
        rows.good("policies", "no policy drops or limits messages of the worker's queues");
    }
    let exchange = api.get(&["exchanges", vhost, Exchange::Kapps.name()]).await;
    let kapps = exchange.ok().flatten();
    let name = kapps.as_ref().and_then(|kapps| kapps["policy"].as_str());
    Found {
        kapps: name.and_then(|name| find(&policies, name)),
        unknown: None,
    }
}

impl Found {
    fn unknown(rows: &mut Rows, why: &str, vhost: &str) -> Self {
        rows.note(
            "policies",
            format!(
                "not checked, the management API cannot be read ({why}). Set amqp.management_url, or run `rabbitmqctl list_policies{}`",
                place(vhost)
            ),
        );
        Self {
            kapps: None,
            unknown: Some(why.to_owned()),
        }
    }

    /// Why actions are not kept, and the shell command that changes it.
    pub(super) fn keeping_actions(&self, vhost: &str) -> (String, String) {
        let none = "not set: an action in the second after a restart of RabbitMQ is lost, and its call hangs";
        match &self.kapps {
            None if self.unknown.is_some() => (
                none.to_owned(),
                format!(
                    "{}. If another policy matches kapps, the one with the highest priority is in force: see `rabbitmqctl list_policies{}`, and \
                     add --priority with a higher number and what the other one has",
                    set_policy(vhost, 0, &Map::new()),
                    place(vhost)
                ),
            ),
            None => (none.to_owned(), set_policy(vhost, 0, &Map::new())),
            Some(other) => {
                let words = format!(
                    "is not in force: the policy {:?} with priority {} is, and one alone can be. An action that comes in the second after a broker \
                     restart hangs its call",
                    other.name, other.priority
                );
                // Federation must continue as the other policy defines it.
                let mut kept = other.definition.clone();
                kept.retain(|key, _| key.starts_with("federation-upstream"));
                (words, set_policy(vhost, other.priority.saturating_add(1), &kept))
            }
        }
    }
}

fn find(policies: &Value, name: &str) -> Option<Policy> {
    let policies = policies.as_array()?.iter();
    let policy = policies.into_iter().find(|policy| policy["name"] == name)?;
    Some(Policy {
        name: name.to_owned(),
        priority: policy["priority"].as_i64().unwrap_or(0),
        definition: policy["definition"].as_object().cloned().unwrap_or_default(),
    })
}

/// What a policy does to one of our queues that it must not.
fn harm(queue: &str, definition: &Map<String, Value>) -> Vec<String> {
    let mut harm = Vec::new();
    for (key, value) in definition {
        let limit = value.as_u64().unwrap_or(u64::MAX);
        match key.as_str() {
            "expires" => harm.push(format!(
                "{key} {value} deletes the queue and its messages when no worker uses it for {value} ms"
            )),
            "message-ttl" => harm.push(format!("{key} {value} drops messages after {value} ms")),
            "delivery-limit" if limit < FEW_DELIVERIES => {
                harm.push(format!(
                    "{key} {value} drops a message after {value} deliveries, for example during a database outage"
                ));
            }
            "max-length" => harm.push(format!("{key} {value} drops messages when {value} wait")),
            "max-length-bytes" if limit < 64 << 20 => {
                harm.push(format!("{key} {value} drops messages when {value} bytes wait"))
            }
            // RabbitMQ 4.3 and newer.
            "delayed-retry-type" if value != "disabled" => {
                let most = definition
                    .get("delayed-retry-max")
                    .map_or_else(String::new, |most| format!(" for up to {most} ms"));
                harm.push(format!(
                    "{key} {value} holds back messages that a worker returned, or had when it was killed{most}: their calls wait in silence"
                ));
            }
            "consumer-timeout" if limit < SHORT_TIMEOUT_MS => {
                harm.push(format!(
                    "{key} {value} takes messages from a worker that has them for {value} ms"
                ));
            }
            "dead-letter-exchange" | "dead-letter-routing-key" if queue == DEAD_LETTERS => {
                harm.push(format!("{key} {value} moves dead letters away"));
            }
            _ => {}
        }
    }
    harm
}

/// The command that replaces another policy by one of ours, which changes nothing.
fn cure(vhost: &str, priority: i64) -> String {
    format!(
        r#"rabbitmqctl set_policy{} kz-record-call-queues '^kz_record_call\.' '{{"delivery-limit":1000000}}' --priority {} --apply-to queues"#,
        place(vhost),
        priority.saturating_add(1)
    )
}

fn place(vhost: &str) -> String {
    match vhost {
        "/" => String::new(),
        vhost => format!(" -p '{}'", vhost.replace('\'', r"'\''")),
    }
}

/// The shell command that sets the policy for `kapps` in `vhost`.
fn set_policy(vhost: &str, priority: i64, kept: &Map<String, Value>) -> String {
    let mut definition = kept.clone();
    definition.insert(KEEPS.to_owned(), json!(Exchange::Unrouted.name()));
    let definition = Value::Object(definition).to_string().replace('\'', r"'\''");
    let place = place(vhost);
    let priority = match priority {
        0 => String::new(),
        priority => format!(" --priority {priority}"),
    };
    format!("rabbitmqctl set_policy{place} kz-record-call '^kapps$' '{definition}'{priority} --apply-to exchanges")
}

struct Api {
    client: reqwest::Client,
    base: Url,
    user: String,
    password: SecretString,
}

impl Api {
    fn of(config: &Config, uri: &SecretString, vhost: &str) -> Result<Self, String> {
        let broker = config::broker(uri.expose_secret()).map_err(|error| error.to_string())?;
        let login = broker.authority.userinfo;
        let (mut user, mut password) = (login.username, login.password);
        let base = match &config.amqp.management_url {
            Some(url) => {
                let (base, own) = split_login(url.clone());
                (user, password) = own.unwrap_or((user, password));
                base
            }
            None => {
                let host = match broker.authority.host.contains(':') {
                    true => format!("[{}]", broker.authority.host),
                    false => broker.authority.host.clone(),
                };
                Url::parse(&format!("http://{host}:{PORT}")).map_err(|error| error.to_string())?
            }
        };
        if vhost.is_empty() {
            return Err("the vhost has no name".to_owned());
        }
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build();
        Ok(Self {
            client: client.map_err(|error| error.to_string())?,
            base,
            user,
            password: SecretString::from(password),
        })
    }

    /// Gets one object; `None` when it is missing.
    async fn get(&self, path: &[&str]) -> Result<Option<Value>, String> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => drop(segments.pop_if_empty().push("api").extend(path)),
            Err(()) => return Err("no URL with a host".to_owned()),
        }
        let request = self
            .client
            .get(url)
            .basic_auth(&self.user, Some(self.password.expose_secret()));
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            401 | 403 => {
                return Err("the user of amqp.uri needs the tag monitoring or policymaker".to_owned());
            }
            status => return Err(format!("status {status}")),
        }
        let bytes = answer.bytes().await.map_err(|error| error.without_url().to_string())?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| "the answer is no JSON".to_owned())
    }
}

/// A URL without its credentials, and the credentials if it has a user name. The URL is shown; the credentials are not.
fn split_login(mut url: Url) -> (Url, Option<(String, String)>) {
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let login =
        (!url.username().is_empty()).then(|| (decoded(url.username()), decoded(url.password().unwrap_or_default())));
    // Both succeed for a URL with a host, and `config` takes no other one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    (url, login)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn the_credentials_of_the_management_url_are_used_and_never_shown() {
        let url = Url::parse("https://monitor:p%40ss:w@rabbit.example.com:15671/prefix").unwrap();
        let (shown, login) = split_login(url);
        assert_eq!(shown.as_str(), "https://rabbit.example.com:15671/prefix");
        assert_eq!(login, Some(("monitor".to_owned(), "p@ss:w".to_owned())));
        let plain = Url::parse("http://rabbit:15672").unwrap();
        assert_eq!(split_login(plain.clone()), (plain, None));
    }

    /// One request of the API, as a server gets it.
    async fn request_with(management_url: &str) -> (Vec<String>, Result<Option<Value>, String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let mut config = Config::of(crate::config::Layers::load(None, std::iter::empty()).unwrap()).unwrap();
        let url = management_url.replace("SERVER", &server);
        config.amqp.management_url = Some(Url::parse(&url).unwrap());
        let uri = SecretString::from("amqp://worker:of-the-broker@127.0.0.1:5672");
        let api = Api::of(&config, &uri, "/").unwrap();
        assert!(!api.base.as_str().contains('@'), "{}", api.base);
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            head.lines().map(str::to_owned).collect()
        };
        let (head, answer): (Vec<String>, _) = tokio::join!(serving, api.get(&["policies", "/"]));
        (head, answer)
    }

    #[tokio::test]
    async fn the_management_api_gets_the_credentials_in_one_header_and_no_error_names_them() {
        use base64::Engine as _;
        for (url, login) in [
            ("http://monitor:p%40ss@SERVER/prefix", "monitor:p@ss"),
            ("http://SERVER/prefix", "worker:of-the-broker"),
        ] {
            let (head, answer) = request_with(url).await;
            assert!(head[0].starts_with("GET /prefix/api/policies/%2F HTTP/"), "{head:?}");
            let logins: Vec<&str> = head
                .iter()
                .filter_map(|line| line.split_once(": "))
                .filter_map(|(name, value)| name.eq_ignore_ascii_case("authorization").then_some(value))
                .collect();
            let encoded = base64::engine::general_purpose::STANDARD.encode(login);
            assert_eq!(logins, [format!("Basic {encoded}")], "{url}");
            // The server went away without an answer.
            let why = answer.unwrap_err();
            assert!(
                !["p@ss", "p%40ss", "of-the-broker", &encoded]
                    .iter()
                    .any(|secret| why.contains(secret)),
                "{why}"
            );
        }
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn the_policy_is_set_where_the_worker_is() {
        let rest =
            r#"kz-record-call '^kapps$' '{"alternate-exchange":"kz_record_call.unrouted"}' --apply-to exchanges"#;
        let set = |vhost| set_policy(vhost, 0, &Map::new());
        assert_eq!(set("/"), format!("rabbitmqctl set_policy {rest}"));
        assert_eq!(set("kazoo"), format!("rabbitmqctl set_policy -p 'kazoo' {rest}"));
        assert_eq!(set("it's"), format!(r"rabbitmqctl set_policy -p 'it'\''s' {rest}"));
    }

    #[test]
    fn where_another_policy_is_in_force_the_command_has_a_priority_that_wins() {
        let other = Policy {
            name: "ha".into(),
            priority: 1,
            definition: object(json!({"max-length": 1_000_000, "federation-upstream-set": "all"})),
        };
        let found = Found {
            kapps: Some(other),
            unknown: None,
        };
        let (words, command) = found.keeping_actions("/");
        assert!(words.contains("\"ha\" with priority 1"), "{words}");
        assert_eq!(
            command,
            "rabbitmqctl set_policy kz-record-call '^kapps$' \
             '{\"alternate-exchange\":\"kz_record_call.unrouted\",\"federation-upstream-set\":\"all\"}' --priority 2 --apply-to exchanges"
        );
        let (_, advice) = Found {
            kapps: None,
            unknown: Some("no API".into()),
        }
        .keeping_actions("/");
        assert!(
            advice.contains("list_policies") && advice.contains("--priority"),
            "{advice}"
        );
    }

    #[test]
    fn what_a_policy_does_to_our_queues_is_told() {
        for (definition, harmful) in [
            (json!({"expires": 1000}), 1),
            (json!({"message-ttl": 1, "max-length": 5}), 2),
            (json!({"delivery-limit": 5}), 1),
            (
                json!({"delivery-limit": 1_000_000, "ha-mode": "all", "max-length-bytes": 1_u64 << 40}),
                0,
            ),
            (json!({"dead-letter-exchange": "x"}), 0),
            (json!({"delayed-retry-type": "failed", "delayed-retry-max": 60_000}), 1),
            (json!({"delayed-retry-type": "disabled"}), 0),
            (json!({"consumer-timeout": 60_000}), 1),
            (json!({"consumer-timeout": 1_800_000}), 0),
        ] {
            assert_eq!(
                harm("kz_record_call.actions", &object(definition.clone())).len(),
                harmful,
                "{definition}"
            );
        }
        assert_eq!(
            harm(DEAD_LETTERS, &object(json!({"dead-letter-exchange": "x"}))).len(),
            1
        );
    }
}
