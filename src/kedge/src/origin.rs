//! Where this binary came from: `install.sh`, a Debian package or a snap. It decides who owns the binary and
//! the service's unit, and so what `install` writes and `uninstall` removes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where `install` puts a binary that no package owns.
const OWN_BINARY: &str = "/usr/local/bin/kedge";
/// The unit that `install` writes for the machine's first node when no package owns one.
const OWN_UNIT: &str = "/etc/systemd/system/kedge.service";
const PACKAGED_BINARY: &str = "/usr/bin/kedge";
/// Where packages put units; the second is the same folder on a merged-/usr system.
const PACKAGED_UNITS: [&str; 2] =
    ["/usr/lib/systemd/system/kedge.service", "/lib/systemd/system/kedge.service"];

/// Who owns the binary's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Kedge itself: `install` copies the binary and writes the unit.
    Own,
    /// The distribution's package manager.
    Package {
        /// The package's unit.
        unit: PathBuf,
    },
    /// snapd.
    Snap(Snap),
}

/// A snap's names, from the environment that snapd sets (snapcraft.io/docs/environment-variables).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snap {
    /// SNAP_INSTANCE_NAME: `kedge`, or `kedge_X` for a further one.
    pub(crate) instance: String,
    /// SNAP: the read-only tree of one revision.
    pub(crate) tree: PathBuf,
    /// SNAP_COMMON: data of all revisions.
    pub(crate) common: PathBuf,
}

/// The running binary's origin.
pub(crate) fn origin() -> &'static Origin {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    ORIGIN.get_or_init(|| {
        let own = std::env::current_exe().unwrap_or_default();
        let unit = PACKAGED_UNITS.iter().map(PathBuf::from).find(|unit| unit.is_file());
        find(&own, unit, |name| std::env::var(name).ok())
    })
}

fn find(own: &Path, unit: Option<PathBuf>, environment: impl Fn(&str) -> Option<String>) -> Origin {
    let instance = environment("SNAP_INSTANCE_NAME").or_else(|| environment("SNAP_NAME"));
    if let (Some(instance), Some(tree), Some(common)) =
        (instance, environment("SNAP"), environment("SNAP_COMMON"))
    {
        let tree = PathBuf::from(tree);
        // Another snap's environment says nothing about us: a shell inside one may call any kedge.
        if own.starts_with(tree.canonicalize().unwrap_or_else(|_| tree.clone())) {
            return Origin::Snap(Snap { instance, tree, common: common.into() });
        }
    }
    match unit {
        // While a package is being replaced, the kernel adds a word to the old file's name.
        Some(unit) if own.to_string_lossy().trim_end_matches(" (deleted)") == PACKAGED_BINARY => {
            Origin::Package { unit }
        }
        _ => Origin::Own,
    }
}

/// The binary that the service runs.
pub(crate) fn binary() -> PathBuf {
    match origin() {
        Origin::Own => OWN_BINARY.into(),
        Origin::Package { .. } => PACKAGED_BINARY.into(),
        Origin::Snap(snap) => stable(&snap.tree).join("bin/kedge"),
    }
}

/// `current` beside a snap's revisions, when it is this revision: a path that a refresh does not end.
fn stable(tree: &Path) -> PathBuf {
    let current = tree.with_file_name("current");
    match (current.canonicalize(), tree.canonicalize()) {
        (Ok(one), Ok(other)) if one == other => current,
        _ => tree.to_path_buf(),
    }
}

/// A package's `install` takes over from `install.sh`: a unit in /etc would hide the package's, and the
/// binary in /usr/local the package's.
pub(crate) fn take_over() -> io::Result<()> {
    match fs::read_to_string(OWN_UNIT) {
        Ok(text) if text.contains(OWN_BINARY) => {
            fs::remove_file(OWN_UNIT)?;
            match fs::remove_file(OWN_BINARY) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }
        // Somebody's own unit is left alone: it is how systemd's units are changed.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().canonicalize().unwrap().join("x1");
        fs::create_dir_all(tree.join("bin")).unwrap();
        let (tree_text, inside) = (tree.to_string_lossy().into_owned(), tree.join("bin/kedge"));
        let unit = Some(PathBuf::from(PACKAGED_UNITS[0]));
        let none = |_: &str| None;
        let snap = |name: &str| match name {
            "SNAP_NAME" => Some("kedge".to_owned()),
            "SNAP" => Some(tree_text.clone()),
            "SNAP_COMMON" => Some("/var/snap/kedge/common".to_owned()),
            _ => None,
        };
        let package = Origin::Package { unit: PACKAGED_UNITS[0].into() };
        let snapped =
            Origin::Snap(Snap { instance: "kedge".into(), tree, common: "/var/snap/kedge/common".into() });
        for (own, unit, in_snap, expected) in [
            ("/usr/bin/kedge", unit.clone(), false, &package),
            ("/usr/bin/kedge (deleted)", unit.clone(), false, &package),
            ("/usr/bin/kedge", None, false, &Origin::Own),
            ("/usr/local/bin/kedge", unit, false, &Origin::Own),
            ("/home/me/kedge", None, true, &Origin::Own),
            (&*inside.to_string_lossy(), None, true, &snapped),
        ] {
            let found =
                if in_snap { find(Path::new(own), unit, snap) } else { find(Path::new(own), unit, none) };
            assert_eq!(&found, expected, "{own}");
        }
    }

    #[test]
    fn a_refresh_does_not_end_the_path() {
        let dir = tempfile::tempdir().unwrap();
        for revision in ["x1", "x2"] {
            fs::create_dir(dir.path().join(revision)).unwrap();
        }
        std::os::unix::fs::symlink("x2", dir.path().join("current")).unwrap();
        assert_eq!(stable(&dir.path().join("x2")), dir.path().join("current"));
        assert_eq!(stable(&dir.path().join("x1")), dir.path().join("x1"));
    }
}
