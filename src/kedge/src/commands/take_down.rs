//! What `uninstall`, `reset`, `leave` and a restore begin with: the node is stopped, and all that it runs is
//! ended and cleared away: containers, mounts, the pod network. Only what is Kedge's is touched: processes whose
//! arguments name this node's folders and what they started, mounts below these folders, this node's bridge and
//! nftables table.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Order as _;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::uninstall::remove;
use crate::config::Config;
use crate::failure::{Failure, Remedied};
use crate::output::Step;
use crate::process::{self, Process};
use crate::service;

/// Stop the node and end all that it runs: containers, mounts, pod network. Its files stay.
///
/// # Errors
/// The first thing that could not be ended; the others were tried all the same.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    service::stop(config)?;
    let mut first = Ok(());
    let mut step = Step::begin("ending containers");
    run_noting(config, &mut step, &mut |result| {
        if first.is_ok() {
            first = result;
        }
    });
    step.abandon();
    first
}

pub(super) fn run_noting(config: &Config, step: &mut Step, note: &mut dyn FnMut(anyhow::Result<()>)) {
    step.update("ending containers");
    let pods = pod_uids(config);
    let sandboxes = sandbox_ids(config);
    // Before anything ends: whoever is stopped here and called again finds no process to ask.
    let names = recorded_namespaces(config, &sandboxes);
    let traces = runtime_traces(&config.run_dir.join("containerd"), Path::new(CONTAINERD_DIR));
    let namespaces = end_processes(config, &pods);
    for trace in traces {
        note(remove(&trace));
    }
    // Only when empty.
    for dir in ["runc/k8s.io", "runc", "s", ""] {
        let _ = fs::remove_dir(Path::new(CONTAINERD_DIR).join(dir));
    }
    step.update("unmounting");
    note(release_namespaces(&namespaces, &names));
    note(unmount(config));
    step.update("removing the pod network");
    note(
        kedge_network::cleanup(&config.table_name, &config.bridge_name, &config.cni_address_dir())
            .context("remove the pod network"),
    );
    remove_cni_results(Path::new(CNI_DIR), &sandboxes);
    remove_cgroups(&pods);
    remove_pod_logs(config, &pods);
}

/// Where the CNI library keeps what plugins answered; containerd has no setting for it, so the nodes of a
/// machine share it.
const CNI_DIR: &str = "/var/lib/cni";

/// The pod sandboxes that this node's containerd knows.
fn sandbox_ids(config: &Config) -> BTreeSet<String> {
    fs::read_dir(config.data_dir.join("containerd/io.containerd.grpc.v1.cri/sandboxes"))
        .into_iter()
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Where every containerd of a machine keeps its shims' sockets and runc's state, whatever its settings say.
const CONTAINERD_DIR: &str = "/run/containerd";

/// What the containers of the containerd with this state folder have in `shared`: runc's state of each, and
/// the socket that the shim's address file names (containerd 2: `bootstrap.json`).
fn runtime_traces(state: &Path, shared: &Path) -> BTreeSet<PathBuf> {
    let tasks = state.join("io.containerd.runtime.v2.task/k8s.io");
    let mut traces = BTreeSet::new();
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        traces.insert(shared.join("runc/k8s.io").join(task.file_name()));
        for file in ["address", "bootstrap.json"] {
            let text = fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let address = text.split('"').find_map(|word| word.trim().strip_prefix("unix://"));
            // Nothing else is deleted, whatever the file says.
            traces.extend(
                address
                    .map(PathBuf::from)
                    .filter(|socket| socket.parent() == Some(shared.join("s").as_path())),
            );
        }
    }
    traces
}

/// A result's file is named NETWORK-CONTAINER-INTERFACE.
fn remove_cni_results(dir: &Path, sandboxes: &BTreeSet<String>) {
    let results = dir.join("results");
    if let Ok(entries) = fs::read_dir(&results) {
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.split('-').any(|part| sandboxes.contains(part)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    // Only when empty.
    for dir in [results.as_path(), dir] {
        let _ = fs::remove_dir(dir);
    }
}

/// containerd and its shims name this node's sockets and folders in their arguments.
pub(super) fn own_roots(config: &Config) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    process::table()
        .into_values()
        .filter(|entry| entry.process.pid != own && belongs(&entry.command, config))
        .map(|entry| entry.process.pid)
        .collect()
}

fn belongs(command: &str, config: &Config) -> bool {
    let program = command.split(' ').next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let folders = [&config.run_dir, &config.data_dir];
    (program == "containerd" || program.starts_with("containerd-shim"))
        && command
            .split([' ', '='])
            .any(|word| folders.iter().any(|folder| Path::new(word).starts_with(folder)))
}

/// End containerd, its shims and all containers. Returns the network namespaces they were in.
fn end_processes(config: &Config, pods: &BTreeSet<String>) -> BTreeSet<u64> {
    let mut namespaces = BTreeSet::new();
    let host = namespace_of("self");
    // A process may start another one while we look: look until there is none.
    for _ in 0..5 {
        let mut roots = own_roots(config);
        // Of an uninstall that was cut off: their shim is gone, their control group names their pod.
        roots.extend(pod_processes(pods));
        if roots.is_empty() {
            break;
        }
        let mut family: Vec<Process> = process::family(&process::table(), &roots);
        namespaces.extend(family.iter().filter_map(|process| namespace_of(&process.pid.to_string())));
        // Parents first: containerd and the shims must not restart or report what ends.
        family.reverse();
        for process in &family {
            if let Err(error) = process.signal(Signal::SIGKILL) {
                tracing::warn!(pid = process.pid, %error, "cannot be killed");
            }
        }
        for process in &family {
            process.wait_gone(Duration::from_secs(5));
        }
    }
    if let Some(host) = host {
        namespaces.remove(&host);
    }
    namespaces
}

/// The network namespaces of what this node's containerd runs.
pub(crate) fn own_namespaces(config: &Config) -> BTreeSet<u64> {
    let family = process::family(&process::table(), &own_roots(config));
    let host = namespace_of("self");
    family
        .iter()
        .filter_map(|process| namespace_of(&process.pid.to_string()))
        .filter(|inode| Some(*inode) != host)
        .collect()
}

/// Whether this command sees the machine's network as the node's own processes do. Bridges, namespaces and tables would
/// otherwise be taken from whoever has them here.
///
/// # Errors
/// When it does not, with the command that does.
pub(super) fn same_network(config: &Config) -> Result<(), Failure> {
    let own = namespace_of("self");
    let elsewhere = own_roots(config)
        .into_iter()
        .find(|pid| namespace_of(&pid.to_string()).is_some_and(|namespace| Some(namespace) != own));
    let Some(pid) = elsewhere else { return Ok(()) };
    Err(Remedied::new(
        format!("node {} runs in another network namespace than this command", config.node_name),
        format!("run it there: nsenter --net=/proc/{pid}/ns/net kedge ... (the same command and flags)"),
    )
    .into())
}

/// The inode of a process's network namespace.
fn namespace_of(pid: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|metadata| metadata.ino())
}

/// The names in /run/netns that this node's containerd has written down: in its database, for pods that never
/// started too, and in the CNI results of its sandboxes. They are random, so no other program has the same.
fn recorded_namespaces(config: &Config, sandboxes: &BTreeSet<String>) -> BTreeSet<String> {
    let database = config.data_dir.join("containerd/io.containerd.metadata.v1.bolt/meta.db");
    let mut names = BTreeSet::new();
    match fs::read(&database) {
        Ok(bytes) => names.extend(namespace_names(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %database.display(), %error, "cannot be read"),
    }
    for result in fs::read_dir(Path::new(CNI_DIR).join("results")).into_iter().flatten().flatten() {
        let name = result.file_name().to_string_lossy().into_owned();
        if name.split('-').any(|part| sandboxes.contains(part)) {
            names.extend(fs::read(result.path()).iter().flat_map(|bytes| namespace_names(bytes)));
        }
    }
    names
}

/// Every `netns/cni-UUID` in these bytes: a database keeps what was put into it as it is.
fn namespace_names(bytes: &[u8]) -> BTreeSet<String> {
    const BEFORE: &[u8] = b"netns/";
    const LENGTH: usize = "cni-00000000-0000-0000-0000-000000000000".len();
    let is_name = |name: &&[u8]| {
        name.strip_prefix(b"cni-").is_some_and(|uuid| {
            uuid.iter().enumerate().all(|(place, byte)| match place {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
        })
    };
    let places = bytes.windows(BEFORE.len()).enumerate().filter(|(_, window)| *window == BEFORE);
    places
        .filter_map(|(at, _)| bytes.get(at + BEFORE.len()..at + BEFORE.len() + LENGTH))
        .filter(is_name)
        .filter_map(|name| std::str::from_utf8(name).ok().map(str::to_owned))
        .collect()
}

/// Pods' network namespaces are kept by mounts on files in /run/netns; ours are those our pods were in, and
/// those our containerd has made.
fn release_namespaces(namespaces: &BTreeSet<u64>, names: &BTreeSet<String>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry.file_name().to_str().is_some_and(|name| names.contains(name));
        if named || fs::metadata(&path).is_ok_and(|metadata| namespaces.contains(&metadata.ino())) {
            match umount2(&path, MntFlags::MNT_DETACH) {
                // Not mounted (any more): what was cut off between the two steps.
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
            }
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    // Only when empty; where `ip netns` made it, it is a mount point and stays.
    let _ = fs::remove_dir("/run/netns");
    Ok(())
}

/// Unmount what is below this node's folders, the deepest first.
fn unmount(config: &Config) -> anyhow::Result<()> {
    let mut points = own_mounts(config);
    points.order_by_key(|point| std::cmp::Reverse(point.components().count()));
    let mut first_failure = Ok(());
    // One path may carry several mounts: each appears in the list.
    for point in points {
        let result = umount2(&point, MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
        if let Err(errno) = result
            && first_failure.is_ok()
        {
            first_failure = Err(anyhow::Error::from(errno).context(format!("unmount {}", point.display())));
        }
    }
    first_failure
}

pub(super) fn own_mounts(config: &Config) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts_below(&table, &[&config.run_dir, &config.data_dir])
}

/// Mount points strictly below the folders: a data folder that is itself a disk stays mounted.
pub(super) fn mounts_below(mountinfo: &str, folders: &[&PathBuf]) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| folders.iter().any(|folder| point != *folder && point.starts_with(folder)))
        .collect()
}

/// mountinfo writes blanks and backslashes as octal numbers.
pub(super) fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// The pods that this node had folders or logs for.
fn pod_uids(config: &Config) -> BTreeSet<String> {
    // A pod that has ended may have its logs only.
    ["kubelet/pods", "kubelet/logs", "pods"]
        .iter()
        .filter_map(|dir| fs::read_dir(config.data_dir.join(dir)).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The cgroup of all pods, in every hierarchy.
fn pods_cgroups() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    if let Ok(entries) = fs::read_dir("/sys/fs/cgroup") {
        roots.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    let parents = roots.iter().flat_map(|root| ["kubepods", "kubepods.slice"].map(|name| root.join(name)));
    parents.filter(|parent| parent.is_dir()).collect()
}

/// The processes in the cgroups of these pods.
fn pod_processes(pods: &BTreeSet<String>) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = BTreeSet::new();
    // A folder, how deep it is, and whether it belongs to one of the pods.
    let mut folders: Vec<(PathBuf, u32, bool)> =
        pods_cgroups().into_iter().map(|parent| (parent, 0, false)).collect();
    while let Some((folder, depth, ours)) = folders.pop() {
        if ours {
            let list = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(
                list.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 1 && *pid != own),
            );
        }
        for entry in
            fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir())
        {
            let name = entry.file_name().to_string_lossy().replace('_', "-");
            let ours = ours || is_of_a_pod(&name, pods);
            if ours || depth < 2 {
                folders.push((entry.path(), depth + 1, ours));
            }
        }
    }
    found
}

/// Is this cgroup's name, with `-` for `_`, that of one of the pods?
fn is_of_a_pod(name: &str, pods: &BTreeSet<String>) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    name.rsplit_once("pod").is_some_and(|(_, uid)| pods.contains(uid))
}

/// Empty cgroups of these pods in every hierarchy; the kernel refuses to remove one that is in use.
fn remove_cgroups(pods: &BTreeSet<String>) {
    for parent in pods_cgroups() {
        remove_pod_cgroups(&parent, pods, 0);
    }
}

fn remove_pod_cgroups(dir: &Path, pods: &BTreeSet<String>, depth: u32) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().replace('_', "-");
        if is_of_a_pod(&name, pods) {
            remove_empty_tree(&entry.path());
        } else if depth < 2 {
            remove_pod_cgroups(&entry.path(), pods, depth + 1);
        }
    }
    let _ = fs::remove_dir(dir);
}

/// cgroup files cannot be deleted; removing the folders is enough.
fn remove_empty_tree(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_empty_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Log folders are shared with other nodes of the machine: only this node's pods' are removed.
fn remove_pod_logs(config: &Config, pods: &BTreeSet<String>) {
    let folder = config.log_dir.join("pods");
    if let Ok(entries) = fs::read_dir(&folder) {
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.rsplit('_').next().is_some_and(|uid| pods.contains(uid)) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
    let links = config.log_dir.join("containers");
    if let Ok(entries) = fs::read_dir(&links) {
        for entry in entries.flatten() {
            // A link whose log is gone.
            if entry.path().is_symlink() && !entry.path().exists() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    for dir in [folder, links] {
        let _ = fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn config() -> Config {
        let mut given = Settings::default();
        given.insert("data-dir", "/var/lib/kedge-a".into());
        given.insert("run-dir", "/run/kedge-a".into());
        Config::load(Some(Path::new("/nonexistent")), &given).unwrap()
    }

    #[test]
    fn only_this_nodes_containerd_is_ended() {
        let cases = [
            ("/usr/bin/containerd --config /var/lib/kedge-a/containerd/config.toml", true),
            (
                "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /run/kedge-a/containerd/containerd.sock",
                true,
            ),
            ("/usr/bin/containerd --config=/run/kedge-a/c.toml", true),
            ("/usr/bin/containerd", false),
            ("/usr/bin/containerd --config /var/lib/kedge-ab/containerd/config.toml", false),
            ("/usr/bin/containerd-shim-runc-v2 -address /run/containerd/containerd.sock", false),
            ("vi /var/lib/kedge-a/containerd/config.toml", false),
        ];
        for (command, expected) in cases {
            assert_eq!(belongs(command, &config()), expected, "{command}");
        }
    }

    #[test]
    fn mounts_of_other_folders_stay() {
        let table = "22 1 0:5 / /var/lib/kedge-a rw - ext4 /dev/sda rw\n\
            23 22 0:6 / /var/lib/kedge-a/kubelet/pods/x/volumes/a\\040b rw - tmpfs tmpfs rw\n\
            24 22 0:7 / /run/kedge-a/containerd/rootfs rw - overlay overlay rw\n\
            25 22 0:8 / /run/kedge-ab/x rw - tmpfs tmpfs rw\n\
            26 22 0:9 / /home rw - ext4 /dev/sdb rw\n";
        let config = config();
        let found = mounts_below(table, &[&config.run_dir, &config.data_dir]);
        assert_eq!(
            found,
            [
                PathBuf::from("/var/lib/kedge-a/kubelet/pods/x/volumes/a b"),
                PathBuf::from("/run/kedge-a/containerd/rootfs")
            ]
        );
    }

    #[test]
    fn traces_of_this_nodes_containers_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (state, shared) = (dir.path().join("state"), dir.path().join("run/containerd"));
        let at = |path: &str| shared.join(path);
        for (task, file, text) in [
            ("aa", "address", format!("unix://{}", at("s/01").display())),
            (
                "bb",
                "bootstrap.json",
                format!(
                    "{{\"version\":3,\"address\":\"unix://{}\",\"protocol\":\"ttrpc\"}}",
                    at("s/02").display()
                ),
            ),
            ("cc", "address", "unix:///etc/passwd".to_owned()),
        ] {
            let folder = state.join("io.containerd.runtime.v2.task/k8s.io").join(task);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        }
        let expected = ["runc/k8s.io/aa", "runc/k8s.io/bb", "runc/k8s.io/cc", "s/01", "s/02"].map(at);
        assert_eq!(runtime_traces(&state, &shared), BTreeSet::from(expected));
        assert!(runtime_traces(&dir.path().join("none"), &shared).is_empty());
    }

    #[test]
    fn a_control_group_tells_its_pod() {
        let pods = BTreeSet::from(["fea220f7-3f9e-4b99-86d4-1ba7ab431557".to_owned(), "ab".to_owned()]);
        for (name, expected) in [
            ("podfea220f7-3f9e-4b99-86d4-1ba7ab431557", true),
            ("kubepods-besteffort-podfea220f7-3f9e-4b99-86d4-1ba7ab431557.slice", true),
            ("podfea220f7-3f9e-4b99-86d4-1ba7ab431558", false),
            ("pod00ab", false),
            ("podab", true),
            ("besteffort", false),
            ("kubepods", false),
        ] {
            assert_eq!(is_of_a_pod(name, &pods), expected, "{name}");
        }
    }

    #[test]
    fn namespaces_are_found_in_what_containerd_wrote() {
        let one = "cni-0a1b2c3d-0000-1111-2222-333344445555";
        let other = "cni-ffffffff-aaaa-bbbb-cccc-dddddddddddd";
        let mut bytes = vec![0xff, 0, 7];
        bytes.extend(format!("\"NetNSPath\":\"/var/run/netns/{one}\"").into_bytes());
        bytes.extend([0xfe, 0]);
        bytes.extend(format!("/run/netns/{other}/run/netns/{one}").into_bytes());
        for rest in
            ["/run/netns/mine", "/run/netns/cni-short", "/run/netns/cni-0a1b2c3d-0000-1111-2222-33334444555"]
        {
            bytes.extend(rest.bytes());
            bytes.push(0);
        }
        assert_eq!(namespace_names(&bytes), BTreeSet::from([one.to_owned(), other.to_owned()]));
        assert!(namespace_names(b"netns/").is_empty());
    }

    #[test]
    fn only_this_nodes_cni_results_go() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("cni/results");
        fs::create_dir_all(&results).unwrap();
        for name in ["kedge-aa11-eth0", "cni-loopback-aa11-lo", "kedge-bb22-eth0"] {
            fs::write(results.join(name), "{}").unwrap();
        }
        remove_cni_results(&dir.path().join("cni"), &BTreeSet::from(["aa11".to_owned()]));
        let left: Vec<_> = fs::read_dir(&results).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["kedge-bb22-eth0"]);
        remove_cni_results(&dir.path().join("cni"), &BTreeSet::from(["bb22".to_owned()]));
        assert!(!dir.path().join("cni").exists());
    }
}
