//! `kedge uninstall`: take everything away again and check that nothing is left.
//!
//! Only what is Kedge's is touched: processes whose arguments name this node's folders and what they
//! started, mounts below these folders, this node's bridge and nftables table. Folders are deleted only
//! when nothing is mounted below them any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Order as _;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::require_root;
use crate::cli::UninstallArgs;
use crate::config::{Config, DEFAULT_FILE};
use crate::failure::Failure;
use crate::origin::{self, Origin};
use crate::output::{self, Step};
use crate::process::{self, Process};
use crate::{service, upgrade};

/// Remove the node; exit code 1 with a list when something is left.
pub(crate) fn run(config: &Config, args: &UninstallArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut step = Step::begin("stopping kedge");
    // Every step is tried even when an earlier one failed: a second call should find little to do.
    let mut failed: Vec<String> = Vec::new();
    let mut note = |result: anyhow::Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{error:#}"));
        }
    };
    note(service::stop(config).map(|_| ()));
    if service::systemd_runs() {
        note(service::uninstall(config));
    }
    take_down_noting(config, &mut step, &mut note);
    step.update("removing files");
    for path in owned_paths(config, args.keep_data) {
        note(remove(&path));
    }

    let left = left_over(config, args.keep_data);
    step.abandon();
    if left.is_empty() && failed.is_empty() {
        let kept = if args.keep_data {
            format!("; the data stays in {}", config.data_dir.display())
        } else {
            String::new()
        };
        output::confirm(&format!("kedge was removed{kept}"));
        let data = args.keep_data.then_some(&config.data_dir);
        output::report("removed", &serde_json::json!({ "node": config.node_name, "keptData": data }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("kedge was not removed completely");
    for reason in failed {
        text.push_str(&format!("\n  failed: {reason}"));
    }
    for thing in left {
        text.push_str(&format!("\n  left: {thing}"));
    }
    text.push_str("\nrun kedge uninstall again; what a process still uses goes with a reboot");
    Err(Failure::Failed(anyhow::anyhow!(text)))
}

/// Stop the node and end all that it runs: containers, mounts, pod network. Its files stay.
///
/// # Errors
/// The first thing that could not be ended; the others were tried all the same.
pub(crate) fn take_down(config: &Config) -> anyhow::Result<()> {
    service::stop(config)?;
    let mut first = Ok(());
    let mut step = Step::begin("ending containers");
    take_down_noting(config, &mut step, &mut |result| {
        if first.is_ok() {
            first = result;
        }
    });
    step.abandon();
    first
}

fn take_down_noting(config: &Config, step: &mut Step, note: &mut dyn FnMut(anyhow::Result<()>)) {
    step.update("ending containers");
    let pods = pod_uids(config);
    let sandboxes = sandbox_ids(config);
    let traces = runtime_traces(&config.run_dir.join("containerd"), Path::new(CONTAINERD_DIR));
    let namespaces = end_processes(config);
    for trace in traces {
        note(remove(&trace));
    }
    // Only when empty.
    for dir in ["runc/k8s.io", "runc", "s", ""] {
        let _ = fs::remove_dir(Path::new(CONTAINERD_DIR).join(dir));
    }
    step.update("unmounting");
    note(release_namespaces(&namespaces));
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
fn own_roots(config: &Config) -> Vec<i32> {
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
fn end_processes(config: &Config) -> BTreeSet<u64> {
    let mut namespaces = BTreeSet::new();
    let host = namespace_of("self");
    // A process may start another one while we look: look until there is none.
    for _ in 0..5 {
        let roots = own_roots(config);
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

/// The inode of a process's network namespace.
fn namespace_of(pid: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|metadata| metadata.ino())
}

/// Pods' network namespaces are kept by mounts on files in /run/netns; ours are those our pods were in.
fn release_namespaces(namespaces: &BTreeSet<u64>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        if fs::metadata(&path).is_ok_and(|metadata| namespaces.contains(&metadata.ino())) {
            umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
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

fn own_mounts(config: &Config) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts_below(&table, &[&config.run_dir, &config.data_dir])
}

/// Mount points strictly below the folders: a data folder that is itself a disk stays mounted.
fn mounts_below(mountinfo: &str, folders: &[&PathBuf]) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| folders.iter().any(|folder| point != *folder && point.starts_with(folder)))
        .collect()
}

/// mountinfo writes blanks and backslashes as octal numbers.
fn unescape(field: &str) -> String {
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

/// Empty cgroups of these pods in every hierarchy; the kernel refuses to remove one that is in use.
fn remove_cgroups(pods: &BTreeSet<String>) {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    if let Ok(entries) = fs::read_dir("/sys/fs/cgroup") {
        roots.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    for root in roots {
        for parent in ["kubepods", "kubepods.slice"] {
            remove_pod_cgroups(&root.join(parent), pods, 0);
        }
    }
}

fn remove_pod_cgroups(dir: &Path, pods: &BTreeSet<String>, depth: u32) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().replace('_', "-");
        if pods.iter().any(|uid| name.contains(uid.as_str())) {
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

/// Files and folders that go, in order.
fn owned_paths(config: &Config, keep_data: bool) -> Vec<PathBuf> {
    let mut paths = vec![config.run_dir.clone(), config.log_file()];
    if !keep_data {
        paths.push(config.data_dir.clone());
        if config.made_file() {
            paths.push(config.file.clone());
        }
        if config.file == Path::new(DEFAULT_FILE) {
            // Only when empty; see `remove`.
            paths.extend(config.file.parent().map(Path::to_path_buf));
        }
    }
    // The installed binary goes when it is the one that runs here, no package owns it and nobody else
    // uses it.
    let installed = origin::binary();
    if matches!(origin::origin(), Origin::Own)
        && std::env::current_exe().is_ok_and(|own| own == installed)
        && !other_nodes(config, &installed)
    {
        paths.push(upgrade::previous(&installed));
        paths.push(installed);
    }
    paths
}

/// Another node of this machine uses the same binary.
fn other_nodes(config: &Config, binary: &Path) -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let running = process::table().into_values().any(|entry| {
        let mut words = entry.command.split(' ');
        entry.process.pid != own
            && words.next().map(Path::new) == Some(binary)
            && entry.command.split(' ').any(|word| word == "run")
    });
    let units = fs::read_dir("/etc/systemd/system").map(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(entry.path()) != service::own_unit_file(config)
                && (name == "kedge.service" || (name.starts_with("kedge-") && name.ends_with(".service")))
        })
    });
    running || units.unwrap_or(false)
}

/// Delete a file, or a folder with all that is in it; never across a mount.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_dir() => fs::remove_file(path),
        Ok(_) if Some(path) == Path::new(DEFAULT_FILE).parent() => match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        },
        Ok(_) => {
            let table = fs::read_to_string("/proc/self/mountinfo").context("read the table of mounts")?;
            let mounts = mounts_below(&table, &[&path.to_path_buf()]);
            if let Some(mount) = mounts.first() {
                anyhow::bail!("{} is still mounted, so {} was not deleted", mount.display(), path.display());
            }
            remove_folder(path, &table)
        }
    };
    result.with_context(|| format!("remove {}", path.display()))
}

/// A folder that is itself a mount point is emptied, not removed.
fn remove_folder(path: &Path, mountinfo: &str) -> io::Result<()> {
    let is_mount = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|field| Path::new(&unescape(field)) == path);
    if !is_mount {
        return fs::remove_dir_all(path);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What an uninstalled machine must not have.
fn left_over(config: &Config, keep_data: bool) -> Vec<String> {
    let mut left: Vec<String> = own_roots(config).iter().map(|pid| format!("process {pid}")).collect();
    left.extend(own_mounts(config).iter().map(|mount| format!("mount {}", mount.display())));
    if Path::new("/sys/class/net").join(&config.bridge_name).exists() {
        left.push(format!("network device {}", config.bridge_name));
    }
    let mut paths = vec![config.run_dir.clone(), config.log_file()];
    paths.extend(service::own_unit_file(config));
    if !keep_data {
        if config.made_file() {
            paths.push(config.file.clone());
        }
        let emptied = fs::read_dir(&config.data_dir).is_ok_and(|mut entries| entries.next().is_none());
        if !emptied {
            paths.push(config.data_dir.clone());
        }
    }
    left.extend(paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    left
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

    #[test]
    fn folders_go_with_their_content_and_twice_is_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        fs::create_dir_all(folder.join("deep/er")).unwrap();
        fs::write(folder.join("deep/file"), "x").unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }
}
