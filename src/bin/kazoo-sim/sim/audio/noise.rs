//! The bytes behind a recording's id: words by counter.

pub(super) fn seed(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// SplitMix64 by counter: any word of a recording can be computed without those before it.
pub(super) fn word(seed: u64, k: u64) -> u64 {
    let mut z = seed.wrapping_add(k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Quiet noise: each word is four samples of 16 bit, all shifted right by three bits at once, with their signs kept.
pub(super) fn samples(out: &mut Vec<u8>, seed: u64, from_byte: u64, len: usize) {
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
