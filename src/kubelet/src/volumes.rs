//! The volumes of a pod: made before its containers, updated while they run, removed after them
//! (upstream `pkg/volume/*`, without its plugin machinery).
//!
//! A volume lives in `pods/UID/volumes/PLUGIN/NAME` below the kubelet's root folder. Secrets and
//! tokens are kept in memory file systems, never on a disk.

mod atomic;
mod content;
mod host_path;
mod mounts;
mod tokens;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume,
};
use tokio::time::Instant;

use crate::core::Core;
use crate::objects::Source;
use crate::{Error, pod, resources};

pub(crate) use mounts::{sub_path, unmount_below};
pub(crate) use tokens::Tokens;

/// The pod's volumes are on the host now.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) paths: HashMap<String, PathBuf>,
    /// A token has to be renewed then.
    pub(crate) refresh_at: Option<Instant>,
}

/// Make or update all volumes that the pod's containers use. Errors name the volume.
pub(crate) async fn set_up(core: &Core, target: &Pod, pod_ips: &[String]) -> Result<Ready, Error> {
    let mut ready = Ready::default();
    let spec = pod::spec(target);
    for volume in spec.volumes.iter().flatten() {
        match set_up_one(core, target, volume, pod_ips, &mut ready.refresh_at).await {
            Ok(path) => {
                ready.paths.insert(volume.name.clone(), path);
            }
            Err(error) => {
                return Err(Error::other(format!(
                    "MountVolume.SetUp failed for volume {:?} : {}",
                    volume.name,
                    error.text()
                )));
            }
        }
    }
    Ok(ready)
}

/// Volumes whose content the kubelet writes are read-only for containers, as upstream.
pub(crate) fn always_read_only(target: &Pod, name: &str) -> bool {
    let spec = pod::spec(target);
    let volumes = spec.volumes.unwrap_or_default();
    volumes.iter().filter(|volume| volume.name == name).any(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
            || volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true))
    })
}

fn dir_of(core: &Core, target: &Pod, plugin: &str, name: &str) -> PathBuf {
    core.config.pod_dir(&pod::uid(target)).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
}

async fn set_up_one(
    core: &Core,
    target: &Pod,
    volume: &Volume,
    pod_ips: &[String],
    refresh_at: &mut Option<Instant>,
) -> Result<PathBuf, Error> {
    let name = volume.name.as_str();
    let group = pod::spec(target).security_context.and_then(|context| context.fs_group);
    if let Some(source) = &volume.empty_dir {
        let dir = dir_of(core, target, "empty-dir", name);
        let (source, limit, target_dir) = (source.clone(), memory_limit(target), dir.clone());
        blocking(move || empty_dir(&target_dir, &source, limit, group)).await?;
        return Ok(dir);
    }
    if let Some(source) = &volume.host_path {
        let source = source.clone();
        return blocking(move || host_path::check(&source)).await;
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        return claimed(core, target, &claim.claim_name).await;
    }
    if volume.ephemeral.is_some() {
        return claimed(core, target, &format!("{}-{name}", pod::name(target))).await;
    }
    let (plugin, in_memory) = if volume.config_map.is_some() {
        ("configmap", false)
    } else if volume.secret.is_some() {
        ("secret", true)
    } else if volume.downward_api.is_some() {
        ("downward-api", true)
    } else if volume.projected.is_some() {
        ("projected", true)
    } else {
        return Err(Error::other(format!("no volume plugin matched: {}", kind_of(volume))));
    };
    let content = content::of(core, target, volume, pod_ips, refresh_at).await?;
    let dir = dir_of(core, target, plugin, name);
    let target_dir = dir.clone();
    blocking(move || {
        make_dir(&target_dir, 0o755)?;
        if in_memory && !mounts::is_tmpfs(&target_dir)? {
            mounts::tmpfs(&target_dir, None, 0o755)?;
        }
        atomic::write(&target_dir, &content, group)
    })
    .await?;
    Ok(dir)
}

/// The field that is set, for the error about a volume that is not supported here.
fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let fields = value.as_object().cloned().unwrap_or_default();
    fields.keys().find(|key| *key != "name").cloned().unwrap_or("no source given".to_owned())
}

/// The limit of a memory volume without its own size: what all containers together may use.
fn memory_limit(target: &Pod) -> Option<i64> {
    resources::pod_limit(target, "memory").filter(|limit| *limit > 0)
}

fn empty_dir(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    limit: Option<i64>,
    group: Option<i64>,
) -> Result<(), Error> {
    let existed = dir.exists();
    make_dir(dir, 0o777)?;
    if source.medium.as_deref() == Some("Memory") {
        if !mounts::is_tmpfs(dir)? {
            let own = source.size_limit.as_ref().map(resources::value).filter(|size| *size > 0);
            let size = match (own, limit) {
                (Some(own), Some(limit)) => Some(own.min(limit)),
                (own, limit) => own.or(limit),
            };
            // The kernel's own mode for it, as upstream leaves it.
            mounts::tmpfs(dir, size, 0o1777)?;
        }
    } else if let Some(medium) = source.medium.as_deref().filter(|medium| !medium.is_empty()) {
        return Err(Error::other(format!("storage medium {medium:?} is not supported on this node")));
    }
    if !existed && let Some(group) = group {
        atomic::give_to_group(dir, group, true)?;
    }
    Ok(())
}

/// Like `mkdir -p`, with the mode set whatever the umask says.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> Result<(), Error> {
    let failed = |error| Error::io(format!("make folder {}", dir.display()), error);
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(failed)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// A bound claim on a volume that is a folder of this node; how full it is will be told.
async fn claimed(core: &Core, target: &Pod, claim_name: &str) -> Result<PathBuf, Error> {
    let path = folder_of_claim(core, target, claim_name).await?;
    core.metrics.claimed(&pod::uid(target), claim_name, path.clone());
    Ok(path)
}

async fn folder_of_claim(core: &Core, target: &Pod, claim_name: &str) -> Result<PathBuf, Error> {
    let namespace = pod::namespace(target);
    let claims = kube::Api::<PersistentVolumeClaim>::namespaced(core.client.clone(), namespace);
    let claim = claims.get_opt(claim_name).await?.ok_or_else(|| {
        Error::other(format!(
            "error processing PVC {namespace}/{claim_name}: persistentvolumeclaim {claim_name:?} not found"
        ))
    })?;
    let phase = claim.status.and_then(|status| status.phase).unwrap_or_default();
    let spec = claim.spec.unwrap_or_default();
    let volume_name = spec.volume_name.unwrap_or_default();
    if phase != "Bound" || volume_name.is_empty() {
        return Err(Error::other(format!("error processing PVC {namespace}/{claim_name}: PVC is not bound")));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Error::other(format!(
            "PVC {namespace}/{claim_name}: raw block volumes are not supported on this node"
        )));
    }
    let volumes = kube::Api::<PersistentVolume>::all(core.client.clone());
    let volume = volumes.get(&volume_name).await?;
    let spec = volume.spec.unwrap_or_default();
    if let Some(source) = spec.host_path {
        return blocking(move || host_path::check(&source)).await;
    }
    if let Some(local) = spec.local {
        let path = PathBuf::from(&local.path);
        return if path.is_dir() {
            Ok(path)
        } else {
            Err(Error::other(format!("path {:?} does not exist", local.path)))
        };
    }
    Err(Error::other(format!(
        "volume {volume_name}: only hostPath and local volumes are supported on this node"
    )))
}

/// The ConfigMap or Secret that a volume names, in the pod's namespace.
fn source(target: &Pod, secret: bool, name: &str) -> Source {
    Source { secret, namespace: pod::namespace(target).to_owned(), name: name.to_owned() }
}

/// File work may block on a slow disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::other(format!("file work ended abnormally: {error}"))),
    }
}

/// Unmount and remove everything of the pod below the kubelet's root folder.
pub(crate) async fn remove(core: &Core, uid: &str) -> Result<(), Error> {
    if uid.is_empty() {
        return Ok(());
    }
    let dir = core.config.pod_dir(uid);
    blocking(move || {
        if !dir.exists() {
            return Ok(());
        }
        unmount_below(&dir)?;
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", dir.display()), error))
            }
            _ => Ok(()),
        }
    })
    .await
}
