//! `kz-record-call fetch`: copies held audio into a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::digest::{Context as Sha256, SHA256};
use clap::{Args, ValueHint};
use futures_util::StreamExt as _;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt as _;

use crate::config::Config;
use crate::couch::Couch;
use crate::entry::Entry;
use crate::hold::Hold;
use crate::recording::digest::hex;

use super::explain;
use super::ledger::{Desk, block_on};
use super::plain::Plain;

/// Which audio is copied, and where to.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The id of a recording, of its document, or of its call.
    name: String,
    /// The file to write. It must not exist. Default: the recording's id, in the present folder.
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
}

pub fn fetch(config: &Config, args: &FetchArgs) -> anyhow::Result<bool> {
    block_on(async {
        let desk = Desk::open(config)?;
        let found = desk.one(&args.name).await;
        desk.close().await;
        let entry = found?.entry;
        let file = args.output.clone().unwrap_or_else(|| PathBuf::from(file_name(&entry)));
        let couch = Couch::new(&config.couchdb).context("the HTTP client cannot be built")?;
        let hold = Hold::new(&config.hold, &config.couchdb, &couch).context("the hold cannot be used")?;
        let (size, sha256) = copy(&hold, &entry, &file).await?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}: {size} bytes, sha256 {sha256}", file.display())?;
        writeln!(out, "complete: length and SHA-256 are those of the received audio")?;
        Ok(true)
    })
}

/// The recording's id, with the extension of its format.
fn file_name(entry: &Entry) -> String {
    let order = entry.order();
    let id = order.map_or_else(|| entry.key.to_string(), |order| order.media_id.to_string());
    let extension = order.map_or("audio", |order| order.format.extension());
    format!("{id}.{extension}")
}

/// Copies the held audio, and compares it with what the ledger says of it.
async fn copy(hold: &Hold, entry: &Entry, to: &Path) -> anyhow::Result<(u64, String)> {
    let Some(holding) = entry.held() else {
        let places: Vec<String> = explain::places(entry);
        bail!(
            "the hold has no audio of this recording. Its audio: {}",
            Plain(places.join("; "))
        );
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let mut file = options
        .open(to)
        .await
        .with_context(|| format!("{} cannot be created", to.display()))?;
    let written = async {
        let mut audio = hold.open(holding).await.context("the hold does not give the audio")?;
        let (mut sum, mut size) = (Sha256::new(&SHA256), 0_u64);
        while let Some(chunk) = audio.next().await {
            let chunk = chunk.context("the hold does not give the whole audio")?;
            sum.update(&chunk);
            size += chunk.len() as u64;
            file.write_all(&chunk).await?;
        }
        file.sync_all().await?;
        let sha256 = hex(sum.finish().as_ref());
        ensure!(
            size == holding.size && sha256 == holding.digests.sha256,
            "the hold has {size} bytes with SHA-256 {sha256}, and the ledger says {} bytes with SHA-256 {}",
            holding.size,
            holding.digests.sha256
        );
        anyhow::Ok((size, sha256))
    };
    let result = written.await;
    if result.is_err() {
        // An incomplete file must not be taken for the audio.
        let _ = tokio::fs::remove_file(to).await;
    }
    result
}
