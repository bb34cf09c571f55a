//! Files that are named by a number: segments of the log, snapshots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The files of a folder whose names are a hexadecimal number and `suffix`, in the order of the numbers. A folder that
/// is not there has none.
pub(crate) fn numbered(dir: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, Error> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(suffix));
        if let Some(number) = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}
