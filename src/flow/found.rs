//! Facts about what was found at a destination, or delivered there.

use crate::destination::pending_document::Placed;
use crate::entry::fact::{Delivery, Destination, Document, What};
use crate::recording::audio::Audio;

pub(super) fn document_of(placed: Placed) -> Document {
    Document {
        id: placed.id,
        database: placed.database,
        rev: placed.rev,
        created: placed.created,
    }
}

pub(super) fn delivered(destination: Destination, placed: Placed) -> What {
    What::delivered(Delivery {
        destination,
        sha256: placed.sha256(),
        deleted: placed.is_deleted(),
        controls: Some(placed.controls()),
        document: document_of(placed),
        below_quorum: false,
        audio: None,
        edit_told: false,
        again: 0,
    })
}

/// A delivery that existed already, and the audio there.
pub(super) fn found(destination: Destination, placed: Placed, audio: Audio) -> What {
    match delivered(destination, placed) {
        What::Delivered(mut delivery) => {
            delivery.audio = Some(audio);
            What::Delivered(delivery)
        }
        other => other,
    }
}
