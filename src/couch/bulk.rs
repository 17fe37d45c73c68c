//! Bulk reads and writes of small documents, views, and databases.

use couch_rs::document::AllDocsResponse;
use couch_rs::types::view::RawViewCollection;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kazoo::json::owned_text;

use super::CouchError;
use super::client::Couch;

/// Documents per request. Answers are read whole, and an entry can have tens of kilobytes.
pub(super) const DOCUMENTS: usize = 100;

/// Result of one document of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    Saved {
        rev: String,
        /// Fewer copies exist so far than the quorum: the server answered 202.
        below_quorum: bool,
    },
    Conflict,
    /// The server refused this document.
    Refused(String),
}

/// What a database has under an id.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    Missing,
    /// It was there, and was deleted for good.
    Deleted,
    Document(Value),
}

/// One row of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewRow {
    pub id: String,
    pub key: Value,
    pub value: Value,
    pub doc: Option<Value>,
}

/// Documents with more than one leaf revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branched {
    pub ids: Vec<String>,
    /// The sequence at which the next changes start.
    pub since: String,
    /// There were no more changes.
    pub is_all: bool,
}

impl Couch {
    /// Writes documents, each by its own `_id` and `_rev`. The rows have the order of the documents.
    ///
    /// # Errors
    /// When the server refused the whole request, or there is no answer.
    pub async fn bulk_docs(&self, database: &str, documents: &[Value]) -> Result<Vec<Row>, CouchError> {
        let body = serde_json::to_string(&Documents { docs: documents })
            .map_err(|error| CouchError::NoAnswer(format!("the documents cannot be written: {error}")))?;
        let (status, rows) = self.posted(database, &["_bulk_docs"], &[], body).await?;
        let rows = rows
            .as_array()
            .ok_or_else(|| CouchError::NoAnswer("_bulk_docs gave no rows".into()))?;
        if rows.len() != documents.len() {
            return Err(CouchError::NoAnswer("_bulk_docs gave other rows than were sent".into()));
        }
        let rows: Vec<Row> = rows.iter().map(row).collect();
        let is_named = |row: &Row| matches!(row, Row::Saved { below_quorum: true, .. });
        if status != 202 || rows.iter().any(is_named) {
            return Ok(rows);
        }
        // Some documents are below the quorum, and the server does not say which.
        let suspect = |row: Row| match row {
            Row::Saved { rev, .. } => Row::Saved {
                rev,
                below_quorum: true,
            },
            other => other,
        };
        Ok(rows.into_iter().map(suspect).collect())
    }

    /// The documents with these ids, in the order of the ids. `None` for a document that is missing or deleted. `_conflicts` lists
    /// conflicting revisions.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get_many(&self, database: &str, ids: &[String]) -> Result<Vec<Option<Value>>, CouchError> {
        let query = [("include_docs", "true"), ("conflicts", "true")];
        let mut documents = Vec::with_capacity(ids.len());
        for some in ids.chunks(DOCUMENTS) {
            let found = self
                .post(database, &["_all_docs"], &query, &json!({ "keys": some }))
                .await?;
            let found: AllDocsResponse<Value> = parsed(found)?;
            if found.rows.len() != some.len() {
                return Err(CouchError::NoAnswer(
                    "_all_docs gave other rows than were asked for".into(),
                ));
            }
            for row in found.rows {
                match row.error.as_deref() {
                    None | Some("not_found") => documents.push(row.doc.filter(Value::is_object)),
                    // The document may exist or not: a part of the cluster did not answer.
                    Some(error) => {
                        return Err(CouchError::NoAnswer(format!("a document cannot be read: {error}")));
                    }
                }
            }
        }
        Ok(documents)
    }

    /// What the database has under these ids, in the order of the ids. One request for each hundred of them.
    ///
    /// # Errors
    /// When the database does not answer, or does not exist.
    pub async fn held(&self, database: &str, ids: &[&str]) -> Result<Vec<Held>, CouchError> {
        let mut all = Vec::with_capacity(ids.len());
        for some in ids.chunks(DOCUMENTS) {
            let query = [("include_docs", "true")];
            let found = self
                .post(database, &["_all_docs"], &query, &json!({ "keys": some }))
                .await?;
            let rows = found.get("rows").and_then(Value::as_array);
            let rows = rows
                .filter(|rows| rows.len() == some.len())
                .ok_or_else(|| CouchError::NoAnswer("_all_docs gave other rows than were asked for".into()))?;
            for row in rows {
                all.push(held(row)?);
            }
        }
        Ok(all)
    }

    /// One revision of a document.
    ///
    /// # Errors
    /// As `get`.
    pub async fn get_revision(&self, database: &str, id: &str, rev: &str) -> Result<Option<Value>, CouchError> {
        let request = self.request(Method::GET, database, &[id]).query(&[("rev", rev)]);
        match self.ask(request, database).await {
            Ok((_, document)) => Ok(Some(document)),
            Err(CouchError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes one revision of a document. A missing revision is no error.
    ///
    /// # Errors
    /// When the revision may still exist.
    pub async fn delete(&self, database: &str, id: &str, rev: &str) -> Result<(), CouchError> {
        let request = self.request(Method::DELETE, database, &[id]).query(&[("rev", rev)]);
        match self.ask(request, database).await {
            Ok(_) | Err(CouchError::NotFound | CouchError::DatabaseMissing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One page of the documents with ids from `from`, or after the id `after`, to `to`. Also the last id of the page, if more documents may
    /// follow.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn id_page(
        &self,
        database: &str,
        (from, after): (&str, Option<&str>),
        to: &str,
    ) -> Result<(Vec<Value>, Option<String>), CouchError> {
        let (start, to) = (json!(after.unwrap_or(from)).to_string(), json!(to).to_string());
        let limit = DOCUMENTS.to_string();
        let query = [
            ("startkey", start.as_str()),
            ("endkey", &to),
            ("limit", &limit),
            ("skip", if after.is_some() { "1" } else { "0" }),
            ("include_docs", "true"),
            ("conflicts", "true"),
        ];
        let page: AllDocsResponse<Value> = parsed(self.read(database, &["_all_docs"], &query).await?)?;
        let (rows, last) = (page.rows.len(), page.rows.last().and_then(|row| row.id.clone()));
        let documents = page.rows.into_iter().filter_map(|row| row.doc.filter(Value::is_object));
        let more = last.filter(|last| rows >= DOCUMENTS && after != Some(last));
        Ok((documents.collect(), more))
    }

    /// Rows of a view. `query` holds CouchDB's own parameters, with JSON values as text.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn view(
        &self,
        database: &str,
        design: &str,
        view: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<ViewRow>, CouchError> {
        let found = self.read(database, &["_design", design, "_view", view], query).await?;
        let found: RawViewCollection<Value, Value> = parsed(found)?;
        let row = |row: couch_rs::types::view::ViewItem<Value, Value, Value>| {
            Some(ViewRow {
                id: row.id?,
                key: row.key,
                value: row.value,
                doc: row.doc.filter(Value::is_object),
            })
        };
        Ok(found.rows.into_iter().filter_map(row).collect())
    }

    /// Keys and values of a view with a reduce function, grouped. `query` as in `view`.
    ///
    /// # Errors
    /// `NotFound` when there is no such view, `DatabaseMissing` when there is no such database.
    pub async fn reduced(
        &self,
        database: &str,
        design: &str,
        view: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<(Value, Value)>, CouchError> {
        let found = self.read(database, &["_design", design, "_view", view], query).await?;
        let found: RawViewCollection<Value, Value> = parsed(found)?;
        Ok(found.rows.into_iter().map(|row| (row.key, row.value)).collect())
    }

    /// Writes a design document. It creates a new one, unless `_rev` names the revision to replace.
    ///
    /// # Errors
    /// `Conflict` when it exists.
    pub async fn put_design(&self, database: &str, name: &str, design: &Value) -> Result<(), CouchError> {
        self.put_text(database, name, &design.to_string()).await
    }

    /// The same for the text of one.
    ///
    /// # Errors
    /// `Conflict` when it exists.
    pub async fn put_text(&self, database: &str, name: &str, design: &str) -> Result<(), CouchError> {
        let request = self
            .request(Method::PUT, database, &["_design", name])
            .header(CONTENT_TYPE, "application/json")
            .body(design.to_owned());
        self.ask(request, database).await.map(drop)
    }

    /// Drops a database and its documents. A missing database is no error.
    ///
    /// # Errors
    /// When the database may still exist.
    pub async fn drop_database(&self, database: &str) -> Result<(), CouchError> {
        match self.ask(self.request(Method::DELETE, database, &[]), database).await {
            Ok(_) | Err(CouchError::NotFound | CouchError::DatabaseMissing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The server's information about a database.
    ///
    /// # Errors
    /// When it does not exist, or the server does not answer.
    pub async fn database_info(&self, database: &str) -> Result<Value, CouchError> {
        match self.ask(self.request(Method::GET, database, &[]), database).await {
            Ok((_, info)) => Ok(info),
            Err(CouchError::NotFound) => Err(CouchError::DatabaseMissing(database.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// The documents with more than one leaf revision, deleted leaves included, among at most `limit` that changed after `since`. Also the
    /// sequence at which the next changes start, if there are more.
    ///
    /// # Errors
    /// As `view`.
    pub async fn branched(&self, database: &str, since: &str, limit: usize) -> Result<Branched, CouchError> {
        let request = self.request(Method::GET, database, &["_changes"]).query(&[
            ("style", "all_docs"),
            ("since", since),
            ("limit", &limit.to_string()),
        ]);
        let (_, answer) = self.ask(request, database).await?;
        let rows = answer.get("results").and_then(Value::as_array);
        let Some((rows, last)) = rows.zip(answer.get("last_seq")) else {
            return Err(CouchError::NoAnswer("_changes gave no changes".into()));
        };
        let has_branches = |row: &&Value| {
            let revs = row.get("changes").and_then(Value::as_array);
            revs.is_some_and(|revs| revs.len() > 1)
        };
        let id = |row: &Value| owned_text(row, "id");
        Ok(Branched {
            ids: rows.iter().filter(has_branches).filter_map(id).collect(),
            // BigCouch's sequence is a list.
            since: last.as_str().map_or_else(|| last.to_string(), str::to_owned),
            is_all: rows.len() < limit,
        })
    }

    /// The names of all databases that start with `start`, without our prefix.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn databases(&self, start: &str) -> Result<Vec<String>, CouchError> {
        let begin = format!("{}{start}", self.prefix());
        let (from, to) = (json!(begin).to_string(), json!(format!("{begin}\u{fff0}")).to_string());
        let request = self
            .server(Method::GET, "_all_dbs")
            .query(&[("startkey", &from), ("endkey", &to)]);
        let (_, names) = self.ask(request, "").await?;
        let Some(names) = names.as_array() else {
            return Err(CouchError::NoAnswer("_all_dbs gave no list".into()));
        };
        let mine = |name: &Value| name.as_str()?.strip_prefix(self.prefix()).map(str::to_owned);
        // Some servers ignore the range and return every name.
        Ok(names
            .iter()
            .filter_map(mine)
            .filter(|name| name.starts_with(start))
            .collect())
    }

    async fn read(&self, database: &str, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CouchError> {
        let request = self.request(Method::GET, database, path).query(query);
        Ok(self.ask(request, database).await?.1)
    }

    async fn post(
        &self,
        database: &str,
        path: &[&str],
        query: &[(&str, &str)],
        body: &Value,
    ) -> Result<Value, CouchError> {
        Ok(self.posted(database, path, query, body.to_string()).await?.1)
    }

    /// The same, with the status.
    async fn posted(
        &self,
        database: &str,
        path: &[&str],
        query: &[(&str, &str)],
        body: String,
    ) -> Result<(u16, Value), CouchError> {
        let request = self
            .request(Method::POST, database, path)
            .query(query)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.ask(request, database).await
    }
}

/// The body of a `_bulk_docs` request.
#[derive(Serialize)]
struct Documents<'a> {
    docs: &'a [Value],
}

fn parsed<T: DeserializeOwned>(answer: Value) -> Result<T, CouchError> {
    serde_json::from_value(answer).map_err(|error| CouchError::NoAnswer(format!("the answer has no rows: {error}")))
}

fn row(row: &Value) -> Row {
    let word = |key: &str| row.get(key).and_then(Value::as_str);
    match (word("rev"), word("error")) {
        (Some(rev), None) => Row::Saved {
            rev: rev.to_owned(),
            below_quorum: row.get("accepted") == Some(&Value::Bool(true)),
        },
        (_, Some("conflict")) => Row::Conflict,
        (_, error) => Row::Refused(format!(
            "{}: {}",
            error.unwrap_or("error"),
            word("reason").unwrap_or("")
        )),
    }
}

/// What a row of `_all_docs` says of the id that was asked for.
fn held(row: &Value) -> Result<Held, CouchError> {
    if row.pointer("/value/deleted").and_then(Value::as_bool) == Some(true) {
        return Ok(Held::Deleted);
    }
    let document = row.get("doc").filter(|doc| doc.is_object());
    match (document, row.get("error").and_then(Value::as_str)) {
        (Some(document), None) => Ok(Held::Document(document.clone())),
        (None, Some("not_found")) => Ok(Held::Missing),
        (_, error) => {
            // The document may exist or not: a part of the cluster did not answer.
            let error = error.unwrap_or("no document in its row");
            Err(CouchError::NoAnswer(format!("a document cannot be read: {error}")))
        }
    }
}
