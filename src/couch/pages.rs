//! Reads the rows of a view page by page, without their documents. A view of any size then never makes an answer that is too long to read.

use serde_json::Value;

use super::{CouchError, Documents, ViewRow};

/// Rows per answer.
const PAGE: usize = 1000;

/// The part of a view to read.
#[derive(Debug, Clone)]
pub struct Range {
    pub design: &'static str,
    pub view: &'static str,
    /// The keys of the first and the last row, in reading order.
    pub from: Value,
    pub to: Value,
    pub descending: bool,
}

/// Reads a view, and continues after the last page.
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

    /// The next rows. Empty when there are no more.
    ///
    /// # Errors
    /// When the database does not answer. The next call reads the same page.
    pub async fn next(&mut self, couch: &dyn Documents, database: &str) -> Result<Vec<ViewRow>, CouchError> {
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
        // A server that ignores paging would return the same rows for ever.
        self.over = rows.len() < PAGE || last == self.after;
        self.after = last;
        Ok(rows)
    }

    /// All rows.
    ///
    /// # Errors
    /// As `next`.
    pub async fn all(mut self, couch: &dyn Documents, database: &str) -> Result<Vec<ViewRow>, CouchError> {
        let mut all = Vec::new();
        while !self.over {
            all.extend(self.next(couch, database).await?);
        }
        Ok(all)
    }
}
