//! The write-ahead log: the Raft log and hard state in preallocated segment files. Touches only its own
//! folder; knows Raft's entries but not what is in them.
//!
//! One append is one frame, one write and one `fdatasync`, and the next frame is written only after that
//! flush has succeeded. So a frame that fails its checksum is the torn tail if and only if no valid frame
//! follows it: it was never acknowledged and is cut off. Otherwise the disk lost what it had promised to
//! keep, and the start fails with the name of the file. [`format`] describes the bytes.

mod direct;
mod format;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod scan;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use raft::eraftpb::{Entry, HardState};

use self::direct::Direct;
use self::format::{FRAME_HEADER, Header, SEGMENT_HEADER};
use self::scan::Scan;
use crate::error::Error;
use crate::numbered::numbered;
use crate::stats::Counters;

const SPARE: &str = "spare";
const TEMPORARY: &str = "next.tmp";
/// Small frames write zeros ahead up to a multiple of this: the file system then converts preallocated
/// blocks once for many frames, and most flushes touch no file system metadata.
const ZERO_AHEAD: u64 = 64 << 10;
const SMALL_FRAME: usize = 16 << 10;
const KEEP_BUFFER: usize = 256 << 10;

struct Segment {
    sequence: u64,
    path: PathBuf,
    /// The index of the last entry before this segment.
    previous_index: u64,
    /// Bytes in use; of the last segment as of its opening.
    used: u64,
}

/// The log, open for appending. Used by one thread.
pub(crate) struct Wal {
    dir: PathBuf,
    node_id: u64,
    segment_bytes: u64,
    /// Never empty; the last one is written to.
    segments: VecDeque<Segment>,
    file: File,
    /// Appends past the page cache, where that can be done.
    direct: Option<Direct>,
    position: u64,
    size: u64,
    /// Bytes before this offset have been written before: overwriting them changes no metadata.
    zeroed_to: u64,
    hard_state: HardState,
    last_index: u64,
    last_term: u64,
    buffer: Vec<u8>,
    counters: Arc<Counters>,
}

/// What [`Wal::open`] found.
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    /// The entries after the index that was asked for, without gaps.
    pub(crate) entries: Vec<Entry>,
    /// The index before the first entry that the log still holds.
    pub(crate) previous_index: u64,
    pub(crate) last_index: u64,
}

/// Whether there is any log in the folder.
pub(crate) fn exists(dir: &Path) -> Result<bool, Error> {
    Ok(!list(dir)?.is_empty())
}

fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    numbered(dir, ".log")
}

fn scan(dir: &Path, node_id: u64, from: u64) -> Result<Scan, Error> {
    let mut scan = Scan::new();
    for (sequence, path) in list(dir)? {
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        scan.segment(&path, &bytes, sequence, node_id, from)?;
    }
    Ok(scan)
}

/// The entries from `from + 1` to `to`, read beside the thread that appends: they must have been synced.
pub(crate) fn read(dir: &Path, node_id: u64, from: u64, to: u64) -> Result<Vec<Entry>, Error> {
    let mut scan = scan(dir, node_id, from)?;
    if scan.previous_index > from || scan.last_index < to {
        let what = format!("does not reach from entry {} to {to}", from + 1);
        return Err(Error::LogLost { path: dir.to_owned(), what });
    }
    scan.entries.retain(|entry| entry.index <= to);
    Ok(scan.entries)
}

impl Wal {
    /// Opens the log, or makes one that begins after entry 0. A torn tail is cut off with one warning.
    pub(crate) fn open(
        dir: &Path,
        node_id: u64,
        segment_bytes: u64,
        from: u64,
        counters: Arc<Counters>,
    ) -> Result<(Self, Recovered), Error> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let _ = fs::remove_file(dir.join(TEMPORARY));
        let mut scan = scan(dir, node_id, from)?;
        if scan.segments.is_empty() {
            let header = Header { sequence: 1, node_id, ..Header::default() };
            let (segment, _) = create(dir, &header, segment_bytes, &counters)?;
            scan.segments.push_back(segment);
        }
        let Some(last) = scan.segments.back() else {
            return Err(Error::LogLost { path: dir.to_owned(), what: "has no segment".into() });
        };
        let path = last.path.clone();
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        let size = file.metadata().map_err(Error::io("inspect", &path))?.len();
        if scan.torn {
            tracing::warn!(
                file = %path.display(),
                offset = scan.end,
                "the log's last record is torn; it was never acknowledged and is cut off"
            );
            let left = (size - scan.end).min(FRAME_HEADER as u64) as usize;
            file.write_all_at(&[0; FRAME_HEADER][..left], scan.end).map_err(Error::io("write", &path))?;
            file.sync_data().map_err(Error::io("sync", &path))?;
        }
        forget_cached(&file, 0, size);
        let recovered = Recovered {
            hard_state: scan.hard_state.clone(),
            entries: scan.entries,
            previous_index: scan.previous_index,
            last_index: scan.last_index,
        };
        let wal = Self {
            dir: dir.to_owned(),
            node_id,
            segment_bytes,
            segments: scan.segments,
            file,
            direct: Direct::open(&path),
            position: scan.end,
            size,
            zeroed_to: scan.end,
            hard_state: scan.hard_state,
            last_index: scan.last_index,
            last_term: scan.last_term,
            buffer: Vec::new(),
            counters,
        };
        wal.count();
        Ok((wal, recovered))
    }

    /// Make sure that a frame for entries of `bytes` bytes in total will fit, so that a full disk shows
    /// before Raft has heard of them.
    pub(crate) fn reserve(&mut self, entries: usize, bytes: usize) -> Result<(), Error> {
        self.make_room(format::frame_size(entries, bytes) as u64)
    }

    fn make_room(&mut self, frame: u64) -> Result<(), Error> {
        if self.position + frame <= self.size {
            return Ok(());
        }
        self.add_segment(frame, false)
    }

    fn add_segment(&mut self, frame: u64, anew: bool) -> Result<(), Error> {
        let last = self.last();
        let header = Header {
            sequence: last.sequence + 1,
            node_id: self.node_id,
            hard_state: self.hard_state.clone(),
            previous_index: self.last_index,
            previous_term: self.last_term,
            anew,
        };
        let size = self.segment_bytes.max(SEGMENT_HEADER as u64 + frame);
        let (segment, recycled) = create(&self.dir, &header, size, &self.counters)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&segment.path)
            .map_err(Error::io("open", &segment.path))?;
        self.size = file.metadata().map_err(Error::io("inspect", &segment.path))?.len();
        self.file = file;
        self.direct = Direct::open(&segment.path);
        if let Some(last) = self.segments.back_mut() {
            last.used = self.position;
        }
        self.position = SEGMENT_HEADER as u64;
        self.zeroed_to = if recycled { self.size } else { self.position };
        self.segments.push_back(segment);
        Ok(())
    }

    fn last(&self) -> &Segment {
        &self.segments[self.segments.len() - 1]
    }

    /// Append and flush. After an error nothing counts as appended, and the next append takes the place.
    /// Returns the bytes of the frame.
    pub(crate) fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<u64, Error> {
        self.buffer.clear();
        // The sequence goes into the checksum, so the frame is finished after there is room for it.
        format::put_frame(&mut self.buffer, hard_state, entries);
        let frame = self.buffer.len() as u64;
        self.make_room(frame)?;
        let sequence = self.last().sequence;
        format::finish(&mut self.buffer, sequence);
        let end = self.position + frame;
        let mut until = (end + FRAME_HEADER as u64).min(self.size);
        if until > self.zeroed_to && self.buffer.len() < SMALL_FRAME {
            until = until.next_multiple_of(ZERO_AHEAD).min(self.size);
        }
        let path = self.segments[self.segments.len() - 1].path.clone();
        let started = Instant::now();
        let written = self.write(until).map_err(Error::io("write", &path));
        let synced = written.and_then(|until| {
            self.file.sync_data().map_err(Error::io("sync", &path))?;
            Ok(until)
        });
        let until = match synced {
            Ok(until) => until,
            Err(error) => {
                // What failed must not come back after a restart; where even this fails, the next append
                // takes the same place.
                let _ = self.file.write_all_at(&[0; FRAME_HEADER], self.position);
                return Err(error);
            }
        };
        self.counters.synced(started.elapsed());
        if self.direct.is_none() && until > self.zeroed_to.max(end + FRAME_HEADER as u64) {
            forget_cached(&self.file, self.position, until);
        }
        self.counters.bytes_written.fetch_add(until - self.position, Relaxed);
        self.counters.wal_bytes.fetch_add(frame, Relaxed);
        if self.buffer.capacity() > KEEP_BUFFER {
            self.buffer = Vec::new();
        }
        self.position = end;
        self.zeroed_to = self.zeroed_to.max(until);
        if let Some(state) = hard_state {
            self.hard_state = state.clone();
        }
        if let Some(entry) = entries.last() {
            self.last_index = entry.index;
            self.last_term = entry.term;
        }
        Ok(frame)
    }

    /// Writes the frame in the buffer and zeros up to `until` or a little further, which mark the clean end of
    /// the log. Returns up to where.
    fn write(&mut self, until: u64) -> io::Result<u64> {
        if Direct::fits(self.position, until, self.size)
            && let Some(direct) = &mut self.direct
        {
            match direct.write(&self.file, &self.buffer, self.position, until) {
                Err(error) if Direct::is_refusal(&error) => self.direct = None,
                result => return result,
            }
        }
        self.buffer.resize((until - self.position) as usize, 0);
        self.file.write_all_at(&self.buffer, self.position)?;
        Ok(until)
    }

    /// Starts anew after entry `index`: a snapshot took the place of everything before, and what follows
    /// it is not known to be right. Durable when it returns.
    pub(crate) fn reset(&mut self, index: u64, term: u64, hard_state: &HardState) -> Result<(), Error> {
        self.last_index = index;
        self.last_term = term;
        self.hard_state = hard_state.clone();
        self.add_segment(0, true)?;
        while self.segments.len() > 1 {
            let path = &self.segments[0].path;
            fs::remove_file(path).map_err(Error::io("remove", path))?;
            self.segments.pop_front();
        }
        self.count();
        Ok(())
    }

    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The files' content again: what is on the disk after an append has failed.
    pub(crate) fn reread(&self, from: u64) -> Result<(HardState, Vec<Entry>), Error> {
        let scan = scan(&self.dir, self.node_id, from)?;
        Ok((scan.hard_state, scan.entries))
    }

    /// Remove the segments whose entries are all at or below `index`. One is kept for reuse: its blocks
    /// are written already, so appending to it changes no metadata.
    pub(crate) fn cut(&mut self, index: u64) -> Result<(), Error> {
        while self.segments.len() > 1 && self.segments[1].previous_index <= index {
            let path = &self.segments[0].path;
            let spare = self.dir.join(SPARE);
            let reusable = fs::metadata(path).is_ok_and(|m| m.len() == self.segment_bytes);
            if reusable && !spare.exists() {
                fs::rename(path, &spare).map_err(Error::io("rename", path))?;
            } else {
                fs::remove_file(path).map_err(Error::io("remove", path))?;
            }
            self.segments.pop_front();
        }
        self.count();
        Ok(())
    }

    fn count(&self) {
        let full: u64 = self.segments.iter().rev().skip(1).map(|s| s.used).sum();
        self.counters.wal_bytes.store(full + self.position, Relaxed);
    }
}

/// A new segment file under its final name only when it is whole and synced. Returns whether it was made
/// from a spare one, whose blocks are written already.
fn create(dir: &Path, header: &Header, size: u64, counters: &Counters) -> Result<(Segment, bool), Error> {
    let spare = dir.join(SPARE);
    let recycled = fs::metadata(&spare).is_ok_and(|m| m.len() == size);
    let temporary = if recycled { spare } else { dir.join(TEMPORARY) };
    let path = dir.join(format!("{:016x}.log", header.sequence));
    let made = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary)?;
        if !recycled {
            allocate(&file, size)?;
        }
        let mut bytes = header.encode();
        bytes.resize(SEGMENT_HEADER + FRAME_HEADER, 0);
        file.write_all_at(&bytes, 0)?;
        counters.bytes_written.fetch_add(bytes.len() as u64, Relaxed);
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        kedge_base::sync_dir(dir)
    })();
    if let Err(error) = made {
        if !recycled {
            let _ = fs::remove_file(&temporary);
        }
        return Err(Error::io("create log segment", &path)(error));
    }
    let segment = Segment {
        sequence: header.sequence,
        path,
        previous_index: header.previous_index,
        used: SEGMENT_HEADER as u64,
    };
    Ok((segment, recycled))
}

/// Drops clean pages of the file from the page cache. What was read or zeroed in one piece lies there in
/// large folios, and the kernel would count (and some file systems write) a whole one for each small
/// append; pages that appends bring in anew are small. Only advice: an error changes nothing.
fn forget_cached(file: &File, from: u64, to: u64) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let (Ok(from), Ok(length)) = (i64::try_from(from), i64::try_from(to - from)) else { return };
    let _ = posix_fadvise(file, from, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Reserve blocks; where the file system cannot do that, write zeros.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    use nix::errno::Errno;
    let length = i64::try_from(size).map_err(io::Error::other)?;
    match nix::fcntl::posix_fallocate(file, 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::ENODEV) => {
            let zeros = [0; 64 << 10];
            let mut at = 0;
            while at < size {
                let n = (size - at).min(zeros.len() as u64) as usize;
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}
