//! Where the state machine rests on the disk. Behind a trait, so that another embedded database can take
//! sled's place in one file; the only place that names sled.
//!
//! The engine is never trusted alone: objects carry checksums, [`Meta`] counts and sums them, and
//! whatever does not fit is rebuilt from a snapshot and the log.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::state::{Meta, Overlay, encode_object};

/// A key and its encoded object.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map on the disk with atomic batches. Used by one thread at a time.
pub(crate) trait Engine: Send {
    /// What the last batch said; `None` in an empty engine.
    fn meta(&self) -> Result<Option<Meta>, Error>;
    /// All objects in the order of their keys.
    fn objects(&self) -> Box<dyn Iterator<Item = Result<Pair, Error>> + '_>;
    /// Writes objects and, if given, `meta`, all or nothing. Not yet durable. Returns the bytes.
    fn write(
        &mut self,
        batch: &mut dyn Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
        meta: Option<&Meta>,
    ) -> Result<u64, Error>;
    /// Makes all that was written durable.
    fn flush(&mut self) -> Result<(), Error>;
}

/// Writes what changed, durably.
pub(crate) fn write_overlay(engine: &mut dyn Engine, overlay: &Overlay, meta: &Meta) -> Result<u64, Error> {
    let mut batch = overlay
        .iter()
        .map(|(key, entry)| (key.as_bytes().to_vec(), entry.as_ref().map(|entry| encode_object(key, entry))));
    let bytes = engine.write(&mut batch, Some(meta))?;
    engine.flush()?;
    Ok(bytes)
}

/// sled 0.34. Objects and meta are in one tree, for only batches within a tree are atomic without
/// sled's transactions, which hold every value twice; the first byte of a key tells them apart.
pub(crate) struct Sled {
    dir: PathBuf,
    tree: sled::Tree,
    /// Only keeps it open: all data is in the tree.
    _db: sled::Db,
    /// Dropped last.
    _reclaim: Reclaim,
}

const META: &[u8] = b"m";
const OBJECT: u8 = b'o';
/// How often [`reclaim`] asks for a share of the garbage; a round frees up to 512 pages.
const RECLAIM_ROUNDS: usize = 400;

/// sled leaves replaced pages, and after its end all of them, to crossbeam's collector, which frees a few
/// at a time when later operations begin. A large batch is a single operation and after the end comes
/// none, so without this the memory would stay.
fn reclaim() {
    for _ in 0..RECLAIM_ROUNDS {
        crossbeam_epoch::pin().flush();
    }
}

/// Reclaims when it is dropped.
struct Reclaim;

impl Drop for Reclaim {
    fn drop(&mut self) {
        reclaim();
    }
}

impl Sled {
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let failed = failed(dir);
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace)
            .open()
            .map_err(&failed)?;
        let tree = db.open_tree("state").map_err(&failed)?;
        Ok(Self { dir: dir.to_owned(), tree, _db: db, _reclaim: Reclaim })
    }
}

fn failed(dir: &Path) -> impl Fn(sled::Error) -> Error {
    move |error| match error {
        sled::Error::Io(source) => Error::io("use", dir)(source),
        other => Error::Engine { path: dir.to_owned(), what: other.to_string() },
    }
}

impl Engine for Sled {
    fn meta(&self) -> Result<Option<Meta>, Error> {
        let Some(bytes) = self.tree.get(META).map_err(failed(&self.dir))? else { return Ok(None) };
        let damaged = || Error::Engine { path: self.dir.clone(), what: "its summary is damaged".into() };
        Meta::decode(&bytes).ok_or_else(damaged).map(Some)
    }

    fn objects(&self) -> Box<dyn Iterator<Item = Result<Pair, Error>> + '_> {
        let failed = failed(&self.dir);
        Box::new(self.tree.scan_prefix([OBJECT]).map(move |pair| {
            let (key, value) = pair.map_err(&failed)?;
            Ok((key[1..].to_vec(), value.to_vec()))
        }))
    }

    fn write(
        &mut self,
        batch: &mut dyn Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
        meta: Option<&Meta>,
    ) -> Result<u64, Error> {
        let mut bytes = 0;
        let mut changes = sled::Batch::default();
        for (mut key, value) in batch {
            key.insert(0, OBJECT);
            bytes += key.len() as u64;
            match value {
                Some(value) => {
                    bytes += value.len() as u64;
                    changes.insert(key, value);
                }
                None => changes.remove(key),
            }
        }
        if let Some(meta) = meta {
            changes.insert(META, meta.encode());
        }
        self.tree.apply_batch(changes).map_err(failed(&self.dir))?;
        Ok(bytes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.tree.flush().map_err(failed(&self.dir))?;
        // sled's flush ends in sync_file_range, which leaves the drive's cache and the file's metadata
        // alone. fsync works on the file, not on the handle.
        let path = self.dir.join("db");
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
        kedge_base::sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))?;
        reclaim();
        Ok(())
    }
}
