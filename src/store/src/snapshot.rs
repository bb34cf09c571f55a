//! Snapshot files: the whole state machine, compressed and checksummed, in a file that appears under its
//! name only when it is synced. The two newest are kept, and the log back to the older one, so that
//! the newest may be lost or damaged.
//!
//! ```text
//! file = "KEDGESNP", version u32, meta length u32, meta, zlib stream, CRC32 u32 of all before
//! stream = (key length u32, key, object length u32, object)*, then length 0
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::engine::{Engine, Pair};
use crate::error::Error;
use crate::numbered::numbered;
use crate::state::Meta;

const MAGIC: &[u8; 8] = b"KEDGESNP";
const VERSION: u32 = 1;
const TEMPORARY: &str = "next.tmp";
/// No key or object comes near this; more is damage.
const LONGEST: u32 = 64 << 20;

/// A snapshot file and the index of the last entry in it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) index: u64,
    pub(crate) path: PathBuf,
}

/// The snapshots in the folder, newest first.
pub(crate) fn list(dir: &Path) -> Result<Vec<Found>, Error> {
    let found = numbered(dir, ".snap")?;
    Ok(found.into_iter().rev().map(|(index, path)| Found { index, path }).collect())
}

/// Where a snapshot from another member is put when it is whole, verified and synced.
pub(crate) fn received(dir: &Path, index: u64, term: u64) -> PathBuf {
    dir.join(format!("{index:016x}-{term:016x}.received"))
}

/// Its name from when it is to replace the state until it has.
pub(crate) fn installing(dir: &Path, index: u64, term: u64) -> PathBuf {
    dir.join(format!("{index:016x}-{term:016x}.install"))
}

pub(crate) fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.snap"))
}

/// Index and term of a snapshot whose installation was interrupted. Removes what was received but not
/// about to be installed.
pub(crate) fn interrupted(dir: &Path) -> Result<Option<(u64, u64)>, Error> {
    let mut found = None;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".received") || name.ends_with(".part") {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        } else if let Some((index, term)) = name.strip_suffix(".install").and_then(|n| n.split_once('-')) {
            let number = |text| u64::from_str_radix(text, 16).ok();
            found = number(index).zip(number(term)).max(found);
        }
    }
    Ok(found)
}

/// Removes what was received and reaches no further than `index`.
pub(crate) fn remove_received(dir: &Path, index: u64) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let found = name.strip_suffix(".received").and_then(|name| name.split_once('-'));
        let old = found.and_then(|(found, _)| u64::from_str_radix(found, 16).ok());
        if old.is_some_and(|old| old <= index) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Gives an installed snapshot the name under which it is found.
pub(crate) fn keep(dir: &Path, index: u64, term: u64) -> Result<(), Error> {
    let from = installing(dir, index, term);
    fs::rename(&from, path(dir, index)).map_err(Error::io("rename", &from))?;
    kedge_base::sync_dir(dir).map_err(Error::io("sync", dir))
}

/// Passes bytes on and keeps their checksum and number.
struct Checked<T> {
    inner: T,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl<T> Checked<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: crc32fast::Hasher::new(), bytes: 0 }
    }
}

impl<T: Write> Write for Checked<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes what the engine holds; it must hold what `meta` says. Older snapshots but one are removed.
/// Returns the file's size and the index down to which the log must be kept.
pub(crate) fn write(dir: &Path, engine: &dyn Engine, meta: &Meta) -> Result<(u64, u64), Error> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let temporary = dir.join(TEMPORARY);
    let written = write_file(&temporary, engine, meta);
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let bytes = written?;
    let path = path(dir, meta.applied);
    fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
    kedge_base::sync_dir(dir).map_err(Error::io("sync", dir))?;
    let found = list(dir)?;
    for old in found.iter().skip(2) {
        fs::remove_file(&old.path).map_err(Error::io("remove", &old.path))?;
    }
    Ok((bytes, found.get(1).map_or(0, |older| older.index)))
}

/// The same, under the name of one that was received and is to be installed.
pub(crate) fn write_received(dir: &Path, engine: &dyn Engine, meta: &Meta) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    write_file(&received(dir, meta.applied, meta.applied_term), engine, meta)?;
    kedge_base::sync_dir(dir).map_err(Error::io("sync", dir))
}

fn write_file(path: &Path, engine: &dyn Engine, meta: &Meta) -> Result<u64, Error> {
    let failed = || Error::io("write", path);
    let file = File::create(path).map_err(failed())?;
    let mut out = Checked::new(BufWriter::new(file));
    let encoded = meta.encode();
    let mut start = || {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(encoded.len() as u32).to_le_bytes())?;
        out.write_all(&encoded)
    };
    start().map_err(failed())?;
    let mut stream = ZlibEncoder::new(out, Compression::fast());
    for pair in engine.objects() {
        let (key, object) = pair?;
        let mut put = |bytes: &[u8]| {
            stream.write_all(&(bytes.len() as u32).to_le_bytes())?;
            stream.write_all(bytes)
        };
        put(&key).and_then(|()| put(&object)).map_err(failed())?;
    }
    stream.write_all(&0u32.to_le_bytes()).map_err(failed())?;
    let mut out = stream.finish().map_err(failed())?;
    let crc = out.hasher.clone().finalize();
    out.write_all(&crc.to_le_bytes()).map_err(failed())?;
    let bytes = out.bytes;
    let file = out.inner.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())?;
    Ok(bytes)
}

/// A snapshot whose checksum has been verified.
pub(crate) struct Snapshot {
    path: PathBuf,
    pub(crate) meta: Meta,
    stream: Option<BufReader<ZlibDecoder<io::Take<BufReader<File>>>>>,
}

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    Error::DamagedSnapshot { path: path.to_owned(), what: what.into() }
}

/// Opens and verifies a snapshot: reads the file twice, but holds none of it.
pub(crate) fn open(path: &Path) -> Result<Snapshot, Error> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    open_part(path, 0, length)
}

/// The same for a snapshot that is a part of a larger file.
pub(crate) fn open_part(path: &Path, offset: u64, length: u64) -> Result<Snapshot, Error> {
    let failed = || Error::io("read", path);
    let Some(checked) = length.checked_sub(4) else { return Err(damaged(path, "it is cut short")) };
    let begin = || -> io::Result<File> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    };
    let mut input = BufReader::with_capacity(64 << 10, begin().map_err(failed())?);
    let mut sink = Checked::new(io::sink());
    io::copy(&mut Read::take(&mut input, checked), &mut sink).map_err(failed())?;
    let mut crc = [0; 4];
    input.read_exact(&mut crc).map_err(|_| damaged(path, "it is cut short"))?;
    if sink.hasher.finalize().to_le_bytes() != crc {
        return Err(damaged(path, "its checksum is wrong"));
    }
    let mut input = BufReader::new(begin().map_err(failed())?);
    let mut head = [0; 16];
    input.read_exact(&mut head).map_err(|_| damaged(path, "it is cut short"))?;
    if head[..8] != *MAGIC || head[8..12] != VERSION.to_le_bytes() {
        return Err(damaged(path, "it is no snapshot, or one of another version"));
    }
    let meta_length = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let mut meta = Vec::new();
    input.by_ref().take(meta_length.into()).read_to_end(&mut meta).map_err(failed())?;
    let meta = Meta::decode(&meta).ok_or_else(|| damaged(path, "its summary is damaged"))?;
    let rest = checked.saturating_sub(16 + u64::from(meta_length));
    let stream = Some(BufReader::new(ZlibDecoder::new(input.take(rest))));
    Ok(Snapshot { path: path.to_owned(), meta, stream })
}

impl Iterator for Snapshot {
    type Item = Result<Pair, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let stream = self.stream.as_mut()?;
        let mut part = || -> io::Result<Vec<u8>> {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = u32::from_le_bytes(length);
            if length > LONGEST {
                return Err(io::Error::other("impossible length"));
            }
            // Not allocated by what a damaged length says.
            let mut bytes = Vec::new();
            if stream.by_ref().take(length.into()).read_to_end(&mut bytes)? < length as usize {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes)
        };
        let pair = part()
            .and_then(|key| if key.is_empty() { Ok(None) } else { part().map(|object| Some((key, object))) });
        match pair {
            Ok(Some(pair)) => Some(Ok(pair)),
            Ok(None) => {
                self.stream = None;
                None
            }
            Err(error) => {
                self.stream = None;
                Some(Err(damaged(&self.path, error.to_string())))
            }
        }
    }
}
