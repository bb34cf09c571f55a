//! Whose the log folders are. Several nodes of a machine may keep them in one place, and a pod's logs outlive
//! its other folder and its sandbox: a pod that has ended and was not deleted has nothing else on the machine
//! after a reboot. So each pod whose logs are this node's has an empty file in a folder of the node.

use std::path::Path;

use crate::{Error, volumes};

/// Before the pod's log folder is made.
pub(crate) fn note(notes: &Path, uid: &str) -> Result<(), Error> {
    volumes::make_dir(notes, 0o750)?;
    let file = notes.join(uid);
    std::fs::write(&file, "").map_err(|error| Error::io(format!("write {}", file.display()), error))
}

/// Deletes the log folders of the noted pods that are chosen. Best effort: a folder that cannot be deleted
/// keeps its note and is found again.
pub(crate) fn remove(notes: &Path, logs: &Path, chosen: &dyn Fn(&str) -> bool) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let noted: Vec<String> = names(notes).into_iter().filter(|uid| chosen(uid)).collect();
    if noted.is_empty() {
        return;
    }
    let folders = names(logs);
    for uid in noted {
        // Neither names nor namespaces have underscores.
        let own = folders.iter().filter(|folder| folder.rsplit('_').next() == Some(uid.as_str()));
        let mut removed = true;
        for folder in own {
            if let Err(error) = std::fs::remove_dir_all(logs.join(folder)) {
                tracing::warn!(folder, %error, "logs of a deleted pod not removed");
                removed = false;
            }
        }
        if removed {
            let _ = std::fs::remove_file(notes.join(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_noted_folders_of_the_chosen_go() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (notes, logs) = (dir.path().join("notes"), dir.path().join("pods"));
        for folder in ["default_a_1/main", "default_b_2/main", "default_of-another-node_3/main"] {
            std::fs::create_dir_all(logs.join(folder)).expect("made");
        }
        for uid in ["1", "2", "4"] {
            note(&notes, uid).expect("noted");
            note(&notes, uid).expect("noted again");
        }
        remove(&notes, &logs, &|uid| uid != "2");
        let left = |dir: &Path| {
            let entries = std::fs::read_dir(dir).expect("a folder").flatten();
            let mut names: Vec<_> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(left(&logs), ["default_b_2", "default_of-another-node_3"]);
        assert_eq!(left(&notes), ["2"]);
    }
}
