//! Streams one upload to the spool, and hashes and inspects the audio meanwhile.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::time::{Instant, timeout};

use crate::config;
use crate::recording::audio::{Audio, compare_lengths};
use crate::recording::digest::Hasher;

use super::UploadError;
use super::inspect::{Inspector, Seen};
use super::repair;
use super::slots::Wanted;
use super::spool::{Spool, SpoolFile};

/// Bytes per write to the disk.
const CHUNK: usize = 64 << 10;

/// Receives the body. `length` is its Content-Length. On an error no file is left in the spool.
///
/// # Errors
/// When the body breaks off, stalls, is too slow, is too large or has another length. Also when the spool cannot be written.
pub async fn receive(
    body: Body,
    length: Option<u64>,
    wanted: &Wanted,
    spool: &Spool,
    limits: &config::Ingest,
) -> Result<(Audio, SpoolFile), UploadError> {
    if length.is_some_and(|length| length > limits.max_bytes) {
        return Err(UploadError::TooLarge(limits.max_bytes));
    }
    if !spool.has_room(length.unwrap_or(0)) {
        return Err(UploadError::NoRoom);
    }
    let cannot_write = |error: std::io::Error| UploadError::Spool(Arc::from(error.to_string()));
    let (file, spooled) = spool.create().map_err(cannot_write)?;
    let mut writer = BufWriter::with_capacity(CHUNK, tokio::fs::File::from_std(file));
    let mut stream = body.into_data_stream();
    let (mut hasher, mut inspector, mut size) = (Hasher::default(), Inspector::new(wanted.format), 0u64);
    let end = Instant::now() + limits.upload_timeout;
    while let Some(bytes) = next(&mut stream, size, end, limits).await? {
        size += bytes.len() as u64;
        if size > limits.max_bytes {
            return Err(UploadError::TooLarge(limits.max_bytes));
        }
        hasher.update(&bytes);
        inspector.update(&bytes);
        writer.write_all(&bytes).await.map_err(cannot_write)?;
    }
    writer.flush().await.map_err(cannot_write)?;
    match length {
        Some(told) if told != size => return Err(UploadError::WrongLength { told, got: size }),
        _ => {}
    }
    let Seen {
        duration_ms,
        finding,
        repair,
    } = inspector.finish();
    let mut digests = hasher.finish();
    let mut as_written = None;
    if let Some(repair) = repair.filter(|_| limits.repair_headers) {
        drop(writer);
        let repaired = repair::mend(spooled.clone(), repair).await.map_err(cannot_write)?;
        as_written = Some(std::mem::replace(&mut digests, repaired));
    }
    let told = duration_ms
        .zip(wanted.told_ms)
        .and_then(|(counted, told)| compare_lengths(counted, told));
    let findings = finding.into_iter().chain(told).collect();
    Ok((
        Audio {
            size,
            digests,
            duration_ms,
            findings,
            as_written,
        },
        spooled,
    ))
}

async fn next(
    stream: &mut BodyDataStream,
    size: u64,
    end: Instant,
    limits: &config::Ingest,
) -> Result<Option<Bytes>, UploadError> {
    let patience = limits.stall_timeout.min(end.saturating_duration_since(Instant::now()));
    match timeout(patience, stream.next()).await {
        Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
        Ok(None) => Ok(None),
        Ok(Some(Err(_))) => Err(UploadError::BrokenOff(size)),
        Err(_) if Instant::now() >= end => Err(UploadError::TooSlow(limits.upload_timeout)),
        Err(_) => Err(UploadError::Stalled(limits.stall_timeout)),
    }
}
