//! MP3 as the switch's encoder writes it: an ID3v2 tag, a frame of zeros that its lengths were to go into, frames of constant bit rate
//! (16 kbit/s for every 8 kHz and channel), and at the end the frame with the lengths, for the file is only ever appended to.

use super::noise::word;

/// One stream's constants.
#[derive(Clone, Copy)]
pub(super) struct Mp3 {
    rate: u64,
    channels: u16,
    /// The header's bits: version, bit rate, sample rate.
    version: u8,
    bits_index: u8,
    rate_index: u8,
    bits: u64,
    /// Samples in a frame.
    pub(super) samples: u64,
}

/// The whole tag: ten bytes of head, then frames.
pub(super) const TAG: u64 = 228;
/// The writer's buffer: what is in the file is a multiple of it, until the file is closed.
pub(super) const STEP: u64 = 4_096;

const BITS_1: [u64; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const BITS_2: [u64; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];

impl Mp3 {
    pub(super) fn new(rate: u32, channels: u16) -> Self {
        let (version, rate_index) = match rate {
            44_100 => (3, 0),
            48_000 => (3, 1),
            22_050 => (2, 0),
            16_000 => (2, 2),
            11_025 => (0, 0),
            _ => (0, 2),
        };
        let (table, samples) = if version == 3 { (BITS_1, 1_152) } else { (BITS_2, 576) };
        let wanted = 16 * u64::from(rate) * u64::from(channels) / 8_000;
        let nearest = (1..table.len()).min_by_key(|i| table[*i].abs_diff(wanted)).unwrap_or(1);
        Self {
            rate: u64::from(rate),
            channels,
            version,
            bits_index: u8::try_from(nearest).unwrap_or(1),
            rate_index,
            bits: table[nearest] * 1_000,
            samples,
        }
    }

    /// Where the frame `i` of a stream begins, counted from the first with sound in it. Frames of 44.1 kHz and its parts differ by the padding.
    pub(super) fn start(self, i: u64) -> u64 {
        i * (self.samples / 8 * self.bits) / self.rate
    }

    /// A frame without padding: as the zeros at the beginning and the lengths at the end are.
    pub(super) fn plain(self) -> u64 {
        self.samples / 8 * self.bits / self.rate
    }

    /// The frame that holds, or is before, this byte.
    pub(super) fn frame_at(self, byte: u64) -> u64 {
        let mut i = byte * self.rate / (self.samples / 8 * self.bits);
        while self.start(i + 1) <= byte {
            i += 1;
        }
        i
    }

    /// Frames that so many samples need when the stream is closed: the encoder is one behind.
    pub(super) fn frames_of(self, samples: u64) -> u64 {
        if samples == 0 {
            return 0;
        }
        samples.div_ceil(self.samples) + 1
    }

    fn header(self, padding: u64) -> [u8; 4] {
        let mode = if self.channels == 1 { 0xc4 } else { 0x04 };
        [
            0xff,
            0xe3 | self.version << 3,
            self.bits_index << 4 | self.rate_index << 2 | u8::from(padding > 0) << 1,
            mode,
        ]
    }

    fn side(self) -> usize {
        match (self.version, self.channels) {
            (3, 1) | (0 | 2, 2) => 17,
            (3, _) => 32,
            _ => 9,
        }
    }

    /// Silent frames for a decoder (the side information is zero); the free bytes behind it carry the id's noise, without 0xFF, so that nothing
    /// in it looks like a frame's beginning. `noise` counts the id's frames, `i` the stream's.
    pub(super) fn frame(self, out: &mut Vec<u8>, seed: u64, (i, noise): (u64, u64), muted: bool) {
        let len = self.start(i + 1) - self.start(i);
        let end = out.len() + usize::try_from(len).unwrap_or(0);
        out.extend_from_slice(&self.header(len - self.plain()));
        out.resize(out.len() + self.side(), 0);
        let mut k = noise * 64;
        while out.len() < end {
            let word = if muted {
                0
            } else {
                word(seed, k) & 0x7f7f_7f7f_7f7f_7f7f
            };
            out.extend_from_slice(&word.to_le_bytes());
            k += 1;
        }
        out.truncate(end);
    }

    /// The frame of zeros at a stream's beginning, or the one with the lengths at its end.
    pub(super) fn without_sound(self, out: &mut Vec<u8>, frames: Option<u64>) {
        let end = out.len() + usize::try_from(self.plain()).unwrap_or(0);
        out.extend_from_slice(&self.header(0));
        out.resize(out.len() + self.side(), 0);
        if let Some(frames) = frames {
            out.extend_from_slice(b"Info\0\0\0\x01");
            out.extend_from_slice(&u32::try_from(frames).unwrap_or(u32::MAX).to_be_bytes());
        }
        out.resize(end, 0);
    }
}

/// ID3v2.4 with one text, filled up with zeros.
pub(super) fn tag(out: &mut Vec<u8>) {
    let end = out.len() + usize::try_from(TAG).unwrap_or(0);
    let rest = TAG - 10;
    let size = [0, 0, (rest >> 7) as u8, (rest & 0x7f) as u8];
    out.extend_from_slice(b"ID3\x04\0\0");
    out.extend_from_slice(&size);
    out.extend_from_slice(b"TSSE\0\0\0\x0b\0\0\x03FreeSWITCH");
    out.resize(end, 0);
}
