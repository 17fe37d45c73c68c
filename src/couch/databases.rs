//! Requests about a server as a whole: its version, its databases, and bulk documents.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::CouchError;
use super::client::Couch;
use super::upload::Saved;

/// A server's version. BigCouch reports the CouchDB 1.x that it is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads the answer to `GET /`. A part such as `3-dirty` in `3.4.3-dirty` ends at its last digit.
    pub fn read(welcome: &Value) -> Option<Self> {
        Self::parse(welcome.get("version")?.as_str()?)
    }

    /// The version in the header `Server` of CouchDB's answers, such as `CouchDB/3.4.3 (Erlang OTP/25)`. A proxy can have another header.
    pub fn of_header(server: &str) -> Option<Self> {
        Self::parse(server.strip_prefix("CouchDB/")?)
    }

    fn parse(version: &str) -> Option<Self> {
        let mut parts = version.split('.').map(|part| {
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

/// What a server tells of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    version: Option<Version>,
    is_couchdb: bool,
}

impl Told {
    fn is_couchdb_since(self, version: Version) -> bool {
        self.is_couchdb && self.version.is_some_and(|told| told >= version)
    }
}

/// What the server tells of itself, and when it was read.
pub(super) type Known = Mutex<Option<(Told, Instant)>>;

/// The vendor that CouchDB reports. A server that only has the same API reports another one, or none.
const COUCHDB: &str = "The Apache Software Foundation";

/// The first version that was tried with wrong digests in multipart requests.
const COMPARES: Version = Version(3, 3, 3);

/// The first version whose indexes over fields this program was tried with.
const INDEXES: Version = Version(3, 0, 0);

/// The version is read again after this time. An operator may have upgraded the server, or a load balancer may have switched to another
/// one.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// A database that every Kazoo cluster has.
const ACCOUNTS: &str = "accounts";
const SYSTEM_CONFIG: &str = "system_config";

/// Documents per request.
const PAGE: usize = 500;

impl Couch {
    /// The server's version, read at most once in ten minutes.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn version(&self) -> Result<Version, CouchError> {
        let version = self.told().await?.version;
        version.ok_or_else(|| CouchError::NoAnswer("the server tells no version".into()))
    }

    /// Whether the server that answered a `create_with_attachment` is known to compare an attachment with its digest before it answers 201.
    /// Behind a load balancer that can be another server than the one that was asked for its version.
    pub async fn has_compared_digests(&self, saved: &Saved) -> bool {
        let answered_by_one = saved.by.is_some_and(|version| version >= COMPARES);
        !saved.below_quorum && answered_by_one && self.told().await.is_ok_and(|told| told.is_couchdb_since(COMPARES))
    }

    async fn told(&self) -> Result<Told, CouchError> {
        let known = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((told, at)) = known
            && at.elapsed() < KNOWN_FOR
        {
            return Ok(told);
        }
        let (_, welcome) = self.ask(self.server(Method::GET, ""), "").await?;
        let vendor = welcome.pointer("/vendor/name").and_then(Value::as_str);
        let told = Told {
            version: Version::read(&welcome),
            is_couchdb: vendor == Some(COUCHDB),
        };
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some((told, Instant::now()));
        Ok(told)
    }

    /// Whether the server is a CouchDB that has indexes over fields (Mango), and answers queries of them as it does of views. Another server
    /// may take such an index without a use for it.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn indexes_fields(&self) -> Result<bool, CouchError> {
        match self.told().await {
            Ok(told) => Ok(told.is_couchdb_since(INDEXES)),
            // For example a proxy that lets only databases through.
            Err(CouchError::NotFound | CouchError::DatabaseMissing(_) | CouchError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a database exists.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn has_database(&self, database: &str) -> Result<bool, CouchError> {
        match self.ask(self.request(Method::GET, database, &[]), database).await {
            Ok(_) => Ok(true),
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the server knows the cluster's databases. The check reads two databases that every Kazoo cluster has. A node that joins or
    /// returns answers "does not exist" for every database until it has the list from the other nodes. A database created on that node
    /// meanwhile would be a second one with the same name.
    ///
    /// # Errors
    /// When the server does not know them, or does not answer.
    pub async fn knows_databases(&self) -> Result<(), CouchError> {
        for database in [ACCOUNTS, SYSTEM_CONFIG] {
            if self.has_database(database).await? {
                return Ok(());
            }
        }
        // With a test prefix, the worker's databases are beside the cluster's, whose names have no prefix.
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

    /// Whether a server may create a database. Two cases forbid it, because each can create a second database of the same name:
    /// - A node has joined or returned, and does not have the list of databases yet. It lists no database, and knows of other nodes.
    /// - A node is cut off from most of its cluster. When both sides create one database, the cluster drops one of the two, with its
    ///   documents, after the partition heals.
    ///
    /// # Errors
    /// When one of the cases applies, or the server does not answer.
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

    /// Creates a database, if `may_create` allows it. `false` when the database existed already. After a failed creation the database is
    /// looked up. CouchDB answers 500 when two clients create it at once or when its shards open too slowly, and answers get lost.
    ///
    /// # Errors
    /// When the database is missing afterwards, or the server does not answer.
    pub async fn create_database(&self, database: &str) -> Result<bool, CouchError> {
        if self.has_database(database).await? {
            return Ok(false);
        }
        self.may_create().await?;
        match self.put_database(database).await {
            Err(error @ (CouchError::Failed { .. } | CouchError::NoAnswer(_) | CouchError::Conflict)) => {
                match self.has_database(database).await {
                    // This request most likely created it.
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

    /// Whether a database has a design document. `id` includes `_design/`.
    ///
    /// # Errors
    /// When the database does not answer.
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

    /// The documents that a view lists under `keys`.
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
        if !answer.get("rows").is_some_and(Value::is_array) {
            return Err(CouchError::NoAnswer("the view gave no rows".into()));
        }
        Ok(documents(answer).map(|(_, document)| document).collect())
    }

    /// The documents of a database that `wanted` selects. Reads the whole database, page by page.
    ///
    /// # Errors
    /// When the database cannot be read to its end.
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

    /// Creates documents in one request. Existing documents stay unchanged. Returns how many were created.
    ///
    /// # Errors
    /// When the whole request fails, or the server refuses a document for another reason than its existence.
    pub async fn create_all(&self, database: &str, documents: &[Value]) -> Result<usize, CouchError> {
        let request = self
            .request(Method::POST, database, &["_bulk_docs"])
            .header(CONTENT_TYPE, "application/json")
            .body(json!({ "docs": documents }).to_string());
        let (_, rows) = self.ask(request, database).await?;
        let rows = rows
            .as_array()
            .ok_or_else(|| CouchError::NoAnswer("_bulk_docs gave no rows".into()))?;
        let mut created = 0;
        for row in rows {
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

/// The ids and documents of the rows. A key without a match gives a row without a document.
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
        assert_eq!(
            Version::of_header("CouchDB/3.4.3 (Erlang OTP/25)"),
            Some(Version(3, 4, 3))
        );
        assert_eq!(Version::of_header("nginx/1.25.3"), None);
        assert!(read("3.3.2") < read("3.3.3") && read("3.3.3") < read("3.10.0"));
    }
    /// Behind a load balancer the server that took an upload can be another one than the one that told its version.
    #[tokio::test]
    async fn a_digest_counts_as_compared_only_where_the_server_that_answered_compares_it() {
        for (welcome, by, below_quorum, compared) in [
            ("3.4.3", Some(Version(3, 4, 3)), false, true),
            ("3.4.3", Some(Version(3, 3, 3)), false, true),
            ("3.4.3", Some(Version(3, 3, 2)), false, false),
            ("3.4.3", None, false, false),
            ("3.4.3", Some(Version(3, 4, 3)), true, false),
            ("3.3.2", Some(Version(3, 4, 3)), false, false),
        ] {
            let told = json!({"couchdb": "Welcome", "version": welcome, "vendor": {"name": COUCHDB}});
            let (couch, _) = crate::couch::testing::couch(move |_| (200, told.clone())).await;
            let rev = "1-a".to_owned();
            let saved = Saved { rev, below_quorum, by };
            assert_eq!(
                couch.has_compared_digests(&saved).await,
                compared,
                "{welcome}, {saved:?}"
            );
        }
    }
}
