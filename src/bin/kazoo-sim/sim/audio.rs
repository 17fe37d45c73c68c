//! What the simulated switch records. Every byte follows from the recording's id, so that a test can say what must have
//! arrived without having kept it, and audio that ended up in the wrong recording shows.
//!
//! The content is prefix-stable: what is written while it is recorded is how the whole begins, apart from a WAV's header. That is how
//! append mode is played, and how a half-written file is recognised.

mod mp3;
mod noise;
mod reader;
mod wav;

pub use reader::Reader;

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};

use mp3::Mp3;

/// The two formats that callflows ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// RIFF, PCM 16 bit.
    Wav { rate: u32, channels: u16 },
    /// Layer III of MPEG 1, 2 or 2.5, constant bit rate.
    Mp3 { rate: u32, channels: u16 },
}

/// Sample rates that the switch records at; any other becomes 8000.
const RATES: [u32; 6] = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000];

impl Format {
    /// What Kazoo asks the switch for when nothing else is said.
    pub const WAV: Self = Self::Wav {
        rate: 16_000,
        channels: 2,
    };
    pub const MP3: Self = Self::Mp3 {
        rate: 16_000,
        channels: 2,
    };

    /// By the file's extension; everything that is not WAV is recorded as MP3 here.
    pub fn of(path: &str, rate: u32, stereo: bool) -> Self {
        let rate = if RATES.contains(&rate) { rate } else { RATES[0] };
        let channels = if stereo { 2 } else { 1 };
        if path.ends_with(".wav") {
            Self::Wav { rate, channels }
        } else {
            Self::Mp3 { rate, channels }
        }
    }

    pub fn rate(self) -> u64 {
        let (Self::Wav { rate, .. } | Self::Mp3 { rate, .. }) = self;
        u64::from(rate)
    }

    pub fn channels(self) -> u16 {
        let (Self::Wav { channels, .. } | Self::Mp3 { channels, .. }) = self;
        channels
    }

    /// Bytes of one moment in a WAV.
    fn frame(self) -> u64 {
        u64::from(self.channels()) * 2
    }

    fn mp3(self) -> Mp3 {
        let (Self::Wav { rate, channels } | Self::Mp3 { rate, channels }) = self;
        Mp3::new(rate, channels)
    }
}

/// How much was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Exactly so long, however long the recording lasts by the clock.
    Millis(u64),
    /// At most this many bytes: rounded down to a whole sample or MP3 frame.
    Bytes(u64),
    /// As long as the recording lasts, without what it was on hold.
    Lasting,
}

/// What was recorded from one start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    id: String,
    /// Where in the id's endless stream this part begins, in samples; not 0 where an earlier part was recorded under the same id.
    from: u64,
    /// Samples of each channel.
    units: u64,
    /// From and to which sample it is masked.
    mutes: Vec<(u64, u64)>,
}

impl Part {
    fn is_mute(&self, at: u64) -> bool {
        self.mutes.iter().any(|(from, to)| (*from..*to).contains(&at))
    }
}

/// In what state the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Ended as it should.
    Closed,
    /// The last part is still being recorded, or its switch was killed.
    Open,
    /// An open WAV whose header was given its true lengths.
    Mended,
    /// The disk took no more than so many bytes.
    Full(u64),
}

/// The exact content of one file on the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audio {
    pub format: Format,
    parts: Vec<Part>,
    form: Form,
}

impl Audio {
    pub fn new(id: &str, format: Format, size: Size) -> Self {
        let mut audio = Self {
            format,
            parts: Vec::new(),
            form: Form::Closed,
        };
        audio.append(id, size);
        audio
    }

    /// More audio at the end, as a second start with the same path gives. Audio of the same id goes on where it was.
    pub fn append(&mut self, id: &str, size: Size) {
        let mine = self.parts.iter().filter(|p| p.id == id);
        let from = mine.map(|p| p.from + p.units).max().unwrap_or(0);
        self.parts.push(Part {
            id: id.to_owned(),
            from,
            units: units(self.format, size),
            mutes: Vec::new(),
        });
    }

    /// A new file that goes on where this one ended, as when the switch has deleted the file between two parts.
    pub fn next(&self, id: &str, size: Size) -> Self {
        let mut audio = Self::new(id, self.format, size);
        let before = self.parts.iter().filter(|p| p.id == id).map(|p| p.from + p.units).max();
        if let (Some(new), Some(before)) = (audio.parts.first_mut(), before) {
            new.from = before;
        }
        audio
    }

    /// The file as it looks while the last part is recorded and has so many samples, or when its switch was killed then.
    #[must_use]
    pub fn open_at(&self, samples: u64) -> Self {
        let mut open = self.clone();
        if let Some(last) = open.parts.last_mut() {
            last.units = samples.min(last.units);
        }
        open.form = Form::Open;
        open
    }

    /// So much was said in the last part.
    pub fn set_last(&mut self, samples: u64) {
        if let Some(last) = self.parts.last_mut() {
            last.units = samples;
        }
    }

    /// Samples of the last part.
    pub fn last_units(&self) -> u64 {
        self.parts.last().map_or(0, |p| p.units)
    }

    /// The last part is masked, or not masked, from this sample on.
    pub fn mute(&mut self, on: bool, from: u64) {
        let Some(last) = self.parts.last_mut() else { return };
        let masked = last.mutes.last_mut().filter(|(_, to)| *to == u64::MAX);
        match (masked, on) {
            (None, true) => last.mutes.push((from, u64::MAX)),
            (Some(mute), false) => mute.1 = from,
            _ => {}
        }
    }

    /// The disk was full when so many bytes were written.
    pub fn fill(&mut self, bytes: u64) {
        if bytes < self.len() {
            self.form = Form::Full(bytes);
        }
    }

    pub fn is_open(&self) -> bool {
        self.form == Form::Open
    }

    /// An open WAV with true lengths in its header, and nothing else changed; others as they are.
    #[must_use]
    pub fn mended(&self) -> Self {
        let mut mended = self.clone();
        if self.is_open() && matches!(self.format, Format::Wav { .. }) {
            mended.form = Form::Mended;
        }
        mended
    }

    fn has_list(&self) -> bool {
        self.form == Form::Closed
    }

    fn wav_header(&self) -> Vec<u8> {
        let Format::Wav { rate, channels } = self.format else {
            return Vec::new();
        };
        let data: u64 = self.units() * self.format.frame();
        let before = data - self.last_units() * self.format.frame();
        let (riff, told) = match self.form {
            Form::Closed => (36 + data + wav::LIST, data),
            Form::Open if before == 0 => (8, 0),
            // What the part before closed with.
            Form::Open => (36 + before + wav::LIST, before),
            Form::Mended => (36 + data, data),
            Form::Full(bytes) => {
                let data = data.min(bytes.saturating_sub(wav::HEADER));
                (36 + data, data)
            }
        };
        wav::header(riff, told, rate, channels)
    }

    fn units(&self) -> u64 {
        self.parts.iter().map(|p| p.units).sum()
    }

    /// Of each channel, at the file's rate.
    pub fn samples(&self) -> u64 {
        self.units()
    }

    /// What the switch counted; an MP3's own frames are some more.
    pub fn millis(&self) -> u64 {
        self.units() * 1_000 / self.format.rate()
    }

    pub fn last_millis(&self) -> u64 {
        self.last_units() * 1_000 / self.format.rate()
    }

    /// The file's size in bytes.
    pub fn len(&self) -> u64 {
        let full = match self.form {
            Form::Full(bytes) => bytes,
            _ => u64::MAX,
        };
        let list = if self.has_list() { wav::LIST } else { 0 };
        match self.format {
            Format::Wav { .. } => (wav::HEADER + self.units() * self.format.frame() + list).min(full),
            Format::Mp3 { .. } => {
                let last = self.parts.last().map_or(0, |p| self.stream(p));
                let before = self.parts.iter().map(|p| self.stream(p)).sum::<u64>() - last;
                let last = if self.is_open() { self.flushed() } else { last };
                (before + last).min(full)
            }
        }
    }

    /// An MP3 stream's bytes when it is closed.
    fn stream(&self, part: &Part) -> u64 {
        let mp3 = self.format.mp3();
        mp3::TAG + 2 * mp3.plain() + mp3.start(mp3.frames_of(part.units))
    }

    /// What of the last stream is in the file before it is closed: whole buffers.
    fn flushed(&self) -> u64 {
        let mp3 = self.format.mp3();
        let encoded = mp3::TAG + mp3.plain() + mp3.start(self.last_units() / mp3.samples);
        encoded / mp3::STEP * mp3::STEP
    }

    /// The size that the switch tells when it ends a recording: before the file is closed.
    pub fn told_len(&self) -> u64 {
        self.open_at(self.last_units()).len().min(self.len())
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

    /// Writes what has come since the open file had `from` bytes. Blocking.
    pub fn extend(&self, path: &Path, from: u64) -> io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        file.seek(SeekFrom::Start(from))?;
        io::copy(&mut self.reader().from(from), &mut file).map(drop)
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
        (_, Size::Lasting) => 0,
        (_, Size::Millis(ms)) => ms * format.rate() / 1_000,
        (Format::Wav { .. }, Size::Bytes(n)) => n.saturating_sub(wav::HEADER + wav::LIST) / format.frame(),
        (Format::Mp3 { .. }, Size::Bytes(n)) => {
            let mp3 = format.mp3();
            let frames = mp3.frame_at(n.saturating_sub(mp3::TAG + 2 * mp3.plain()));
            frames.saturating_sub(1) * mp3.samples
        }
    }
}

#[cfg(test)]
mod tests;
