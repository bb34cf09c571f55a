//! Mounts below the kubelet's folder: memory file systems and sub-paths.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use kedge_base::Order as _;
use nix::mount::{MntFlags, MsFlags};

use super::make_dir;
use crate::Error;

pub(crate) fn tmpfs(dir: &Path, size: Option<i64>, mode: u32) -> Result<(), Error> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    nix::mount::mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|errno| Error::io(format!("mount tmpfs on {}", dir.display()), errno.into()))
}

/// All mount points of this mount namespace.
fn mount_points() -> Result<Vec<PathBuf>, Error> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::io("read /proc/self/mountinfo", error))?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// The kernel writes blanks and the like as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match octal {
            Some(byte) => {
                result.push(byte);
                at += 4;
            }
            None => {
                result.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(result))
}

/// Whether [`tmpfs`] was mounted there: a file system of its own begins. Asked for each volume whenever its
/// content is looked at, and the table of mounts is long on a node with many pods.
pub(crate) fn is_tmpfs(dir: &Path) -> Result<bool, Error> {
    let device = |path: &Path| {
        let found = std::fs::symlink_metadata(path);
        found
            .map(|found| found.dev())
            .map_err(|error| Error::io(format!("look at {}", path.display()), error))
    };
    Ok(device(dir)? != device(&dir.join(".."))?)
}

/// Unmounts everything below `dir`, the deepest first. Fails when something stays mounted, so that
/// nobody removes files behind a mount.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), Error> {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let below = || -> Result<Vec<PathBuf>, Error> {
        let mut points = mount_points()?;
        points.retain(|point| point.starts_with(&real));
        points.order_by_key(|point| std::cmp::Reverse(point.components().count()));
        Ok(points)
    };
    let found = below()?;
    if found.is_empty() {
        return Ok(());
    }
    for point in found {
        if let Err(errno) = nix::mount::umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            tracing::debug!(path = %point.display(), %errno, "not unmounted");
        }
    }
    match below()?.first() {
        Some(point) => Err(Error::other(format!("{} is still mounted", point.display()))),
        None => Ok(()),
    }
}

/// Makes `sub` inside the volume available at `mount_at` and returns that path.
///
/// The content of a volume belongs to containers, which may swap a folder for a symbolic link at
/// any time. So the resolved path is opened part by part without following links and what was
/// opened is bind-mounted (upstream `pkg/volume/util/subpath`).
pub(crate) fn sub_path(volume: &Path, sub: &str, mount_at: &Path) -> Result<PathBuf, Error> {
    let relative = Path::new(sub);
    if relative.is_absolute() || relative.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(Error::other(format!("subPath {sub:?} must be relative and must not contain '..'")));
    }
    let root = volume
        .canonicalize()
        .map_err(|error| Error::io(format!("resolve volume {}", volume.display()), error))?;
    let wanted = root.join(relative);
    if !wanted.exists() {
        // What exists of it must already lie inside the volume.
        let mut existing = wanted.as_path();
        while !existing.exists() {
            existing = existing.parent().unwrap_or(&root);
        }
        make_missing(&root, existing, &wanted)?;
    }
    let real = inside(&root, &wanted)?;
    let opened = open_without_links(&root, &real)?;
    let is_dir = opened.metadata().map_err(|error| Error::io("look at the sub-path", error))?.is_dir();
    if mount_at.exists() {
        unmount_below(mount_at)?;
    }
    if is_dir {
        make_dir(mount_at, 0o750)?;
    } else {
        if let Some(dir) = mount_at.parent() {
            make_dir(dir, 0o750)?;
        }
        File::create(mount_at).map_err(|error| Error::io(format!("make {}", mount_at.display()), error))?;
    }
    let from = format!("/proc/self/fd/{}", opened.as_raw_fd());
    nix::mount::mount(
        Some(from.as_str()),
        mount_at,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|errno| Error::io(format!("bind mount on {}", mount_at.display()), errno.into()))?;
    Ok(mount_at.to_path_buf())
}

fn inside(root: &Path, path: &Path) -> Result<PathBuf, Error> {
    let real =
        path.canonicalize().map_err(|error| Error::io(format!("resolve {}", path.display()), error))?;
    if real.starts_with(root) {
        Ok(real)
    } else {
        Err(Error::other(format!("subpath {real:?} not within volume path {root:?}")))
    }
}

/// Makes the folders of `wanted` below `existing`, with the volume's own mode: who may write to the volume may
/// write there (a group by `fsGroup`, whatever the umask is).
fn make_missing(root: &Path, existing: &Path, wanted: &Path) -> Result<(), Error> {
    let volume = root.metadata().map_err(|error| Error::io(format!("look at {}", root.display()), error))?;
    let mode = volume.permissions().mode() & 0o7777;
    let mut current = open_without_links(root, &inside(root, existing)?)?;
    for part in wanted.strip_prefix(existing).unwrap_or(Path::new("")).components() {
        let path = descriptor(&current).join(part);
        let failed = |error| Error::io(format!("make folder {}", wanted.display()), error);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        current = open_no_link(&path, wanted)?;
        std::fs::set_permissions(descriptor(&current), Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}

/// Leads to an open file whatever its name is by now.
fn descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// `of` is what an error names.
fn open_no_link(path: &Path, of: &Path) -> Result<File, Error> {
    // O_PATH: neither reading nor a device's side effects.
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    let kind = opened.metadata().map_err(|error| Error::io("look at the sub-path", error))?.file_type();
    if kind.is_symlink() {
        return Err(Error::other(format!("{} became a symbolic link", of.display())));
    }
    Ok(opened)
}

fn open_without_links(root: &Path, real: &Path) -> Result<File, Error> {
    let mut current = open_no_link(root, root)?;
    let rest = real.strip_prefix(root).unwrap_or(Path::new(""));
    for part in rest.components() {
        current = open_no_link(&descriptor(&current).join(part), real)?;
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape(r"/plain\9"), PathBuf::from(r"/plain\9"));
    }

    #[test]
    fn a_file_system_of_its_own_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_tmpfs(dir.path()).expect("looked"));
        assert!(is_tmpfs(Path::new("/proc")).expect("looked"));
        assert!(is_tmpfs(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn sub_paths_may_not_leave_the_volume() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).expect("a folder");
        std::os::unix::fs::symlink("/etc", volume.join("link")).expect("a link");
        let at = dir.path().join("at");
        for sub in ["../x", "/etc", "link", "link/passwd", "a/../../x"] {
            assert!(sub_path(&volume, sub, &at).is_err(), "{sub}");
        }
    }

    #[test]
    fn new_folders_have_the_mode_of_the_volume() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().canonicalize().expect("a real path");
        std::fs::set_permissions(&root, Permissions::from_mode(0o3777)).expect("set");
        std::os::unix::fs::symlink("/nowhere", root.join("dangling")).expect("a link");
        make_missing(&root, &root, &root.join("a/b")).expect("made");
        for made in ["a", "a/b"] {
            let mode = root.join(made).metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o3777, "{made}");
        }
        assert!(make_missing(&root, &root, &root.join("dangling/x")).is_err());
    }

    #[test]
    fn opening_refuses_links() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().canonicalize().expect("a real path");
        std::fs::create_dir(root.join("a")).expect("a folder");
        std::os::unix::fs::symlink("/etc", root.join("a/b")).expect("a link");
        assert!(open_without_links(&root, &root.join("a")).is_ok());
        assert!(open_without_links(&root, &root.join("a/b")).is_err());
        assert!(open_without_links(&root, &root.join("a/b/passwd")).is_err());
    }
}
