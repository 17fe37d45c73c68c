//! Our own settings. `config/default.toml` is the manual: it is compiled in, and has each key with a comment.
//!
//! Loading opens no port. It reads only the given file, Kazoo's own file, and the files that settings name. All mistakes are found
//! before any is reported.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

mod adopt;
mod broker;
mod destination;
mod filter;
mod ini;
mod kazoo_file;
mod kazoo_ini;
mod kazoo_yaml;
mod layers;
mod reader;
mod shown;
mod storage;
mod tls;
mod webhooks;

pub use adopt::{Adopt, AdoptMode};
pub use broker::{NoBroker, authority, broker};
pub use destination::{
    Allowed, Destination, HostHeader, Network, NotAHeader, NotAllowed, PrivateAddresses, UnknownHosts,
};
pub use filter::{FilterError, log_filter};
pub use layers::{ConfigError, Layers, Origin, Sources, USUAL_FILE, own_file};
use reader::Reader;
pub use shown::{MASK, shown, without_credentials};
pub use storage::{Checksum, NoDriver, Storage, StorageDriver};
pub use tls::{Authorities, Identity, KeyFiles, TlsFault, Unusable};
pub use webhooks::{Endpoint, Header, Webhooks};

/// `config/default.toml`.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// `None`: a random secret is made at start.
    pub secret: Option<SecretString>,
    pub amqp: Amqp,
    pub couchdb: Couchdb,
    pub kazoo: Kazoo,
    pub ingest: Ingest,
    pub admin: Admin,
    pub spool: Spool,
    pub flow: Flow,
    pub ledger: Ledger,
    pub hold: Hold,
    pub log: Log,
    pub telemetry: Telemetry,
    pub destination: Destination,
    pub adopt: Adopt,
    pub webhooks: Webhooks,
    pub storage: Storage,
}

#[derive(Debug, Clone)]
pub struct Amqp {
    /// At least one.
    pub uris: Vec<SecretString>,
    /// For `amqps`: authorities trusted in addition to the host's.
    pub ca: Option<Authorities>,
    /// For `amqps`: sent when the broker requests a client certificate.
    pub identity: Option<Identity>,
    /// The broker's management API, for `check`.
    pub management_url: Option<url::Url>,
    pub connect_timeout: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    pub publish_timeout: Duration,
    pub publish_window: u16,
    pub prefetch_actions: u16,
    pub prefetch_endings: u16,
    /// How long a dead letter is kept. `None`: until an operator removes it.
    pub dead_letters_retention: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Couchdb {
    /// Without credentials.
    pub url: url::Url,
    pub username: String,
    pub password: SecretString,
    /// For `https`: authorities trusted in addition to the host's.
    pub ca: Option<Authorities>,
    pub database_prefix: String,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Kazoo {
    pub zone: String,
    pub host: String,
    /// With a slash at its end.
    pub recordings: String,
    /// Whether the switches move a recording along with a transfer by themselves.
    pub follow_transfers: bool,
    pub config_poll: Duration,
    pub system_alerts: bool,
}

#[derive(Debug, Clone)]
pub struct Ingest {
    pub listen: SocketAddr,
    /// `None`: built from the host's name and the bound port.
    pub advertised_url: Option<url::Url>,
    /// `None`: plain HTTP.
    pub tls: Option<KeyFiles>,
    pub token_ttl: Duration,
    pub max_bytes: u64,
    /// Whether to repair the lengths in headers of WAVs that their switch did not close.
    pub repair_headers: bool,
    pub stall_timeout: Duration,
    pub upload_timeout: Duration,
    pub per_switch: usize,
    pub in_all: usize,
    pub delivery_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Admin {
    pub listen: SocketAddr,
    pub count_every: Duration,
    pub log_level_from: LogLevelFrom,
}

/// Which clients may change the log filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevelFrom {
    /// Clients on this host.
    Loopback,
    /// All clients that reach the port.
    Anywhere,
}

#[derive(Debug, Clone)]
pub struct Spool {
    pub dir: PathBuf,
    pub min_free_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Flow {
    pub upload_start_timeout: Duration,
    /// At least one.
    pub retry: Vec<Duration>,
    /// Percent, 0 to 90.
    pub retry_jitter: u8,
    pub max_attempts: u32,
    pub start_timeout: Duration,
    pub check_interval: Duration,
    pub grace: Duration,
    pub probe_gap: Duration,
    pub stop_repeats: Vec<Duration>,
    pub stop_alarm: Duration,
    pub stale_action: Duration,
    pub pace_per_second: u32,
    pub drain: Duration,
}

#[derive(Debug, Clone)]
pub struct Ledger {
    pub budget: Duration,
    pub linger: Duration,
    pub lease: Duration,
    pub poll: Duration,
    pub patience: Duration,
    pub retention: Duration,
    /// How long entries of these final states are kept, if less long. Zero: as long as their month.
    pub retention_of: [(&'static str, Duration); 4],
}

#[derive(Debug, Clone)]
pub struct Hold {
    pub kind: HoldKind,
    /// A server outside the cluster, with credentials.
    pub url: Option<SecretString>,
    pub folder: PathBuf,
    /// The folder is the hold only where it has the marker.
    pub marked: bool,
    pub max_bytes: u64,
    /// How long a recording waits after the hold refused it.
    pub pause: Duration,
    /// How long it keeps the audio of a parked recording. `None`: until an operator retries or discards it.
    pub retention: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldKind {
    Couchdb,
    Folder,
    None,
}

#[derive(Debug, Clone)]
pub struct Telemetry {
    /// The endpoint for exported traces. It is never set without the feature `otlp`.
    pub otlp_endpoint: Option<url::Url>,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// Reads the merged layers.
    ///
    /// # Errors
    /// All mistakes together, each with its key and where it was set.
    pub fn of(layers: Layers) -> Result<Self, Vec<ConfigError>> {
        let mut r = Reader::new(layers);
        // This key was used already, when the layers were gathered.
        r.text("kazoo.config_file");
        let host = match r.text("kazoo.host") {
            host if host.is_empty() => host_name(),
            host => host,
        };
        let recordings = match r.required_text("kazoo.recordings") {
            path if path.ends_with('/') => path,
            path => format!("{path}/"),
        };
        let (url, username, password) = r.couchdb();
        let config = Self {
            secret: r.secret("secret", 16),
            amqp: Amqp {
                uris: r.amqp_uris("amqp.uri"),
                ca: r.authorities("amqp.ca_file"),
                identity: r.identity("amqp.client_certificate", "amqp.client_key"),
                management_url: r.optional_url("amqp.management_url"),
                connect_timeout: r.millis("amqp.connect_timeout_ms", 100, 300_000),
                reconnect_min: r.millis("amqp.reconnect_min_ms", 10, 10_000),
                reconnect_max: r.millis("amqp.reconnect_max_ms", 10, 60_000),
                publish_timeout: r.millis("amqp.publish_timeout_ms", 100, 120_000),
                publish_window: r.number("amqp.publish_window", 1, 1024),
                prefetch_actions: r.number("amqp.prefetch_actions", 1, 10_000),
                prefetch_endings: r.number("amqp.prefetch_endings", 1, 10_000),
                dead_letters_retention: Some(r.days("amqp.dead_letters_retention_days", 0, 36_500))
                    .filter(|days| !days.is_zero()),
            },
            couchdb: Couchdb {
                url,
                username,
                password,
                ca: r.authorities("couchdb.ca_file"),
                database_prefix: r.database_prefix("couchdb.database_prefix"),
                connect_timeout: r.millis("couchdb.connect_timeout_ms", 10, 60_000),
                read_timeout: r.millis("couchdb.read_timeout_ms", 100, 600_000),
            },
            kazoo: Kazoo {
                zone: r.text("kazoo.zone"),
                host,
                recordings,
                follow_transfers: r.flag("kazoo.follow_transfers"),
                config_poll: r.seconds("kazoo.config_poll_s", 1, 86_400),
                system_alerts: r.flag("kazoo.system_alerts"),
            },
            ingest: Ingest {
                listen: r.socket("ingest.listen"),
                advertised_url: r.optional_url("ingest.advertised_url"),
                tls: r.key_files("ingest.tls_certificate", "ingest.tls_key"),
                token_ttl: r.seconds("ingest.token_ttl_s", 10, 604_800),
                max_bytes: r.number("ingest.max_bytes", 1024, u64::MAX / 4),
                repair_headers: r.flag("ingest.repair_headers"),
                stall_timeout: r.millis("ingest.stall_timeout_ms", 100, 600_000),
                upload_timeout: r.seconds("ingest.upload_timeout_s", 1, 86_400),
                per_switch: r.number("ingest.per_switch", 1, 1_000),
                in_all: r.number("ingest.in_all", 1, 4096),
                delivery_timeout: r.seconds("ingest.delivery_timeout_s", 1, 3600),
            },
            admin: Admin {
                listen: r.socket("admin.listen"),
                count_every: r.seconds("admin.count_every_s", 1, 86_400),
                log_level_from: r.one_of(
                    "admin.log_level_from",
                    &[
                        ("loopback", LogLevelFrom::Loopback),
                        ("anywhere", LogLevelFrom::Anywhere),
                    ],
                ),
            },
            spool: Spool {
                dir: PathBuf::from(r.required_text("spool.dir")),
                min_free_bytes: r.number("spool.min_free_bytes", 0, u64::MAX / 4),
            },
            flow: Flow {
                upload_start_timeout: r.millis("flow.upload_start_timeout_ms", 100, 600_000),
                retry: r.millis_list("flow.retry_ms"),
                retry_jitter: r.number("flow.retry_jitter_percent", 0, 90),
                max_attempts: r.number("flow.max_attempts", 1, 28),
                start_timeout: r.millis("flow.start_timeout_ms", 100, 3_600_000),
                check_interval: r.millis("flow.check_interval_ms", 100, 86_400_000),
                grace: r.millis("flow.grace_ms", 10, 86_400_000),
                probe_gap: r.millis("flow.probe_gap_ms", 10, 86_400_000),
                stop_repeats: r.millis_list("flow.stop_repeats_ms"),
                stop_alarm: r.millis("flow.stop_alarm_ms", 10, 3_600_000),
                stale_action: r.millis("flow.stale_action_ms", 10, 3_600_000),
                pace_per_second: r.number("flow.pace_per_second", 1, 100_000),
                drain: r.seconds("flow.drain_s", 0, 3600),
            },
            ledger: Ledger {
                budget: r.millis("ledger.budget_ms", 1, 60_000),
                linger: r.millis("ledger.linger_ms", 0, 60_000),
                lease: r.seconds("ledger.lease_s", 1, 86_400),
                poll: r.millis("ledger.poll_ms", 10, 3_600_000),
                patience: r.millis("ledger.patience_ms", 100, 1_200_000),
                retention: r.days("ledger.retention_days", 1, 36_500),
                retention_of: ["stored", "delivered", "discarded", "failed"]
                    .map(|state| (state, r.days(&format!("ledger.retention_{state}_days"), 0, 36_500))),
            },
            hold: Hold {
                kind: r.one_of(
                    "hold.kind",
                    &[
                        ("couchdb", HoldKind::Couchdb),
                        ("folder", HoldKind::Folder),
                        ("none", HoldKind::None),
                    ],
                ),
                url: r
                    .optional_url("hold.url")
                    .map(|url| SecretString::from(url.to_string())),
                folder: PathBuf::from(r.text("hold.folder")),
                marked: r.flag("hold.marked"),
                max_bytes: r.number("hold.max_bytes", 0, u64::MAX / 4),
                pause: r.millis("hold.pause_ms", 1, 3_600_000),
                retention: Some(r.days("hold.retention_days", 0, 36_500)).filter(|days| !days.is_zero()),
            },
            telemetry: Telemetry {
                otlp_endpoint: r.optional_url("telemetry.otlp_endpoint"),
            },
            log: Log {
                level: r.required_text("log.level"),
                format: r.one_of("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            },
            destination: Destination::read(&mut r),
            adopt: Adopt::read(&mut r),
            webhooks: Webhooks::read(&mut r),
            storage: Storage::read(&mut r),
        };
        // An empty filter was reported already.
        if let Err(why) = log_filter(&config.log.level)
            && why != FilterError::Empty
        {
            r.mistake("log.level", why.to_string());
        }
        if config.telemetry.otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
            r.mistake(
                "telemetry.otlp_endpoint",
                "is set, and this program was built without the feature otlp",
            );
        }
        if config.amqp.reconnect_min > config.amqp.reconnect_max {
            r.mistake("amqp.reconnect_min_ms", "is longer than amqp.reconnect_max_ms");
        }
        if config.ingest.token_ttl < config.ingest.upload_timeout {
            r.mistake(
                "ingest.token_ttl_s",
                "is shorter than ingest.upload_timeout_s: uploads would outlive their permission",
            );
        }
        let advertised = config.ingest.advertised_url.as_ref().map(url::Url::scheme);
        if config.ingest.tls.is_some() && advertised == Some("http") {
            r.mistake(
                "ingest.advertised_url",
                "is http, and ingest.tls_certificate makes the listener speak https only",
            );
        }
        if config.hold.kind == HoldKind::Folder && config.hold.folder.as_os_str().is_empty() {
            r.mistake("hold.folder", "is empty, and hold.kind is folder");
        }
        if config.ledger.lease < config.ingest.delivery_timeout {
            r.mistake(
                "ledger.lease_s",
                "is shorter than ingest.delivery_timeout_s: two workers would deliver the same audio at once",
            );
        }
        if config.destination.silence_timeout > config.destination.send_timeout {
            r.mistake(
                "destination.silence_timeout_ms",
                "is longer than destination.send_timeout_s",
            );
        }
        if !config.webhooks.endpoints.is_empty() && config.webhooks.timeout >= config.ledger.lease {
            r.mistake(
                "webhooks.timeout_ms",
                "is not shorter than ledger.lease_s: two workers would send the same notice at once",
            );
        }
        r.finish(config)
    }
}

/// The host's name as the kernel reports it.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn with(env: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::of(Layers::load(None, env)?)
    }

    #[test]
    fn the_defaults_are_good() {
        let config = with(&[]).unwrap();
        assert_eq!(config.amqp.uris.len(), 1);
        assert_eq!(config.log.format, LogFormat::Text);
        assert!(config.secret.is_none() && config.ingest.advertised_url.is_none());
    }

    #[test]
    fn the_environment_wins_and_credentials_may_stand_in_the_url_or_apart() {
        let config = with(&[
            ("KZ_RECORD_CALL__AMQP__URI", "amqp://a/%2f, amqp://b/%2f"),
            ("KZ_RECORD_CALL__COUCHDB__URL", "http://admin:p%40ss@db:5984"),
            ("KZ_RECORD_CALL__SECRET", "0123456789abcdef"),
            ("KZ_RECORD_CALL__LOG__FORMAT", "json"),
            ("KZ_RECORD_CALL__INGEST__PER_SWITCH", "2"),
            ("KZ_RECORD_CALL__FLOW__RETRY_MS", "10, 20"),
        ])
        .unwrap();
        assert_eq!(config.amqp.uris.len(), 2);
        assert_eq!(config.couchdb.url.as_str(), "http://db:5984/");
        assert_eq!(
            (
                config.couchdb.username.as_str(),
                config.couchdb.password.expose_secret()
            ),
            ("admin", "p@ss")
        );
        assert_eq!((config.log.format, config.ingest.per_switch), (LogFormat::Json, 2));
        assert_eq!(
            config.flow.retry,
            [Duration::from_millis(10), Duration::from_millis(20)]
        );
        let apart = with(&[
            ("KZ_RECORD_CALL__COUCHDB__USERNAME", "u"),
            ("KZ_RECORD_CALL__COUCHDB__PASSWORD", "12345"),
        ]);
        assert_eq!(apart.unwrap().couchdb.password.expose_secret(), "12345");
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_key_and_source() {
        let errors = with(&[
            ("KZ_RECORD_CALL__AMQP__URI", "http://nope"),
            ("KZ_RECORD_CALL__LOG__FORMAT", "xml"),
            ("KZ_RECORD_CALL__INGEST__PER_SWITCH", "many"),
            ("KZ_RECORD_CALL__ADMIN__LISTEN", "localhost"),
            ("KZ_RECORD_CALL__SECRET", "short"),
            ("KZ_RECORD_CALL__AMQP__URL", "amqp://typo"),
            ("KZ_RECORD_CALL__AMQP__PUBLISH_WINDOW", "0"),
        ])
        .unwrap_err();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 7, "{told:#?}");
        assert!(told.iter().all(|line| line.contains("KZ_RECORD_CALL__")), "{told:#?}");
        assert!(
            told.iter().all(|line| !line.contains("short")),
            "a secret is never printed"
        );
    }

    #[test]
    fn the_allow_list_is_read_from_words_and_every_bad_one_is_told() {
        let config = with(&[
            ("KZ_RECORD_CALL__DESTINATION__ALLOW", "10.1.0.0/16, rec.example.com"),
            ("KZ_RECORD_CALL__DESTINATION__CREATE_DATABASES", "false"),
            ("KZ_RECORD_CALL__DESTINATION__PRIVATE_ADDRESSES", "report"),
        ])
        .unwrap()
        .destination;
        assert_eq!(
            (config.allow.len(), config.create_databases, config.private_addresses),
            (2, false, PrivateAddresses::Report)
        );
        let errors = with(&[("KZ_RECORD_CALL__DESTINATION__ALLOW", "10.1.0.0/99 http://h ::1")]).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn certificates_are_read_with_the_rest_and_their_mistakes_are_told_with_the_rest() {
        let errors = with(&[
            ("KZ_RECORD_CALL__AMQP__CA_FILE", "/nowhere/ca.pem"),
            ("KZ_RECORD_CALL__AMQP__CLIENT_KEY", "/nowhere/key.pem"),
            ("KZ_RECORD_CALL__COUCHDB__CA_FILE", "/nowhere/ca.pem"),
            ("KZ_RECORD_CALL__INGEST__TLS_CERTIFICATE", "/nowhere/cert.pem"),
            ("KZ_RECORD_CALL__INGEST__TLS_KEY", "/nowhere/key.pem"),
            ("KZ_RECORD_CALL__INGEST__ADVERTISED_URL", "http://here"),
        ])
        .unwrap_err();
        let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        let wrong = [
            "amqp.ca_file",
            "amqp.client_certificate",
            "couchdb.ca_file",
            "ingest.tls_certificate",
            "ingest.advertised_url",
        ];
        assert_eq!(keys, wrong, "{errors:?}");
    }

    #[test]
    fn time_outs_that_contradict_each_other_are_refused() {
        let errors = with(&[("KZ_RECORD_CALL__INGEST__TOKEN_TTL_S", "20")]).unwrap_err();
        assert!(errors[0].to_string().contains("ingest.token_ttl_s"));
    }
}
