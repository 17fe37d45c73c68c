//! Audio that a delivery can read.

use std::sync::Arc;

use crate::couch::ByteStream;
use crate::entry::fact::Holding;
use crate::hold::Hold;
use crate::ingest::SpoolFile;

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
                hold.open(holding).await.map_err(|error| failed(error.to_string()))
            }
        }
    }
}
