//! What we know of a recording's audio once we have received it.

use serde::{Deserialize, Serialize};

use super::digest::Digests;
use super::format::Format;

/// Audio that arrived whole, as far as the transport can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audio {
    /// Bytes.
    pub size: u64,
    #[serde(flatten)]
    pub digests: Digests,
    /// Milliseconds of audio, counted in the file itself; absent when it is not a file of its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What is wrong with it. Empty means: it is what its name says, and as long as the switch said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Digests of what the switch wrote, where its header was repaired on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_written: Option<Digests>,
}

/// What is written to a file at once by the switch's MP3 encoder: until it closes the file, its size is a multiple of that.
const MP3_STEP: u64 = 4096;

impl Audio {
    /// Digests of the file as it is on the switch.
    pub fn written(&self) -> &Digests {
        self.as_written.as_ref().unwrap_or(&self.digests)
    }

    /// Whether its form says that its writer did not close it: it is still being written, even if it does not grow, as while its leg is on hold; or
    /// its switch died.
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

    /// Whether it is much longer, or shorter, than the switch told, as far as was known when it arrived.
    pub fn disagrees(&self) -> bool {
        self.findings.iter().copied().any(Finding::is_of_length)
    }

    /// The same audio, its length compared with what is told of it by now.
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

/// Something wrong with a file of audio. It is kept all the same, and told: in the document, the event, a metric and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// No bytes at all.
    Empty,
    /// A header, and no audio after it.
    HeaderOnly,
    /// Not of the format that its name says.
    OtherFormat,
    /// The file ends in the middle of a frame, or before the length that its header tells.
    Truncated,
    /// Its header was never completed: the switch died while it wrote the file, or was still writing it. The audio is there.
    Unfinished,
    /// Much shorter than the switch said that it recorded.
    ShorterThanTold,
    /// Much longer than the switch said that it recorded.
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

/// Compares the length counted in the file with the one that the switch told. The switch counts the whole session, the file starts a
/// little later and codecs pad: two seconds and a tenth are no finding.
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
