//! The properties of a recording's audio after its upload.

use serde::{Deserialize, Serialize};

use super::digest::Digests;
use super::format::Format;

/// Audio that arrived completely, as far as the transport shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audio {
    /// Bytes.
    pub size: u64,
    #[serde(flatten)]
    pub digests: Digests,
    /// Milliseconds of audio, counted in the file itself. Absent when the file does not have its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Faults of the audio. Empty means that the format is right and that the length matches the switch's report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Digests of the bytes that the switch wrote, if their header was repaired during the upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_written: Option<Digests>,
}

/// Bytes that the switch's MP3 encoder writes at a time. Until the switch closes the file, its size is a multiple of this.
const MP3_STEP: u64 = 4096;

impl Audio {
    /// Digests of the file on the switch.
    pub fn written(&self) -> &Digests {
        self.as_written.as_ref().unwrap_or(&self.digests)
    }

    /// Whether the file's form shows that its writer did not close it. The switch may still be writing the file, even if the file does not
    /// grow, for example while its leg is on hold. Or the switch was killed.
    pub fn seems_open(&self, format: Format) -> bool {
        let cut = |finding: &Finding| {
            matches!(
                finding,
                Finding::Unfinished | Finding::Truncated | Finding::Empty | Finding::HeaderOnly
            )
        };
        self.findings.iter().any(cut) || format == Format::Mp3 && self.size.is_multiple_of(MP3_STEP)
    }

    pub fn is_suspect(&self) -> bool {
        !self.findings.is_empty()
    }

    /// Whether the length differs much from the switch's report, as far as the report was known on arrival.
    pub fn disagrees(&self) -> bool {
        self.findings.iter().copied().any(Finding::is_of_length)
    }

    /// The same audio, with its length compared to what the switch has reported by now.
    #[must_use]
    pub fn compared_with(mut self, told_ms: Option<u64>) -> Self {
        self.findings.retain(|finding| !finding.is_of_length());
        let compared = self
            .duration_ms
            .zip(told_ms)
            .and_then(|(counted, told)| compare_lengths(counted, told));
        self.findings.extend(compared);
        self
    }
}

/// A fault of a file of audio. The audio is kept all the same, and the fault is reported in the document, the event, a metric and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// No bytes at all.
    Empty,
    /// A header, and no audio after it.
    HeaderOnly,
    /// The content does not have the format of the file's name.
    OtherFormat,
    /// The file ends in the middle of a frame, or before the length in its header.
    Truncated,
    /// The header was never completed. The switch was killed while it wrote the file, or was still writing it. The audio is present.
    Unfinished,
    /// Much shorter than the switch reported.
    ShorterThanTold,
    /// Much longer than the switch reported.
    LongerThanTold,
}

impl Finding {
    pub const ALL: [Self; 7] = [
        Self::Empty,
        Self::HeaderOnly,
        Self::OtherFormat,
        Self::Truncated,
        Self::Unfinished,
        Self::ShorterThanTold,
        Self::LongerThanTold,
    ];

    const fn is_of_length(self) -> bool {
        matches!(self, Self::ShorterThanTold | Self::LongerThanTold)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::HeaderOnly => "header_only",
            Self::OtherFormat => "other_format",
            Self::Truncated => "truncated",
            Self::Unfinished => "unfinished",
            Self::ShorterThanTold => "shorter_than_told",
            Self::LongerThanTold => "longer_than_told",
        }
    }
}

/// Compares the length counted in the file with the length that the switch reported. The switch counts the whole session, the file starts
/// slightly later, and codecs pad. Two seconds and a tenth are therefore tolerated.
pub fn compare_lengths(counted_ms: u64, told_ms: u64) -> Option<Finding> {
    let tolerance = 2000 + told_ms / 10;
    if counted_ms + tolerance < told_ms {
        Some(Finding::ShorterThanTold)
    } else if counted_ms > told_ms + tolerance {
        Some(Finding::LongerThanTold)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_compared_with_patience() {
        assert_eq!(compare_lengths(60_000, 61_020), None);
        assert_eq!(compare_lengths(40_000, 61_020), Some(Finding::ShorterThanTold));
        assert_eq!(compare_lengths(90_000, 61_020), Some(Finding::LongerThanTold));
        assert_eq!(compare_lengths(0, 1500), None);
    }

    #[test]
    fn a_length_is_compared_with_what_is_told_by_now() {
        let audio = Audio {
            size: 1,
            digests: Digests {
                md5: "0".into(),
                sha256: "0".into(),
            },
            duration_ms: Some(24_345),
            findings: vec![Finding::Truncated, Finding::LongerThanTold],
            as_written: None,
        };
        assert!(audio.disagrees());
        let known = audio.clone().compared_with(Some(24_346));
        assert_eq!(known.findings, [Finding::Truncated]);
        assert_eq!(audio.clone().compared_with(Some(4_441)).findings, audio.findings);
        assert!(!audio.compared_with(None).disagrees());
    }
}
