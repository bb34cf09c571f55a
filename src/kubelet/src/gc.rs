//! What nobody needs any more: containers, sandboxes, folders and cgroups of pods that are gone,
//! images when the disk fills, and logs that have grown too big.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::Shared;
use crate::runtime::keys;
use crate::{pod, pod_logs, volumes};

/// Logs are looked at once a minute, while containers run.
const LOG_PERIOD: Duration = Duration::from_secs(60);
const LOG_SIZE: u64 = 10 << 20;
/// Files of a container's log, the current one included.
const LOG_FILES: usize = 5;
/// Images are looked at every fifth time.
const IMAGE_TURN: u32 = 5;

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
    // Of pods that had no sandbox any more when they were deleted.
    pod_logs::remove(&core.config.log_notes_dir(), &core.config.log_dir, &|uid| !is_known(uid));
    core.cgroups.remove_orphans(&is_known);
}

/// The regular work.
pub(crate) async fn run(core: Shared) {
    for turn in 0_u32.. {
        if turn.is_multiple_of(IMAGE_TURN)
            && let Err(error) = core.collector.lock().await.run(&core, None).await
        {
            tracing::warn!(error = %error.text(), "images not collected");
        }
        tokio::time::sleep(LOG_PERIOD).await;
        rotate_logs(&core).await;
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
