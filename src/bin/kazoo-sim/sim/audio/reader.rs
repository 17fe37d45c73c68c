//! A recording as a stream of bytes, a block at a time.

use std::io::{self, Read};

use super::{
    Audio, Format,
    noise::{mp3_frame, seed, wav_block, wav_header},
};

/// Units generated at a time.
const BLOCK: u64 = 4_096;

/// See [`Audio::reader`].
pub struct Reader<'a> {
    audio: &'a Audio,
    pending: Vec<u8>,
    read: usize,
    part: usize,
    unit: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(audio: &'a Audio) -> Self {
        let pending = match audio.format {
            Format::Wav { rate, channels } => wav_header(audio.units() * audio.format.frame(), rate, channels),
            Format::Mp3 => Vec::new(),
        };
        Self {
            audio,
            pending,
            read: 0,
            part: 0,
            unit: 0,
        }
    }

    fn next_block(&mut self) -> bool {
        while let Some(part) = self.audio.parts.get(self.part) {
            let count = (part.units - self.unit).min(BLOCK);
            if count == 0 {
                (self.part, self.unit) = (self.part + 1, 0);
                continue;
            }
            let (seed, first) = (seed(&part.id), part.from + self.unit);
            self.read = 0;
            match self.audio.format {
                Format::Wav { .. } => {
                    let frame = self.audio.format.frame();
                    let len = usize::try_from(count * frame).unwrap_or(0);
                    wav_block(&mut self.pending, seed, first * frame, len);
                }
                Format::Mp3 => {
                    self.pending.clear();
                    (first..first + count).for_each(|i| mp3_frame(&mut self.pending, seed, i));
                }
            }
            self.unit += count;
            return true;
        }
        false
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.pending.len() && !self.next_block() {
            return Ok(0);
        }
        let n = buffer.len().min(self.pending.len() - self.read);
        buffer[..n].copy_from_slice(&self.pending[self.read..self.read + n]);
        self.read += n;
        Ok(n)
    }
}
