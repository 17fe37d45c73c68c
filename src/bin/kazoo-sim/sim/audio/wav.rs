//! RIFF as the switch's library writes it: the lengths stay 0, or those of the part before, until the file is closed; then a chunk with the
//! recording program's name follows the samples.

pub(super) const HEADER: u64 = 44;
/// `LIST` with the program's name.
pub(super) const LIST: u64 = 64;

/// `told` is what the header says of the samples' bytes, `riff` of all that follows it.
pub(super) fn header(riff: u64, told: u64, rate: u32, channels: u16) -> Vec<u8> {
    let long = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let align = channels * 2;
    let mut h = Vec::with_capacity(44);
    h.extend_from_slice(b"RIFF");
    h.extend_from_slice(&long(riff));
    h.extend_from_slice(b"WAVEfmt ");
    h.extend_from_slice(&16_u32.to_le_bytes());
    h.extend_from_slice(&1_u16.to_le_bytes());
    h.extend_from_slice(&channels.to_le_bytes());
    h.extend_from_slice(&rate.to_le_bytes());
    h.extend_from_slice(&(rate * u32::from(align)).to_le_bytes());
    h.extend_from_slice(&align.to_le_bytes());
    h.extend_from_slice(&16_u16.to_le_bytes());
    h.extend_from_slice(b"data");
    h.extend_from_slice(&long(told));
    h
}

pub(super) fn list(out: &mut Vec<u8>) {
    let end = out.len() + usize::try_from(LIST).unwrap_or(0);
    out.extend_from_slice(b"LIST\x38\0\0\0INFOISFT\x2c\0\0\0FreeSWITCH (libsndfile-1.2.0)");
    out.resize(end, 0);
}
