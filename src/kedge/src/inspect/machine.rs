//! The machine itself: programs, control groups, kernel, inotify, memory, host name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Context, Found, Moment, fail, ok, warn};
use crate::preflight;

const PACKAGES: &str = "apt-get install -y containerd runc containernetworking-plugins nftables conntrack";
/// The words that switch the memory controller on where a board's firmware switched it off.
const CGROUP_WORDS: [&str; 2] = ["cgroup_enable=memory", "cgroup_memory=1"];

pub(super) fn root_check(_: &Context<'_>) -> Vec<Found> {
    vec![match preflight::root() {
        None => ok("this is root"),
        Some(problem) => fail(problem.what, problem.remedy),
    }]
}

pub(super) fn programs(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let mut missing = Vec::new();
    let containerd = match &config.containerd {
        Some(path) => Some(path.clone()).filter(|path| path.is_file()),
        None => preflight::find_program("containerd"),
    };
    if containerd.is_none() {
        missing.push(
            config
                .containerd
                .as_ref()
                .map_or_else(|| "containerd".to_owned(), |path| path.display().to_string()),
        );
    }
    let runc = preflight::find_program("runc");
    if runc.is_none() {
        missing.push("runc".into());
    }
    let dirs = config.cni_bin_dirs();
    let plugins: Vec<&str> = preflight::CNI_PLUGINS
        .into_iter()
        .filter(|plugin| !dirs.iter().any(|dir| dir.join(plugin).is_file()))
        .collect();
    if !plugins.is_empty() {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        missing.push(format!("the CNI plugins {} (looked in {})", plugins.join(", "), dirs.join(" and ")));
    }
    if !missing.is_empty() {
        return vec![fail(format!("missing: {}", missing.join("; ")), PACKAGES)];
    }
    let mut found = Vec::new();
    let versions: Vec<String> =
        [containerd, runc].into_iter().flatten().map(|program| version_line(&program)).collect();
    found.push(ok(format!("{}, CNI plugins", versions.join(", "))));
    if preflight::find_program("conntrack").is_none() {
        found.push(warn(
            "conntrack is missing: UDP clients of a Service may go on talking to a pod that is gone",
            "apt-get install -y conntrack",
        ));
    }
    found
}

/// `containerd 1.6.20`, or only the name when the program does not say.
fn version_line(program: &Path) -> String {
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match version_in(&text) {
        Some(version) => format!("{name} {version}"),
        None => name,
    }
}

/// The first word that begins with a digit and holds a dot, without what packagers add.
fn version_in(text: &str) -> Option<&str> {
    let word = text
        .split_whitespace()
        .map(|word| word.strip_prefix('v').unwrap_or(word))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))?;
    word.split(['~', '+', '-']).next()
}

pub(super) fn cgroups(_: &Context<'_>) -> Vec<Found> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let file = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"]
        .into_iter()
        .find(|path| Path::new(path).is_file());
    let board = read("/proc/device-tree/model");
    judge_cgroups(
        v2.as_deref(),
        &read("/proc/cgroups"),
        &read("/proc/self/mounts"),
        &Boot { file, words: &read("/proc/cmdline"), raspberry: board.contains("Raspberry") },
    )
}

/// What is known of the kernel's command line.
struct Boot<'a> {
    /// The file that holds it, on boards that have one.
    file: Option<&'a str>,
    /// The one that the kernel was started with.
    words: &'a str,
    raspberry: bool,
}

/// cgroup v2 lists its controllers in one file; v1 has a table and one mount a controller.
fn judge_cgroups(v2: Option<&str>, v1: &str, mounts: &str, boot: &Boot<'_>) -> Vec<Found> {
    let in_v2 = |name: &str| v2.is_some_and(|all| all.split_whitespace().any(|word| word == name));
    let row = |name: &str| {
        v1.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.first() == Some(&name))
    };
    let enabled = |name: &str| row(name).is_some_and(|row| row.get(3) == Some(&"1"));
    let mounted = |name: &str| {
        mounts.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(2) == Some(&"cgroup")
                && fields.get(3).is_some_and(|options| options.split(',').any(|option| option == name))
        })
    };
    let has = |name: &str| in_v2(name) || (enabled(name) && mounted(name));
    let mut found = Vec::new();
    if !has("memory") {
        let not_mounted = enabled("memory") && v2.is_none();
        found.push(if not_mounted {
            fail(
                "the memory cgroup controller is there but not mounted",
                "mount it (apt-get install -y cgroupfs-mount), or boot with systemd, which does so",
            )
        } else {
            fail("the kernel's memory cgroup controller is off", memory_remedy(boot))
        });
    }
    let lacking: Vec<&str> = ["cpu", "cpuset", "pids"].into_iter().filter(|name| !has(name)).collect();
    if !lacking.is_empty() {
        let limits = lacking.join(", ");
        found.push(warn(
            format!("cgroup controllers that are missing: {limits}; limits of that kind do nothing"),
            "use a kernel with these controllers, and remove cgroup_disable= from its command line",
        ));
    }
    if found.is_empty() {
        let version = if in_v2("memory") { "v2" } else { "v1" };
        found.push(ok(format!("cgroup {version} with memory, cpu, cpuset, pids")));
    }
    found
}

fn memory_remedy(boot: &Boot<'_>) -> String {
    let missing: Vec<&str> = CGROUP_WORDS
        .into_iter()
        .filter(|word| !boot.words.split_whitespace().any(|given| given == *word))
        .collect();
    if missing.is_empty() {
        return "the kernel was started with the right words and still has none: use one with CONFIG_MEMCG"
            .into();
    }
    let words = missing.join(" ");
    match boot.file {
        Some(file) => format!(
            "add the words {words} to the end of the one line in {file}: \
             sed -i '1 s/$/ {words}/' {file}; then reboot"
        ),
        None if boot.raspberry => format!(
            "add the words {words} to the end of the one line in /boot/firmware/cmdline.txt, then reboot"
        ),
        None => format!(
            "add the words {words} to the kernel's command line (Raspberry Pi: the end of the one line in \
             /boot/firmware/cmdline.txt; with GRUB: GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub), \
             then reboot"
        ),
    }
}

/// A kernel feature: its module, a symbol of it where it is built in, what needs it.
struct Feature {
    module: &'static str,
    symbol: &'static str,
    purpose: &'static str,
    /// Without it a node works in another way.
    instead: Option<&'static str>,
}

const FEATURES: [Feature; 6] = [
    Feature { module: "overlay", symbol: "ovl_fill_super", purpose: "container file systems", instead: None },
    Feature { module: "bridge", symbol: "br_add_bridge", purpose: "the pod network", instead: None },
    Feature { module: "veth", symbol: "veth_newlink", purpose: "the pod network", instead: None },
    Feature {
        module: "br_netfilter",
        symbol: "br_nf_pre_routing",
        purpose: "Services inside the pod network",
        instead: None,
    },
    Feature { module: "nf_tables", symbol: "nf_tables_newrule", purpose: "Services", instead: None },
    Feature {
        module: "vxlan",
        symbol: "vxlan_newlink",
        purpose: "the pod network between nodes",
        instead: Some(
            "or keep all nodes in one LAN: without VXLAN packets go from node to node as they are (host-gw)",
        ),
    },
];

pub(super) fn kernel(context: &Context<'_>) -> Vec<Found> {
    let Some(release) = kernel_release() else {
        return vec![warn("the kernel does not say its version", "mount /proc")];
    };
    let modules = PathBuf::from(format!("/lib/modules/{release}"));
    let catalogue: String = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|file| fs::read_to_string(modules.join(file)).ok())
        .collect();
    // Reading the table of symbols takes a moment; only a kernel without a catalogue needs it.
    let unknown =
        FEATURES.iter().any(|feature| !running(feature.module) && !in_catalogue(&catalogue, feature.module));
    let symbols =
        if unknown { fs::read_to_string("/proc/kallsyms").unwrap_or_default() } else { String::new() };
    let missing: Vec<&Feature> = FEATURES
        .iter()
        .filter(|feature| {
            !running(feature.module)
                && !in_catalogue(&catalogue, feature.module)
                && !has_symbol(&symbols, feature.symbol)
        })
        .collect();
    let mut found: Vec<Found> = missing
        .iter()
        .map(|feature| {
            let what =
                format!("the kernel {release} has no {} module, which {} need", feature.module, feature.purpose);
            // Without a catalogue and without symbols nothing is certain.
            let certain = !catalogue.is_empty() || !symbols.is_empty() || feature.module == "overlay";
            let remedy = if catalogue.is_empty() {
                format!("use a kernel with it (it is not built in, and {} is missing)", modules.display())
            } else {
                format!(
                    "install the kernel's extra modules (Ubuntu: apt-get install -y linux-modules-extra-{release})"
                )
            };
            match feature.instead {
                Some(instead) => warn(what, format!("{remedy}; {instead}")),
                None if certain => fail(what, remedy),
                None => warn(format!("{what}, as far as can be told"), remedy),
            }
        })
        .collect();
    if context.moment == Moment::Inspect && context.process.is_some() && !running("br_netfilter") {
        found.push(fail(
            "br_netfilter is not loaded: Services do not work between pods of one node",
            "modprobe br_netfilter; kedge stop; kedge start",
        ));
    }
    if found.is_empty() {
        let names: Vec<&str> = FEATURES.iter().map(|feature| feature.module).collect();
        found.push(ok(format!("kernel {release} with {}", names.join(", "))));
    }
    found
}

fn has_symbol(symbols: &str, name: &str) -> bool {
    symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(name))
}

fn in_catalogue(catalogue: &str, module: &str) -> bool {
    let (dashed, underscored) = (module.replace('_', "-"), module.replace('-', "_"));
    catalogue
        .split([':', '\n', ' '])
        .filter_map(|path| path.rsplit('/').next())
        .filter_map(|file| file.split(".ko").next())
        .any(|name| name == dashed || name == underscored)
}

fn running(module: &str) -> bool {
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
    let Some(modprobe) = preflight::find_program("modprobe") else { return };
    for module in FEATURES.iter().map(|feature| feature.module) {
        if running(module) {
            continue;
        }
        match Command::new(&modprobe).arg("-q").arg(module).status() {
            Ok(status) if status.success() => tracing::debug!(module, "kernel module loaded"),
            Ok(status) => tracing::debug!(module, %status, "kernel module not loaded"),
            Err(error) => tracing::debug!(module, %error, "kernel module not loaded"),
        }
    }
}

pub(super) fn inotify(_: &Context<'_>) -> Vec<Found> {
    let limit = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
    };
    match (limit("max_user_instances"), limit("max_user_watches")) {
        (Some(instances), Some(watches)) => vec![judge_inotify(instances, watches, instances_of_root())],
        _ => vec![warn("the kernel has no inotify", "use a kernel with CONFIG_INOTIFY_USER")],
    }
}

/// How many inotify instances processes of root hold: the limit counts by user.
fn instances_of_root() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let of_root = entries.flatten().filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == 0));
    let descriptors =
        of_root.filter_map(|entry| fs::read_dir(entry.path().join("fd")).ok()).flatten().flatten();
    let count = descriptors
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == Path::new("anon_inode:inotify")))
        .count();
    count as u64
}

fn judge_inotify(instances: u64, watches: u64, used: u64) -> Found {
    let remedy = "printf 'fs.inotify.max_user_instances = 1024\\nfs.inotify.max_user_watches = 524288\\n' > \
                  /etc/sysctl.d/90-inotify.conf; sysctl --system";
    let text = format!("inotify: {used} of {instances} instances used by root, {watches} watches allowed");
    if used + 8 >= instances {
        fail(format!("{text}; programs that follow files will fail (\"too many open files\")"), remedy)
    } else if used + 64 >= instances || watches < 8192 {
        warn(format!("{text}; that is little for a node"), remedy)
    } else {
        ok(text)
    }
}

pub(super) fn memory(_: &Context<'_>) -> Vec<Found> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![judge_memory(&text)]
}

fn judge_memory(meminfo: &str) -> Found {
    let mib = |key: &str| -> Option<u64> {
        let line = meminfo.lines().find(|line| line.split(':').next() == Some(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
    };
    let (Some(total), Some(available)) = (mib("MemTotal"), mib("MemAvailable")) else {
        return warn("the kernel does not say how much memory there is", "mount /proc");
    };
    let text = format!("{available} of {total} MiB of memory available");
    if total < 400 {
        fail(format!("{text}; a node needs 512 MiB"), "use a machine with more memory")
    } else if available < 150 {
        warn(format!("{text}; pods will be evicted or killed"), "end other programs, or use a bigger machine")
    } else {
        ok(text)
    }
}

pub(super) fn host_name(context: &Context<'_>) -> Vec<Found> {
    vec![judge_name(&context.config.node_name)]
}

fn judge_name(name: &str) -> Found {
    if matches!(name, "localhost" | "localhost.localdomain" | "(none)") {
        return warn(
            format!("the node's name is {name}, which other machines have too"),
            "hostnamectl set-hostname NAME, or choose one with --node-name, before the node joins a cluster",
        );
    }
    ok(format!("the node's name is {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const ON: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t1\t1\t1\ncpu\t1\t1\t1\npids\t1\t1\t1\nmemory\t5\t90\t1\n";
    const OFF: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t1\t1\t1\ncpu\t1\t1\t1\npids\t1\t1\t1\nmemory\t0\t1\t0\n";
    const MOUNTED: &str = "cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuset,pids 0 0\n";

    fn boot() -> Boot<'static> {
        Boot { file: None, words: "", raspberry: false }
    }

    #[test]
    fn the_memory_controller_in_all_its_forms() {
        let cases = [
            (Some("cpuset cpu io memory pids\n"), OFF, "", None),
            (Some("cpuset cpu io pids\n"), OFF, "", Some("is off")),
            (Some(""), ON, MOUNTED, None),
            (None, ON, MOUNTED, None),
            (None, ON, "", Some("not mounted")),
            (None, OFF, "", Some("is off")),
        ];
        for (v2, v1, mounts, expected) in cases {
            let found = judge_cgroups(v2, v1, mounts, &boot());
            let failed = found.iter().find(|found| found.0 == Verdict::Fail);
            assert_eq!(failed.is_some(), expected.is_some(), "{v2:?} {mounts:?} {found:?}");
            if let (Some(failed), Some(expected)) = (failed, expected) {
                assert!(failed.1.contains(expected), "{failed:?}");
            }
        }
    }

    #[test]
    fn the_words_for_a_raspberry_pi() {
        let remedy = |boot: &Boot<'_>| judge_cgroups(None, OFF, MOUNTED, boot)[0].2.clone().unwrap();
        let all = remedy(&Boot { file: Some("/boot/firmware/cmdline.txt"), words: "quiet", raspberry: true });
        assert!(all.contains("cgroup_enable=memory cgroup_memory=1"), "{all}");
        assert!(all.contains("sed -i") && all.contains("/boot/firmware/cmdline.txt"), "{all}");
        let one = remedy(&Boot { words: "cgroup_enable=memory", ..boot() });
        assert!(one.contains("the words cgroup_memory=1 to"), "only what is missing: {one}");
        let none = remedy(&Boot { words: "cgroup_enable=memory cgroup_memory=1", ..boot() });
        assert!(none.contains("CONFIG_MEMCG"), "{none}");
    }

    #[test]
    fn a_missing_controller_of_another_kind_is_a_warning() {
        let found = judge_cgroups(Some("cpu memory pids"), "", "", &boot());
        assert_eq!((found.len(), found[0].0), (1, Verdict::Warn));
        assert!(found[0].1.contains("cpuset"), "{found:?}");
    }

    #[test]
    fn modules_by_either_spelling() {
        let catalogue =
            "kernel/fs/overlayfs/overlay.ko.xz: kernel/x/y.ko\nkernel/net/bridge/br_netfilter.ko:\n";
        assert!(in_catalogue(catalogue, "overlay"));
        assert!(in_catalogue(catalogue, "br-netfilter"));
        assert!(in_catalogue(catalogue, "y"));
        assert!(!in_catalogue(catalogue, "bridge"));
        assert!(has_symbol("ffffffff T a\n0000 t vxlan_newlink\n00 t x [m]\n", "vxlan_newlink"));
        assert!(!has_symbol("ffffffff T vxlan_newlink2\n", "vxlan_newlink"));
    }

    #[test]
    fn limits_and_amounts() {
        for (instances, watches, used, expected) in [
            (128, 65536, 20, Verdict::Ok),
            (128, 65536, 100, Verdict::Warn),
            (128, 65536, 125, Verdict::Fail),
            (1024, 4096, 5, Verdict::Warn),
        ] {
            assert_eq!(judge_inotify(instances, watches, used).0, expected, "{instances} {watches} {used}");
        }
        for (total, available, expected) in [
            (8_000_000, 4_000_000, Verdict::Ok),
            (948_000, 100_000, Verdict::Warn),
            (250_000, 200_000, Verdict::Fail),
        ] {
            let text = format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
            assert_eq!(judge_memory(&text).0, expected, "{text}");
        }
        assert_eq!(judge_name("localhost").0, Verdict::Warn);
        assert_eq!(judge_name("pi4").0, Verdict::Ok);
    }

    #[test]
    fn versions_as_programs_print_them() {
        for (text, version) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", Some("1.6.20")),
            ("containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376", Some("2.1.4")),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5", Some("1.1.5")),
            ("what", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
    }
}
