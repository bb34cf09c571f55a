//! The folders of volumes: made, and removed with all that is in them.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use kedge_client::Error;

/// Pods of any user write to their volume: the runtime mounts it for them as root.
const MODE: u32 = 0o777;
/// Other users of the host do not get through the folder above.
const ROOT_MODE: u32 = 0o700;

const PROBE: &str = ".kedge-probe";

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::other(format!("{doing} {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::other(format!("the work on a folder was broken off: {error}")))?
}

/// The folder that holds all is there, can be written, and is closed to other users of the host. One that holds
/// something else as well is somebody's own, and stays as it is.
pub(crate) async fn check(root: &Path) -> Result<(), Error> {
    let root = root.to_owned();
    blocking(move || {
        if let Some(parent) = root.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed("make", parent, &error))?;
        }
        match DirBuilder::new().mode(ROOT_MODE).create(&root) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed("make", &root, &error)),
            _ => {}
        }
        if !holds_volumes_only(&root).map_err(|error| failed("read", &root, &error))? {
            tracing::warn!(
                folder = %root.display(),
                "the folder holds more than volumes, so its mode stays: whoever may enter it reaches the data of all \
                 volumes"
            );
        } else if let Err(error) = std::fs::set_permissions(&root, Permissions::from_mode(ROOT_MODE)) {
            // As on a network's file system that belongs to somebody else.
            tracing::warn!(
                folder = %root.display(), %error,
                "the folder cannot be closed to other users: whoever may enter it reaches the data of all volumes"
            );
        }
        let probe = root.join(PROBE);
        std::fs::write(&probe, b"").map_err(|error| failed("write to", &probe, &error))?;
        std::fs::remove_file(&probe).map_err(|error| failed("remove", &probe, &error))
    })
    .await
}

/// What was just made, or what volumes were made in before; a file system of its own has lost+found.
fn holds_volumes_only(root: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.contains("-pvc-") && ![PROBE, "lost+found"].contains(&&*name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `NAMESPACE-CLAIM-VOLUME`: people find their data by it.
pub(crate) fn name(namespace: &str, claim: &str, volume: &str) -> String {
    let mut readable = format!("{namespace}-{claim}");
    // A file's name has at most 255 bytes.
    readable.truncate(254 - volume.len().min(200));
    format!("{readable}-{volume}")
}

/// Makes it; one that is there already is taken.
pub(crate) async fn make(path: PathBuf) -> Result<(), Error> {
    blocking(move || {
        match DirBuilder::new().mode(MODE).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(failed("make", &path, &error));
            }
            _ => {}
        }
        // The umask took something away.
        std::fs::set_permissions(&path, Permissions::from_mode(MODE))
            .map_err(|error| failed("set the mode of", &path, &error))
    })
    .await
}

/// Whether the path is a volume's folder directly below the root: nothing else is ever removed.
pub(crate) fn is_ours(root: &Path, path: &Path, volume: &str) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(volume));
    plain && named && !volume.is_empty() && path.parent() == Some(root)
}

/// Removes it; one that is gone is no error. Links in it are removed, never followed.
pub(crate) async fn remove(path: PathBuf) -> Result<(), Error> {
    blocking(move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &path, &error)),
        _ => Ok(()),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_volumes_are_ours() {
        let root = Path::new("/data/storage");
        for (path, ours) in [
            ("/data/storage/ns-claim-pvc-1", true),
            ("/data/storage/ns-claim-pvc-2", false),
            ("/data/storage", false),
            ("/data/storage/a/../ns-claim-pvc-1", false),
            ("/data/storage/a/ns-claim-pvc-1", false),
            ("/etc/pvc-1", false),
        ] {
            assert_eq!(is_ours(root, Path::new(path), "pvc-1"), ours, "{path}");
        }
        assert!(!is_ours(root, Path::new("/data/storage/x"), ""));
    }

    #[tokio::test]
    async fn other_users_of_the_host_do_not_reach_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let new = dir.path().join("new");
        check(&new).await.unwrap();
        assert_eq!(mode(&new), ROOT_MODE);
        // As a version before made it, or the kubelet.
        let open = dir.path().join("open");
        std::fs::create_dir_all(open.join(name("ns", "claim", "pvc-1"))).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        check(&open).await.unwrap();
        assert_eq!(mode(&open), ROOT_MODE);
        std::fs::create_dir(open.join("somebody's")).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        check(&open).await.unwrap();
        assert_eq!(mode(&open), 0o755);
    }

    #[tokio::test]
    async fn folders_are_made_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "kept").unwrap();
        check(&dir.path().join("root")).await.unwrap();
        let path = dir.path().join("root").join(name("ns", &"c".repeat(250), "pvc-1"));
        for _ in 0..2 {
            make(path.clone()).await.unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&outside, path.join("a/link")).unwrap();
        for _ in 0..2 {
            remove(path.clone()).await.unwrap();
        }
        assert!(!path.exists() && outside.exists());
    }
}
