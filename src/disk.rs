//! Writing to the state directory so that a crash leaves the old content or the new, never a mixture.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::error::{Error, Result, Side};

/// The checksum of what is written there.
pub(crate) const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);

/// The error of a refused disk operation, naming the path.
pub(crate) fn error(path: &Path, cause: io::Error) -> Error {
    let remedy = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk of state_dir",
        io::ErrorKind::PermissionDenied => "let the gateway's user write to state_dir",
        _ => "check the disk of state_dir",
    };
    Error::passing(Side::Gateway, format!("cannot write {}", path.display())).because(cause).remedy(remedy)
}

/// Replaces the file at `path`: a temporary file beside it, fsync, rename, fsync of the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_by(path, |file| file.write_all(bytes)).map(drop).map_err(|e| error(path, e))
}

/// The same for content that is written piece by piece; returns the new file, open at its end.
pub(crate) fn replace_by(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all()?;
    let file = temporary.persist(path).map_err(|e| e.error)?;
    File::open(parent)?.sync_all()?;
    Ok(file)
}
