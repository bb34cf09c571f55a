//! Is this machine fit to be a node? Every check names the problem and the remedy, and changes nothing.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::process::Process;

/// Less than this in the data folder's file system and nothing would fit.
const LEAST_SPACE: u64 = 1024 * 1024 * 1024;
const PACKAGES: &str = "apt-get install -y containerd runc containernetworking-plugins nftables conntrack";

/// Something that keeps this machine from being a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Problem {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// All problems at once, most basic first.
pub(crate) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(root());
    problems.extend(programs(config));
    problems.extend(memory_cgroup());
    problems.extend(kernel_features());
    problems.extend(space(&config.data_dir));
    problems.extend(ports(config));
    problems
}

/// The problems as lines for an error message.
pub(crate) fn describe(problems: &[Problem]) -> String {
    let mut text = format!("this machine is not ready ({} found); nothing was changed:", problems.len());
    for problem in problems {
        text.push_str(&format!("\n  problem: {}\n  remedy:  {}", problem.what, problem.remedy));
    }
    text
}

/// The one check that every changing command needs.
pub(crate) fn root() -> Option<Problem> {
    (!nix::unistd::geteuid().is_root())
        .then(|| Problem::new("Kedge needs root, and this is another user", "put sudo before the command"))
}

fn programs(config: &Config) -> Vec<Problem> {
    let mut missing = Vec::new();
    match &config.containerd {
        Some(path) if !path.is_file() => missing.push(path.display().to_string()),
        Some(_) => {}
        None if find_program("containerd").is_none() => missing.push("containerd".into()),
        None => {}
    }
    if find_program("runc").is_none() {
        missing.push("runc".into());
    }
    let dirs = config.cni_bin_dirs();
    let plugins: Vec<&str> = ["bridge", "host-local", "portmap", "loopback"]
        .into_iter()
        .filter(|plugin| !dirs.iter().any(|dir| dir.join(plugin).is_file()))
        .collect();
    if !plugins.is_empty() {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        missing.push(format!("the CNI plugins {} (looked in {})", plugins.join(", "), dirs.join(" and ")));
    }
    if missing.is_empty() {
        return Vec::new();
    }
    vec![Problem::new(format!("missing: {}", missing.join("; ")), PACKAGES)]
}

/// A program by its name, also where a root shell's PATH may not look.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
                .map(PathBuf::from),
        )
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn memory_cgroup() -> Option<Problem> {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let v1 = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    memory_cgroup_problem(v2.as_deref(), &v1, &mounts)
}

/// cgroup v2 lists its controllers in one file; v1 has a table and one mount a controller.
fn memory_cgroup_problem(v2: Option<&str>, v1: &str, mounts: &str) -> Option<Problem> {
    let remedy = "add the words cgroup_enable=memory cgroup_memory=1 to the end of the one line in \
                  /boot/firmware/cmdline.txt (Raspberry Pi; elsewhere to the kernel's command line), then reboot";
    if v2.is_some_and(|controllers| controllers.split_whitespace().any(|name| name == "memory")) {
        return None;
    }
    let enabled = v1.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&"memory") && fields.get(3) == Some(&"1")
    });
    let mounted = mounts.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2) == Some(&"cgroup")
            && fields.get(3).is_some_and(|options| options.split(',').any(|option| option == "memory"))
    });
    match (enabled, mounted) {
        (true, true) => None,
        (true, false) if v2.is_none() => Some(Problem::new(
            "the memory cgroup controller is there but not mounted",
            "mount it (apt-get install -y cgroupfs-mount), or boot with systemd, which does so",
        )),
        _ => Some(Problem::new("the kernel's memory cgroup controller is off", remedy)),
    }
}

fn space(dir: &Path) -> Option<Problem> {
    let existing = dir.ancestors().find(|dir| dir.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    space_problem(existing, free)
}

fn space_problem(dir: &Path, free: u64) -> Option<Problem> {
    (free < LEAST_SPACE).then(|| {
        Problem::new(
            format!("only {} MiB are free for {}; Kedge needs 1 GiB", free / (1024 * 1024), dir.display()),
            "free some space, or choose a folder on another disk with --data-dir",
        )
    })
}

fn ports(config: &Config) -> Vec<Problem> {
    // A node that runs is being upgraded: the ports are its own.
    if matches!(Process::recorded(&config.pid_file()), Ok(Some(_))) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (flag, port) in [
        ("--port", config.port),
        ("--cluster-port", config.cluster_port),
        ("--kubelet-port", config.kubelet_port),
    ] {
        let Err(error) = TcpListener::bind((config.bind_address(), port)) else { continue };
        let problem = match error.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = port_owner(port).map(|owner| format!(" by {owner}")).unwrap_or_default();
                Problem::new(
                    format!("port {port} is in use{owner}"),
                    format!("stop that program, or choose another port with {flag}"),
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                return vec![Problem::new(
                    format!("this machine does not have the address {}", config.bind_address()),
                    "choose one of its addresses with --bind-address",
                )];
            }
            _ => Problem::new(
                format!("cannot listen on port {port}: {error}"),
                format!("choose another with {flag}"),
            ),
        };
        problems.push(problem);
    }
    problems
}

/// Who listens on a TCP port: "NAME (process 42)".
fn port_owner(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let owns = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new(&wanted))
        });
        if owns {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the listening socket (state 0A) in a table of /proc/net.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
        if listens { fields.get(9)?.parse().ok() } else { None }
    })
}

/// Kernel features that pods need, with the module that brings each.
const FEATURES: [(&str, &str); 4] = [
    ("overlay", "container file systems"),
    ("bridge", "the pod network"),
    ("br_netfilter", "Services inside the pod network"),
    ("nf_tables", "Services"),
];

/// Only what is certainly missing: neither running nor loadable, on a kernel whose modules we can see.
fn kernel_features() -> Vec<Problem> {
    let Some(release) = kernel_release() else { return Vec::new() };
    let modules = PathBuf::from(format!("/lib/modules/{release}"));
    let catalogue: String = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|file| fs::read_to_string(modules.join(file)).ok())
        .collect();
    if catalogue.is_empty() {
        return if overlay_registered() {
            Vec::new()
        } else {
            vec![Problem::new(
                "the kernel has no overlay file system and no modules to load it from",
                "use a kernel with CONFIG_OVERLAY_FS",
            )]
        };
    }
    FEATURES
        .into_iter()
        .filter(|(module, _)| !module_running(module) && !in_catalogue(&catalogue, module))
        .map(|(module, purpose)| {
            Problem::new(
                format!("the kernel {release} has no {module} module, which {purpose} need"),
                format!("install the kernel's extra modules (Ubuntu: apt-get install -y linux-modules-extra-{release})"),
            )
        })
        .collect()
}

fn in_catalogue(catalogue: &str, module: &str) -> bool {
    let (dashed, underscored) = (module.replace('_', "-"), module.replace('-', "_"));
    catalogue
        .split([':', '\n', ' '])
        .filter_map(|path| path.rsplit('/').next())
        .filter_map(|file| file.split(".ko").next())
        .any(|name| name == dashed || name == underscored)
}

fn module_running(module: &str) -> bool {
    match module {
        "overlay" => overlay_registered(),
        "br_netfilter" => Path::new("/proc/sys/net/bridge").exists(),
        _ => Path::new("/sys/module").join(module).exists(),
    }
}

fn overlay_registered() -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|table| table.lines().any(|line| line.split_whitespace().last() == Some("overlay")))
}

fn kernel_release() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned())
}

/// Load the modules that a node needs and that are not running yet. What cannot be loaded is left to
/// the component that needs it, whose error is precise.
pub(crate) fn load_modules() {
    let Some(modprobe) = find_program("modprobe") else { return };
    for (module, _) in FEATURES {
        if module_running(module) {
            continue;
        }
        match std::process::Command::new(&modprobe).arg("-q").arg(module).status() {
            Ok(status) if status.success() => tracing::debug!(module, "kernel module loaded"),
            Ok(status) => tracing::debug!(module, %status, "kernel module not loaded"),
            Err(error) => tracing::debug!(module, %error, "kernel module not loaded"),
        }
    }
}

/// The address to reach a listener bound to `address` from this machine.
pub(crate) fn local_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_in_all_its_forms() {
        let on = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t5\t90\t1\n";
        let off = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t0\t1\t0\n";
        let mounted = "cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n";
        let cases = [
            (Some("cpuset cpu io memory pids\n"), off, "", None),
            (Some("cpuset cpu io pids\n"), off, "", Some("is off")),
            (Some(""), on, mounted, None),
            (None, on, mounted, None),
            (None, on, "", Some("not mounted")),
            (None, off, "", Some("is off")),
        ];
        for (v2, v1, mounts, expected) in cases {
            let problem = memory_cgroup_problem(v2, v1, mounts);
            assert_eq!(problem.is_some(), expected.is_some(), "{v2:?} {v1:?} {mounts:?}");
            if let (Some(problem), Some(expected)) = (problem, expected) {
                assert!(problem.what.contains(expected), "{problem:?}");
            }
        }
        let pi = memory_cgroup_problem(None, off, "").unwrap();
        assert!(pi.remedy.contains("cgroup_enable=memory cgroup_memory=1"));
        assert!(pi.remedy.contains("/boot/firmware/cmdline.txt"));
    }

    #[test]
    fn a_listener_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:192B 00000000:0000 01 00000000:00000000 00:00000000 00000000 0 0 111 1\n\
            1: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1\n";
        assert_eq!(listening_inode(table, 6443), Some(4242));
        assert_eq!(listening_inode(table, 6444), None);
    }

    #[test]
    fn the_owner_of_a_port_is_this_test() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = port_owner(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("(process {})", std::process::id())), "{owner}");
    }

    #[test]
    fn little_space_is_a_problem() {
        assert!(space_problem(Path::new("/x"), LEAST_SPACE).is_none());
        let problem = space_problem(Path::new("/x"), 10 * 1024 * 1024).unwrap();
        assert!(problem.what.contains("only 10 MiB"), "{problem:?}");
    }

    #[test]
    fn modules_by_either_spelling() {
        let catalogue =
            "kernel/fs/overlayfs/overlay.ko.xz: kernel/x/y.ko\nkernel/net/bridge/br_netfilter.ko:\n";
        assert!(in_catalogue(catalogue, "overlay"));
        assert!(in_catalogue(catalogue, "br-netfilter"));
        assert!(in_catalogue(catalogue, "y"));
        assert!(!in_catalogue(catalogue, "bridge"));
    }
}
