//! The database server, and databases of one test's own on it.

use anyhow::{Context as _, ensure};
use kz_record_call::config;
use kz_record_call::couch::Couch;
use kz_record_call::kazoo::time::Month;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use testcontainers::{ContainerAsync, GenericImage};

use super::recording::ACCOUNT;
use super::{Recording, services, whole_settings};

/// The server that all tests share.
pub struct Couchdb {
    container: Option<ContainerAsync<GenericImage>>,
    pub url: String,
}

impl Couchdb {
    pub async fn start() -> anyhow::Result<Self> {
        match std::env::var("TEST_COUCHDB_URL") {
            Ok(url) => Ok(Self {
                container: None,
                url: url.trim_end_matches('/').to_owned(),
            }),
            Err(_) => {
                let (container, url) = services::couch().await?;
                Ok(Self {
                    container: Some(container),
                    url,
                })
            }
        }
    }

    /// One that runs already.
    pub fn at(url: &str) -> Self {
        Self {
            container: None,
            url: url.to_owned(),
        }
    }

    pub async fn stop(self) {
        if let Some(container) = self.container {
            let _ = container.rm().await;
        }
    }
}

/// One test's databases.
pub struct World {
    pub prefix: String,
    pub url: String,
    http: Client,
}

impl World {
    /// A world without any database.
    pub fn empty(couchdb: &Couchdb) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        Self {
            prefix: format!("d{}-", &unique[..12]),
            url: couchdb.url.clone(),
            http: Client::new(),
        }
    }

    /// Another's world, seen once more.
    pub fn with_prefix(couchdb: &Couchdb, prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ..Self::empty(couchdb)
        }
    }

    /// A world with the recording's monthly database, and the view that Crossbar lists recordings with.
    pub async fn with_database_of(couchdb: &Couchdb, recording: &Recording) -> anyhow::Result<Self> {
        let world = Self::empty(couchdb);
        world.create_database(&recording.database()).await?;
        world.put(&recording.database(), "_design/recordings", &view()).await?;
        Ok(world)
    }

    /// The settings of a worker whose database is at `url`, with the time-outs of a test.
    pub fn config(&self, url: &str) -> config::Couchdb {
        let changes = [
            ("COUCHDB__URL", url),
            ("COUCHDB__DATABASE_PREFIX", &self.prefix),
            ("COUCHDB__CONNECT_TIMEOUT_MS", "2000"),
            ("COUCHDB__READ_TIMEOUT_MS", "10000"),
        ];
        whole_settings(&changes.map(|(key, value)| (key.to_owned(), value.to_owned()))).couchdb
    }

    /// The worker's client, straight to the server.
    pub fn couch(&self) -> Couch {
        Couch::new(&self.config(&self.url)).unwrap()
    }

    fn address(&self, database: &str, path: &str) -> String {
        let database = format!("{}{database}", self.prefix).replace('/', "%2F");
        let slash = if path.is_empty() { "" } else { "/" };
        format!("{}/{database}{slash}{path}", self.url)
    }

    async fn request(
        &self,
        method: Method,
        address: String,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, &address);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        Ok((status, response.json().await.unwrap_or(Value::Null)))
    }

    pub async fn create_database(&self, database: &str) -> anyhow::Result<()> {
        let (status, body) = self.request(Method::PUT, self.address(database, ""), None).await?;
        ensure!(status.is_success(), "creating {database}: {status} {body}");
        Ok(())
    }

    pub async fn delete_database(&self, database: &str) -> anyhow::Result<()> {
        let (status, body) = self.request(Method::DELETE, self.address(database, ""), None).await?;
        ensure!(status.is_success(), "deleting {database}: {status} {body}");
        Ok(())
    }

    /// Writes a document, new or not; returns its revision.
    pub async fn put(&self, database: &str, id: &str, document: &Value) -> anyhow::Result<String> {
        let (status, body) = self
            .request(Method::PUT, self.address(database, id), Some(document))
            .await?;
        ensure!(status.is_success(), "writing {database}/{id}: {status} {body}");
        Ok(body["rev"].as_str().unwrap_or_default().to_owned())
    }

    pub async fn get(&self, database: &str, id: &str) -> anyhow::Result<Option<Value>> {
        let (status, body) = self.request(Method::GET, self.address(database, id), None).await?;
        Ok(status.is_success().then_some(body))
    }

    pub async fn document(&self, recording: &Recording) -> anyhow::Result<Value> {
        let id = recording.id().as_str();
        let found = self.get(&recording.database(), id).await?;
        found.with_context(|| format!("no document {id}"))
    }

    /// Reads, changes, writes.
    pub async fn edit(&self, database: &str, id: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<String> {
        let mut document = self.get(database, id).await?.unwrap_or_else(|| json!({}));
        change(&mut document);
        self.put(database, id, &document).await
    }

    pub async fn delete(&self, database: &str, id: &str) -> anyhow::Result<()> {
        let document = self.get(database, id).await?.context("nothing to delete")?;
        let rev = document["_rev"].as_str().unwrap_or_default();
        let address = self.address(database, &format!("{id}?rev={rev}"));
        let (status, body) = self.request(Method::DELETE, address, None).await?;
        ensure!(status.is_success(), "deleting {id}: {status} {body}");
        Ok(())
    }

    /// The bytes of the recording's one attachment.
    pub async fn audio(&self, recording: &Recording) -> anyhow::Result<Vec<u8>> {
        let document = self.document(recording).await?;
        let all = document["_attachments"].as_object().context("no attachments")?;
        ensure!(all.len() == 1, "{} attachments", all.len());
        let name = all.keys().next().context("no attachment")?;
        let address = self.address(&recording.database(), &format!("{}/{name}", recording.id()));
        Ok(self.http.get(address).send().await?.bytes().await?.to_vec())
    }

    /// What Crossbar's listing shows of a month.
    pub async fn listed(&self, database: &str) -> anyhow::Result<Vec<String>> {
        let month = database
            .rsplit_once('-')
            .and_then(|(_, month)| Month::of_id(month))
            .context("a month")?;
        let (from, to) = (month.start(), month.next().start());
        let (from, to) = (from.gregorian_seconds(), to.gregorian_seconds());
        let range = format!("startkey=%5B{from}%5D&endkey=%5B{to}%5D");
        let path = format!("_design/recordings/_view/crossbar_listing?{range}");
        let (status, body) = self.request(Method::GET, self.address(database, &path), None).await?;
        ensure!(status.is_success(), "{status} {body}");
        let rows = body["rows"].as_array().cloned().unwrap_or_default();
        Ok(rows
            .iter()
            .filter_map(|row| row["id"].as_str().map(str::to_owned))
            .collect())
    }

    pub async fn databases(&self) -> anyhow::Result<Vec<String>> {
        let (_, all) = self
            .request(Method::GET, format!("{}/_all_dbs", self.url), None)
            .await?;
        let names = all.as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(names
            .filter_map(|name| name.strip_prefix(&self.prefix).map(str::to_owned))
            .collect())
    }

    /// The end of every test.
    pub async fn finish(self) -> anyhow::Result<()> {
        for database in self.databases().await? {
            self.delete_database(&database).await?;
        }
        Ok(())
    }

    /// The databases that every cluster has, with this account in them.
    pub async fn seed(&self) -> anyhow::Result<()> {
        for database in ["accounts", "system_data", "system_config"] {
            self.create_database(database).await?;
        }
        let account = json!({"name": "Acme", "pvt_type": "account", "pvt_account_id": ACCOUNT});
        self.put("accounts", ACCOUNT, &account).await?;
        Ok(())
    }
}

/// What Crossbar lists recordings with.
pub fn view() -> Value {
    let alive = "doc.pvt_type == 'call_recording' && !doc.pvt_deleted";
    json!({
        "language": "javascript",
        "views": {
            "crossbar_listing": {"map": format!("function(doc) {{ if ({alive}) emit([doc.pvt_created, doc._id], null); }}")},
            "listing_by_user": {"map": format!("function(doc) {{ if ({alive} && doc.owner_id) emit([doc.owner_id, doc.pvt_created, doc._id], null); }}")},
        },
    })
}
