//! `/metrics`: what the kubelet knows of its own work, under upstream's names (`pkg/kubelet/metrics`), and
//! `/metrics/probes`. What this kubelet does not have (a PLEG, managers of devices, ...) is left out. The node's
//! one process has all of its parts: the figures of the process are of all of them.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use k8s_cri::v1 as cri;
use kedge_base::prometheus::{self, Exposition, Kind, labels};
use nix::sys::statvfs::{Statvfs, statvfs};

use crate::core::{Core, Shared};
use crate::pod;
use crate::runtime::keys;

pub(super) fn probes(core: &Core) -> String {
    let mut out = Exposition::default();
    core.probes.write_metrics(&mut out);
    out.finish()
}

pub(super) async fn metrics(core: &Shared) -> String {
    let mut out = Exposition::with_capacity(32 * 1024);
    let help = "[ALPHA] The node's name. The count is always 1.";
    out.family("kubelet_node_name", Kind::Gauge, help)
        .sample(&labels(&[("node", &core.config.node_name)]), 1);
    build(&mut out);
    let version = if core.cgroups.is_unified() { 2 } else { 1 };
    let help = "[ALPHA] cgroup version on the hosts.";
    out.single("kubelet_cgroup_version", Kind::Gauge, help, version);
    running(core, &mut out).await;
    core.metrics.write(&mut out);
    core.runtime.operations().write(&mut out);
    volumes(core, &mut out).await;
    prometheus::process(&mut out);
    out.finish()
}

/// What every component of Kubernetes says of itself (component-base `metrics/version.go`).
fn build(out: &mut Exposition) {
    let mut parts = kedge_base::KUBERNETES_VERSION.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let version = kedge_base::git_version();
    let known = [("git_version", version.as_str()), ("major", major), ("minor", minor)];
    let help = "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git \
                tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on \
                which it is running.";
    out.family("kubernetes_build_info", Kind::Gauge, help).sample(&labels(&known), 1);
}

/// The runtime is asked; when it gives no answer, nothing is told.
async fn running(core: &Core, out: &mut Exposition) {
    if let Ok(sandboxes) = core.runtime.list_sandboxes().await {
        let ready = sandboxes.iter().filter(|one| one.state == cri::PodSandboxState::SandboxReady as i32);
        let pods: HashSet<Option<&String>> = ready.map(|one| one.labels.get(keys::POD_UID)).collect();
        let help = "[ALPHA] Number of pods that have a running pod sandbox";
        out.single("kubelet_running_pods", Kind::Gauge, help, pods.len());
    }
    let Ok(containers) = core.runtime.list_containers(None).await else { return };
    let help = "[ALPHA] Number of containers currently running";
    let mut family = out.family("kubelet_running_containers", Kind::Gauge, help);
    let states = [
        ("created", cri::ContainerState::ContainerCreated),
        ("exited", cri::ContainerState::ContainerExited),
        ("running", cri::ContainerState::ContainerRunning),
        ("unknown", cri::ContainerState::ContainerUnknown),
    ];
    for (name, state) in states {
        let count = containers.iter().filter(|container| container.state == state as i32).count();
        if count > 0 || state == cri::ContainerState::ContainerRunning {
            family.sample(&labels(&[("container_state", name)]), count);
        }
    }
}

/// A figure of a file system.
type OfVolume = fn(&Statvfs) -> u64;

/// How full the file systems of the claims are that pods of this node use (`collectors/volume_stats.go`). Claims
/// here are folders of the node: as with upstream's local volumes, the figures are of the file system they are on.
async fn volumes(core: &Core, out: &mut Exposition) {
    let mut claims: BTreeMap<(String, String), PathBuf> = BTreeMap::new();
    for target in core.pods.list() {
        for (claim, path) in core.metrics.claims_of(&pod::uid(&target)) {
            claims.insert((pod::namespace(&target).to_owned(), claim), path);
        }
    }
    if claims.is_empty() {
        return;
    }
    // A disk may be slow.
    let looked = tokio::task::spawn_blocking(move || {
        let look = |(key, path): ((String, String), PathBuf)| Some((key, statvfs(&path).ok()?));
        claims.into_iter().filter_map(look).collect::<Vec<_>>()
    });
    let found = looked.await.unwrap_or_default();
    let families: [(&str, &str, OfVolume); 6] = [
        ("capacity_bytes", "Capacity in bytes of the volume", |stat| stat.blocks() * stat.fragment_size()),
        ("available_bytes", "Number of available bytes in the volume", |stat| {
            stat.blocks_available() * stat.fragment_size()
        }),
        ("used_bytes", "Number of used bytes in the volume", |stat| {
            stat.blocks().saturating_sub(stat.blocks_free()) * stat.fragment_size()
        }),
        ("inodes", "Maximum number of inodes in the volume", |stat| stat.files()),
        ("inodes_free", "Number of free inodes in the volume", |stat| stat.files_free()),
        ("inodes_used", "Number of used inodes in the volume", |stat| {
            stat.files().saturating_sub(stat.files_free())
        }),
    ];
    for (name, help, figure) in families {
        let (name, help) = (format!("kubelet_volume_stats_{name}"), format!("[ALPHA] {help}"));
        let mut family = out.family(&name, Kind::Gauge, &help);
        for ((namespace, claim), stat) in &found {
            let labels = labels(&[("namespace", namespace), ("persistentvolumeclaim", claim)]);
            family.sample(&labels, figure(stat));
        }
    }
}
