//! What is asked of a server as a whole: its version, its databases, and many documents at once.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::CouchError;
use super::client::{Couch, answer};

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
        let (_, welcome) = answer(self.server(Method::GET, "").send().await, "").await?;
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
        match answer(self.request(Method::GET, database, &[]).send().await, database).await {
            Ok(_) => Ok(true),
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a database; `false` when it was there already.
    ///
    /// # Errors
    /// When it is not there afterwards, or nobody can tell.
    pub async fn create_database(&self, database: &str) -> Result<bool, CouchError> {
        match answer(self.request(Method::PUT, database, &[]).send().await, database).await {
            Ok(_) => Ok(true),
            Err(CouchError::Refused { status: 412, .. }) => Ok(false),
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
        let (_, answer) = answer(request.send().await, database).await?;
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
            let (_, page) = answer(request.send().await, database).await?;
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
        let (_, rows) = answer(request.send().await, database).await?;
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
