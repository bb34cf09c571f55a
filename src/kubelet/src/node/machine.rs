//! Facts about the machine, from /proc, /sys and /etc.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Config;
use crate::eviction::{Level, Levels, Signal};

/// What does not change while the process lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    /// Bytes.
    pub(crate) memory: i64,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
    /// Name of the page size (`2Mi`) and bytes.
    pub(crate) huge_pages: Vec<(String, i64)>,
}

/// Go's name of the processor architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

impl Machine {
    pub(crate) fn look() -> Self {
        let machine_id = [read("/etc/machine-id"), read("/var/lib/dbus/machine-id")]
            .into_iter()
            .find(|id| !id.is_empty())
            .unwrap_or_default();
        let uuid = [
            read("/sys/class/dmi/id/product_uuid"),
            read("/proc/device-tree/serial-number"),
            machine_id.clone(),
        ];
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: meminfo("MemTotal").unwrap_or(0),
            system_uuid: uuid.into_iter().find(|id| !id.is_empty()).unwrap_or_default(),
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image(&read("/etc/os-release")),
            huge_pages: huge_pages(),
        }
    }

    /// Capacity and allocatable, ready for the API.
    pub(crate) fn resources(&self, config: &Config) -> (Vec<(String, String)>, Vec<(String, String)>) {
        let disk = nix::sys::statvfs::statvfs(&config.root_dir)
            .map(|stat| i64::try_from(stat.blocks() * stat.fragment_size()).unwrap_or(i64::MAX))
            .unwrap_or(0);
        let pages: i64 = self.huge_pages.iter().map(|(_, bytes)| *bytes).sum();
        let mut capacity = vec![
            ("cpu".to_owned(), self.cpus.to_string()),
            ("memory".to_owned(), format!("{}Ki", self.memory / 1024)),
            ("pods".to_owned(), config.max_pods.to_string()),
            ("ephemeral-storage".to_owned(), format!("{}Ki", disk / 1024)),
        ];
        // What the eviction thresholds keep free is not allocatable (upstream `node_container_manager_linux.go`,
        // `hardEvictionReservation`).
        let kept = |signal: Signal, capacity: i64| config.eviction.hard.reserved(signal, capacity);
        let memory = (self.memory - pages - kept(Signal::MemoryAvailable, self.memory)).max(0);
        let storage = (disk - kept(Signal::NodefsAvailable, disk)).max(0);
        let mut allocatable = vec![
            ("cpu".to_owned(), self.cpus.to_string()),
            ("memory".to_owned(), format!("{}Ki", memory / 1024)),
            ("pods".to_owned(), config.max_pods.to_string()),
            ("ephemeral-storage".to_owned(), storage.to_string()),
        ];
        for (name, bytes) in &self.huge_pages {
            let entry = (format!("hugepages-{name}"), bytes.to_string());
            capacity.push(entry.clone());
            allocatable.push(entry);
        }
        (capacity, allocatable)
    }
}

fn os_image(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("Linux".to_owned(), |name| name.trim_matches(['"', '\'']).to_owned())
}

/// A line of /proc/meminfo in bytes.
fn meminfo(name: &str) -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

/// Bytes of swap space.
pub(crate) fn swap() -> Option<u64> {
    meminfo("SwapTotal").and_then(|bytes| u64::try_from(bytes).ok())
}

/// What there is of everything that eviction thresholds are about, in the order of [`Signal`].
pub(crate) fn levels(config: &Config) -> Levels {
    let (pods, pods_inodes) = disk(&config.root_dir);
    let (images, images_inodes) = disk(&config.image_dir);
    [memory(), pods, pods_inodes, images, images_inodes, pids()]
}

/// Whether images and writable layers are on another disk than the folders of the pods.
pub(crate) fn has_image_disk(config: &Config) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    match (device(&config.root_dir), device(&config.image_dir)) {
        (Some(pods), Some(images)) => pods != images,
        _ => false,
    }
}

/// Memory that processes could still get.
fn memory() -> Option<Level> {
    Some(Level { available: meminfo("MemAvailable")?, capacity: meminfo("MemTotal")? })
}

/// Bytes and inodes of the disk below `path`, as far as ordinary users may have them.
fn disk(path: &Path) -> (Option<Level>, Option<Level>) {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return (None, None) };
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let bytes = |blocks: u64| whole(blocks.saturating_mul(stat.fragment_size()));
    let level = |available: i64, capacity: i64| (capacity > 0).then_some(Level { available, capacity });
    (
        level(bytes(stat.blocks_available()), bytes(stat.blocks())),
        // btrfs, for one, has no fixed number of them.
        level(whole(stat.files_available()), whole(stat.files())),
    )
}

/// Process ids, of which threads take one each.
fn pids() -> Option<Level> {
    let most = |file: &str| read(file).parse::<i64>().ok();
    let capacity = most("/proc/sys/kernel/pid_max")?.min(most("/proc/sys/kernel/threads-max")?);
    let load = read("/proc/loadavg");
    let used: i64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Level { available: (capacity - used).max(0), capacity })
}

fn huge_pages() -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size =
            name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse::<i64>().ok());
        let Some(kib) = size else { continue };
        let count: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        let unit = if kib % (1 << 20) == 0 {
            format!("{}Gi", kib >> 20)
        } else if kib % 1024 == 0 {
            format!("{}Mi", kib >> 10)
        } else {
            format!("{kib}Ki")
        };
        found.push((unit, count * kib * 1024));
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_names() {
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(os_image(""), "Linux");
    }
}
