//! What is asked of a server as a whole: its version, its databases, and many documents at once.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::CouchError;
use super::client::Couch;

/// A server's version. BigCouch says that it is the CouchDB 1.x that it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads the answer to `GET /`; a part that is no number, as in `3.4.3-dirty`, ends where the digits end.
    pub fn read(welcome: &Value) -> Option<Self> {
        let mut parts = welcome.get("version")?.as_str()?.split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse::<u32>().ok()
        });
        Some(Self(
            parts.next()??,
            parts.next().flatten().unwrap_or(0),
            parts.next().flatten().unwrap_or(0),
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A version that was learnt, and when.
pub(super) type Known = Mutex<Option<(Version, Instant)>>;

/// A server is asked again after this: it may have been upgraded, or another may stand behind the balancer.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// The database that every Kazoo cluster has.
const ACCOUNTS: &str = "accounts";
const SYSTEM_CONFIG: &str = "system_config";

/// Documents that are asked for at once.
const PAGE: usize = 500;

impl Couch {
    /// The server's version, asked for once in ten minutes.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn version(&self) -> Result<Version, CouchError> {
        let known = *self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((version, at)) = known
            && at.elapsed() < KNOWN_FOR
        {
            return Ok(version);
        }
        let (_, welcome) = self.ask(self.server(Method::GET, ""), "").await?;
        let version =
            Version::read(&welcome).ok_or_else(|| CouchError::NoAnswer("the server tells no version".into()))?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some((version, Instant::now()));
        Ok(version)
    }

    /// Whether a database is there.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn has_database(&self, database: &str) -> Result<bool, CouchError> {
        match self.ask(self.request(Method::GET, database, &[]), database).await {
            Ok(_) => Ok(true),
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the server knows the cluster's databases, told by those that every Kazoo cluster has. A node that is new, or back, answers "does
    /// not exist" for every database until it has the list from the other nodes; a database that is created there meanwhile is a second one of
    /// that name.
    ///
    /// # Errors
    /// When it does not, or nobody can tell.
    pub async fn knows_databases(&self) -> Result<(), CouchError> {
        for database in [ACCOUNTS, SYSTEM_CONFIG] {
            if self.has_database(database).await? {
                return Ok(());
            }
        }
        // With a prefix of its own, for trying out, it may stand beside a cluster's databases.
        if !self.prefix().is_empty() {
            let answer = self.ask(self.server(Method::GET, ACCOUNTS), ACCOUNTS).await;
            match answer {
                Ok(_) => return Ok(()),
                Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CouchError::NoAnswer(format!(
            "the server has no database {}{ACCOUNTS} and no {SYSTEM_CONFIG}, so it may not know the others either",
            self.prefix()
        )))
    }

    /// Whether a server may be asked to create a database. A node that has joined a cluster, or is back, and has not got the list of its databases yet, would make
    /// a second one of a name: it lists none at all, and knows of other nodes. So would one that is cut off from most of its cluster: of two databases
    /// of one name, made on both sides, one is dropped with all that is in it when they meet again.
    ///
    /// # Errors
    /// When that is so, or the server does not tell.
    pub async fn may_create(&self) -> Result<(), CouchError> {
        if !self.has_majority().await? {
            return Err(CouchError::NoAnswer(
                "too few nodes of the cluster are there to create a database".into(),
            ));
        }
        let request = self.server(Method::GET, "_all_dbs").query(&[("limit", "1")]);
        let (_, listed) = self.ask(request, "_all_dbs").await?;
        if listed.as_array().is_some_and(|all| !all.is_empty()) {
            return Ok(());
        }
        if !self.is_of_cluster().await? {
            return Ok(());
        }
        Err(CouchError::NoAnswer(
            "the node lists no database at all, not even _users, and is one of several: it may not know them yet"
                .into(),
        ))
    }

    /// Creates a database, if `may_create`; `false` when it was there already. A creation that failed is looked up: CouchDB answers 500 when two create
    /// at once, or when the shards do not open in time, and answers get lost.
    ///
    /// # Errors
    /// When it is not there afterwards, or nobody can tell.
    pub async fn create_database(&self, database: &str) -> Result<bool, CouchError> {
        if self.has_database(database).await? {
            return Ok(false);
        }
        self.may_create().await?;
        match self.put_database(database).await {
            Err(error @ (CouchError::Failed { .. } | CouchError::NoAnswer(_) | CouchError::Conflict)) => {
                match self.has_database(database).await {
                    // Most likely by this very request.
                    Ok(true) => Ok(true),
                    _ => Err(error),
                }
            }
            other => other,
        }
    }

    async fn put_database(&self, database: &str) -> Result<bool, CouchError> {
        match self.ask(self.request(Method::PUT, database, &[]), database).await {
            Ok((202, _)) => Err(CouchError::NoAnswer(
                "too few nodes have taken the new database yet".into(),
            )),
            Ok(_) => Ok(true),
            Err(CouchError::Refused { status: 412, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a database has a design document; `id` with its `_design/`.
    ///
    /// # Errors
    /// When the database does not tell.
    pub async fn has_design(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        let name = id.strip_prefix("_design/").unwrap_or(id);
        match self
            .ask(self.request(Method::GET, database, &["_design", name]), database)
            .await
        {
            Ok(_) => Ok(true),
            Err(CouchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The documents that a view has under `keys`.
    ///
    /// # Errors
    /// `NotFound` when there is no such view, `DatabaseMissing` when there is no such database.
    pub async fn documents_by_view(
        &self,
        database: &str,
        (design, view): (&str, &str),
        keys: &[&str],
    ) -> Result<Vec<Value>, CouchError> {
        let request = self
            .request(Method::POST, database, &["_design", design, "_view", view])
            .query(&[("include_docs", "true")])
            .header(CONTENT_TYPE, "application/json")
            .body(json!({ "keys": keys }).to_string());
        let (_, answer) = self.ask(request, database).await?;
        Ok(documents(answer).map(|(_, document)| document).collect())
    }

    /// Those documents of a database that `wanted` picks; reads all of it, page by page.
    ///
    /// # Errors
    /// When it cannot be read to its end.
    pub async fn documents_where(
        &self,
        database: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>, CouchError> {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let limit = PAGE.to_string();
            let mut request = self
                .request(Method::GET, database, &["_all_docs"])
                .query(&[("include_docs", "true"), ("limit", &limit)]);
            if let Some(after) = &after {
                request = request.query(&[("startkey", json!(after).to_string().as_str()), ("skip", "1")]);
            }
            let (_, page) = self.ask(request, database).await?;
            let (mut last, mut rows) = (None, 0);
            for (id, document) in documents(page) {
                (last, rows) = (Some(id), rows + 1);
                if wanted(&document) {
                    found.push(document);
                }
            }
            if rows < PAGE {
                return Ok(found);
            }
            after = last;
        }
    }

    /// Creates documents, in one request; those that exist stay as they are. Returns how many were created.
    ///
    /// # Errors
    /// When the request as a whole fails, or a document is refused for another reason than that it exists.
    pub async fn create_all(&self, database: &str, documents: &[Value]) -> Result<usize, CouchError> {
        let request = self
            .request(Method::POST, database, &["_bulk_docs"])
            .header(CONTENT_TYPE, "application/json")
            .body(json!({ "docs": documents }).to_string());
        let (_, rows) = self.ask(request, database).await?;
        let mut created = 0;
        for row in rows.as_array().into_iter().flatten() {
            match row.get("error").and_then(Value::as_str) {
                None => created += 1,
                Some("conflict") => {}
                Some(error) => {
                    let reason = row.get("reason").and_then(Value::as_str).unwrap_or_default();
                    return Err(CouchError::of_status(400, error, reason, database));
                }
            }
        }
        Ok(created)
    }
}

/// The rows' ids and documents. A key that nothing is found under gives a row without a document.
fn documents(mut answer: Value) -> impl Iterator<Item = (String, Value)> {
    let rows = answer.get_mut("rows").map(Value::take).unwrap_or_default();
    let rows = match rows {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    };
    rows.into_iter().filter_map(|mut row| {
        let id = row.get("id")?.as_str()?.to_owned();
        let document = row.get_mut("doc").map(Value::take)?;
        Some((id, document))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let read = |text: &str| Version::read(&json!({"couchdb": "Welcome", "version": text}));
        assert_eq!(read("3.4.3-dirty"), Some(Version(3, 4, 3)));
        assert_eq!(read("3.3"), Some(Version(3, 3, 0)));
        assert_eq!(read("1.1.1"), Some(Version(1, 1, 1)));
        assert_eq!(read("three"), None);
        assert_eq!(Version::read(&json!({})), None);
        assert!(read("3.3.2") < read("3.3.3") && read("3.3.3") < read("3.10.0"));
    }
}
