//! Whether a server takes our credentials; one answer for everything in the process that asks the server as the same user.
//!
//! CouchDB 3.4 counts failed log-ins by user and address (`chttpd_auth_lockout`): after five within five minutes it refuses the user from that
//! address, also with the right password, until five minutes after the first. Kazoo's own user is the usual one, and its applications often
//! come from the same address. So a worker with a wrong password must ask rarely:
//!
//! - Before credentials are used for anything else, one small request proves them; everything else waits for it.
//! - A refusal shuts the server for all clients of these credentials for `pause`, then one small request asks again.
//!
//! Nothing is sent meanwhile: callers get the refusal, with its reason, at once. Workers tell each other of it, and ask one after the other: see `peers`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

use crate::kazoo::time::Clock;
use crate::telemetry::events::{CredentialsJudged, CredentialsRefused};

use super::CouchError;
use super::peers::{self, News, Turn, Verdict};

/// An answer proves the credentials for so long; after that one request asks before a burst of others could fail.
const PROVEN_FOR: Duration = Duration::from_secs(10);

/// The shortest pause after a refusal; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(1800);

/// The pause while the account is locked, for credentials that were good before: CouchDB does not count what it refuses then.
const LOCKED: Duration = Duration::from_secs(15);

/// Credentials that are remembered. A third party's and storage plans' come and go with the configuration.
const MOST: usize = 1024;

/// The credentials of one user at one server.
pub(super) struct Login {
    /// User and server, for people.
    name: String,
    /// Server, user and password, for the mark that other workers know them by.
    credentials: SecretString,
    state: Mutex<State>,
    /// Held by the one that asks.
    pub(super) asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone)]
enum State {
    Unproven,
    Accepted { at: Instant },
    Refused(Refusal),
}

#[derive(Debug, Clone)]
struct Refusal {
    /// What callers are told until the pause is over.
    error: CouchError,
    until: Instant,
    /// Refusals in a row.
    times: u32,
    /// Only locked: the credentials were good before.
    was_good: bool,
}

/// What may be done now.
#[derive(Debug)]
pub(super) enum Stand {
    Open,
    /// The credentials have to be proved first.
    Ask,
    Shut(CouchError),
}

type Known = HashMap<(String, String, String), Arc<Login>>;

/// All credentials of this process.
static LOGINS: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

impl Login {
    fn new(url: &Url, username: &str, credentials: String) -> Self {
        Self {
            credentials: SecretString::from(credentials),
            name: format!("{username}@{}", url.authority()),
            state: Mutex::new(State::Unproven),
            asking: Arc::default(),
        }
    }

    /// The one of these credentials in this process; `None` without a user: nothing can be locked then.
    pub(super) fn of(url: &Url, username: &str, password: &SecretString) -> Option<Arc<Self>> {
        if username.is_empty() {
            return None;
        }
        let server = format!("{}://{}", url.scheme(), url.authority());
        let key = (server, username.to_owned(), password.expose_secret().to_owned());
        let mut known = LOGINS.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&key) {
            known.retain(|_, login| Arc::strong_count(login) > 1 || login.is_refused());
        }
        let credentials = format!("{}\0{}\0{}", key.0, key.1, key.2);
        let login = known
            .entry(key)
            .or_insert_with(|| Arc::new(Self::new(url, username, credentials)));
        Some(Arc::clone(login))
    }

    /// What may be done now.
    pub(super) fn stand(&self) -> Stand {
        match &*self.lock() {
            State::Unproven => Stand::Ask,
            State::Accepted { at } if at.elapsed() < PROVEN_FOR => Stand::Open,
            State::Accepted { .. } => Stand::Ask,
            State::Refused(refusal) if Instant::now() < refusal.until => Stand::Shut(refusal.error.clone()),
            State::Refused(_) => Stand::Ask,
        }
    }

    /// Takes in what a request came to. `asked`: the request was there to prove the credentials.
    pub(super) fn learn<T>(&self, result: &Result<T, CouchError>, asked: bool) {
        match result {
            Err(error) if error.is_about_credentials() => self.refused(error, asked),
            // It is unknown whether CouchDB saw the credentials: a balancer without a living server answers 503 by itself.
            Err(CouchError::NoAnswer(_) | CouchError::Body(_) | CouchError::Failed { .. }) => {}
            _ => self.accepted(asked),
        }
    }

    fn accepted(&self, asked: bool) {
        let mut state = self.lock();
        match &*state {
            // It was under way when the credentials were refused.
            State::Refused(_) if !asked => return,
            State::Refused(_) => {}
            _ => {
                *state = State::Accepted { at: Instant::now() };
                return;
            }
        }
        *state = State::Accepted { at: Instant::now() };
        drop(state);
        peers::tell(self.credentials.expose_secret(), true);
        CredentialsRefused {
            login: &self.name,
            state: Ok(()),
        }
        .emit();
        count();
    }

    fn refused(&self, error: &CouchError, asked: bool) {
        if self.shut(error, asked) && !matches!(error, CouchError::Locked(_)) {
            peers::tell(self.credentials.expose_secret(), false);
        }
        count();
    }

    /// `false` when that was known already.
    fn shut(&self, error: &CouchError, asked: bool) -> bool {
        let mut state = self.lock();
        let (times, was_good) = match &*state {
            // Under way when the first one was refused: told already.
            State::Refused(_) if !asked => return false,
            State::Refused(refusal) => (refusal.times + 1, refusal.was_good),
            State::Accepted { .. } => (1, true),
            State::Unproven => (1, false),
        };
        let was_good = was_good && matches!(error, CouchError::Locked(_));
        let pause = pause(times, was_good, fastrand::f64());
        let again = Clock::system().now().plus(pause).rfc3339();
        CredentialsRefused {
            login: &self.name,
            state: Err((&error.to_string(), pause)),
        }
        .emit();
        *state = State::Refused(Refusal {
            error: error
                .with_reason(|reason| format!("{}; not asked again before {again}", reason.trim_end_matches('.'))),
            until: Instant::now() + pause,
            times,
            was_good,
        });
        true
    }

    /// This worker's turn to prove them, where they were never used yet, or were refused.
    pub(super) async fn turn(&self) -> Option<Box<dyn Turn>> {
        if matches!(&*self.lock(), State::Accepted { .. }) {
            return None;
        }
        peers::take_turn(self.credentials.expose_secret()).await
    }

    /// How long other workers need not ask either, if they were refused just now.
    pub(super) fn verdict(&self) -> Verdict {
        let refused = |error: &CouchError| !matches!(error, CouchError::Locked(_));
        match &*self.lock() {
            State::Refused(refusal) if refused(&refusal.error) => Verdict::Refused(FIRST),
            _ => Verdict::Unasked,
        }
    }

    pub(super) fn heard(&self, accepted: bool) {
        if !accepted {
            let error = CouchError::Unauthorized {
                status: 401,
                reason: "another worker was refused with the same credentials".into(),
            };
            self.shut(&error, true);
        } else if let State::Refused(refusal) = &mut *self.lock() {
            refusal.until = Instant::now();
        }
        count();
    }

    fn is_refused(&self) -> bool {
        matches!(&*self.lock(), State::Refused(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long nothing is asked. `share`, between 0 and 1, keeps workers apart.
fn pause(times: u32, was_good: bool, share: f64) -> Duration {
    let least = if was_good {
        LOCKED
    } else {
        FIRST.saturating_mul(1 << times.saturating_sub(1).min(10)).min(LONGEST)
    };
    least.mul_f64(1.0 + share)
}

/// The credentials that are refused now, and why.
pub fn refused() -> Vec<(String, String)> {
    let known = LOGINS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut refused: Vec<(String, String)> = known
        .values()
        .filter_map(|login| match &*login.lock() {
            State::Refused(refusal) => Some((login.name.clone(), refusal.error.to_string())),
            _ => None,
        })
        .collect();
    refused.sort();
    refused
}

/// Another worker tells of credentials.
pub fn heard(news: &News) {
    let known: Vec<Arc<Login>> = {
        let known = LOGINS.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    };
    for login in known {
        if peers::mark(login.credentials.expose_secret()).as_ref() == Some(&news.mark) {
            login.heard(news.accepted);
        }
    }
}

fn count() {
    CredentialsJudged {
        refused: refused().len(),
    }
    .emit();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing;
    use super::super::{Couch, CouchError};
    use super::*;

    fn url(address: &str, user: &str) -> String {
        format!("http://{user}@{address}")
    }

    /// Forgets what was learnt, as another process would not know it.
    fn forget(name: &str) {
        LOGINS.lock().unwrap().retain(|_, login| !login.name.starts_with(name));
    }

    #[tokio::test]
    async fn wrong_credentials_are_tried_once_for_all_that_ask_and_the_reason_is_told() {
        let wrong = json!({"error": "unauthorized", "reason": "Name or password is incorrect."});
        let (address, log) = testing::serve(move |_| (401, wrong.clone())).await;
        let config = testing::config(&url(&address, "wrong1:p"));
        // The ledger's, the hold's and a third party's client, each asking for many things at once.
        let clients: Vec<Couch> = (0..3).map(|_| Couch::new(&config).unwrap()).collect();
        let asking = clients.iter().flat_map(|couch| {
            (0..20).map(move |n| async move {
                match n % 4 {
                    0 => couch.ping().await.err(),
                    1 => couch.get("system_config", "media").await.err(),
                    2 => couch.bulk_docs("kz_record_call-202611", &[json!({})]).await.err(),
                    _ => couch.databases("kz_record_call-").await.err(),
                }
            })
        });
        let mut refused_with = Vec::new();
        for told in futures_util::future::join_all(asking).await {
            let Some(CouchError::Unauthorized { status: 401, reason }) = told else {
                panic!("{told:?}")
            };
            assert!(reason.contains("Name or password is incorrect"), "{reason}");
            refused_with.push(reason);
        }
        assert_eq!(log.lock().unwrap().len(), 1, "{:?}", log.lock().unwrap());
        let shown = refused();
        assert!(
            shown
                .iter()
                .any(|(login, why)| *login == format!("wrong1@{address}") && why.contains("incorrect")),
            "{shown:?}"
        );
        // Other credentials are none of its business: new ones in the settings count at once.
        let other = Couch::new(&testing::config(&url(&address, "wrong1:q"))).unwrap();
        assert!(other.ping().await.is_err());
        assert_eq!(log.lock().unwrap().len(), 2);
        forget("wrong1@");
    }

    #[tokio::test]
    async fn an_account_that_another_client_has_locked_is_told_as_such_and_asked_again_soon_if_it_was_good() {
        let reason = "Account is temporarily locked due to multiple authentication failures";
        let locked = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_locked = Arc::clone(&locked);
        let (address, _) = testing::serve(move |_| {
            if is_locked.load(std::sync::atomic::Ordering::SeqCst) {
                (403, json!({"error": "forbidden", "reason": reason}))
            } else {
                (200, json!({"couchdb": "Welcome"}))
            }
        })
        .await;
        let couch = Couch::new(&testing::config(&url(&address, "locked1:p"))).unwrap();
        couch.ping().await.unwrap();
        locked.store(true, std::sync::atomic::Ordering::SeqCst);
        let told = couch.ping().await.unwrap_err();
        assert!(
            matches!(&told, CouchError::Locked(_)) && told.to_string().contains(reason),
            "{told}"
        );
        locked.store(false, std::sync::atomic::Ordering::SeqCst);
        // Still shut, and with the same reason.
        assert!(matches!(couch.ping().await.unwrap_err(), CouchError::Locked(_)));
        let login = couch.login.clone().unwrap();
        let State::Refused(refusal) = login.lock().clone() else {
            panic!()
        };
        let left = refusal.until.saturating_duration_since(Instant::now());
        assert!(left <= LOCKED * 2, "{left:?}");
        // The pause is over.
        *login.lock() = State::Refused(Refusal {
            until: Instant::now(),
            ..refusal
        });
        couch.ping().await.unwrap();
        assert!(!login.is_refused());
        forget("locked1@");
    }

    #[tokio::test]
    async fn what_our_user_may_not_do_shuts_nothing() {
        for (status, reason) in [
            (401, "You are not a server admin."),
            (403, "You are not allowed to access this db."),
            (403, "recordings need owner_id"),
        ] {
            let (address, _) = testing::serve(move |asked| {
                if asked.method == "PUT" {
                    (status, json!({"error": "forbidden", "reason": reason}))
                } else {
                    (200, json!({"couchdb": "Welcome"}))
                }
            })
            .await;
            let couch = Couch::new(&testing::config(&url(&address, "may1:p"))).unwrap();
            assert!(couch.put_document("db", "id", &json!({})).await.is_err());
            couch.ping().await.unwrap();
        }
        forget("may1@");
    }

    #[tokio::test]
    async fn a_burst_of_requests_after_a_silence_costs_one_failure_when_the_password_was_changed() {
        let changed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_changed = Arc::clone(&changed);
        let (address, log) = testing::serve(move |_| {
            if is_changed.load(std::sync::atomic::Ordering::SeqCst) {
                (
                    401,
                    json!({"error": "unauthorized", "reason": "Name or password is incorrect."}),
                )
            } else {
                (200, json!({"couchdb": "Welcome"}))
            }
        })
        .await;
        let couch = Couch::new(&testing::config(&url(&address, "burst1:p"))).unwrap();
        couch.ping().await.unwrap();
        changed.store(true, std::sync::atomic::Ordering::SeqCst);
        let before = log.lock().unwrap().len();
        let login = couch.login.clone().unwrap();
        *login.lock() = State::Accepted {
            at: Instant::now().checked_sub(PROVEN_FOR).unwrap(),
        };
        let all = futures_util::future::join_all((0..50).map(|_| couch.get("db", "id"))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(log.lock().unwrap().len() - before, 1);
        forget("burst1@");
    }

    #[test]
    fn pauses_grow_and_are_never_shorter_than_the_arithmetic_needs() {
        for share in [0.0, 0.5, 1.0] {
            let mut before = Duration::ZERO;
            for times in 1..40 {
                let pause = pause(times, false, share);
                assert!(
                    pause >= FIRST && pause >= before && pause <= LONGEST * 2,
                    "{times}: {pause:?}"
                );
                before = pause;
            }
        }
    }
}
