//! The cgroups above the containers: `kubepods[/burstable|/besteffort]/podUID`, on cgroup v1 and v2
//! (upstream `pkg/kubelet/cm`, driver cgroupfs). The runtime makes those of the containers.

mod stats;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::resources::{self, Qos};
use crate::{Error, pod};

#[cfg(test)]
pub(crate) use stats::tests as recorded;
pub(crate) use stats::{DiskUse, Figure, Stats};
pub(crate) use usage::Usage;

const MOUNT: &str = "/sys/fs/cgroup";

/// Which kind of hierarchy the machine has, and the name of the kubelet's part of it.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    mount: PathBuf,
    unified: bool,
    root: String,
}

/// The limits of a pod's group; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodLimits {
    /// Shares with cgroup v1, a weight with v2.
    pub(crate) shares: i64,
    /// Microseconds in each period.
    pub(crate) quota: Option<i64>,
    /// Bytes.
    pub(crate) memory: Option<i64>,
}

/// One of the values of [`PodLimits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Shares(i64),
    Quota(Option<i64>),
    Memory(Option<i64>),
}

impl Cgroups {
    /// Looks at the machine and makes the top groups.
    pub(crate) fn detect(root: &str) -> Result<Self, Error> {
        let kernel = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        Self::at(Path::new(MOUNT), &kernel, root)
    }

    /// `kernel`: what /proc/cgroups says.
    fn at(mount: &Path, kernel: &str, root: &str) -> Result<Self, Error> {
        let controllers = std::fs::read_to_string(mount.join("cgroup.controllers"));
        let unified = controllers.is_ok();
        let has = |name: &str| match &controllers {
            Ok(list) => list.split_whitespace().any(|controller| controller == name),
            Err(_) => mount.join(name).is_dir(),
        };
        if !has("memory") && !unified && (is_on(kernel, "memory") || is_empty(mount)) {
            return Err(Error::other(format!(
                "the memory control groups are not mounted at {}: boot with systemd or mount them (apt-get install \
                 -y cgroupfs-mount); `ip netns exec` hides them, `nsenter --net=/run/netns/NAME --` does not",
                mount.display()
            )));
        }
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
        let (file, value) = if unified { ("cpu.weight", "1") } else { ("cpu.shares", "2") };
        write(&cgroups.dir("cpu", &best_effort).join(file), value)?;
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
        self.make(&self.path_of(target))?;
        let limits = self.wanted(target);
        self.set(target, &Part::Shares(limits.shares))?;
        self.set(target, &Part::Quota(limits.quota))?;
        self.set(target, &Part::Memory(limits.memory))
    }

    /// What the pod's group shall have.
    pub(crate) fn wanted(&self, target: &Pod) -> PodLimits {
        let shares = match resources::qos(target) {
            Qos::BestEffort => 2,
            _ => resources::cpu_shares(resources::pod_request(target, "cpu")),
        };
        PodLimits {
            shares: if self.unified { resources::cpu_weight(shares) } else { shares },
            quota: resources::pod_limit(target, "cpu").map(resources::cpu_quota).filter(|quota| *quota > 0),
            memory: resources::pod_limit(target, "memory").filter(|limit| *limit > 0),
        }
    }

    /// What the pod's group has; the group must exist.
    pub(crate) fn found(&self, target: &Pod) -> Result<PodLimits, Error> {
        let path = self.path_of(target);
        let (cpu, memory) = (self.dir("cpu", &path), self.dir("memory", &path));
        let read = |file: PathBuf| {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Error::io(format!("read {}", file.display()), error))?;
            // "max" and -1 are no limit.
            Ok::<_, Error>(text.split_whitespace().next().and_then(|word| word.parse::<i64>().ok()))
        };
        let (shares, quota, memory) = if self.unified {
            let memory = read(memory.join("memory.max"))?;
            (read(cpu.join("cpu.weight"))?, read(cpu.join("cpu.max"))?, memory)
        } else {
            let quota = cpu.join("cpu.cfs_quota_us");
            let quota = if quota.exists() { read(quota)? } else { None };
            (read(cpu.join("cpu.shares"))?, quota, read(memory.join("memory.limit_in_bytes"))?)
        };
        // v1 says "none" with the largest number of whole pages.
        let memory = memory.filter(|limit| *limit > 0 && *limit < i64::MAX / 2);
        Ok(PodLimits { shares: shares.unwrap_or(0), quota: quota.filter(|quota| *quota > 0), memory })
    }

    /// Sets one of the values of the pod's group.
    pub(crate) fn set(&self, target: &Pod, part: &Part) -> Result<(), Error> {
        let path = self.path_of(target);
        let (cpu, memory) = (self.dir("cpu", &path), self.dir("memory", &path));
        let or = |value: Option<i64>, none: &str| value.map_or(none.to_owned(), |value| value.to_string());
        let period = resources::PERIOD;
        match (part, self.unified) {
            (Part::Shares(weight), true) => write(&cpu.join("cpu.weight"), &weight.to_string()),
            (Part::Shares(shares), false) => write(&cpu.join("cpu.shares"), &shares.to_string()),
            (Part::Quota(quota), true) => {
                write(&cpu.join("cpu.max"), &format!("{} {period}", or(*quota, "max")))
            }
            (Part::Quota(quota), false) => {
                // Kernels without CFS bandwidth have no such files.
                if !cpu.join("cpu.cfs_quota_us").exists() {
                    return Ok(());
                }
                write(&cpu.join("cpu.cfs_period_us"), &period.to_string())?;
                write(&cpu.join("cpu.cfs_quota_us"), &or(*quota, "-1"))
            }
            (Part::Memory(limit), true) => write(&memory.join("memory.max"), &or(*limit, "max")),
            (Part::Memory(limit), false) => write(&memory.join("memory.limit_in_bytes"), &or(*limit, "-1")),
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

    /// Removes the groups in all hierarchies of a pod whose containers have ended. Fails while a process is
    /// still in one: what a start that failed halfway has left, which no runtime knows of any more. It is
    /// killed, and the next try finds the groups empty (upstream `pod_container_manager_linux.go`).
    pub(crate) fn remove(&self, target: &Pod) -> Result<(), Error> {
        let path = self.path_of(target);
        self.remove_path(&path).inspect_err(|_| {
            for top in self.hierarchies() {
                kill_all(&top.join(&path));
            }
        })
    }

    fn remove_path(&self, path: &str) -> Result<(), Error> {
        for top in self.hierarchies() {
            remove_tree(&top.join(path))?;
        }
        Ok(())
    }

    /// Groups of pods that nobody knows any more, e.g. after the machine's power was cut. Those with processes
    /// stay: they may be another kubelet's.
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

/// Kills the processes of a group and of those below it.
fn kill_all(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 1) {
        tracing::warn!(pid, cgroup = %dir.display(), "a process that its pod has left behind is killed");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Does a line of /proc/cgroups (name, hierarchy, number, enabled) say that the controller is on?
fn is_on(kernel: &str, controller: &str) -> bool {
    kernel.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(controller) && fields.nth(2) == Some("1")
    })
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_killed_by_who_says_so_only() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let group = dir.path().join("pod1");
        let below = group.join("container");
        std::fs::create_dir_all(&below).expect("folders");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        std::fs::write(below.join("cgroup.procs"), format!("0\n1\n{}\n", child.id())).expect("written");
        assert!(remove_tree(&group).is_err());
        assert_eq!(child.try_wait().expect("asked"), None);
        kill_all(&group);
        assert!(!child.wait().expect("ended").success());
    }

    #[test]
    fn a_missing_memory_controller_names_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("cpu")).expect("a folder");
        let failure =
            |kernel| Cgroups::at(dir.path(), kernel, "kubepods").expect_err("no memory controller").text();
        assert!(failure("memory\t0\t1\t0\n").contains("cgroup_enable=memory cgroup_memory=1"));
        assert!(failure("memory\t0\t1\t1\n").contains("not mounted"));
        std::fs::remove_dir(dir.path().join("cpu")).expect("the folder goes");
        assert!(failure("").contains("ip netns exec"));
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
        let cgroups = Cgroups::at(dir.path(), "", "kubepods").expect("all controllers");
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
    fn what_a_group_has_is_read_back() {
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        let v2 = unified();
        let v1 = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(v1.path().join("cpu")).expect("a folder");
        std::fs::create_dir(v1.path().join("memory")).expect("a folder");
        for (dir, none) in [(v2.path(), "max"), (v1.path(), "9223372036854771712")] {
            let cgroups = Cgroups::at(dir, "", "kubepods").expect("all controllers");
            assert!(cgroups.found(&pod).is_err(), "there is no group yet");
            let base = |controller: &str| cgroups.dir(controller, "kubepods/besteffort/podu");
            std::fs::create_dir_all(base("cpu")).expect("a folder");
            // A kernel has it, or leaves it out as a whole.
            std::fs::write(base("cpu").join("cpu.cfs_quota_us"), "-1\n").expect("a file");
            cgroups.ensure(&pod).expect("made");
            assert_eq!(cgroups.found(&pod).expect("read"), cgroups.wanted(&pod), "{}", dir.display());
            let limits = PodLimits { shares: 77, quota: Some(25_000), memory: Some(1 << 26) };
            for part in [Part::Shares(limits.shares), Part::Quota(limits.quota), Part::Memory(limits.memory)]
            {
                cgroups.set(&pod, &part).expect("set");
            }
            assert_eq!(cgroups.found(&pod).expect("read"), limits, "{}", dir.display());
            let file = if cgroups.unified { "memory.max" } else { "memory.limit_in_bytes" };
            std::fs::write(base("memory").join(file), none).expect("a file");
            assert_eq!(cgroups.found(&pod).expect("read").memory, None);
        }
    }

    #[test]
    fn files_of_a_container_are_those_the_kernel_has() {
        let dir = unified();
        let cgroups = Cgroups::at(dir.path(), "", "kubepods").expect("all controllers");
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
        assert!(names(&Cgroups::at(v1.path(), "", "kubepods").expect("both controllers")).is_empty());
    }

    #[test]
    fn groups_by_class() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("cpu")).expect("a folder");
        std::fs::create_dir(dir.path().join("memory")).expect("a folder");
        let cgroups = Cgroups::at(dir.path(), "", "/kubepods/").expect("both controllers");
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        assert_eq!(cgroups.parent_of(&pod), "/kubepods/besteffort/podu");
        cgroups.ensure(&pod).expect("made");
        let shares = dir.path().join("cpu/kubepods/besteffort/podu/cpu.shares");
        assert_eq!(std::fs::read_to_string(shares).ok().as_deref(), Some("2"));
    }
}
