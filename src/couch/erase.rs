//! Removes documents for good, for `kz-record-call erase`.
//!
//! A deleted document leaves its id in the database. Purging removes the id too, and with it every revision that is named. BigCouch and
//! CouchDB before 2.3 cannot purge a clustered database; there the document is deleted.

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::CouchError;
use super::client::Couch;

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// Nothing is left of it but what is on disk until the database is compacted.
    Purged,
    /// Its id is left.
    Deleted,
    Missing,
}

/// Another worker may write the document between reading and purging it.
const TRIES: usize = 4;

impl Couch {
    /// Removes a document, with all its conflicting revisions.
    ///
    /// # Errors
    /// When the document may still exist.
    pub async fn erase(&self, database: &str, id: &str) -> Result<Erased, CouchError> {
        let mut erased = Erased::Missing;
        for _ in 0..TRIES {
            let found = match self.get_many(database, &[id.to_owned()]).await {
                Err(CouchError::DatabaseMissing(_)) => return Ok(erased),
                found => found?,
            };
            let Some(document) = found.into_iter().flatten().next() else {
                return Ok(erased);
            };
            let conflicts = document["_conflicts"].as_array().into_iter().flatten();
            let revs: Vec<&str> = [&document["_rev"]]
                .into_iter()
                .chain(conflicts)
                .filter_map(Value::as_str)
                .collect();
            match self.purge(database, id, &revs).await {
                Ok(()) => erased = Erased::Purged,
                Err(error) if is_unknown(&error) => {
                    for rev in revs {
                        match self.delete(database, id, rev).await {
                            Ok(()) | Err(CouchError::Conflict) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    erased = Erased::Deleted;
                }
                Err(error) => return Err(error),
            }
        }
        Err(CouchError::NoAnswer("the document is written again and again".into()))
    }

    async fn purge(&self, database: &str, id: &str, revs: &[&str]) -> Result<(), CouchError> {
        let request = self.request(Method::POST, database, &["_purge"]);
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .body(json!({ id: revs }).to_string());
        self.ask(request, database).await.map(drop)
    }

    /// Asks the server to compact a database, which removes older revisions and purged documents from the disk.
    ///
    /// # Errors
    /// When the server does not begin.
    pub async fn compact(&self, database: &str) -> Result<(), CouchError> {
        let request = self.request(Method::POST, database, &["_compact"]);
        let request = request.header(CONTENT_TYPE, "application/json").body("{}");
        self.ask(request, database).await.map(drop)
    }
}

/// Whether the server does not know the request. The answer of a BigCouch is a 404 or a 5xx.
fn is_unknown(error: &CouchError) -> bool {
    matches!(error, CouchError::NotFound | CouchError::Conflict)
        || matches!(
            error,
            CouchError::Refused { status: 400 | 405, .. } | CouchError::Failed { status: 500 | 501, .. }
        )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::couch::testing::couch;

    use super::*;

    /// What becomes of a document with a conflict, and how many revisions were deleted one by one.
    async fn erased(status: u16, answer: Value) -> (Result<Erased, CouchError>, usize) {
        let is_read = AtomicBool::new(false);
        let (couch, log) = couch(move |asked| {
            if asked.path.contains("_all_docs") {
                let document = json!({"_id": "d", "_rev": "2-b", "_conflicts": ["2-a"]});
                let row = match is_read.swap(true, Ordering::SeqCst) {
                    false => json!({"id": "d", "key": "d", "value": {"rev": "2-b"}, "doc": document}),
                    true => json!({"key": "d", "error": "not_found"}),
                };
                (200, json!({"rows": [row]}))
            } else if asked.path.contains("_purge") {
                assert_eq!(asked.body, json!({"d": ["2-b", "2-a"]}).to_string());
                (status, answer.clone())
            } else {
                (200, json!({"ok": true}))
            }
        })
        .await;
        let erased = couch.erase("db", "d").await;
        let deleted = log
            .lock()
            .unwrap()
            .iter()
            .filter(|asked| asked.method == "DELETE")
            .count();
        (erased, deleted)
    }

    #[tokio::test]
    async fn a_document_is_purged_with_its_conflicts_or_else_deleted() {
        let purged = erased(201, json!({"purge_seq": null, "purged": {}})).await;
        assert_eq!(purged, (Ok(Erased::Purged), 0));
        let unknown = json!({"error": "not_implemented", "reason": "r"});
        assert_eq!(erased(501, unknown).await, (Ok(Erased::Deleted), 2));
        let down = json!({"error": "timeout", "reason": "r"});
        assert!(erased(503, down).await.0.is_err());
    }
}
