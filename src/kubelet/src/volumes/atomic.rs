//! Files that change all at once: a reader sees the old set or the new one, never a mixture
//! (upstream `pkg/volume/util/atomic_writer.go`).
//!
//! The files lie in a folder of their own; `..data` is a symbolic link to it and every visible name
//! is a link through `..data`. Replacing that one link replaces all files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path};

use super::make_dir;
use crate::Error;

/// One file: its bytes and permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// The user who owns the file; else who writes it.
    pub(crate) owner: Option<u32>,
}

/// Relative path to file.
pub(crate) type Content = BTreeMap<String, Item>;

/// Make the folder's visible content equal to `content`; nothing is touched when it is already.
pub(crate) fn write(dir: &Path, content: &Content, group: Option<i64>) -> Result<(), Error> {
    for path in content.keys() {
        let parts: Vec<Component<'_>> = Path::new(path).components().collect();
        let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
        if parts.is_empty() || !plain || path.starts_with("..") {
            return Err(Error::other(format!("invalid path in a volume: {path:?}")));
        }
    }
    let data = dir.join("..data");
    let old = std::fs::read_link(&data).ok();
    if let Some(old) = &old
        && is_equal(&dir.join(old), content)
    {
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    let name = format!("..{}.{}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let fresh = dir.join(&name);
    make_dir(&fresh, 0o755)?;
    for (path, item) in content {
        let file = fresh.join(path);
        let failed = |error| Error::io(format!("write {}", file.display()), error);
        if let Some(parent) = file.parent() {
            make_dir(parent, 0o755)?;
        }
        std::fs::write(&file, &item.bytes).map_err(failed)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(item.mode)).map_err(failed)?;
        if let Some(owner) = item.owner {
            std::os::unix::fs::lchown(&file, Some(owner), None).map_err(failed)?;
        }
    }
    if let Some(group) = group {
        give_to_group(&fresh, group, false)?;
    }
    let failed = |error| Error::io(format!("write {}", dir.display()), error);
    let temporary = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&temporary);
    std::os::unix::fs::symlink(&name, &temporary).map_err(failed)?;
    std::fs::rename(&temporary, &data).map_err(failed)?;
    let visible: BTreeSet<&str> = content.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &visible {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), &link).map_err(failed)?;
        }
    }
    for entry in std::fs::read_dir(dir).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !visible.contains(name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(dir.join(old));
    }
    Ok(())
}

fn is_equal(dir: &Path, content: &Content) -> bool {
    let mut count = 0;
    if !count_files(dir, &mut count) || count != content.len() {
        return false;
    }
    content.iter().all(|(path, item)| {
        let file = dir.join(path);
        let same_mode =
            std::fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o700 == item.mode & 0o700);
        same_mode && std::fs::read(&file).is_ok_and(|bytes| bytes == item.bytes)
    })
}

fn count_files(dir: &Path, count: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            if !count_files(&entry.path(), count) {
                return false;
            }
        } else {
            *count += 1;
        }
    }
    true
}

/// `fsGroup`: the group owns everything, new files inherit it, and it may read (and write).
pub(crate) fn give_to_group(path: &Path, group: i64, writable: bool) -> Result<(), Error> {
    let failed = |error| Error::io(format!("give {} to group {group}", path.display()), error);
    let gid = u32::try_from(group).map_err(|_| Error::other(format!("fsGroup {group} is out of range")))?;
    let meta = std::fs::symlink_metadata(path).map_err(failed)?;
    if meta.gid() != gid {
        std::os::unix::fs::lchown(path, None, Some(gid)).map_err(failed)?;
    }
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = meta.permissions().mode() | if writable { 0o660 } else { 0o440 };
    if meta.is_dir() {
        mode |= 0o2110;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)?.flatten() {
            give_to_group(&entry.path(), group, writable)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(files: &[(&str, &str)]) -> Content {
        let item = |text: &str| Item { bytes: text.as_bytes().to_vec(), mode: 0o644, owner: None };
        files.iter().map(|(path, text)| ((*path).to_owned(), item(text))).collect()
    }

    #[test]
    fn replaces_all_files_at_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        write(dir.path(), &content(&[("a", "1"), ("d/b", "2")]), None).expect("written");
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        let before = std::fs::read_link(dir.path().join("..data")).expect("a link");
        write(dir.path(), &content(&[("a", "1"), ("d/b", "2")]), None).expect("written");
        assert_eq!(
            std::fs::read_link(dir.path().join("..data")).ok(),
            Some(before.clone()),
            "nothing changed"
        );
        write(dir.path(), &content(&[("a", "3"), ("c", "4")]), None).expect("written");
        assert_eq!((read("a").as_deref(), read("c").as_deref()), (Some("3"), Some("4")));
        assert!(read("d/b").is_none() && !dir.path().join(before).exists());
        for bad in ["../x", "/x", "a/../b", "..data"] {
            assert!(write(dir.path(), &content(&[(bad, "x")]), None).is_err(), "{bad}");
        }
    }
}
