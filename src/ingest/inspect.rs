//! Inspects audio while it is received: its format, whether it is complete, and its duration. Buffers at most 64 KiB, which a WAV header
//! may take.

use crate::recording::audio::Finding;
use crate::recording::format::Format;

/// Inspects one file.
#[derive(Debug)]
pub struct Inspector {
    size: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Wav(Wav),
    Mp3(Mp3),
}

impl Inspector {
    pub fn new(format: Format) -> Self {
        let kind = match format {
            Format::Wav => Kind::Wav(Wav::default()),
            Format::Mp3 => Kind::Mp3(Mp3::default()),
        };
        Self { size: 0, kind }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.kind {
            Kind::Wav(wav) => wav.update(bytes),
            Kind::Mp3(mp3) => mp3.update(bytes),
        }
    }

    pub fn finish(self) -> Seen {
        let found = |(duration_ms, finding)| Seen {
            duration_ms,
            finding,
            repair: None,
        };
        if self.size == 0 {
            return found((None, Some(Finding::Empty)));
        }
        match self.kind {
            Kind::Wav(wav) => {
                let repair = wav.repair(self.size);
                let seen = found(wav.finish());
                let repair = repair.filter(|_| seen.finding == Some(Finding::Unfinished));
                Seen { repair, ..seen }
            }
            Kind::Mp3(mp3) => found(mp3.finish()),
        }
    }
}

/// Result of inspecting a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Milliseconds of audio, if the file has the expected format.
    pub duration_ms: Option<u64>,
    pub finding: Option<Finding>,
    /// The correct lengths for the header, if the switch did not write them.
    pub repair: Option<Repair>,
}

/// Two lengths in a WAV's header: of everything after the first eight bytes, and of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    pub riff_size: u32,
    /// Offset in the file of the samples' length.
    pub data_size_at: u64,
    pub data_size: u32,
}

/// RIFF/WAVE: chunks until `data`, then samples.
#[derive(Debug, Default)]
struct Wav {
    head: Vec<u8>,
    /// Bytes per second, once `fmt ` was read.
    rate: Option<u32>,
    /// Bytes of one sample of all channels.
    block: u16,
    /// An RF64, which keeps its lengths elsewhere.
    long: bool,
    data: Option<Data>,
    /// Not a WAV file.
    other: bool,
}

#[derive(Debug, Default)]
struct Data {
    /// Offset of the first sample.
    at: u64,
    told: u32,
    got: u64,
    tail: Tail,
}

/// The bytes after the counted samples. They are other chunks, such as the one that names the software, or more samples. A switch that is
/// still recording, or was killed, has not counted those samples.
#[derive(Debug, Default)]
struct Tail {
    head: Vec<u8>,
    skip: u64,
    broken: bool,
}

impl Tail {
    fn update(&mut self, mut bytes: &[u8]) {
        while let (false, [first, rest @ ..]) = (self.broken, bytes) {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if let [a, b, c, d, w, x, y, z] = self.head[..] {
                let size = u64::from(u32::from_le_bytes([w, x, y, z]));
                self.skip = size + (size & 1);
                self.broken = ![a, b, c, d].iter().all(|c| c.is_ascii_alphanumeric() || *c == b' ');
                self.head.clear();
            }
        }
    }

    /// Whether the bytes are chunks to the end. The last chunk may lack its padding.
    const fn is_chunks(&self) -> bool {
        !self.broken && self.skip <= 1
    }
}

impl Data {
    fn update(&mut self, bytes: &[u8]) {
        let end = u64::from(self.told) + u64::from(self.told & 1);
        let before = usize::try_from(end.saturating_sub(self.got)).unwrap_or(usize::MAX);
        self.got += bytes.len() as u64;
        self.tail.update(bytes.get(before..).unwrap_or_default());
    }
}

/// A header without a `data` chunk in this many bytes is not a WAV header.
const MAX_HEAD: usize = 64 << 10;

impl Wav {
    fn update(&mut self, bytes: &[u8]) {
        if self.other {
            return;
        }
        if let Some(data) = &mut self.data {
            data.update(bytes);
            return;
        }
        let room = MAX_HEAD - self.head.len();
        let taken = bytes.len().min(room);
        self.head.extend_from_slice(&bytes[..taken]);
        self.read_head();
        match &mut self.data {
            Some(data) => {
                data.update(&bytes[taken..]);
                self.head = Vec::new();
            }
            None if self.head.len() == MAX_HEAD => self.other = true,
            None => {}
        }
    }

    fn read_head(&mut self) {
        let head = &self.head;
        if head.len() < 12 {
            return;
        }
        if !(head.starts_with(b"RIFF") || head.starts_with(b"RF64")) || &head[8..12] != b"WAVE" {
            self.other = true;
            return;
        }
        self.long = head.starts_with(b"RF64");
        let long = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut at = 12;
        while head.len() >= at + 8 {
            let (name, size) = (&head[at..at + 4], long(at + 4));
            let body = at + 8;
            if name == b"data" {
                let mut data = Data {
                    at: body as u64,
                    told: size,
                    ..Data::default()
                };
                data.update(&head[body..]);
                self.data = Some(data);
                return;
            }
            if name == b"fmt " {
                if head.len() < body + 14 {
                    return;
                }
                self.rate = Some(long(body + 8));
                self.block = u16::from_le_bytes([head[body + 12], head[body + 13]]);
            }
            // Chunks are padded to even lengths.
            at = body.saturating_add(size as usize).saturating_add((size & 1) as usize);
        }
    }

    fn finish(self) -> (Option<u64>, Option<Finding>) {
        if self.other {
            return (None, Some(Finding::OtherFormat));
        }
        let Some(data) = self.data else {
            return (None, Some(Finding::HeaderOnly));
        };
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else {
            return (None, Some(Finding::OtherFormat));
        };
        if data.got == 0 {
            return (Some(0), Some(Finding::HeaderOnly));
        }
        let length = |bytes: u64| Some(bytes.saturating_mul(1000) / u64::from(rate));
        let told = u64::from(data.told);
        // A writer that did not close its file leaves 0 or all ones in the header, or the length from before it appended.
        match data.told {
            u32::MAX if self.long => (length(data.got), None),
            0 | u32::MAX => (length(data.got), Some(Finding::Unfinished)),
            _ if told > data.got => (length(data.got), Some(Finding::Truncated)),
            _ if data.tail.is_chunks() => (length(told), None),
            _ => (length(data.got), Some(Finding::Unfinished)),
        }
    }

    /// The correct lengths for the header of a file of `size` bytes.
    fn repair(&self, size: u64) -> Option<Repair> {
        let data = self.data.as_ref().filter(|_| !self.long)?;
        Some(Repair {
            riff_size: u32::try_from(size.checked_sub(8)?).ok()?,
            data_size_at: data.at.checked_sub(4)?,
            data_size: u32::try_from(data.got - data.got % u64::from(self.block.max(1))).ok()?,
        })
    }
}

/// MPEG audio, layer III: an optional ID3v2 tag, then frames without gaps.
#[derive(Debug, Default)]
struct Mp3 {
    /// The beginning of an incomplete header.
    pending: Vec<u8>,
    /// Bytes of the present frame or tag that have not arrived.
    skip: u64,
    frames: u64,
    micros: u64,
    /// Bytes outside any frame.
    stray: u64,
    /// Zero bytes where a frame could start. Encoders write whole frames of zeros before the first frame, and pad with zeros.
    padding: u64,
    /// Whether bytes other than padding came since the last frame or tag.
    unclean: bool,
    in_frame: bool,
}

impl Mp3 {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            self.pending.push(bytes[0]);
            bytes = &bytes[1..];
            self.header();
        }
    }

    fn header(&mut self) {
        let head = &self.pending;
        // A tag can also be in the middle, because an appended stream starts with its own tag.
        if !self.unclean && b"ID3".starts_with(&head[..head.len().min(3)]) {
            if head.len() < 10 {
                return;
            }
            // The size has four bytes of seven bits each.
            let size = head[6..10]
                .iter()
                .fold(0u64, |size, byte| (size << 7) | u64::from(byte & 0x7f));
            self.skip = size;
            self.in_frame = false;
            self.pending.clear();
            return;
        }
        if head.len() < 4 {
            return;
        }
        match frame(&[head[0], head[1], head[2], head[3]]) {
            Some((length, micros)) => {
                self.frames += 1;
                self.micros += micros;
                self.skip = length - 4;
                (self.in_frame, self.unclean) = (true, false);
                self.pending.clear();
            }
            None => {
                self.in_frame = false;
                if self.pending.remove(0) == 0 && !self.unclean {
                    self.padding += 1;
                } else {
                    self.stray += 1;
                    self.unclean = true;
                }
            }
        }
    }

    fn finish(self) -> (Option<u64>, Option<Finding>) {
        let stray = self.stray + self.pending.len() as u64;
        if self.frames == 0 {
            return (
                None,
                Some(if stray == 0 && self.padding == 0 {
                    Finding::HeaderOnly
                } else {
                    Finding::OtherFormat
                }),
            );
        }
        // Random bytes contain a frame's header now and then. Real audio consists almost only of frames.
        if self.frames < 3 && stray > 1024 || stray > self.frames * 128 {
            return (None, Some(Finding::OtherFormat));
        }
        let truncated = self.in_frame && self.skip > 0;
        (Some(self.micros / 1000), truncated.then_some(Finding::Truncated))
    }
}

/// Length in bytes and duration in microseconds of the layer III frame with this header.
fn frame(head: &[u8; 4]) -> Option<(u64, u64)> {
    const BITRATES_1: [u64; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
    const BITRATES_2: [u64; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    if head[0] != 0xff || head[1] & 0xe0 != 0xe0 || (head[1] >> 1) & 3 != 1 {
        return None;
    }
    let version = (head[1] >> 3) & 3; // 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    let (bitrates, samples, divisor) = match version {
        3 => (&BITRATES_1, 1152, 1),
        2 => (&BITRATES_2, 576, 2),
        0 => (&BITRATES_2, 576, 4),
        _ => return None,
    };
    let bitrate = *bitrates.get(usize::from(head[2] >> 4)).filter(|rate| **rate > 0)? * 1000;
    let rate = *[44_100u64, 48_000, 32_000].get(usize::from((head[2] >> 2) & 3))? / divisor;
    let padding = u64::from((head[2] >> 1) & 1);
    Some((samples / 8 * bitrate / rate + padding, samples * 1_000_000 / rate))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wav(samples: usize, told: u32) -> Vec<u8> {
        let mut out = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
        out.extend(8000u32.to_le_bytes());
        out.extend(16_000u32.to_le_bytes());
        out.extend([2, 0, 16, 0]);
        out.extend(b"data");
        out.extend(told.to_le_bytes());
        out.extend(std::iter::repeat_n(7u8, samples * 2));
        out
    }

    /// Frames of 128 kbit/s at 44.1 kHz: 417 bytes, 26.122 ms.
    fn mp3(frames: usize) -> Vec<u8> {
        (0..frames)
            .flat_map(|_| [0xff, 0xfb, 0x90, 0x64].into_iter().chain(std::iter::repeat_n(0, 413)))
            .collect()
    }

    fn inspect(format: Format, bytes: &[u8], step: usize) -> (Option<u64>, Option<Finding>) {
        let mut inspector = Inspector::new(format);
        for chunk in bytes.chunks(step.max(1)) {
            inspector.update(chunk);
        }
        let seen = inspector.finish();
        (seen.duration_ms, seen.finding)
    }

    #[test]
    fn good_files_have_a_length_and_no_finding() {
        for step in [1, 7, 4096] {
            assert_eq!(inspect(Format::Wav, &wav(8000, 16_000), step), (Some(1000), None));
            assert_eq!(inspect(Format::Mp3, &mp3(100), step), (Some(2612), None));
            let tagged: Vec<u8> = b"ID3\x04\0\0\0\0\x01\x00"
                .iter()
                .copied()
                .chain(std::iter::repeat_n(1, 128))
                .chain(mp3(3))
                .collect();
            assert_eq!(inspect(Format::Mp3, &tagged, step), (Some(78), None));
        }
    }

    #[test]
    fn each_fault_has_its_finding() {
        for step in [1, 4096] {
            assert_eq!(inspect(Format::Wav, b"", step).1, Some(Finding::Empty));
            assert_eq!(inspect(Format::Wav, &wav(0, 0), step).1, Some(Finding::HeaderOnly));
            assert_eq!(
                inspect(Format::Wav, &wav(0, 0)[..20], step).1,
                Some(Finding::HeaderOnly)
            );
            assert_eq!(
                inspect(Format::Wav, &wav(4000, 16_000), step),
                (Some(500), Some(Finding::Truncated))
            );
            assert_eq!(inspect(Format::Wav, &mp3(10), step).1, Some(Finding::OtherFormat));
            assert_eq!(inspect(Format::Mp3, b"", step).1, Some(Finding::Empty));
            assert_eq!(
                inspect(Format::Mp3, &mp3(10)[..4000], step),
                (Some(261), Some(Finding::Truncated))
            );
            assert_eq!(
                inspect(Format::Mp3, &wav(8000, 16_000), step).1,
                Some(Finding::OtherFormat)
            );
            assert_eq!(
                inspect(Format::Mp3, b"<html>not found</html>", step).1,
                Some(Finding::OtherFormat)
            );
            assert_eq!(
                inspect(Format::Mp3, b"ID3\x04\0\0\0\0\0\0", step).1,
                Some(Finding::HeaderOnly)
            );
        }
    }

    /// The chunk that FreeSWITCH writes after the samples.
    fn software() -> Vec<u8> {
        let mut chunk = b"LIST\x38\0\0\0INFO".to_vec();
        chunk.extend(std::iter::repeat_n(b'x', 52));
        chunk
    }

    #[test]
    fn a_wav_that_its_switch_did_not_close_is_told_and_one_that_it_closed_is_not() {
        let unfinished = Some(Finding::Unfinished);
        let with = |mut bytes: Vec<u8>, more: &[u8]| {
            bytes.extend(more);
            bytes
        };
        for step in [1, 7, 4096] {
            let seen = |bytes: &[u8]| inspect(Format::Wav, bytes, step);
            // As FreeSWITCH closes the file.
            assert_eq!(seen(&with(wav(8000, 16_000), &software())), (Some(1000), None));
            // FreeSWITCH was killed, so no samples were counted.
            assert_eq!(seen(&wav(8000, 0)), (Some(1000), unfinished));
            assert_eq!(seen(&wav(8000, u32::MAX)), (Some(1000), unfinished));
            // FreeSWITCH was killed in an appended part, so only the first part was counted. Samples, silent or loud, are not chunks.
            assert_eq!(seen(&wav(8000, 8000)), (Some(1000), unfinished));
            let silent = with(wav(4000, 8000), &[0; 8000]);
            assert_eq!(seen(&silent), (Some(1000), unfinished));
            let behind = with(with(wav(4000, 8000), &software()), &[3; 8000]);
            assert_eq!(seen(&behind).1, unfinished);
        }
    }

    #[test]
    fn an_unfinished_header_is_repaired_to_what_is_there() {
        let seen = |bytes: &[u8]| {
            let mut inspector = Inspector::new(Format::Wav);
            inspector.update(bytes);
            inspector.finish().repair
        };
        let whole = Repair {
            riff_size: 16_036,
            data_size_at: 40,
            data_size: 16_000,
        };
        assert_eq!(seen(&wav(8000, 0)), Some(whole));
        // An incomplete sample is not counted.
        let mut cut = wav(8000, 0);
        cut.push(1);
        let cut = seen(&cut);
        assert_eq!(
            cut.map(|repair| (repair.data_size, repair.riff_size)),
            Some((16_000, 16_037))
        );
        assert_eq!(seen(&wav(8000, 16_000)), None);
        assert_eq!(seen(&wav(0, 0)), None, "there is nothing to count");
    }

    #[test]
    fn padding_and_tags_of_an_mp3_are_no_fault_of_it() {
        let tag = || {
            b"ID3\x04\0\0\0\0\x01\x58"
                .iter()
                .copied()
                .chain(std::iter::repeat_n(1, 216))
        };
        for step in [1, 4096] {
            // A short file after leading zero bytes.
            let short: Vec<u8> = std::iter::repeat_n(0, 2000).chain(mp3(2)).collect();
            assert_eq!(inspect(Format::Mp3, &short, step), (Some(52), None));
            // As the switch writes it: a tag, a frame of zeros, frames. The same again is appended.
            let stream = || tag().chain(std::iter::repeat_n(0, 144)).chain(mp3(3));
            let appended: Vec<u8> = stream().chain(stream()).collect();
            assert_eq!(inspect(Format::Mp3, &appended, step), (Some(156), None));
            assert_eq!(inspect(Format::Mp3, &[0; 5000], step).1, Some(Finding::OtherFormat));
        }
    }

    #[test]
    fn a_header_with_half_the_true_rate_makes_it_longer_than_told() {
        use crate::recording::audio::compare_lengths;
        let (counted, finding) = inspect(Format::Wav, &wav(320_000, 640_000), 4096);
        assert_eq!((counted, finding), (Some(40_000), None));
        assert_eq!(compare_lengths(40_000, 20_000), Some(Finding::LongerThanTold));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_answer(bytes in prop::collection::vec(any::<u8>(), 0..3000), step in 1usize..97) {
            for format in [Format::Wav, Format::Mp3] {
                prop_assert_eq!(inspect(format, &bytes, step), inspect(format, &bytes, 4096));
            }
        }
    }
}
