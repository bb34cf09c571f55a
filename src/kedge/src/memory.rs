//! What keeps a process of Kedge small: no huge pages, and giving back what only the start needed. The kernel
//! maps the binary's pages in groups of sixteen as the start touches them; unmapping them once costs a minor
//! fault for each that is needed again and leaves only those resident that a running node uses. Touches
//! nothing but this process's own mappings.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};

/// No huge pages for this process. Debian's kernels give 2 MiB to whatever is touched first in each heap of
/// each thread: of 84 MiB that a node held there, 72 were such pages and nearly empty. Children inherit it:
/// the start of containerd takes it back, since a container's memory is not Kedge's to decide on.
pub(crate) fn small_pages() {
    // Kernels without huge pages do not know the question.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// What follows the readiness (first status, first leases) still belongs to the start.
const SETTLED: Duration = Duration::from_secs(10);

/// The machine's memory in bytes.
pub(crate) fn total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Waits until the start is over, then unmaps the binary's code and constants.
pub(crate) async fn trim_after_start() {
    tokio::time::sleep(SETTLED).await;
    let maps = match std::fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => {
            tracing::debug!(%error, "the mappings cannot be read; the start's pages stay");
            return;
        }
    };
    let Ok(binary) = std::env::current_exe() else { return };
    for (start, len) in unchanging(&maps, &binary.to_string_lossy()) {
        // SAFETY: the range is a private mapping of a file without write permission, so every page of it
        // is read from the file again when it is touched: no content can change or be lost.
        #[allow(unsafe_code, reason = "madvise has no safe form")]
        let advised = unsafe { madvise(start, len, MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = advised {
            tracing::debug!(%error, "the start's pages stay");
        }
    }
}

/// The ranges of `binary` that hold the file's own bytes: never written, so not the part that the
/// relocation changed before it was write-protected (its file offset lies behind the code).
fn unchanging(maps: &str, binary: &str) -> Vec<(NonNull<c_void>, usize)> {
    let mut ranges = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
        if !line.ends_with(binary) {
            continue;
        }
        // Constants come before the code in the file, relocated data after it.
        let code = access == "r-xp";
        if (code || access == "r--p")
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            && let Some(pointer) = NonNull::new(std::ptr::with_exposed_provenance_mut(start))
        {
            ranges.push((pointer, end - start));
        }
        if code {
            break;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_code_but_nothing_that_was_relocated() {
        let maps = "\
7f0000000000-7f0000001000 r--p 00000000 fe:00 1 /usr/local/bin/kedge
7f0000001000-7f0000003000 r-xp 00001000 fe:00 1 /usr/local/bin/kedge
7f0000003000-7f0000004000 r--p 00003000 fe:00 1 /usr/local/bin/kedge
7f0000004000-7f0000005000 rw-p 00004000 fe:00 1 /usr/local/bin/kedge
7f0000005000-7f0000006000 r-xp 00000000 fe:00 2 /usr/lib/other
";
        let lens: Vec<_> = unchanging(maps, "/usr/local/bin/kedge")
            .into_iter()
            .map(|(start, len)| (start.as_ptr() as usize, len))
            .collect();
        assert_eq!(lens, [(0x7f00_0000_0000, 0x1000), (0x7f00_0000_1000, 0x2000)]);
        assert!(unchanging(maps, "/nowhere").is_empty());
    }
}
