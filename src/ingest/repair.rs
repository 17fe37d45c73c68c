//! Repairs the header of a WAV that its switch did not close. Players trust the lengths in the header, which are 0, or those of a part.
//! Only the two lengths change, and the file keeps its size. Every worker produces the same bytes from the same file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

use crate::recording::digest::{Digests, Hasher};

use super::inspect::Repair;
use super::spool::SpoolFile;

/// Bytes per read.
const CHUNK: usize = 256 << 10;

/// Writes the lengths into the spooled file. Returns the new digests of the file.
///
/// # Errors
/// When the spool cannot be read or written.
pub async fn mend(spooled: SpoolFile, repair: Repair) -> io::Result<Digests> {
    let mending = move || write(&spooled, repair);
    tokio::task::spawn_blocking(mending).await.map_err(io::Error::other)?
}

fn write(spooled: &SpoolFile, repair: Repair) -> io::Result<Digests> {
    let mut file = File::options().read(true).write(true).open(spooled.path())?;
    file.seek(SeekFrom::Start(4))?;
    file.write_all(&repair.riff_size.to_le_bytes())?;
    file.seek(SeekFrom::Start(repair.data_size_at))?;
    file.write_all(&repair.data_size.to_le_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    let (mut hasher, mut chunk) = (Hasher::default(), vec![0; CHUNK]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&chunk[..read]),
        }
    }
}
