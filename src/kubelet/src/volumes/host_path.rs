//! hostPath volumes: the checks that their type asks for (upstream `pkg/volume/hostpath`).

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::make_dir;
use crate::Error;

/// The path, when it is of the wanted type; made first for the types that say so.
pub(crate) fn check(source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() {
        return Err(Error::other(format!("hostPath {:?} is not absolute", source.path)));
    }
    let kind = source.type_.as_deref().unwrap_or("");
    match kind {
        // The runtime makes a missing folder.
        "" => {
            if !path.exists() {
                make_dir(&path, 0o755)?;
            }
            return Ok(path);
        }
        "DirectoryOrCreate" if !path.exists() => {
            make_dir(&path, 0o755)?;
        }
        "FileOrCreate" if !path.exists() => {
            std::fs::File::create(&path)
                .map_err(|error| Error::io(format!("make file {}", path.display()), error))?;
        }
        _ => {}
    }
    let found = std::fs::metadata(&path).map(|meta| meta.file_type());
    let (fits, name) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_ok_and(|kind| kind.is_dir()), "directory"),
        "File" | "FileOrCreate" => (found.is_ok_and(|kind| kind.is_file()), "file"),
        "Socket" => (found.is_ok_and(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => (found.is_ok_and(|kind| kind.is_char_device()), "character device"),
        "BlockDevice" => (found.is_ok_and(|kind| kind.is_block_device()), "block device"),
        other => return Err(Error::other(format!("{other} is an invalid volume type"))),
    };
    if fits {
        Ok(path)
    } else {
        Err(Error::other(format!("hostPath type check failed: {} is not a {name}", source.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for (kind, name, good) in [
            ("Directory", "missing", false),
            ("DirectoryOrCreate", "made", true),
            ("Directory", "made", true),
            ("File", "made", false),
            ("FileOrCreate", "file", true),
            ("Socket", "file", false),
            ("", "anything", true),
            ("Strange", "file", false),
        ] {
            let source = HostPathVolumeSource { path: path(name), type_: Some(kind.into()) };
            assert_eq!(check(&source).is_ok(), good, "{kind} {name}");
        }
    }
}
