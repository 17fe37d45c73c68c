//! What is in the databases.

use anyhow::Context as _;
use futures_util::StreamExt as _;
use kz_record_call::kazoo::term::Term;
use md5::{Digest as _, Md5};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::simulator::sim::couch::Couch;
use crate::support::object_store::SECRET;
use crate::targets::hex;

/// Whose database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    Ours,
    ThirdParty,
}

/// A document of a monthly database.
#[derive(Debug, Clone)]
pub struct Document {
    pub home: Home,
    pub database: String,
    pub id: String,
    pub label: String,
    pub key: String,
    /// Digest and length of its attachment, as they were read back.
    pub audio: Option<(String, u64)>,
    /// The MD5 of its audio, as it says.
    pub told_md5: Option<String>,
    /// The length of audio that is somewhere else, as it says.
    pub elsewhere: Option<u64>,
    /// The object of a store that has its audio, as Kazoo reads it from the document.
    pub object: Option<String>,
    pub state: String,
    pub cause: String,
    /// Masked (`true`) and unmasked, in this order.
    pub masks: Vec<bool>,
    /// Crossbar's listing of the month has it.
    pub listed: bool,
}

/// Every document of every monthly database, of whatever month, here and at the third party's.
pub async fn documents(cluster: &Cluster) -> anyhow::Result<Vec<Document>> {
    let mut all = Vec::new();
    for home in [Home::Ours, Home::ThirdParty] {
        let couch = match home {
            Home::Ours => &cluster.couch,
            Home::ThirdParty => &cluster.third,
        };
        let databases = cluster.databases(home, "account/").await?;
        for database in databases.iter().filter(|name| is_monthly(name)) {
            // The third party has no views.
            let listed = match home {
                Home::Ours => couch.listed(database).await?,
                Home::ThirdParty => Vec::new(),
            };
            for id in couch.ids(database).await? {
                let document = couch.get(database, &id).await?.context("a document is gone")?;
                // What Kazoo, and the worker like it, writes of an object store that refuses: it is no recording, and has no secret.
                if document["pvt_type"] == "attachment_handler_error" {
                    anyhow::ensure!(
                        !document.to_string().contains(SECRET),
                        "{id} has the secret of the object store"
                    );
                    continue;
                }
                all.push(Document {
                    listed: home == Home::ThirdParty || listed.contains(&id),
                    ..read(cluster, couch, home, database, &document).await?
                });
            }
        }
    }
    Ok(all)
}

fn is_monthly(database: &str) -> bool {
    let month = database.rsplit_once('-').map(|(_, month)| month);
    month.is_some_and(|month| month.len() == 6 && month.bytes().all(|byte| byte.is_ascii_digit()))
}

async fn read(
    cluster: &Cluster,
    couch: &Couch,
    home: Home,
    database: &str,
    document: &Value,
) -> anyhow::Result<Document> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let id = text(&document["_id"]);
    let mut audio = None;
    if let Some(attachments) = document["_attachments"].as_object() {
        anyhow::ensure!(attachments.len() == 1, "{id} has {} attachments", attachments.len());
        let name = attachments.keys().next().context("no name")?;
        audio = Some(attachment(cluster, couch, home, database, &id, name).await?);
    }
    let elsewhere = document["pvt_attachments"]
        .as_object()
        .and_then(|attachments| attachments.values().next()?["length"].as_u64());
    let object = document["pvt_attachments"]
        .as_object()
        .and_then(|attachments| attachments.values().next()?["handler"]["kz_att_s3"]["S3"].as_str());
    let private = &document["pvt_recording"];
    Ok(Document {
        home,
        database: database.to_owned(),
        label: text(&document["origin"]).trim_start_matches("callflow : ").to_owned(),
        key: text(&private["key"]),
        audio,
        told_md5: private["md5"].as_str().map(str::to_owned),
        elsewhere,
        object: object.map(named).transpose()?,
        state: text(&private["state"]),
        cause: text(&private["cause"]),
        masks: private["masks"].as_array().map_or_else(Vec::new, |masks| {
            masks.iter().filter_map(|mask| mask["masked"].as_bool()).collect()
        }),
        listed: false,
        id,
    })
}

/// The object's name in the term that Kazoo reads.
fn named(term: &str) -> anyhow::Result<String> {
    match Term::from_base64(term)? {
        Term::Tuple(parts) => match &parts[..] {
            [Term::Map(_), Term::Binary(key)] => Ok(String::from_utf8(key.clone())?),
            parts => anyhow::bail!("{parts:?}"),
        },
        other => anyhow::bail!("{other:?}"),
    }
}

/// Reads an attachment back, every byte.
async fn attachment(
    cluster: &Cluster,
    couch: &Couch,
    home: Home,
    database: &str,
    id: &str,
    name: &str,
) -> anyhow::Result<(String, u64)> {
    let (server, database) = (cluster.server(home)?, couch.full_name(database));
    let response = reqwest::get(format!("{server}/{database}/{id}/{name}")).await?;
    let mut body = response.error_for_status()?.bytes_stream();
    let (mut hash, mut length) = (Md5::new(), 0);
    while let Some(piece) = body.next().await {
        let piece = piece?;
        hash.update(&piece);
        length += piece.len() as u64;
    }
    Ok((hex(&hash.finalize()), length))
}

/// A copy in the hold.
#[derive(Debug, Clone)]
pub struct Held {
    pub name: String,
    pub md5: String,
}

/// What rests in the hold.
pub async fn held(cluster: &Cluster) -> anyhow::Result<Vec<Held>> {
    let mut held = Vec::new();
    for database in cluster.databases(Home::Ours, "kz_record_call_hold-").await? {
        for name in cluster.couch.ids(&database).await? {
            let document = cluster.couch.get(&database, &name).await?.context("a copy is gone")?;
            let attachments = document["_attachments"].as_object().context("a copy without audio")?;
            let attachment = attachments.keys().next().context("a copy without audio")?;
            let (md5, _) = self::attachment(cluster, &cluster.couch, Home::Ours, &database, &name, attachment).await?;
            held.push(Held { name, md5 });
        }
    }
    Ok(held)
}
