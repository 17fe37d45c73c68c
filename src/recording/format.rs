//! The audio formats of `record_call`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The format that the switch writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Mp3,
    Wav,
}

impl Format {
    /// The format that a configuration or an action names. The comparison is exact, as in Kazoo.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "mp3" => Some(Self::Mp3),
            "wav" => Some(Self::Wav),
            _ => None,
        }
    }

    /// The format of a file, by its name's extension.
    pub fn of_file(name: &str) -> Option<Self> {
        name.rsplit_once('.')
            .and_then(|(_, extension)| Self::named(&extension.to_ascii_lowercase()))
    }

    /// The extension, without its dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Mp3 => "mp3",
            Self::Wav => "wav",
        }
    }

    /// The content type of the document and the attachment, from Kazoo's mime table (`kz_mime:from_extension`).
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Mp3 => "audio/mpeg",
            Self::Wav => "audio/x-wav",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}
