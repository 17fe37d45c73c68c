//! What the ledger needs of CouchDB, as a trait. `Couch` is a real server. `tests/simulation` has a simulated cluster.

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::client::Couch;
use super::{Branched, CouchError, Row, ViewRow};

/// The answer to a request.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, CouchError>>;

/// A page of documents, and the last id of the page, if more documents may follow.
pub type IdPage = (Vec<Value>, Option<String>);

/// A CouchDB server. Each method does what the method of that name of `Couch` does.
pub trait Documents: Send + Sync {
    fn ping(&self) -> Answer<'_, ()>;

    fn knows_databases(&self) -> Answer<'_, ()>;

    fn databases<'a>(&'a self, start: &'a str) -> Answer<'a, Vec<String>>;

    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, bool>;

    fn drop_database<'a>(&'a self, database: &'a str) -> Answer<'a, ()>;

    fn put_design<'a>(&'a self, database: &'a str, name: &'a str, design: &'a Value) -> Answer<'a, ()>;

    /// Whether the server has indexes over fields, and answers queries of them as it does of views. A server without them gets none.
    fn indexes_fields(&self) -> Answer<'_, bool> {
        Box::pin(async { Ok(false) })
    }

    /// As `put_design`, for a document whose order of fields counts.
    fn put_text<'a>(&'a self, _database: &'a str, _name: &'a str, _design: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Err(CouchError::NotFound) })
    }

    fn bulk_docs<'a>(&'a self, database: &'a str, documents: &'a [Value]) -> Answer<'a, Vec<Row>>;

    fn get_many<'a>(&'a self, database: &'a str, ids: &'a [String]) -> Answer<'a, Vec<Option<Value>>>;

    fn get_revision<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, Option<Value>>;

    fn delete<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, ()>;

    fn id_page<'a>(&'a self, database: &'a str, from: (&'a str, Option<&'a str>), to: &'a str) -> Answer<'a, IdPage>;

    fn view<'a>(
        &'a self,
        database: &'a str,
        design: &'a str,
        view: &'a str,
        query: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<ViewRow>>;

    fn reduced<'a>(
        &'a self,
        database: &'a str,
        design: &'a str,
        view: &'a str,
        query: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<(Value, Value)>>;

    fn branched<'a>(&'a self, database: &'a str, since: &'a str, limit: usize) -> Answer<'a, Branched>;
}

impl dyn Documents {
    /// The documents with ids from `from` to `to`, both included, read page by page.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn id_range(&self, database: &str, from: &str, to: &str) -> Result<Vec<Value>, CouchError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (page, last) = self.id_page(database, (from, after.as_deref()), to).await?;
            all.extend(page);
            match last {
                Some(last) => after = Some(last),
                None => return Ok(all),
            }
        }
    }
}

impl Documents for Couch {
    fn indexes_fields(&self) -> Answer<'_, bool> {
        Box::pin(Self::indexes_fields(self))
    }

    fn put_text<'a>(&'a self, database: &'a str, name: &'a str, design: &'a str) -> Answer<'a, ()> {
        Box::pin(Self::put_text(self, database, name, design))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(Self::ping(self))
    }

    fn knows_databases(&self) -> Answer<'_, ()> {
        Box::pin(Self::knows_databases(self))
    }

    fn databases<'a>(&'a self, start: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(Self::databases(self, start))
    }

    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, bool> {
        Box::pin(Self::create_database(self, database))
    }

    fn drop_database<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(Self::drop_database(self, database))
    }

    fn put_design<'a>(&'a self, database: &'a str, name: &'a str, design: &'a Value) -> Answer<'a, ()> {
        Box::pin(Self::put_design(self, database, name, design))
    }

    fn bulk_docs<'a>(&'a self, database: &'a str, documents: &'a [Value]) -> Answer<'a, Vec<Row>> {
        Box::pin(Self::bulk_docs(self, database, documents))
    }

    fn get_many<'a>(&'a self, database: &'a str, ids: &'a [String]) -> Answer<'a, Vec<Option<Value>>> {
        Box::pin(Self::get_many(self, database, ids))
    }

    fn get_revision<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, Option<Value>> {
        Box::pin(Self::get_revision(self, database, id, rev))
    }

    fn delete<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, ()> {
        Box::pin(Self::delete(self, database, id, rev))
    }

    fn id_page<'a>(&'a self, database: &'a str, from: (&'a str, Option<&'a str>), to: &'a str) -> Answer<'a, IdPage> {
        Box::pin(Self::id_page(self, database, from, to))
    }

    fn view<'a>(
        &'a self,
        database: &'a str,
        design: &'a str,
        view: &'a str,
        query: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<ViewRow>> {
        Box::pin(Self::view(self, database, design, view, query))
    }

    fn reduced<'a>(
        &'a self,
        database: &'a str,
        design: &'a str,
        view: &'a str,
        query: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<(Value, Value)>> {
        Box::pin(Self::reduced(self, database, design, view, query))
    }

    fn branched<'a>(&'a self, database: &'a str, since: &'a str, limit: usize) -> Answer<'a, Branched> {
        Box::pin(Self::branched(self, database, since, limit))
    }
}
