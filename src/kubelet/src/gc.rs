//! What nobody needs any more: containers, sandboxes, folders and cgroups of pods that are gone,
//! images when the disk fills, and logs that have grown too big.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::Shared;
use crate::runtime::keys;
use crate::{pod, volumes};

/// Logs are looked at once a minute, while containers run.
const LOG_PERIOD: Duration = Duration::from_secs(60);
const LOG_SIZE: u64 = 10 << 20;
/// Files of a container's log, the current one included.
const LOG_FILES: usize = 5;
/// Images are removed from this use of the disk on, until it is below the second value.
const IMAGE_HIGH: f64 = 0.85;
const IMAGE_LOW: f64 = 0.80;

/// Stops and removes what belongs to pods that the API server no longer has.
pub(crate) async fn remove_orphans(core: &Shared) {
    let known: HashSet<String> = core.pods.list().iter().map(|pod| pod::uid(pod)).collect();
    let is_known = |uid: &str| known.contains(uid) || core.workers.contains(uid);
    match core.runtime.list_sandboxes().await {
        Ok(sandboxes) => {
            for sandbox in sandboxes {
                let Some(uid) = sandbox.labels.get(keys::POD_UID).filter(|uid| !is_known(uid)) else {
                    continue;
                };
                tracing::info!(
                    pod = sandbox.labels.get(keys::POD_NAME),
                    uid,
                    "removing what is left of a deleted pod"
                );
                let stopped = core.runtime.stop_sandbox(&sandbox.id).await;
                if let Err(error) = stopped {
                    tracing::warn!(sandbox = sandbox.id, error = %error.text(), "orphaned sandbox not stopped");
                    continue;
                }
                let _ = core.runtime.remove_sandbox(&sandbox.id).await;
                // Other nodes of this machine may keep their logs in the same folder: only what was
                // ours is removed.
                let label = |key: &str| sandbox.labels.get(key).cloned().unwrap_or_default();
                let dir = core.config.pod_log_dir(&label(keys::POD_NAMESPACE), &label(keys::POD_NAME), uid);
                let _ = std::fs::remove_dir_all(dir);
            }
        }
        Err(error) => tracing::warn!(error = %error.text(), "orphaned pods not looked for"),
    }
    for entry in std::fs::read_dir(core.config.pods_dir()).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if !is_known(&uid)
            && let Err(error) = volumes::remove(core, &uid).await
        {
            tracing::warn!(uid, error = %error.text(), "orphaned volumes not removed");
        }
    }
    core.cgroups.remove_orphans(&is_known);
}

/// The regular work.
pub(crate) async fn run(core: Shared) {
    loop {
        tokio::time::sleep(LOG_PERIOD).await;
        rotate_logs(&core).await;
        if let Err(error) = collect_images(&core).await {
            tracing::warn!(error = %error.text(), "images not collected");
        }
    }
}

async fn rotate_logs(core: &Shared) {
    for target in core.workers.pods() {
        let uid = pod::uid(&target);
        let dir = core.config.pod_log_dir(pod::namespace(&target), pod::name(&target), &uid);
        let Ok(big) = volumes::blocking(move || Ok(big_logs(&dir))).await else { continue };
        if big.is_empty() {
            continue;
        }
        let Ok(real) = core.runtime.pod(&uid).await else { continue };
        for log in big {
            let running = real
                .containers
                .iter()
                .find(|c| c.is_running() && log.ends_with(format!("{}/{}.log", c.name, c.restart_count)));
            let Some(container) = running else { continue };
            if let Err(error) = shift(&log) {
                tracing::warn!(log = %log.display(), %error, "log not rotated");
                continue;
            }
            let asked = k8s_cri::v1::ReopenContainerLogRequest { container_id: container.id.clone() };
            if let Err(status) = core.runtime.cri().reopen_container_log(asked).await {
                tracing::warn!(log = %log.display(), error = %status, "log not opened again");
            }
        }
    }
}

fn big_logs(dir: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "log"))
        .filter(|file| file.metadata().is_ok_and(|meta| meta.len() > LOG_SIZE))
        .map(|file| file.path())
        .collect()
}

/// `0.log` becomes `0.log.TIME`; the oldest files go.
fn shift(log: &Path) -> std::io::Result<()> {
    let name = log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    std::fs::rename(log, log.with_file_name(format!("{name}.{time}")))?;
    let Some(dir) = log.parent() else { return Ok(()) };
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}.")))
        })
        .collect();
    old.sort();
    while old.len() >= LOG_FILES {
        std::fs::remove_file(old.remove(0))?;
    }
    Ok(())
}

/// Removes unused images when the disk that holds them is nearly full.
async fn collect_images(core: &Shared) -> Result<(), crate::Error> {
    let info = core.runtime.images().image_fs_info(k8s_cri::v1::ImageFsInfoRequest {}).await?.into_inner();
    let Some(mountpoint) =
        info.image_filesystems.first().and_then(|fs| fs.fs_id.clone()).map(|id| id.mountpoint)
    else {
        return Ok(());
    };
    let used = || {
        let stat = nix::sys::statvfs::statvfs(mountpoint.as_str()).ok()?;
        (stat.blocks() > 0).then(|| 1.0 - stat.blocks_available() as f64 / stat.blocks() as f64)
    };
    if used().is_none_or(|share| share < IMAGE_HIGH) {
        return Ok(());
    }
    let containers = core.runtime.list_containers(None).await?;
    let in_use: HashSet<String> = containers
        .into_iter()
        .flat_map(|c| [c.image_ref, c.image_id, c.image.map(|image| image.image).unwrap_or_default()])
        .collect();
    let mut images = core.images.list().await?;
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    for image in images {
        let pause = image.repo_tags.iter().any(|tag| tag == &core.config.pause_image);
        let kept = image.pinned || pause || in_use.contains(&image.id);
        let named = image.repo_tags.iter().chain(&image.repo_digests).any(|name| in_use.contains(name));
        if kept || named {
            continue;
        }
        tracing::info!(
            image = image.id,
            size = image.size,
            "removing an unused image, the disk is nearly full"
        );
        core.images.remove(&image.id).await?;
        if used().is_none_or(|share| share < IMAGE_LOW) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("0.log");
        for old in ["1", "2", "3", "4", "5"] {
            std::fs::write(dir.path().join(format!("0.log.2020010{old}-000000")), "x").expect("written");
        }
        std::fs::write(&log, "new").expect("written");
        shift(&log).expect("shifted");
        let count = std::fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(count, LOG_FILES - 1);
        assert!(!log.exists() && !dir.path().join("0.log.20200101-000000").exists());
    }
}
