//! The databases that a Kazoo cluster has before a worker comes, and a look at what the worker left in them.

use std::{io, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use reqwest::{Client, Method, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{
    audio::Audio,
    wire::{Clock, GREGORIAN_OFFSET},
};

/// A CouchDB server, with a prefix that keeps a test's databases apart.
#[derive(Clone, Debug)]
pub struct Couch {
    http: Client,
    url: String,
    prefix: String,
}

/// What a seeded cluster holds.
#[derive(Clone, Debug)]
pub struct Seeded {
    pub couch: Couch,
    /// `account/ab/cd/rest`, without the prefix.
    pub account_db: String,
    /// The account's database of the current UTC month.
    pub modb: String,
}

/// A stored recording, compared with what the switch wrote.
#[derive(Clone, Debug)]
pub struct Stored {
    pub document: Value,
    pub attachment: String,
    pub length: u64,
    pub digest: String,
    /// Empty when the bytes read back are those that the switch wrote.
    pub difference: Option<String>,
}

/// `account/ab/cd/rest`.
pub fn account_db(account: &str) -> String {
    format!("account/{}/{}/{}", &account[..2], &account[2..4], &account[4..])
}

/// The database in which a recording with this id belongs: its month is the id's.
pub fn modb_of(account: &str, media_id: &str) -> String {
    format!("{}-{}", account_db(account), media_id.get(..6).unwrap_or_default())
}

/// Seeds `system_config`, `system_data`, `accounts`, the account's own database and this month's; what is there already
/// stays as it is.
pub async fn seed(url: &str, prefix: &str, account: &str, clock: Clock) -> anyhow::Result<Seeded> {
    ensure!(
        account.len() == 32 && account.is_ascii(),
        "an account id has 32 hex digits, not {account:?}"
    );
    let couch = Couch::new(url, prefix)?;
    let (account_db, month) = (account_db(account), clock.month());
    let modb = format!("{account_db}-{month}");
    for database in ["system_config", "system_data", "accounts", &account_db, &modb] {
        couch.create_database(database).await?;
    }
    couch.create("system_config", "media", &media_config()).await?;
    couch.create("system_data", "_design/views", &view_of_views()).await?;
    let definition = json!({
        "pvt_type": "view_definition",
        "kazoo": {"view_map": [{"classification": "modb"}]},
        "view_definition": recordings_view(),
    });
    couch
        .create("system_data", "modb-kazoo_modb-recordings", &definition)
        .await?;
    let document = account_document(account, &account_db, clock);
    couch.create("accounts", account, &document).await?;
    couch.create(&account_db, account, &document).await?;
    couch.create(&modb, "_design/recordings", &recordings_view()).await?;
    Ok(Seeded {
        couch,
        account_db,
        modb,
    })
}

/// `system_config/media` of a cluster that stores its recordings.
pub fn media_config() -> Value {
    json!({
        "pvt_type": "config",
        "default": {
            "store_recordings": true,
            "max_recording_time_limit": 10_800,
            "record_min_sec": 0,
            "call_recording": {"extension": "mp3", "storage_retry_times": 5},
        },
    })
}

fn account_document(account: &str, account_db: &str, clock: Clock) -> Value {
    let created = clock.unix_micros() / 1_000_000 + GREGORIAN_OFFSET;
    json!({
        "name": "Acme",
        "realm": super::events::REALM,
        "enabled": true,
        "pvt_type": "account",
        "pvt_account_id": account,
        "pvt_account_db": account_db.replace('/', "%2F"),
        "pvt_created": created,
        "pvt_modified": created,
        "pvt_enabled": true,
        "pvt_tree": [],
    })
}

/// What Crossbar lists recordings with.
fn recordings_view() -> Value {
    let alive = "doc.pvt_type === 'call_recording' && !doc.pvt_deleted";
    let by_account = format!("function (doc) {{ if ({alive}) emit([doc.pvt_created, doc._id], null); }}");
    let by_user = format!(
        "function (doc) {{ if ({alive} && doc.owner_id) emit([doc.owner_id, doc.pvt_created, doc._id], null); }}"
    );
    json!({
        "_id": "_design/recordings",
        "language": "javascript",
        "views": {"crossbar_listing": {"map": by_account}, "listing_by_user": {"map": by_user}},
    })
}

/// Where Kazoo looks up which views a database of a kind must have.
fn view_of_views() -> Value {
    let map = "function (doc) { if (doc.pvt_type !== 'view_definition' || doc.pvt_deleted || !doc.kazoo) return; \
               (doc.kazoo.view_map || []).forEach(function (m) { emit(m.database || m.classification, null); }); }";
    json!({
        "_id": "_design/views",
        "language": "javascript",
        "views": {"views_by_classification": {"map": map}},
    })
}

impl Couch {
    pub fn new(url: &str, prefix: &str) -> anyhow::Result<Self> {
        let http = Client::builder()
            .connect_timeout(Duration::from_secs(3))
            .read_timeout(Duration::from_secs(30))
            .build()
            .context("an HTTP client")?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// A database's name as it stands in a URL, prefix included.
    pub fn full_name(&self, database: &str) -> String {
        format!("{}{database}", self.prefix).replace('/', "%2F")
    }

    /// `path` is encoded by the caller where it needs to be; the database's slashes are encoded here.
    async fn request(
        &self,
        method: Method,
        database: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response> {
        let database = self.full_name(database);
        let slash = if path.is_empty() { "" } else { "/" };
        let mut request = self
            .http
            .request(method, format!("{}/{database}{slash}{path}", self.url));
        if let Some(body) = body {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(body)?);
        }
        request
            .send()
            .await
            .with_context(|| format!("CouchDB, database {database}"))
    }

    pub async fn create_database(&self, database: &str) -> anyhow::Result<()> {
        let response = self.request(Method::PUT, database, "", None).await?;
        // 412: it exists.
        if !response.status().is_success() && response.status() != StatusCode::PRECONDITION_FAILED {
            bail!("creating {database}: {} {}", response.status(), response.text().await?);
        }
        Ok(())
    }

    pub async fn delete_database(&self, database: &str) -> anyhow::Result<()> {
        self.request(Method::DELETE, database, "", None).await?;
        Ok(())
    }

    /// Creates a document unless it is there.
    pub async fn create(&self, database: &str, id: &str, document: &Value) -> anyhow::Result<()> {
        let response = self.request(Method::PUT, database, id, Some(document)).await?;
        if !response.status().is_success() && response.status() != StatusCode::CONFLICT {
            bail!(
                "writing {database}/{id}: {} {}",
                response.status(),
                response.text().await?
            );
        }
        Ok(())
    }

    /// Reads, changes, writes; the way of a test to change the configuration.
    pub async fn edit(&self, database: &str, id: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let mut document = self.get(database, id).await?.unwrap_or_else(|| json!({}));
        change(&mut document);
        let response = self.request(Method::PUT, database, id, Some(&document)).await?;
        ensure!(
            response.status().is_success(),
            "writing {database}/{id}: {}",
            response.status()
        );
        Ok(())
    }

    /// Puts an attachment under the document's revision, as the switch does for media_mgr.
    pub async fn attach(
        &self,
        database: &str,
        (id, rev): (&str, &str),
        (name, content_type): (&str, &str),
        bytes: Vec<u8>,
    ) -> anyhow::Result<()> {
        let database = self.full_name(database);
        let url = format!("{}/{database}/{id}/{}?rev={rev}", self.url, percent(name));
        let request = self.http.put(url).header(CONTENT_TYPE, content_type).body(bytes);
        let response = request.send().await.context("CouchDB, an attachment")?;
        ensure!(
            response.status().is_success(),
            "attaching {name}: {}",
            response.status()
        );
        Ok(())
    }

    /// Deletes a document for good, under this revision.
    pub async fn delete(&self, database: &str, id: &str, rev: &str) -> anyhow::Result<()> {
        let path = format!("{id}?rev={rev}");
        let response = self.request(Method::DELETE, database, &path, None).await?;
        ensure!(response.status().is_success(), "deleting {id}: {}", response.status());
        Ok(())
    }

    /// `None` when there is no such document (or no such database).
    pub async fn get(&self, database: &str, id: &str) -> anyhow::Result<Option<Value>> {
        let response = self.request(Method::GET, database, id, None).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(parse(response).await?)),
            status => bail!("reading {database}/{id}: {status}"),
        }
    }

    /// Ids of all documents that are not design documents.
    pub async fn ids(&self, database: &str) -> anyhow::Result<Vec<String>> {
        let response = self
            .request(Method::GET, database, "_all_docs", None)
            .await?
            .error_for_status()?;
        let all = parse(response).await?;
        let rows = all["rows"].as_array().cloned().unwrap_or_default();
        let ids = rows
            .iter()
            .filter_map(|row| row["id"].as_str())
            .filter(|id| !id.starts_with('_'));
        Ok(ids.map(str::to_owned).collect())
    }

    /// Ids as Crossbar's account listing shows them: only what was created in the database's own month.
    pub async fn listed(&self, modb: &str) -> anyhow::Result<Vec<String>> {
        let (from, to) = month_bounds(modb).context("not a monthly database")?;
        let path = format!("_design/recordings/_view/crossbar_listing?startkey=%5B{from}%5D&endkey=%5B{to}%5D");
        let view = parse(self.request(Method::GET, modb, &path, None).await?.error_for_status()?).await?;
        let rows = view["rows"].as_array().cloned().unwrap_or_default();
        Ok(rows
            .iter()
            .filter_map(|row| row["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// The document of a recording and its one attachment, read back and compared.
    pub async fn stored(&self, database: &str, id: &str, audio: &Audio) -> anyhow::Result<Stored> {
        let document = self.get(database, id).await?;
        let document = document.with_context(|| format!("no document {id} in {database}"))?;
        let attachments = document["_attachments"].as_object().cloned().unwrap_or_default();
        let (name, stub) = attachments
            .iter()
            .next()
            .with_context(|| format!("{id} has no attachment"))?;
        ensure!(attachments.len() == 1, "{id} has {} attachments", attachments.len());
        let path = format!("{id}/{}", percent(name));
        let response = self
            .request(Method::GET, database, &path, None)
            .await?
            .error_for_status()?;
        let expected = audio.clone();
        let (send, receive) = std::sync::mpsc::sync_channel::<Vec<u8>>(16);
        let compare = tokio::task::spawn_blocking(move || {
            expected.check(Chunks {
                receive,
                chunk: Vec::new(),
                at: 0,
            })
        });
        let mut body = response.bytes_stream();
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.context("reading the attachment")?;
            length += chunk.len() as u64;
            // The comparison stops listening at the first difference.
            let send = send.clone();
            let _ = tokio::task::spawn_blocking(move || send.send(chunk.to_vec())).await?;
        }
        drop(send);
        let digest = stub["digest"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("md5-")
            .to_owned();
        Ok(Stored {
            attachment: name.clone(),
            length,
            digest,
            difference: compare.await?.err(),
            document: document.clone(),
        })
    }
}

/// The Gregorian seconds between which a monthly database's documents were created.
fn month_bounds(modb: &str) -> Option<(u64, u64)> {
    let (_, month) = modb.rsplit_once('-')?;
    let year: i32 = month.get(..4)?.parse().ok()?;
    let number: u8 = month.get(4..)?.parse().ok()?;
    let begin = |year, number| {
        let date = time::Date::from_calendar_date(year, time::Month::try_from(number).ok()?, 1).ok()?;
        u64::try_from(date.midnight().assume_utc().unix_timestamp())
            .ok()
            .map(|t| t + GREGORIAN_OFFSET)
    };
    let (next_year, next) = if number == 12 {
        (year + 1, 1)
    } else {
        (year, number + 1)
    };
    Some((begin(year, number)?, begin(next_year, next)?))
}

async fn parse(response: Response) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&response.bytes().await?)?)
}

fn percent(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A blocking reader over chunks that arrive asynchronously.
struct Chunks {
    receive: std::sync::mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl io::Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.receive.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let (from, to) = month_bounds("account/ab/cd/ef-202512").unwrap();
        assert_eq!((to - from, to), (31 * 86_400, month_bounds("x-202601").unwrap().0));
        assert_eq!(month_bounds("account/ab/cd/ef"), None);
    }
}
