//! The limit of whole recordings: one multipart PUT of document and audio each, and nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{
    Body, Client,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::{
    super::wire::{Object, hex},
    switch::AudioFile,
};

/// A file up to this size is read once.
const IN_MEMORY: u64 = 8 << 20;
const CHUNK: usize = 64 << 10;

struct Puts {
    http: Client,
    database_url: String,
    document: Object,
    file: AudioFile,
    audio: Option<Bytes>,
}

/// Writes so many recordings into a database, so many at once. Returns the time.
pub async fn measure(
    database_url: String,
    mut document: Object,
    file: &AudioFile,
    count: u64,
    at_once: usize,
) -> anyhow::Result<Duration> {
    document.retain(|key, _| !key.starts_with('_'));
    let audio = match file.bytes <= IN_MEMORY {
        true => Some(tokio::fs::read(&file.path).await?.into()),
        false => None,
    };
    let puts = Arc::new(Puts {
        http: Client::builder().build()?,
        database_url,
        document,
        file: file.clone(),
        audio,
    });
    let begun = Instant::now();
    stream::iter((0..count).map(Ok::<u64, anyhow::Error>))
        .try_for_each_concurrent(at_once, |_| {
            let puts = puts.clone();
            async move { puts.put().await }
        })
        .await?;
    Ok(begun.elapsed())
}

impl Puts {
    async fn put(&self) -> anyhow::Result<()> {
        let (id, boundary) = (hex(32), hex(32));
        let mut document = self.document.clone();
        let stub = json!({"follows": true, "content_type": "audio/x-wav", "length": self.file.bytes});
        document.insert("_attachments".into(), json!({format!("{id}.wav"): stub}));
        let mut head = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n").into_bytes();
        head.extend(serde_json::to_vec(&document)?);
        head.extend(format!("\r\n--{boundary}\r\n\r\n").into_bytes());
        let tail = format!("\r\n--{boundary}--").into_bytes();
        let length = head.len() as u64 + self.file.bytes + tail.len() as u64;
        let (head, tail): (Bytes, Bytes) = (head.into(), tail.into());
        let body = match &self.audio {
            Some(audio) => Body::wrap_stream(stream::iter([head, audio.clone(), tail].map(Ok::<_, std::io::Error>))),
            None => {
                let file = tokio::fs::File::open(&self.file.path).await?;
                let audio = ReaderStream::with_capacity(file, CHUNK);
                let ends = |bytes| stream::iter([Ok(bytes)]);
                Body::wrap_stream(ends(head).chain(audio).chain(ends(tail)))
            }
        };
        let answer = self
            .http
            .put(format!("{}/{id}", self.database_url))
            .header(CONTENT_TYPE, format!("multipart/related; boundary=\"{boundary}\""))
            .header(CONTENT_LENGTH, length)
            .body(body)
            .send()
            .await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await?;
        Ok(())
    }
}
