//! CouchDB: whether it accepts our login, what it is, which databases of Kazoo's and ours exist, and what its settings mean
//! for recordings.

use std::time::Duration;

use serde_json::Value;

use crate::config::{self, Config};
use crate::couch::{self, Couch, CouchError, Version, Welcome};
use crate::kazoo::time::Clock;
use crate::ledger;
use crate::system_config::{Media, ThirdParty};

use super::adopt;
use super::report::Rows;

const THIRD_PARTY: &str = "third_party_bigcouch_host";

/// Time limit of one answer, whatever the configuration says.
const LIMIT: Duration = Duration::from_secs(5);

/// Versions before this one have bugs with document and audio in one request.
const ONE_REQUEST: Version = Version(3, 3, 3);

/// The clock difference from which the check warns, and the one from which upload tokens, months and leases fail.
const AHEAD_WARN_MS: u64 = 2_000;
const AHEAD_FAIL_MS: u64 = 60_000;

/// `set_by` names the sources of the server's address and of the credentials.
pub async fn look(config: &Config, clock: &Clock, set_by: &str) -> Vec<Rows> {
    let mut rows = Rows::of("database");
    let couchdb = config::Couchdb {
        connect_timeout: config.couchdb.connect_timeout.min(LIMIT),
        read_timeout: config.couchdb.read_timeout.min(LIMIT),
        ..config.couchdb.clone()
    };
    let proxies = couch::ignored();
    if !proxies.is_empty() {
        let found = format!(
            "{} is set and not used: the worker connects to servers directly",
            proxies.join(", ")
        );
        rows.note("proxy", found);
    }
    let couch = match Couch::new(&couchdb) {
        Ok(couch) => couch,
        Err(error) => {
            rows.fail(
                "client",
                error.to_string(),
                "install ca-certificates: this host trusts no certificate authority",
            );
            return vec![rows];
        }
    };
    let place = couchdb.url.authority().to_owned();
    let login = format!("couchdb.username and couchdb.password, or those in couchdb.url ({set_by})");
    let Some(welcome) = server(&mut rows, &couch, &place, ("couchdb.url", &login), clock).await else {
        rows.note("the rest", "not checked before that is corrected");
        return vec![rows];
    };
    time(&mut rows, &welcome);
    if !credentials(&mut rows, &couch, &login).await {
        rows.note("the rest", "not checked before that is corrected");
        return vec![rows];
    }
    databases(&mut rows, &couch).await;
    own(&mut rows, &couch, clock).await;
    parked(&mut rows, &couch).await;
    let mut settings = Rows::of("system_config/media");
    media(&mut settings, &couch, &couchdb, config, clock).await;
    vec![rows, settings]
}

async fn within<T>(asked: impl Future<Output = Result<T, CouchError>>) -> Result<T, CouchError> {
    let late = || CouchError::NoAnswer(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Whether a server answers, and which version it has.
/// `setting` and `login` name the settings with its address, and with the credentials.
async fn server(
    rows: &mut Rows,
    couch: &Couch,
    place: &str,
    (setting, login): (&str, &str),
    clock: &Clock,
) -> Option<Welcome> {
    match within(couch.welcome(clock)).await {
        Ok(welcome) => {
            let kind = if welcome.is_bigcouch { "BigCouch" } else { "CouchDB" };
            match welcome.version {
                Some(version) if version < ONE_REQUEST => rows.warn(
                    place,
                    format!("{kind} {version}: document and audio need two requests, which is slower"),
                    "no action needed; CouchDB 3.3.3 and later take one request",
                ),
                Some(version) => rows.good(place, format!("{kind} {version}")),
                None => rows.warn(
                    place,
                    "the server answers without a version",
                    format!("check that {setting} is the address of a CouchDB"),
                ),
            }
            Some(welcome)
        }
        Err(error @ (CouchError::Unauthorized { .. } | CouchError::Locked(_))) => {
            rows.fail(
                place,
                format!("refuses the credentials {}", words(&error)),
                advice(&error, login, &format!("correct {login}")),
            );
            None
        }
        Err(error) => {
            rows.fail(
                place,
                error.to_string(),
                format!(
                    "check host, port, http or https in {setting}, that CouchDB runs there, and the firewall between"
                ),
            );
            None
        }
    }
}

/// The status and the reason with which the server refuses our credentials.
fn words(error: &CouchError) -> String {
    match error {
        CouchError::Locked(reason) => format!("(403): {reason}"),
        CouchError::Unauthorized { status, reason } if !reason.is_empty() => format!("({status}): {reason}"),
        other => format!("({})", other.status().unwrap_or_default()),
    }
}

/// What the operator must do about refused credentials.
fn advice(error: &CouchError, setting: &str, otherwise: &str) -> String {
    match error {
        CouchError::Locked(_) => format!(
            "find the client with a wrong password for this user (correct {setting} if it is this one); CouchDB unlocks the account five \
             minutes after the first failure ([chttpd_auth_lockout])"
        ),
        _ => otherwise.to_owned(),
    }
}

/// Whether the server's clock and ours agree.
fn time(rows: &mut Rows, welcome: &Welcome) {
    const NAME: &str = "clock";
    let Some(ahead) = welcome.ahead_ms else {
        return rows.note(NAME, "not checked: the server sends no time");
    };
    let seconds = ahead.unsigned_abs().div_ceil(1000);
    let found = if ahead > 0 {
        format!("{seconds} s ahead of the server")
    } else {
        format!("{seconds} s behind the server")
    };
    let advice = "synchronize both hosts with the same time servers (chrony, ntpd)";
    match ahead.unsigned_abs() {
        0..=AHEAD_WARN_MS => rows.good(NAME, "agrees with the server"),
        AHEAD_FAIL_MS.. => rows.fail(NAME, found, advice),
        _ => rows.warn(NAME, found, advice),
    }
}

/// Whether the server accepts our credentials; `false` when no further check is possible.
async fn credentials(rows: &mut Rows, couch: &Couch, setting: &str) -> bool {
    const NAME: &str = "credentials";
    match within(couch.session()).await {
        Ok(session) => {
            let name = session.name.unwrap_or_else(|| "no user".to_owned());
            if session.is_admin {
                rows.good(NAME, format!("{name}, a server admin"));
            } else {
                rows.fail(
                    NAME,
                    format!("{name} is no server admin, and cannot create the databases of the ledger and of accounts' months"),
                    format!("set {setting} to those of a server admin, as Kazoo uses"),
                );
            }
            true
        }
        Err(error @ (CouchError::Unauthorized { .. } | CouchError::Locked(_))) => {
            let found = format!("are refused {}", words(&error));
            rows.fail(NAME, found, advice(&error, setting, &format!("correct {setting}")));
            false
        }
        Err(error) => {
            rows.note(NAME, format!("cannot be told: {error}"));
            true
        }
    }
}

/// Whether Kazoo's databases exist.
async fn databases(rows: &mut Rows, couch: &Couch) {
    for (name, what) in [
        ("accounts", "the worker creates no account's database without it"),
        ("system_config", "it says whether recordings are stored"),
    ] {
        match within(couch.has_database(name)).await {
            Ok(true) => rows.good(name, "exists"),
            Ok(false) => rows.fail(
                name,
                format!("does not exist: {what}"),
                "check that couchdb.url names the Kazoo cluster's database server, and that couchdb.database_prefix is empty",
            ),
            Err(error) => rows.fail(
                name,
                error.to_string(),
                "give the user of couchdb.username permission to read it",
            ),
        }
    }
}

/// Whether this month's ledger exists. The first worker creates it, so a missing ledger is normal.
async fn own(rows: &mut Rows, couch: &Couch, clock: &Clock) {
    let name = ledger::database(clock.now().month());
    match within(couch.database_info(&name)).await {
        Ok(info) => {
            let documents = info.get("doc_count").and_then(Value::as_u64).unwrap_or(0);
            rows.good("ledger", format!("{name}, {documents} documents"));
        }
        Err(CouchError::DatabaseMissing(_)) => rows.good("ledger", format!("{name}, created by the first worker")),
        Err(error) => rows.fail(
            "ledger",
            format!("{name}: {error}"),
            "give the user of couchdb.username permission to read and write it",
        ),
    }
}

/// Whether recordings wait for an operator.
async fn parked(rows: &mut Rows, couch: &Couch) {
    let Ok(months) = within(couch.databases(ledger::PREFIX)).await else {
        return;
    };
    let mut count = 0;
    for month in months {
        match within(couch.view(&month, ledger::LOOKUP, "state", &ledger::PARKED)).await {
            Ok(found) => count += found.len(),
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {}
            Err(error) => return rows.note("parked recordings", format!("not counted: {error}")),
        }
    }
    match count {
        0 => rows.good("parked recordings", "none"),
        _ => rows.warn(
            "parked recordings",
            count.to_string(),
            "run `kz-record-call list --state parked`, then `kz-record-call explain <media id>`",
        ),
    }
}

/// What the operators set for recordings, and what that means.
async fn media(rows: &mut Rows, couch: &Couch, couchdb: &config::Couchdb, config: &Config, clock: &Clock) {
    let zone = config.kazoo.zone.as_str();
    let document = match within(couch.get("system_config", "media")).await {
        Ok(Some(document)) => document,
        Ok(None) => {
            return rows.fail(
                "document",
                "missing, so Kazoo's default applies: store_recordings is false, and recordings without a url are discarded",
                "set system_config/media, default, store_recordings to true (Kazoo writes the document when media_mgr first runs)",
            );
        }
        Err(error) => {
            return rows.fail(
                "document",
                error.to_string(),
                "correct the document: no worker decides on a destination before",
            );
        }
    };
    let media = Media::read(&document, zone);
    let sections = if document.get(zone).is_some() {
        format!("{zone}, then default")
    } else {
        "default".to_owned()
    };
    rows.good("sections", sections);
    match (&media.third_party, media.store_recordings) {
        (ThirdParty::Unusable(why), _) => rows.fail(
            "third party",
            format!("third_party_bigcouch_host cannot be used: {why}. Recordings are parked"),
            "set it to host, host:port or http(s)://user:password@host:port, or remove it",
        ),
        (_, false) => rows.warn(
            "recordings",
            "without a url are discarded: store_recordings is false",
            "set store_recordings to true, unless this is intended",
        ),
        (ThirdParty::NotSet, true) => rows.good("recordings", "without a url are stored in the accounts' databases"),
        (ThirdParty::Server(server), true) => {
            rows.good("recordings", format!("without a url are stored at {server}"));
            third_party(rows, server, couchdb, clock).await;
        }
    }
    rows.good(
        "limits",
        format!(
            "{} unless the action says otherwise, {} s at most",
            media.defaults.format, media.defaults.max_time_limit
        ),
    );
    adopt::workers(rows, &media, config);
    // While the document cannot be read, the rows above say so.
    if let Ok(document) = within(couch.get("system_config", "call_command")).await {
        adopt::patience(rows, &media, &document.unwrap_or(Value::Null), config);
    }
    proxy(rows, &media).await;
}

async fn third_party(rows: &mut Rows, server: &crate::couch::Server, couchdb: &config::Couchdb, clock: &Clock) {
    let place = format!("third party {server}");
    match Couch::elsewhere(server, couchdb) {
        Err(error) => rows.fail(place, error.to_string(), "check third_party_bigcouch_host"),
        Ok(couch) => {
            let found = self::server(rows, &couch, &place, (THIRD_PARTY, THIRD_PARTY), clock).await;
            if found.is_some() {
                credentials(rows, &couch, "the credentials in third_party_bigcouch_host").await;
            }
        }
    }
}

/// Kazoo's store proxy, which only some storage plans need.
async fn proxy(rows: &mut Rows, media: &Media) {
    const NAME: &str = "store proxy";
    let Some(base) = &media.proxy.base else {
        return rows.note(
            NAME,
            "proxy_hostname is not set: recordings whose storage plan needs the store proxy have no destination",
        );
    };
    let client = reqwest::Client::builder()
        .timeout(LIMIT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let asked = match client {
        Ok(client) => client.get(base.clone()).send().await.map(drop),
        Err(error) => Err(error),
    };
    match asked {
        // Any answer to a GET shows that the proxy is up.
        Ok(()) => rows.good(NAME, format!("{} answers", base.authority())),
        Err(_) => rows.warn(
            NAME,
            format!("{} does not answer", base.authority()),
            "check proxy_hostname, proxy_port and use_https: recordings whose storage plan needs the store proxy wait",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn clocks_that_differ_are_told_by_how_much_it_matters() {
        for (ahead_ms, level, words) in [
            (Some(0), Level::Good, "agrees"),
            (Some(-2_000), Level::Good, "agrees"),
            (Some(2_001), Level::Warning, "3 s ahead"),
            (Some(-59_999), Level::Warning, "60 s behind"),
            (Some(60_000), Level::Failure, "60 s ahead"),
            (None, Level::Note, "no time"),
        ] {
            let mut rows = Rows::of("database");
            let welcome = Welcome {
                version: None,
                is_bigcouch: false,
                ahead_ms,
            };
            time(&mut rows, &welcome);
            let row = &rows.rows[0];
            assert!(row.level == level && row.found.contains(words), "{ahead_ms:?}: {row:?}");
        }
    }
}
