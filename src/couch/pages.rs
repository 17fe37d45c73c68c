//! Rows of a view, page by page and without their documents: a view of any size never makes an answer that is too long to be read.

use serde_json::Value;

use super::client::Couch;
use super::{CouchError, ViewRow};

/// Rows in one answer.
const PAGE: usize = 1000;

/// What is read of a view.
#[derive(Debug, Clone)]
pub struct Range {
    pub design: &'static str,
    pub view: &'static str,
    /// The keys of the first and the last row, in the order of reading.
    pub from: Value,
    pub to: Value,
    pub descending: bool,
}

/// Reads on where the last page ended.
#[derive(Debug, Clone)]
pub struct Pages {
    range: Range,
    /// Key and id of the last row that was read.
    after: Option<(Value, String)>,
    over: bool,
}

impl Pages {
    pub fn of(range: Range) -> Self {
        Self {
            range,
            after: None,
            over: false,
        }
    }

    /// The next rows; none when there are no more.
    ///
    /// # Errors
    /// When the database does not tell; asked again, the same page is read.
    pub async fn next(&mut self, couch: &Couch, database: &str) -> Result<Vec<ViewRow>, CouchError> {
        if self.over {
            return Ok(Vec::new());
        }
        let (key, id) = match &self.after {
            Some((key, id)) => (key.to_string(), id.as_str()),
            None => (self.range.from.to_string(), ""),
        };
        let (to, limit) = (self.range.to.to_string(), PAGE.to_string());
        let mut query = vec![("startkey", key.as_str()), ("endkey", &to), ("limit", &limit)];
        if self.range.descending {
            query.push(("descending", "true"));
        }
        if !id.is_empty() {
            query.extend([("startkey_docid", id), ("skip", "1")]);
        }
        let rows = couch.view(database, self.range.design, self.range.view, &query).await?;
        let last = rows.last().map(|row| (row.key.clone(), row.id.clone()));
        // A server that does not page would give the same again for ever.
        self.over = rows.len() < PAGE || last == self.after;
        self.after = last;
        Ok(rows)
    }

    /// All rows.
    ///
    /// # Errors
    /// As `next`.
    pub async fn all(mut self, couch: &Couch, database: &str) -> Result<Vec<ViewRow>, CouchError> {
        let mut all = Vec::new();
        while !self.over {
            all.extend(self.next(couch, database).await?);
        }
        Ok(all)
    }
}
