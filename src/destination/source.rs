//! Audio that a delivery can read.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::couch::ByteStream;
use crate::entry::fact::Holding;
use crate::hold::{Hold, HoldError};
use crate::ingest::SpoolFile;
use crate::recording::digest::Hasher;

use super::DeliveryError;

/// Audio that a delivery can read from the beginning any number of times.
#[derive(Clone)]
pub struct Source(Place);

#[derive(Clone)]
enum Place {
    Spool(SpoolFile),
    Hold(Box<(Hold, Holding)>),
}

impl Source {
    pub fn spooled(file: SpoolFile) -> Self {
        Self(Place::Spool(file))
    }

    pub fn held(hold: Hold, holding: Holding) -> Self {
        Self(Place::Hold(Box::new((hold, holding))))
    }

    /// The audio as a stream from the beginning.
    ///
    /// # Errors
    /// When it cannot be opened any more.
    pub async fn open(&self) -> Result<ByteStream, DeliveryError> {
        let failed = |error: String| DeliveryError::Source(Arc::from(error));
        match &self.0 {
            Place::Spool(spooled) => spooled.open().await.map_err(|error| failed(error.to_string())),
            Place::Hold(held) => {
                let (hold, holding) = held.as_ref();
                let audio = hold.open(holding).await.map_err(|error| failed(error.to_string()))?;
                Ok(proven(audio, holding.clone()))
            }
        }
    }
}

/// Held audio as it was put in. Its last bytes come only when all bytes have been the right ones, so no receiver takes a damaged copy for the
/// whole audio: the copy would be removed after that.
fn proven(audio: ByteStream, holding: Holding) -> ByteStream {
    let damaged = || Error::new(ErrorKind::InvalidData, HoldError::Corrupt.to_string());
    let begin = Some((audio, Hasher::default(), 0, None::<Bytes>));
    stream::unfold(begin, move |state| {
        let holding = holding.clone();
        async move {
            let (mut audio, mut hasher, mut size, mut last) = state?;
            loop {
                match audio.next().await {
                    Some(Ok(chunk)) if chunk.is_empty() => {}
                    Some(Ok(chunk)) => {
                        size += chunk.len() as u64;
                        hasher.update(&chunk);
                        if size > holding.size {
                            return Some((Err(damaged()), None));
                        }
                        if let Some(before) = last.replace(chunk) {
                            return Some((Ok(before), Some((audio, hasher, size, last))));
                        }
                    }
                    Some(Err(error)) => return Some((Err(error), None)),
                    None if hasher.finish() == holding.digests => return last.map(|last| (Ok(last), None)),
                    None => return Some((Err(damaged()), None)),
                }
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIO: [&str; 3] = ["all ", "that was ", "said"];

    /// What a receiver gets of these pieces, and how it ends.
    async fn read(pieces: &[&'static str]) -> (String, Option<String>) {
        let mut hasher = Hasher::default();
        AUDIO.iter().for_each(|piece| hasher.update(piece.as_bytes()));
        let holding = Holding {
            place: String::new(),
            name: String::new(),
            size: AUDIO.concat().len() as u64,
            digests: hasher.finish(),
        };
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        let (mut got, mut stream) = (String::new(), proven(stream::iter(pieces).boxed(), holding));
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => got.push_str(std::str::from_utf8(&piece).unwrap()),
                Err(error) => return (got, Some(error.to_string())),
            }
        }
        (got, None)
    }

    #[tokio::test]
    async fn damaged_audio_never_comes_whole() {
        assert_eq!(read(&AUDIO).await, (AUDIO.concat(), None));
        assert_eq!(read(&["all that was said", ""]).await, (AUDIO.concat(), None));
        let damaged: [&[&str]; 7] = [
            &["all ", "that was ", "sait"],
            &["alt ", "that was ", "said"],
            &["alt that was said"],
            &["alt that was said", ""],
            &["all ", "that was "],
            &["all ", "that was ", "said", " twice"],
            &[],
        ];
        for pieces in damaged {
            let (got, error) = read(pieces).await;
            assert_eq!(
                error.as_deref(),
                Some("what is held is not what was put in"),
                "{pieces:?}"
            );
            assert!(got.len() < AUDIO.concat().len(), "{pieces:?}: {got}");
        }
    }
}
