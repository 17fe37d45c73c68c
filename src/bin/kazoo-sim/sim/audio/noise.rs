//! The bytes behind a recording's id: words by counter, laid out as WAV samples or MP3 frames.

pub(super) const MP3_RATE: u64 = 44_100;
pub(super) const MP3_BITS: u64 = 128_000;
pub(super) const MP3_SAMPLES: u64 = 1_152;
pub(super) const WAV_HEADER: u64 = 44;
/// Frame header and side information.
const MP3_SIDE: usize = 36;

/// Where MP3 frame `i` begins: 417.96 bytes each on average, so frames have 417 or (padded) 418.
pub(super) fn mp3_start(i: u64) -> u64 {
    i * (MP3_SAMPLES / 8 * MP3_BITS) / MP3_RATE
}

pub(super) fn seed(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// SplitMix64 by counter: any word of a recording can be computed without those before it.
fn word(seed: u64, k: u64) -> u64 {
    let mut z = seed.wrapping_add(k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Quiet noise: each word is four samples of 16 bit, all shifted right by three bits at once, with their signs kept.
pub(super) fn wav_block(out: &mut Vec<u8>, seed: u64, from_byte: u64, len: usize) {
    let skip = usize::try_from(from_byte % 8).unwrap_or(0);
    out.clear();
    out.resize((len + skip).next_multiple_of(8), 0);
    for (k, eight) in (from_byte / 8..).zip(out.chunks_exact_mut(8)) {
        let loud = word(seed, k);
        let sign = loud & 0x8000_8000_8000_8000;
        let quiet = ((loud >> 3) & 0x1fff_1fff_1fff_1fff) | sign | (sign >> 1) | (sign >> 2);
        eight.copy_from_slice(&quiet.to_le_bytes());
    }
    out.drain(..skip);
    out.truncate(len);
}

/// Silent frames for a decoder (the side information is zero); the free bytes behind it carry the id's noise, without
/// 0xFF, so that nothing in it looks like a frame's beginning.
pub(super) fn mp3_frame(out: &mut Vec<u8>, seed: u64, i: u64) {
    let len = usize::try_from(mp3_start(i + 1) - mp3_start(i)).unwrap_or(MP3_SIDE);
    let padding = u8::from(len == 418) << 1;
    let end = out.len() + len;
    out.extend_from_slice(&[0xff, 0xfb, 0x90 | padding, 0x04]);
    out.resize(out.len() + MP3_SIDE - 4, 0);
    let mut k = i * 64;
    while out.len() < end {
        out.extend_from_slice(&(word(seed, k) & 0x7f7f_7f7f_7f7f_7f7f).to_le_bytes());
        k += 1;
    }
    out.truncate(end);
}

pub(super) fn wav_header(data: u64, rate: u32, channels: u16) -> Vec<u8> {
    let data = u32::try_from(data).unwrap_or(u32::MAX);
    let align = channels * 2;
    let mut h = Vec::with_capacity(44);
    h.extend_from_slice(b"RIFF");
    h.extend_from_slice(&data.saturating_add(36).to_le_bytes());
    h.extend_from_slice(b"WAVEfmt ");
    h.extend_from_slice(&16_u32.to_le_bytes());
    h.extend_from_slice(&1_u16.to_le_bytes());
    h.extend_from_slice(&channels.to_le_bytes());
    h.extend_from_slice(&rate.to_le_bytes());
    h.extend_from_slice(&(rate * u32::from(align)).to_le_bytes());
    h.extend_from_slice(&align.to_le_bytes());
    h.extend_from_slice(&16_u16.to_le_bytes());
    h.extend_from_slice(b"data");
    h.extend_from_slice(&data.to_le_bytes());
    h
}
