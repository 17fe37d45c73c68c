//! Whether a server accepts our credentials. All clients in the process with the same server, user and password share one state.
//!
//! CouchDB 3.4 counts failed log-ins by user and address (`chttpd_auth_lockout`). After five failures within five minutes it refuses the
//! user from that address, also with the right password, until five minutes after the first failure. The worker usually logs in as Kazoo's
//! own user, and Kazoo's applications often use the same address. A worker with a wrong password must therefore ask rarely:
//!
//! - Before the credentials are used for anything else, one small request verifies them. All other requests wait for its result.
//! - After a refusal no client sends these credentials for the backoff time of `pause`. Then one small request verifies them again.
//!
//! During the backoff nothing is sent: each caller gets the refusal and its reason at once. Workers report refusals to each other, and
//! verify one after the other: see `peers`.

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

/// A successful answer counts for this long. After that one request verifies the credentials again, before a burst of requests could fail.
const PROVEN_FOR: Duration = Duration::from_secs(10);

/// The backoff after the first refusal. It doubles with each further one.
const FIRST: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(1800);

/// The backoff while the account is locked, for credentials that were accepted before. CouchDB does not count log-ins that it refuses
/// during a lock.
const LOCKED: Duration = Duration::from_secs(15);

/// Most credentials that are remembered. Credentials of third parties and of storage plans change with the configuration.
const MOST: usize = 1024;

/// The credentials of one user at one server.
pub(super) struct Login {
    /// User and server, for the operator.
    name: String,
    /// Server, user and password. Other workers know the credentials only by a mark made from these.
    credentials: SecretString,
    state: Mutex<State>,
    /// Held by the task that verifies the credentials.
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
    /// The error that callers get during the backoff.
    error: CouchError,
    until: Instant,
    /// Refusals in a row.
    times: u32,
    /// The account is only locked: the server accepted the credentials before.
    was_good: bool,
}

/// Whether a request may be sent now.
#[derive(Debug)]
pub(super) enum Stand {
    Open,
    /// The credentials must be verified first.
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

    /// The shared state of these credentials in this process. `None` without a user, because CouchDB can then lock no account.
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

    /// Whether a request may be sent now.
    pub(super) fn stand(&self) -> Stand {
        match &*self.lock() {
            State::Unproven => Stand::Ask,
            State::Accepted { at } if at.elapsed() < PROVEN_FOR => Stand::Open,
            State::Accepted { .. } => Stand::Ask,
            State::Refused(refusal) if Instant::now() < refusal.until => Stand::Shut(refusal.error.clone()),
            State::Refused(_) => Stand::Ask,
        }
    }

    /// Records the result of a request. `asked`: the request was sent to verify the credentials.
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
            // The request was in flight when the credentials were refused.
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

    /// Returns `false` when the refusal was known already.
    fn shut(&self, error: &CouchError, asked: bool) -> bool {
        let mut state = self.lock();
        let (times, was_good) = match &*state {
            // The request was in flight at the first refusal, which was reported already.
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

    /// Takes the lock to verify credentials that were never used, or were refused.
    pub(super) async fn turn(&self) -> Option<Box<dyn Turn>> {
        if matches!(&*self.lock(), State::Accepted { .. }) {
            return None;
        }
        peers::take_turn(self.credentials.expose_secret()).await
    }

    /// For how long other workers need not verify the credentials, if the server refused them just now.
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

/// The backoff after `times` refusals. `share`, between 0 and 1, spreads the workers in time.
fn pause(times: u32, was_good: bool, share: f64) -> Duration {
    let least = if was_good {
        LOCKED
    } else {
        FIRST.saturating_mul(1 << times.saturating_sub(1).min(10)).min(LONGEST)
    };
    least.mul_f64(1.0 + share)
}

/// The credentials that are refused now, and the reasons.
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

/// Processes another worker's message about credentials.
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

    /// Forgets the state, so that the test acts like another process.
    fn forget(name: &str) {
        LOGINS.lock().unwrap().retain(|_, login| !login.name.starts_with(name));
    }

    #[tokio::test]
    async fn wrong_credentials_are_tried_once_for_all_that_ask_and_the_reason_is_told() {
        let wrong = json!({"error": "unauthorized", "reason": "Name or password is incorrect."});
        let (address, log) = testing::serve(move |_| (401, wrong.clone())).await;
        let config = testing::config(&url(&address, "wrong1:p"));
        // The clients of the ledger, of the hold and of a third party, each with many concurrent requests.
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
        // The refusal does not apply to other credentials: new ones in the settings are used at once.
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
        // The backoff lasts, with the same reason.
        assert!(matches!(couch.ping().await.unwrap_err(), CouchError::Locked(_)));
        let login = couch.login.clone().unwrap();
        let State::Refused(refusal) = login.lock().clone() else {
            panic!()
        };
        let left = refusal.until.saturating_duration_since(Instant::now());
        assert!(left <= LOCKED * 2, "{left:?}");
        // The backoff is over.
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
