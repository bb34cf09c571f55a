//! How much memory, disk and process ids pods use: read only when a threshold is met or a pod has a limit of
//! its own. Reads cgroups, the folders of the pods and CRI's container statistics.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::core::Shared;
use crate::runtime::keys;
use crate::{Error, pod, volumes};

/// Bytes and files on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) bytes: i64,
    pub(super) inodes: i64,
}

impl std::ops::AddAssign for Space {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

impl std::iter::Sum for Space {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum += one;
        }
        sum
    }
}

/// What one container uses; `None` where nobody has measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerUse {
    /// Bytes of its working set.
    pub(super) memory: Option<i64>,
    /// Its writable layer.
    pub(super) layer: Option<Space>,
    pub(super) logs: Space,
}

/// What one pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodUse {
    /// Bytes of the working set of all of it.
    pub(super) memory: Option<i64>,
    pub(super) processes: i64,
    /// By name.
    pub(super) containers: BTreeMap<String, ContainerUse>,
    /// Volumes on the disk of the pods' folders, by name.
    pub(super) volumes: BTreeMap<String, Space>,
    /// The hosts file.
    pub(super) other: Space,
}

impl PodUse {
    /// What it keeps on disks: writable layers, and all that lies in the pods' and the logs' folders.
    pub(super) fn disk(&self, layers: bool, folders: bool) -> Space {
        let mut sum = Space::default();
        for container in self.containers.values() {
            if layers {
                sum += container.layer.unwrap_or_default();
            }
            if folders {
                sum += container.logs;
            }
        }
        if folders {
            sum += self.volumes.values().copied().sum();
        }
        sum
    }
}

/// What is to be measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// The cgroups of the pods.
    pub(super) groups: bool,
    /// Memory and writable layers of containers.
    pub(super) containers: bool,
    /// Volumes and logs.
    pub(super) folders: bool,
}

/// Uses by the pods' uids; a pod of which nothing runs, so far as was looked, has none.
pub(super) async fn measure(core: &Shared, pods: &[Arc<Pod>], need: Need) -> HashMap<String, PodUse> {
    let stats = if need.containers {
        // One pod is asked for by name: the runtime asks every container that it is to tell of.
        let only = if let [one] = pods { Some(pod::uid(one)) } else { None };
        match stats(core, only.as_deref()).await {
            Ok(stats) => stats,
            Err(error) => {
                tracing::warn!(error = %error.text(), "use of containers not known");
                Vec::new()
            }
        }
    } else {
        Vec::new()
    };
    let (core, pods) = (core.clone(), pods.to_vec());
    let work = move || {
        let mut uses = HashMap::new();
        for target in &pods {
            if let Some(found) = look(&core, target, need) {
                uses.insert(pod::uid(target), found);
            }
        }
        for stat in &stats {
            add(&mut uses, stat);
        }
        Ok(uses)
    };
    volumes::blocking(work).await.unwrap_or_default()
}

async fn stats(core: &Shared, only: Option<&str>) -> Result<Vec<cri::ContainerStats>, Error> {
    let filter = only.map(|uid| cri::ContainerStatsFilter {
        label_selector: HashMap::from([(keys::POD_UID.to_owned(), uid.to_owned())]),
        ..Default::default()
    });
    let request = cri::ListContainerStatsRequest { filter };
    Ok(core.runtime.cri().list_container_stats(request).await?.into_inner().stats)
}

fn add(uses: &mut HashMap<String, PodUse>, stat: &cri::ContainerStats) {
    let Some(attributes) = &stat.attributes else { return };
    let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
    let Some(found) = uses.get_mut(&label(keys::POD_UID)) else { return };
    let whole = |value: &cri::UInt64Value| i64::try_from(value.value).unwrap_or(i64::MAX);
    let used = found.containers.entry(label(keys::CONTAINER_NAME)).or_default();
    // Dead ones are listed too, without memory; their layers are on the disk all the same.
    let memory = stat.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref()).map(whole);
    used.memory = used.memory.max(memory);
    if let Some(layer) = &stat.writable_layer {
        *used.layer.get_or_insert_default() += Space {
            bytes: layer.used_bytes.as_ref().map_or(0, whole),
            inodes: layer.inodes_used.as_ref().map_or(0, whole),
        };
    }
}

fn look(core: &Shared, target: &Pod, need: Need) -> Option<PodUse> {
    let uid = pod::uid(target);
    let dir = core.config.pod_dir(&uid);
    let mut found = PodUse::default();
    if need.groups {
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        found.memory = Some(whole(core.cgroups.pod_usage(target)?.working_set));
        found.processes = core.cgroups.processes(target).map_or(0, whole);
    } else if !dir.exists() {
        return None;
    }
    if need.folders {
        for volume in target.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Some(plugin) = plugin_on_disk(volume) {
                let folder = dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name);
                found.volumes.insert(volume.name.clone(), space(&folder));
            }
        }
        found.other = space(&dir.join("etc-hosts"));
        let logs = core.config.pod_log_dir(pod::namespace(target), pod::name(target), &uid);
        for folder in std::fs::read_dir(logs).into_iter().flatten().flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            found.containers.entry(name).or_default().logs = space(&folder.path());
        }
    }
    Some(found)
}

/// Upstream's `IsLocalEphemeralVolume`: a volume that the pod's own storage counts.
fn plugin_on_disk(volume: &Volume) -> Option<&'static str> {
    if let Some(source) = &volume.empty_dir {
        return source.medium.as_deref().unwrap_or("").is_empty().then_some("empty-dir");
    }
    volume.config_map.is_some().then_some("configmap")
}

/// What a folder, or a file, takes on its disk: other disks that are mounted below it and links count as they
/// do for `du -x`; what goes while it is counted is not there.
pub(super) fn space(path: &Path) -> Space {
    let mut sum = Space::default();
    let Ok(top) = path.symlink_metadata() else { return sum };
    let mut linked: HashSet<u64> = HashSet::new();
    let mut waiting = vec![(path.to_path_buf(), top.clone())];
    while let Some((path, meta)) = waiting.pop() {
        if meta.dev() != top.dev() || (!meta.is_dir() && meta.nlink() > 1 && !linked.insert(meta.ino())) {
            continue;
        }
        sum +=
            Space { bytes: i64::try_from(meta.blocks().saturating_mul(512)).unwrap_or(i64::MAX), inodes: 1 };
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                // Of the entry itself, wherever a link points to.
                if let Ok(meta) = entry.metadata() {
                    waiting.push((entry.path(), meta));
                }
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_folder_takes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let below = dir.path().join("below");
        std::fs::create_dir(&below).expect("made");
        let empty = space(dir.path());
        assert_eq!(empty.inodes, 2);
        std::fs::write(below.join("file"), vec![1_u8; 64 << 10]).expect("written");
        std::fs::hard_link(below.join("file"), dir.path().join("same")).expect("linked");
        std::os::unix::fs::symlink("/usr", below.join("elsewhere")).expect("linked");
        // A hole takes nothing.
        std::fs::File::create(dir.path().join("hole")).expect("made").set_len(1 << 30).expect("long");
        let full = space(dir.path());
        assert_eq!(full.inodes, 5);
        let more = full.bytes - empty.bytes;
        assert!((64 << 10..1 << 20).contains(&more), "{more}");
        assert_eq!(space(&dir.path().join("nothing")), Space::default());
    }

    #[test]
    fn statistics_go_to_their_pods() {
        let stat = |uid: &str, name: &str, memory: Option<u64>, layer: u64| {
            let value = |value: u64| Some(cri::UInt64Value { value });
            cri::ContainerStats {
                attributes: Some(cri::ContainerAttributes {
                    labels: [(keys::POD_UID, uid), (keys::CONTAINER_NAME, name)]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                    ..Default::default()
                }),
                memory: memory
                    .map(|bytes| cri::MemoryUsage { working_set_bytes: value(bytes), ..Default::default() }),
                writable_layer: Some(cri::FilesystemUsage {
                    used_bytes: value(layer),
                    inodes_used: value(1),
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        let mut uses = HashMap::from([("1".to_owned(), PodUse::default())]);
        for stat in [stat("1", "a", Some(10), 100), stat("1", "a", None, 50), stat("2", "a", Some(5), 5)] {
            add(&mut uses, &stat);
        }
        let layer = Some(Space { bytes: 150, inodes: 2 });
        assert_eq!(
            uses["1"].containers["a"],
            ContainerUse { memory: Some(10), layer, logs: Space::default() }
        );
        assert_eq!(uses.len(), 1);
    }
}
