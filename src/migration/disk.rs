//! Writing to the state directory so that a crash leaves the old content or the new, never a mixture.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::error::{Error, Result, Side};

/// The error of a refused disk operation, naming the path.
pub(super) fn error(path: &Path, cause: std::io::Error) -> Error {
    let remedy = match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "make room on the disk of state_dir"
        }
        std::io::ErrorKind::PermissionDenied => "let the gateway's user write to state_dir",
        _ => "check the disk of state_dir",
    };
    Error::passing(Side::Gateway, format!("cannot write {}", path.display())).because(cause).remedy(remedy)
}

/// Replaces the file at `path`: a temporary file beside it, fsync, rename, fsync of the directory.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        File::open(parent)?.sync_all()
    };
    attempt().map_err(|e| error(path, e))
}
