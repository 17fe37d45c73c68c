//! An account's own settings: its storage plan, and the number of delivery attempts. They are cached for a minute.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use crate::couch::{Couch, CouchError};
use crate::kazoo::json::owned_text;
use crate::recording::names::account_db;

use super::media::Media;
use super::recorder_tries::{ROUNDS, Tries};
use super::storage::{Plan, is_alive};

/// How long a cached answer is valid.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Most accounts in the cache. Beyond that the cache is cleared.
const MOST: usize = 4096;

const SYSTEM_DATA: &str = "system_data";
const SERVICES: &str = "services";
const SYSTEM_CONFIG: &str = "system_config";
const CALL_COMMAND: &str = "call_command";
/// The account's own `system_config/media` (`kapps_config_util:account_doc_id`).
const CONFIG: &str = "configs_media";

/// Reads the accounts' own settings. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    couch: Couch,
    plans: Arc<Memory<Plan>>,
    /// The value of the account, or of its reseller. `None`: neither sets one.
    retries: Arc<Memory<Option<u32>>>,
    missing: Arc<Missing>,
    /// What Kazoo's `system_config/call_command` says of tries to store a file.
    tries: Arc<Memory<Tries>>,
}

impl Accounts {
    pub fn new(couch: Couch) -> Self {
        Self {
            couch,
            plans: Arc::default(),
            retries: Arc::default(),
            missing: Arc::default(),
            tries: Arc::default(),
        }
    }

    /// The storage plan of an account. `Unknown` while the database does not answer.
    pub async fn plan(&self, account_id: &str) -> Plan {
        if let Some(plan) = self.plans.get(account_id) {
            return plan;
        }
        match self.read_plan(account_id).await {
            Ok(plan) => self.plans.put(account_id, plan),
            Err(error) => {
                warn!(event = "storage_plan_unreadable", account_id, %error, "storage plan unreadable");
                Plan::Unknown
            }
        }
    }

    async fn read_plan(&self, account_id: &str) -> Result<Plan, CouchError> {
        let read = async |id: &str| {
            // Most nodes reported the document missing before, so one node's answer is enough now.
            let found = match self.missing.contains(id) {
                true => self.couch.get(SYSTEM_DATA, id).await,
                false => self.couch.get_surely(SYSTEM_DATA, id).await,
            };
            match found {
                Ok(document) => {
                    self.missing.learn(id, document.is_none());
                    Ok(document.filter(is_alive))
                }
                // A cluster without that database has no plans. A node that does not know the cluster's databases says nothing about plans.
                Err(CouchError::DatabaseMissing(_)) => {
                    self.couch.knows_databases().await?;
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        let system = read("system").await?;
        let account = read(account_id).await?;
        let named = match account.as_ref().and_then(|account| owned_text(account, "pvt_plan_id")) {
            Some(id) => read(&id).await?,
            None => None,
        };
        Ok(Plan::read([&system, &named, &account].into_iter().flatten()))
    }

    /// The number of delivery attempts for an account. While the database does not answer, the system's value applies. `None`: no document
    /// sets one.
    pub async fn storage_retry_times(&self, account_id: &str, media: &Media) -> Option<u32> {
        let own = match self.retries.get(account_id) {
            Some(own) => own,
            None => match self.read_retries(account_id).await {
                Ok(own) => self.retries.put(account_id, own),
                Err(error) => {
                    warn!(event = "account_config_unreadable", account_id, %error, "account configuration unreadable");
                    None
                }
            },
        };
        own.or(media.storage_retry_times)
    }

    /// For how long Kazoo's own recorder tries to store a recording of this account, or of no known one. `own`: the number of rounds in the
    /// recording's own settings. Later versions of Kazoo prefer it, and others do not know it, so the larger number counts.
    ///
    /// # Errors
    /// When the database does not answer. Kazoo's defaults could be too short.
    pub async fn longest_storing(
        &self,
        account_id: Option<&str>,
        media: &Media,
        own: Option<u32>,
    ) -> Result<Duration, CouchError> {
        let tries = match self.tries.get(CALL_COMMAND) {
            Some(tries) => tries,
            None => {
                // Every cluster has this database. A server without it says nothing about Kazoo's settings.
                let document = self.couch.get_surely(SYSTEM_CONFIG, CALL_COMMAND).await?;
                self.tries
                    .put(CALL_COMMAND, Tries::read(&document.unwrap_or(Value::Null)))
            }
        };
        let rounds = match account_id {
            None => None,
            Some(account_id) => match self.retries.get(account_id) {
                Some(own) => own,
                None => {
                    let own = self.read_retries(account_id).await?;
                    self.retries.put(account_id, own)
                }
            },
        };
        let rounds = rounds.or(media.storage_retry_times).unwrap_or(ROUNDS);
        Ok(tries.longest(rounds.max(own.unwrap_or(0))))
    }

    /// The number of the account, or of its reseller. For how long Kazoo tries is written into the ledger, and is never computed again: so one
    /// node's answer that a document is missing does not count.
    async fn read_retries(&self, account_id: &str) -> Result<Option<u32>, CouchError> {
        if let Some(own) = self.read_surely(&account_db(account_id), CONFIG).await? {
            return Ok(retry_times(&own));
        }
        let services = self.read_surely(SERVICES, account_id).await?;
        let reseller = services.and_then(|services| owned_text(&services, "pvt_reseller_id"));
        match reseller.filter(|reseller| reseller != account_id) {
            Some(reseller) => {
                let theirs = self.read_surely(&account_db(&reseller), CONFIG).await?;
                Ok(theirs.as_ref().and_then(retry_times))
            }
            None => Ok(None),
        }
    }

    /// A document as most of its nodes know it. A database that the cluster does not have has none: a cluster without resellers has no
    /// database of services.
    async fn read_surely(&self, database: &str, id: &str) -> Result<Option<Value>, CouchError> {
        match self.couch.get_surely(database, id).await {
            Err(CouchError::DatabaseMissing(_)) => {
                self.couch.knows_databases().await?;
                Ok(None)
            }
            found => found,
        }
    }

    /// Reads the account's plan anew at the next use, because its store refuses it: its owner may have put it right.
    pub fn forget_plan(&self, account_id: &str) {
        self.plans.remove(account_id);
    }

    /// Clears the cache after a change of the settings.
    pub fn forget(&self) {
        self.plans.clear();
        self.retries.clear();
        self.missing.clear();
        self.tries.clear();
    }
}

/// An account's document without the key takes the system's value. The reseller's document does not count then
/// (`kapps_account_config:get_global`).
fn retry_times(document: &Value) -> Option<u32> {
    let value = document.pointer("/call_recording/storage_retry_times")?;
    crate::kazoo::json::integer(value).and_then(|times| u32::try_from(times).ok())
}

/// Documents that were missing at the last read.
#[derive(Default)]
struct Missing(Mutex<HashSet<String>>);

impl Missing {
    fn contains(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn learn(&self, id: &str, is_missing: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_missing {
            known.remove(id);
        } else if known.len() < MOST || known.contains(id) {
            known.insert(id.to_owned());
        }
    }
}

struct Memory<T>(Mutex<HashMap<String, (T, Instant)>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Memory<T> {
    fn get(&self, account_id: &str) -> Option<T> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, at) = known.get(account_id)?;
        (at.elapsed() < GOOD_FOR).then(|| value.clone())
    }

    fn put(&self, account_id: &str, value: T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(account_id.to_owned(), (value.clone(), Instant::now()));
        value
    }

    fn remove(&self, account_id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(account_id);
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_accounts_number_of_attempts_is_read_leniently() {
        let read = |value| retry_times(&json!({"call_recording": {"storage_retry_times": value}}));
        assert_eq!(read(json!(7)), Some(7));
        assert_eq!(read(json!("7")), Some(7));
        assert_eq!(read(json!(-1)), None);
        assert_eq!(read(json!("many")), None);
        assert_eq!(retry_times(&json!({})), None);
    }

    #[tokio::test]
    async fn a_recordings_own_number_of_rounds_counts_if_it_is_larger() {
        let (couch, _) = crate::couch::testing::couch(|_| crate::couch::testing::no_database()).await;
        let accounts = Accounts::new(couch);
        accounts.tries.put(CALL_COMMAND, Tries::read(&Value::Null));
        let media = Media::read(&json!({}), "local");
        let longest = async |own| accounts.longest_storing(None, &media, own).await.unwrap().as_secs();
        assert_eq!(longest(None).await, 12_300);
        assert_eq!(longest(Some(2)).await, 12_300);
        assert_eq!(longest(Some(20)).await, 21 * (5 * 300 + 4 * 5) + 20 * 600 + 180);
    }

    const ACCOUNT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const RESELLER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// The documents that say for how long Kazoo's own recorder tries, in the order of the reads.
    const READ: [&str; 4] = ["call_command", "own", "services", "reseller's"];

    fn read_at(path: &str) -> Option<&'static str> {
        let is = |part: &str| path.contains(part);
        match () {
            () if is("call_command") => Some(READ[0]),
            () if is("configs_media") && is("bb%2Fbb") => Some(READ[3]),
            () if is("configs_media") => Some(READ[1]),
            () if is("services/") => Some(READ[2]),
            () => None,
        }
    }

    /// A node that was rebuilt lacks documents that the other nodes have. The time is written into the ledger, and is never computed again.
    #[tokio::test]
    async fn one_node_that_misses_kazoos_settings_does_not_say_for_how_long_kazoo_tries() {
        use crate::couch::testing;
        for (lost, is_alone) in READ.into_iter().flat_map(|lost| [(lost, true), (lost, false)]) {
            let (couch, _) = testing::couch(move |asked| {
                let read = read_at(&asked.path);
                let is_shards = asked.path.contains("_shards");
                match read {
                    None => {
                        let cluster = json!(["a", "b", "c"]);
                        (200, json!({"all_nodes": ["a"], "cluster_nodes": cluster}))
                    }
                    Some(read) if is_shards => {
                        let nodes = if is_alone && read == lost {
                            json!(["a", "b", "c"])
                        } else {
                            json!(["a"])
                        };
                        (200, json!({"range": "00000000-ffffffff", "nodes": nodes}))
                    }
                    // Its reseller's counts only without it.
                    Some(read) if read == lost || read == READ[1] => {
                        (404, json!({"error": "not_found", "reason": "missing"}))
                    }
                    Some("services") => (200, json!({"pvt_reseller_id": RESELLER})),
                    Some("reseller's") => (200, json!({"call_recording": {"storage_retry_times": 20}})),
                    Some(_) => (200, json!({})),
                }
            })
            .await;
            let accounts = Accounts::new(couch);
            let media = Media::read(&json!({}), "local");
            let longest = accounts.longest_storing(Some(ACCOUNT), &media, None).await;
            assert_eq!(longest.is_err(), is_alone, "{lost}: {longest:?}");
        }
    }

    #[tokio::test]
    async fn a_node_that_knows_no_databases_does_not_say_for_how_long_kazoo_tries() {
        use crate::couch::testing;
        for (lost, knows) in [("own", false), ("own", true), ("services", false), ("services", true)] {
            let (couch, _) = testing::couch(move |asked| match read_at(&asked.path) {
                Some("own") if lost == "services" => (404, json!({"error": "not_found", "reason": "missing"})),
                Some(read) if read == lost => testing::no_database(),
                Some(_) => (200, json!({})),
                None if asked.path.contains("_membership") => {
                    (200, json!({"all_nodes": ["a"], "cluster_nodes": ["a"]}))
                }
                None if knows => (200, json!({})),
                None => testing::no_database(),
            })
            .await;
            let accounts = Accounts::new(couch);
            let media = Media::read(&json!({}), "local");
            let longest = accounts.longest_storing(Some(ACCOUNT), &media, None).await;
            assert_eq!(longest.is_ok(), knows, "{lost}: {longest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_good_for_a_minute() {
        let memory = Memory::default();
        memory.put("a", 1);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(memory.get("a"), Some(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(memory.get("a"), None);
        for n in 0..10_000 {
            memory.put(&n.to_string(), n);
        }
        assert!(memory.0.lock().unwrap().len() <= MOST);
    }
}
