//! What the simulated switch records. Every byte follows from the recording's id, so that a test can say what must have
//! arrived without having kept it, and audio that ended up in the wrong recording shows.
//!
//! The content is prefix-stable: a longer recording of the same id begins with the shorter one's samples. That is how
//! append mode is played, and how a half-written file is recognised.

mod noise;
mod reader;

pub use reader::Reader;

use std::{
    fs::File,
    io::{self, BufWriter, Read},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};

use noise::{MP3_BITS, MP3_RATE, MP3_SAMPLES, WAV_HEADER, mp3_start};

/// The two formats that callflows ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// RIFF, PCM 16 bit.
    Wav { rate: u32, channels: u16 },
    /// MPEG-1 Layer III, 128 kbit/s, 44.1 kHz, constant bit rate.
    Mp3,
}

impl Format {
    /// What Kazoo asks the switch for when nothing else is said.
    pub const WAV: Self = Self::Wav {
        rate: 16_000,
        channels: 2,
    };

    /// By the file's extension; everything that is not WAV is recorded as MP3 here.
    pub fn of(path: &str, rate: u32, stereo: bool) -> Self {
        if path.ends_with(".wav") {
            Self::Wav {
                rate,
                channels: if stereo { 2 } else { 1 },
            }
        } else {
            Self::Mp3
        }
    }

    /// The type that the switch announces when it uploads.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Wav { .. } => "audio/x-wav",
            Self::Mp3 => "audio/mpeg",
        }
    }

    fn frame(self) -> u64 {
        match self {
            Self::Wav { channels, .. } => u64::from(channels) * 2,
            Self::Mp3 => 1,
        }
    }
}

/// How much was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Millis(u64),
    /// At most this many bytes: rounded down to a whole sample or MP3 frame.
    Bytes(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    id: String,
    /// Where in the id's endless stream this part begins; not 0 when an earlier part went into a file that is gone.
    from: u64,
    /// Sample frames (WAV) or MP3 frames.
    units: u64,
}

impl Part {
    fn bytes(&self, format: Format) -> u64 {
        match format {
            Format::Wav { .. } => self.units * format.frame(),
            Format::Mp3 => mp3_start(self.from + self.units) - mp3_start(self.from),
        }
    }
}

/// The exact content of one file on the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audio {
    pub format: Format,
    parts: Vec<Part>,
}

impl Audio {
    pub fn new(id: &str, format: Format, size: Size) -> Self {
        let mut audio = Self {
            format,
            parts: Vec::new(),
        };
        audio.append(id, size);
        audio
    }

    /// More audio at the end, as a second start with the same path gives. Audio of the same id goes on where it was.
    pub fn append(&mut self, id: &str, size: Size) {
        let units = units(self.format, size);
        match self.parts.last_mut() {
            Some(last) if last.id == id => last.units += units,
            _ => self.parts.push(Part {
                id: id.to_owned(),
                from: 0,
                units,
            }),
        }
    }

    /// A new file that goes on where this one ended, as when the switch has deleted the file between two parts.
    pub fn next(&self, id: &str, size: Size) -> Self {
        let mut audio = Self::new(id, self.format, size);
        if let (Some(new), Some(old)) = (audio.parts.first_mut(), self.parts.last().filter(|p| p.id == id)) {
            new.from = old.from + old.units;
        }
        audio
    }

    /// The file as it looks when a recording has just begun: a few frames more than what was there before.
    pub fn begun(&self, before: Option<&Self>) -> Self {
        let mut begun = before.cloned().unwrap_or_else(|| Self {
            format: self.format,
            parts: Vec::new(),
        });
        let mut wanted = self.parts.last().cloned();
        if let (Some(new), Some(old)) = (
            wanted.as_mut(),
            begun
                .parts
                .last_mut()
                .filter(|p| Some(&p.id) == self.parts.last().map(|l| &l.id)),
        ) {
            old.units = new.units.min(old.units + 16);
            return begun;
        }
        begun.parts.extend(wanted.map(|p| Part {
            units: p.units.min(16),
            ..p
        }));
        begun
    }

    /// This beginning of `whole`, a little later: never all of it.
    pub fn grown(&self, whole: &Self) -> Self {
        let rest = whole.units().saturating_sub(self.units());
        let mut grown = self.clone();
        if let Some(last) = grown.parts.last_mut()
            && rest > 1
        {
            last.units += (rest / 8).clamp(1, 16);
        }
        grown
    }

    fn units(&self) -> u64 {
        self.parts.iter().map(|p| p.units).sum()
    }

    pub fn samples(&self) -> u64 {
        match self.format {
            Format::Wav { .. } => self.units(),
            Format::Mp3 => self.units() * MP3_SAMPLES,
        }
    }

    pub fn millis(&self) -> u64 {
        match self.format {
            Format::Wav { rate, .. } => self.samples() * 1_000 / u64::from(rate),
            Format::Mp3 => self.samples() * 1_000 / MP3_RATE,
        }
    }

    /// The file's size in bytes.
    pub fn len(&self) -> u64 {
        match self.format {
            Format::Wav { .. } => WAV_HEADER + self.data_len(),
            Format::Mp3 => self.data_len(),
        }
    }

    fn data_len(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes(self.format)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.units() == 0
    }

    /// Streams the file; never holds more than one block.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// The whole file; for small ones.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Reading from memory cannot fail.
        let _ = self.reader().read_to_end(&mut out);
        out
    }

    /// Writes (or overwrites) a file. Blocking.
    ///
    /// What is already there is not cut off first: somebody may be reading it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        let mut file = BufWriter::with_capacity(1 << 18, file);
        io::copy(&mut self.reader(), &mut file)?;
        file.into_inner()?.set_len(self.len())
    }

    /// Base64 of the MD5, as CouchDB prints it after `md5-`.
    pub fn md5(&self) -> String {
        let mut hash = Md5::new();
        let mut buffer = vec![0; 1 << 16];
        let mut reader = self.reader();
        while let Ok(n) = reader.read(&mut buffer) {
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
        }
        STANDARD.encode(hash.finalize())
    }

    /// Compares a stream with what this recording must be; says where it first differs.
    pub fn check(&self, mut actual: impl Read) -> Result<(), String> {
        let mut expected = self.reader();
        let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut at = 0_u64;
        loop {
            let n = fill(&mut expected, &mut a).map_err(|e| e.to_string())?;
            let m = fill(&mut actual, &mut b).map_err(|e| e.to_string())?;
            let both = n.min(m);
            if a[..both] != b[..both] {
                let i = (0..both).find(|i| a[*i] != b[*i]).unwrap_or(0);
                return Err(format!("differs at byte {} of {}", at + i as u64, self.len()));
            }
            if n != m {
                return Err(format!(
                    "{} bytes expected, {}",
                    self.len(),
                    if m < n { "fewer came" } else { "more came" }
                ));
            }
            if n == 0 {
                return Ok(());
            }
            at += n as u64;
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match from.read(&mut buffer[have..])? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
}

/// The exact bytes of a recording that was never stopped and started again.
pub fn expected(id: &str, format: Format, size: Size) -> Vec<u8> {
    Audio::new(id, format, size).bytes()
}

/// Whether `bytes` are the whole recording `id`, whatever its length.
pub fn check(id: &str, format: Format, bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Err("empty".into());
    }
    Audio::new(id, format, Size::Bytes(bytes.len() as u64)).check(bytes)
}

fn units(format: Format, size: Size) -> u64 {
    match (format, size) {
        (Format::Wav { rate, .. }, Size::Millis(ms)) => ms * u64::from(rate) / 1_000,
        (Format::Wav { .. }, Size::Bytes(n)) => n.saturating_sub(WAV_HEADER) / format.frame(),
        (Format::Mp3, Size::Millis(ms)) => (ms * MP3_RATE / 1_000).div_ceil(MP3_SAMPLES),
        (Format::Mp3, Size::Bytes(n)) => {
            let mut frames = n * MP3_RATE / (MP3_SAMPLES / 8 * MP3_BITS);
            while mp3_start(frames + 1) <= n {
                frames += 1;
            }
            frames
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONO: Format = Format::Wav {
        rate: 8_000,
        channels: 1,
    };

    #[test]
    fn lengths_agree_with_the_bytes() {
        for format in [Format::WAV, MONO, Format::Mp3] {
            for size in [
                Size::Millis(0),
                Size::Millis(1),
                Size::Millis(2_000),
                Size::Bytes(44),
                Size::Bytes(100_001),
            ] {
                let audio = Audio::new("202611-aa", format, size);
                assert_eq!(audio.bytes().len() as u64, audio.len(), "{format:?} {size:?}");
                if let Size::Bytes(n) = size {
                    assert!(audio.len() <= n.max(44));
                }
            }
        }
        assert_eq!(Audio::new("x", Format::WAV, Size::Millis(2_000)).len(), 44 + 128_000);
        assert_eq!(Audio::new("x", Format::WAV, Size::Millis(2_000)).millis(), 2_000);
        assert_eq!(Audio::new("x", Format::WAV, Size::Bytes(20_000_000)).len(), 20_000_000);
    }

    #[test]
    fn an_mp3_is_nothing_but_frames() {
        let bytes = expected("202611-ab", Format::Mp3, Size::Millis(3_000));
        let (mut at, mut frames) = (0, 0);
        while at < bytes.len() {
            assert_eq!((bytes[at], bytes[at + 1], bytes[at + 2] & 0xfd), (0xff, 0xfb, 0x90));
            at += 417 + usize::from(bytes[at + 2] & 2 != 0);
            frames += 1;
        }
        assert_eq!((at, frames), (bytes.len(), 115));
        assert_eq!(bytes.iter().filter(|b| **b == 0xff).count(), frames);
    }

    #[test]
    fn a_recording_of_another_id_is_noticed() {
        for format in [Format::WAV, MONO, Format::Mp3] {
            let bytes = expected("one", format, Size::Millis(500));
            assert_eq!(check("one", format, &bytes), Ok(()));
            assert!(check("two", format, &bytes).is_err());
            assert!(check("one", format, &bytes[..bytes.len() - 1]).is_err());
            let mut flipped = bytes.clone();
            *flipped.last_mut().unwrap() ^= 1;
            assert!(check("one", format, &flipped).is_err());
        }
    }

    #[test]
    fn a_file_grows_to_all_but_the_last_of_it() {
        for format in [Format::WAV, Format::Mp3] {
            let whole = Audio::new("a", format, Size::Millis(2_000));
            let mut now = whole.begun(None);
            let mut sizes = vec![now.len()];
            for _ in 0..5_000 {
                now = now.grown(&whole);
                assert!(whole.bytes().len() > now.bytes().len());
                if sizes.last() == Some(&now.len()) {
                    break;
                }
                sizes.push(now.len());
            }
            assert!(sizes.len() > 10 && sizes.is_sorted(), "{sizes:?}");
            assert_eq!(now.units() + 1, whole.units());
        }
    }

    #[test]
    fn appending_goes_on_where_it_was() {
        let mut twice = Audio::new("a", Format::WAV, Size::Millis(300));
        twice.append("a", Size::Millis(200));
        assert_eq!(twice, Audio::new("a", Format::WAV, Size::Millis(500)));
        let next = twice.next("a", Size::Millis(700));
        assert_eq!(
            next.bytes()[44..],
            expected("a", Format::WAV, Size::Millis(1_200))[44 + 500 * 64..]
        );
        let mut mixed = Audio::new("a", Format::Mp3, Size::Millis(300));
        mixed.append("b", Size::Millis(200));
        assert!(check("a", Format::Mp3, &mixed.bytes()).is_err());
        assert_eq!(mixed.check(mixed.bytes().as_slice()), Ok(()));
        assert_eq!(mixed.bytes().len() as u64, mixed.len());
    }

    #[test]
    #[ignore = "writes 345 MB"]
    fn three_hours_are_written_and_compared_without_being_held() {
        let path = std::env::temp_dir().join("kazoo-sim-345.wav");
        let audio = Audio::new("202611-big", Format::WAV, Size::Bytes(345_000_000));
        audio.write(&path).unwrap();
        audio.check(File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_digest_is_couchdbs() {
        let audio = Audio::new("a", Format::Mp3, Size::Millis(100));
        assert_eq!(audio.md5(), STANDARD.encode(Md5::digest(audio.bytes())));
    }
}
