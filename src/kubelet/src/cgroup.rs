//! The cgroups above the containers: `kubepods[/burstable|/besteffort]/podUID`, on cgroup v1 and v2
//! (upstream `pkg/kubelet/cm`, driver cgroupfs). The runtime makes those of the containers.

mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::resources::{self, Qos};
use crate::{Error, pod};

pub(crate) use usage::Usage;

const MOUNT: &str = "/sys/fs/cgroup";

/// Which kind of hierarchy the machine has, and the name of the kubelet's part of it.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    mount: PathBuf,
    unified: bool,
    root: String,
}

impl Cgroups {
    /// Looks at the machine and makes the top groups.
    pub(crate) fn detect(root: &str) -> Result<Self, Error> {
        Self::at(Path::new(MOUNT), root)
    }

    fn at(mount: &Path, root: &str) -> Result<Self, Error> {
        let controllers = std::fs::read_to_string(mount.join("cgroup.controllers"));
        let unified = controllers.is_ok();
        let has = |name: &str| match &controllers {
            Ok(list) => list.split_whitespace().any(|controller| controller == name),
            Err(_) => mount.join(name).is_dir(),
        };
        if !has("memory") {
            return Err(Error::other(
                "the kernel's cgroup memory controller is off: add \
                 `cgroup_enable=memory cgroup_memory=1` to the kernel command line \
                 (on a Raspberry Pi: to the one line of /boot/firmware/cmdline.txt) and restart the machine",
            ));
        }
        if !has("cpu") {
            return Err(Error::other("the kernel's cgroup cpu controller is missing"));
        }
        let root = root.trim_matches('/').to_owned();
        let cgroups = Self { mount: mount.to_path_buf(), unified, root };
        cgroups.make(&format!("{}/burstable", cgroups.root))?;
        let best_effort = format!("{}/besteffort", cgroups.root);
        cgroups.make(&best_effort)?;
        cgroups.set_shares(&best_effort, 2)?;
        Ok(cgroups)
    }

    /// The pod's group from the mount's root, with a leading slash, as CRI wants it.
    pub(crate) fn parent_of(&self, target: &Pod) -> String {
        format!("/{}", self.path_of(target))
    }

    fn path_of(&self, target: &Pod) -> String {
        let uid = pod::uid(target);
        match resources::qos(target) {
            Qos::Guaranteed => format!("{}/pod{uid}", self.root),
            Qos::Burstable => format!("{}/burstable/pod{uid}", self.root),
            Qos::BestEffort => format!("{}/besteffort/pod{uid}", self.root),
        }
    }

    /// Makes the pod's group and sets its shares, quota and memory limit.
    pub(crate) fn ensure(&self, target: &Pod) -> Result<(), Error> {
        let path = self.path_of(target);
        self.make(&path)?;
        let shares = match resources::qos(target) {
            Qos::BestEffort => 2,
            _ => resources::cpu_shares(resources::pod_request(target, "cpu")),
        };
        self.set_shares(&path, shares)?;
        let quota = resources::pod_limit(target, "cpu").map_or(0, resources::cpu_quota);
        let memory = resources::pod_limit(target, "memory").unwrap_or(0);
        let (cpu_dir, memory_dir) = (self.dir("cpu", &path), self.dir("memory", &path));
        if self.unified {
            let limit = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            write(&cpu_dir.join("cpu.max"), &format!("{limit} {}", resources::PERIOD))?;
            let limit = if memory > 0 { memory.to_string() } else { "max".to_owned() };
            write(&memory_dir.join("memory.max"), &limit)
        } else {
            // Kernels without CFS bandwidth have no such files.
            if cpu_dir.join("cpu.cfs_quota_us").exists() {
                write(&cpu_dir.join("cpu.cfs_period_us"), &resources::PERIOD.to_string())?;
                write(&cpu_dir.join("cpu.cfs_quota_us"), &if quota > 0 { quota } else { -1 }.to_string())?;
            }
            write(
                &memory_dir.join("memory.limit_in_bytes"),
                &if memory > 0 { memory } else { -1 }.to_string(),
            )
        }
    }

    /// What a container's group gets besides, file by file; only v2 has them. All processes of a container
    /// that is out of memory end together, and none is swapped out (upstream's defaults:
    /// `singleProcessOOMKill: false`, `swapBehavior: NoSwap`).
    pub(crate) fn container_files(&self) -> HashMap<String, String> {
        let mut files = HashMap::new();
        if self.unified {
            files.insert("memory.oom.group".to_owned(), "1".to_owned());
            let swap = "memory.swap.max";
            // Kernels without swap have no such file, and the runtime fails on it.
            if self.mount.join(&self.root).join(swap).exists() {
                files.insert(swap.to_owned(), "0".to_owned());
            }
        }
        files
    }

    /// Removes the pod's groups in all hierarchies. Fails while a process is still in one.
    pub(crate) fn remove(&self, target: &Pod) -> Result<(), Error> {
        self.remove_path(&self.path_of(target))
    }

    fn remove_path(&self, path: &str) -> Result<(), Error> {
        for top in self.hierarchies() {
            remove_tree(&top.join(path))?;
        }
        Ok(())
    }

    /// Groups of pods that nobody knows any more, e.g. after the machine's power was cut.
    pub(crate) fn remove_orphans(&self, known: &dyn Fn(&str) -> bool) {
        for class in ["", "burstable/", "besteffort/"] {
            let base = format!("{}/{class}", self.root);
            let Ok(entries) = std::fs::read_dir(self.dir("memory", &base)) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(uid) = name.strip_prefix("pod") else { continue };
                if !known(uid)
                    && let Err(error) = self.remove_path(&format!("{base}{name}"))
                {
                    tracing::debug!(group = %name, error = %error.text(), "orphaned cgroup not removed");
                }
            }
        }
    }

    fn hierarchies(&self) -> Vec<PathBuf> {
        if self.unified {
            return vec![self.mount.clone()];
        }
        let entries = std::fs::read_dir(&self.mount).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn dir(&self, controller: &str, path: &str) -> PathBuf {
        if self.unified { self.mount.join(path) } else { self.mount.join(controller).join(path) }
    }

    fn make(&self, path: &str) -> Result<(), Error> {
        let make = |dir: &Path| {
            std::fs::create_dir_all(dir)
                .map_err(|error| Error::io(format!("make cgroup {}", dir.display()), error))
        };
        if !self.unified {
            make(&self.dir("cpu", path))?;
            return make(&self.dir("memory", path));
        }
        // Controllers are handed down level by level.
        let mut dir = self.mount.clone();
        for part in Path::new(path).components() {
            let control = dir.join("cgroup.subtree_control");
            for controller in ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"] {
                let _ = std::fs::write(&control, format!("+{controller}"));
            }
            dir.push(part);
            make(&dir)?;
        }
        Ok(())
    }

    fn set_shares(&self, path: &str, shares: i64) -> Result<(), Error> {
        let dir = self.dir("cpu", path);
        if self.unified {
            write(&dir.join("cpu.weight"), &resources::cpu_weight(shares).to_string())
        } else {
            write(&dir.join("cpu.shares"), &shares.to_string())
        }
    }
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(file, text)
        .map_err(|error| Error::io(format!("write {text} to {}", file.display()), error))
}

/// Only folders can be removed in a cgroup file system, the deepest first.
fn remove_tree(dir: &Path) -> Result<(), Error> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove cgroup {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_memory_controller_names_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("cpu")).expect("a folder");
        let error = Cgroups::at(dir.path(), "kubepods").expect_err("no memory controller");
        assert!(error.text().contains("cgroup_enable=memory cgroup_memory=1"));
    }

    /// A folder that looks like cgroup v2, with the files of a kernel for the pod `u`.
    fn unified() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let top = dir.path();
        std::fs::write(top.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n")
            .expect("a file");
        let pods = top.join("kubepods");
        std::fs::create_dir_all(pods.join("burstable")).expect("a folder");
        std::fs::create_dir_all(pods.join("besteffort")).expect("a folder");
        std::fs::write(pods.join("besteffort/cpu.weight"), "100\n").expect("a file");
        dir
    }

    #[test]
    fn unified_groups_get_the_controllers_and_the_limits() {
        use crate::resources::tests::amounts;
        use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
        let dir = unified();
        let cgroups = Cgroups::at(dir.path(), "kubepods").expect("all controllers");
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap_or_default();
        assert_eq!(read("kubepods/besteffort/cpu.weight"), "1");
        // The last word that was written: each level hands its controllers down.
        assert!(read("cgroup.subtree_control").starts_with('+'));
        assert!(read("kubepods/cgroup.subtree_control").starts_with('+'));
        let container = Container {
            resources: Some(ResourceRequirements {
                requests: amounts(&[("cpu", "100m")]),
                limits: amounts(&[("cpu", "250m"), ("memory", "64Mi")]),
                claims: None,
            }),
            ..Container::default()
        };
        let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.uid = Some("u".into());
        cgroups.ensure(&pod).expect("made");
        for (file, expected) in [("cpu.weight", "4"), ("cpu.max", "25000 100000"), ("memory.max", "67108864")]
        {
            assert_eq!(read(&format!("kubepods/burstable/podu/{file}")), expected, "{file}");
        }
    }

    #[test]
    fn files_of_a_container_are_those_the_kernel_has() {
        let dir = unified();
        let cgroups = Cgroups::at(dir.path(), "kubepods").expect("all controllers");
        let names = |cgroups: &Cgroups| {
            let mut names: Vec<String> = cgroups
                .container_files()
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&cgroups), ["memory.oom.group=1"]);
        std::fs::write(dir.path().join("kubepods/memory.swap.max"), "max\n").expect("a file");
        assert_eq!(names(&cgroups), ["memory.oom.group=1", "memory.swap.max=0"]);
        let v1 = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(v1.path().join("cpu")).expect("a folder");
        std::fs::create_dir(v1.path().join("memory")).expect("a folder");
        assert!(names(&Cgroups::at(v1.path(), "kubepods").expect("both controllers")).is_empty());
    }

    #[test]
    fn groups_by_class() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("cpu")).expect("a folder");
        std::fs::create_dir(dir.path().join("memory")).expect("a folder");
        let cgroups = Cgroups::at(dir.path(), "/kubepods/").expect("both controllers");
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        assert_eq!(cgroups.parent_of(&pod), "/kubepods/besteffort/podu");
        cgroups.ensure(&pod).expect("made");
        let shares = dir.path().join("cpu/kubepods/besteffort/podu/cpu.shares");
        assert_eq!(std::fs::read_to_string(shares).ok().as_deref(), Some("2"));
    }
}
