//! What a cgroup has used: processor time and the working set, as upstream's cAdvisor counts them.
//! Reads files of the cgroup file systems and of /proc.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::Cgroups;

/// Use of one group and of all below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Nanoseconds of one processor since the group exists.
    pub(crate) cpu: u64,
    /// Bytes, the caches of files included.
    pub(crate) memory: u64,
    /// Bytes that cannot be had back by dropping files that have not been used for a while.
    pub(crate) working_set: u64,
    /// Bytes that belong to processes alone and to no file.
    pub(crate) rss: Option<u64>,
    pub(crate) page_faults: Option<u64>,
    pub(crate) major_page_faults: Option<u64>,
}

impl Cgroups {
    /// `None`: the pod has no group (any more).
    pub(crate) fn pod_usage(&self, target: &Pod) -> Option<Usage> {
        self.usage(&self.path_of(target))
    }

    /// How many process ids the pod's processes and threads have.
    pub(crate) fn processes(&self, target: &Pod) -> Option<u64> {
        number(&self.dir("pids", &self.path_of(target)).join("pids.current"))
    }

    /// Bytes that the pod's group uses, or with `id` that container's, which the runtime makes below it.
    pub(crate) fn memory_usage(&self, target: &Pod, id: Option<&str>) -> Option<u64> {
        let path = self.path_of(target);
        let path = id.map_or(path.clone(), |id| format!("{path}/{id}"));
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        number(&self.dir("memory", &path).join(file))
    }

    /// All of the machine, or of the container that the node runs in.
    pub(crate) fn node_usage(&self) -> Option<Usage> {
        self.usage("")
    }

    fn usage(&self, path: &str) -> Option<Usage> {
        let (cpu, memory, file) = if self.unified {
            let dir = self.mount.join(path);
            let micros = entry(&dir.join("cpu.stat"), "usage_usec")?;
            // The root has no such file; the machine's own figures stand for it.
            let memory = number(&dir.join("memory.current")).or_else(|| used("/proc/meminfo".as_ref()))?;
            (micros * 1000, memory, dir.join("memory.stat"))
        } else {
            let dir = self.dir("memory", path);
            let cpu = number(&self.dir("cpuacct", path).join("cpuacct.usage"))?;
            let memory = number(&dir.join("memory.usage_in_bytes"))?;
            (cpu, memory, dir.join("memory.stat"))
        };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        // The first hierarchy counts the group alone and, under these names, with those below it.
        let of = |v2: &str, v1: &str| line(&text, if self.unified { v2 } else { v1 });
        let inactive = of("inactive_file", "total_inactive_file").unwrap_or(0);
        Some(Usage {
            cpu,
            memory,
            working_set: memory.saturating_sub(inactive),
            rss: of("anon", "total_rss"),
            page_faults: of("pgfault", "total_pgfault"),
            major_page_faults: of("pgmajfault", "total_pgmajfault"),
        })
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A line `KEY VALUE` of a file.
fn entry(file: &Path, key: &str) -> Option<u64> {
    line(&std::fs::read_to_string(file).ok()?, key)
}

fn line(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `MemTotal - MemFree` in bytes.
fn used(meminfo: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(meminfo).ok()?;
    let of = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(of("MemTotal")?.saturating_sub(of("MemFree")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = dir.join(name);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            std::fs::write(file, text).expect("written");
        }
    }

    #[test]
    fn both_kinds_of_hierarchy_are_read() {
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        let v1 = tempfile::tempdir().expect("a temporary folder");
        write(
            v1.path(),
            &[
                ("cpu/x", ""),
                ("cpuacct/kubepods/besteffort/podu/cpuacct.usage", "1500000000\n"),
                ("memory/kubepods/besteffort/podu/memory.usage_in_bytes", "1000\n"),
                (
                    "memory/kubepods/besteffort/podu/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 300\ntotal_rss 5\ntotal_pgfault 7\n",
                ),
            ],
        );
        let v2 = tempfile::tempdir().expect("a temporary folder");
        write(
            v2.path(),
            &[
                ("cgroup.controllers", "cpu memory"),
                ("kubepods/besteffort/podu/cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
                ("kubepods/besteffort/podu/memory.current", "1000\n"),
                ("kubepods/besteffort/podu/memory.stat", "anon 5\ninactive_file 300\npgfault 7\n"),
                ("cpu.stat", "usage_usec 9\n"),
            ],
        );
        for dir in [v1.path(), v2.path()] {
            // The first look at v2 writes weights into files that a real one has.
            write(dir, &[("kubepods/besteffort/cpu.weight", "")]);
            let cgroups = Cgroups::at(dir, "", "kubepods").expect("controllers");
            let expected = Usage {
                cpu: 1_500_000_000,
                memory: 1000,
                working_set: 700,
                rss: Some(5),
                page_faults: Some(7),
                major_page_faults: None,
            };
            assert_eq!(cgroups.pod_usage(&pod), Some(expected), "{}", dir.display());
            let mut other = pod.clone();
            other.metadata.uid = Some("other".into());
            assert_eq!(cgroups.pod_usage(&other), None);
        }
        let node = Cgroups::at(v2.path(), "", "kubepods").expect("controllers").node_usage();
        assert!(node.is_some_and(|usage| usage.cpu == 9000 && usage.memory > 0));
    }
}
