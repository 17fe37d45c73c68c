//! A recording as a stream of bytes, a block at a time.

use std::io::{self, Read};

use super::{
    Audio, Format, Part, mp3,
    mp3::Mp3,
    noise::{samples, seed},
    wav,
};

/// Samples, or frames, generated at a time.
const BLOCK: u64 = 4_096;

/// A piece of the file.
#[derive(Clone, Copy)]
enum Piece {
    WavHeader,
    Samples(usize),
    List,
    Tag,
    Zeros,
    Frames(usize),
    Lengths(usize),
}

/// See [`Audio::reader`].
pub struct Reader<'a> {
    audio: &'a Audio,
    pieces: Vec<(Piece, u64)>,
    piece: usize,
    /// Within the piece: samples, or frames.
    unit: u64,
    pending: Vec<u8>,
    read: usize,
    /// Bytes of the file that are still to come.
    left: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(audio: &'a Audio) -> Self {
        Self {
            audio,
            pieces: pieces(audio),
            piece: 0,
            unit: 0,
            pending: Vec::new(),
            read: 0,
            left: audio.len(),
        }
    }

    /// Begins at this byte of the file.
    #[must_use]
    pub(super) fn from(mut self, byte: u64) -> Self {
        self.left = self.left.saturating_sub(byte);
        let mut at = byte;
        while let Some((_, len)) = self.pieces.get(self.piece).filter(|(_, len)| *len <= at) {
            at -= len;
            self.piece += 1;
        }
        let rest = match self.pieces.get(self.piece) {
            Some((Piece::Samples(_), _)) => {
                self.unit = at / self.audio.format.frame();
                at % self.audio.format.frame()
            }
            Some((Piece::Frames(_), _)) => {
                let mp3 = self.audio.format.mp3();
                self.unit = mp3.frame_at(at);
                at - mp3.start(self.unit)
            }
            _ => at,
        };
        if rest > 0 && self.next_block() {
            self.read = usize::try_from(rest).unwrap_or(0).min(self.pending.len());
        }
        self
    }

    fn next_block(&mut self) -> bool {
        (self.read, self.pending) = (0, std::mem::take(&mut self.pending));
        self.pending.clear();
        while let Some((piece, _)) = self.pieces.get(self.piece).copied() {
            let goes_on = match piece {
                Piece::Samples(part) => self.samples(part),
                Piece::Frames(part) => self.frames(part),
                _ => false,
            };
            match piece {
                Piece::WavHeader => self.pending = self.audio.wav_header(),
                Piece::List => wav::list(&mut self.pending),
                Piece::Tag => mp3::tag(&mut self.pending),
                Piece::Zeros => self.audio.format.mp3().without_sound(&mut self.pending, None),
                Piece::Lengths(part) => {
                    let mp3 = self.audio.format.mp3();
                    let frames = mp3.frames_of(self.audio.parts[part].units);
                    mp3.without_sound(&mut self.pending, Some(frames));
                }
                Piece::Samples(_) | Piece::Frames(_) => {}
            }
            if !goes_on {
                (self.piece, self.unit) = (self.piece + 1, 0);
            }
            if !self.pending.is_empty() {
                return true;
            }
        }
        false
    }

    /// Whether there is more of the part.
    fn samples(&mut self, part: usize) -> bool {
        let (part, frame) = (&self.audio.parts[part], self.audio.format.frame());
        let count = part.units.saturating_sub(self.unit).min(BLOCK);
        let len = usize::try_from(count * frame).unwrap_or(0);
        samples(&mut self.pending, seed(&part.id), (part.from + self.unit) * frame, len);
        let width = usize::try_from(frame).unwrap_or(1);
        for (at, sample) in (self.unit..).zip(self.pending.chunks_exact_mut(width)) {
            if part.is_mute(at) {
                sample.fill(0);
            }
        }
        self.unit += count;
        self.unit < part.units
    }

    fn frames(&mut self, part: usize) -> bool {
        let (part, mp3) = (&self.audio.parts[part], self.audio.format.mp3());
        let all = mp3.frames_of(part.units);
        let (seed, before) = (seed(&part.id), part.from / mp3.samples);
        let end = all.min(self.unit + BLOCK / 16);
        for i in self.unit..end {
            let muted = part.is_mute(i * mp3.samples);
            mp3.frame(&mut self.pending, seed, (i, before + i), muted);
        }
        self.unit = end;
        self.unit < all
    }
}

fn pieces(audio: &Audio) -> Vec<(Piece, u64)> {
    let parts = audio.parts.iter().enumerate();
    match audio.format {
        Format::Wav { .. } => {
            let mut pieces = vec![(Piece::WavHeader, wav::HEADER)];
            pieces.extend(parts.map(|(n, part)| (Piece::Samples(n), part.units * audio.format.frame())));
            if audio.has_list() {
                pieces.push((Piece::List, wav::LIST));
            }
            pieces
        }
        Format::Mp3 { .. } => parts
            .flat_map(|(n, part)| stream(audio.format.mp3(), n, part))
            .collect(),
    }
}

fn stream(mp3: Mp3, n: usize, part: &Part) -> Vec<(Piece, u64)> {
    vec![
        (Piece::Tag, mp3::TAG),
        (Piece::Zeros, mp3.plain()),
        (Piece::Frames(n), mp3.start(mp3.frames_of(part.units))),
        (Piece::Lengths(n), mp3.plain()),
    ]
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || self.read == self.pending.len() && !self.next_block() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let n = buffer.len().min(self.pending.len() - self.read).min(most);
        buffer[..n].copy_from_slice(&self.pending[self.read..self.read + n]);
        self.read += n;
        self.left -= n as u64;
        Ok(n)
    }
}
