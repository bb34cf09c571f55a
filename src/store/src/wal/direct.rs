//! Appends past the page cache. The kernel writes a whole page (4 KiB) for each small append to a cached
//! file, two where it crosses a page's end, and copies everything once; here the device gets the sectors
//! that changed. What an append leaves of its last sector is written again with the next one, as the page
//! cache would do with the whole page: the bytes there stay what they are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// What offsets, lengths and memory are aligned to. A device with larger sectors refuses, and so do some
/// file systems: then the page cache is used.
const SECTOR: u64 = 512;
/// More at once is left to the page cache.
const LONGEST: u64 = 256 << 10;
/// A longer buffer is not kept.
const KEEP: usize = 68 << 10;

/// A segment file, open a second time.
pub(super) struct Direct {
    file: File,
    /// What is written, from an aligned address on.
    buffer: Vec<u8>,
    /// What the last write left in its last sector, and the file's offset after that.
    tail: Vec<u8>,
    tail_end: u64,
}

impl Direct {
    /// `None`: this file can only be written through the page cache.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlag::O_DIRECT.bits();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
        Some(Self { file, buffer: Vec::new(), tail: Vec::new(), tail_end: u64::MAX })
    }

    /// A device that is full.
    #[cfg(test)]
    pub(super) fn failing() -> Self {
        let file = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        Self { file, buffer: Vec::new(), tail: Vec::new(), tail_end: u64::MAX }
    }

    /// Whether the page cache need not be used for such a write.
    pub(super) fn fits(at: u64, until: u64, size: u64) -> bool {
        let end = until.next_multiple_of(SECTOR);
        end <= size && end - at <= LONGEST
    }

    /// Writes `bytes` at `at` and zeros from there to the end of the sector before `until`, which is no less
    /// than the end of `bytes`. `cached` is the same file. Returns up to where there are zeros.
    pub(super) fn write(&mut self, cached: &File, bytes: &[u8], at: u64, until: u64) -> io::Result<u64> {
        let (start, end) = (at - at % SECTOR, until.next_multiple_of(SECTOR));
        if self.tail_end != at {
            self.tail.resize((at - start) as usize, 0);
            cached.read_exact_at(&mut self.tail, start)?;
        }
        self.tail_end = u64::MAX;
        let length = (end - start) as usize;
        self.buffer.clear();
        self.buffer.resize(length + SECTOR as usize, 0);
        let offset = self.buffer.as_ptr().align_offset(SECTOR as usize);
        let out = self.buffer.get_mut(offset..offset.saturating_add(length));
        let out = out.ok_or(io::ErrorKind::Unsupported)?;
        let used = self.tail.len() + bytes.len();
        out[..self.tail.len()].copy_from_slice(&self.tail);
        out[self.tail.len()..used].copy_from_slice(bytes);
        self.file.write_all_at(out, start)?;
        self.tail.clear();
        self.tail.extend_from_slice(&out[used - used % SECTOR as usize..used]);
        self.tail_end = at + bytes.len() as u64;
        if self.buffer.capacity() > KEEP {
            self.buffer = Vec::new();
        }
        Ok(end)
    }

    /// Larger sectors, or a file system that takes the flag but no such write.
    pub(super) fn is_refusal(error: &io::Error) -> bool {
        matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
    }
}
