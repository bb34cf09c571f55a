//! A watched folder of manifests: what is in a file is applied, and pruned when it goes out of the file or
//! the file goes. Each file has an inventory in the cluster, so that nothing is forgotten while no process
//! runs.
//!
//! Each node of the control plane has a folder of its own, and inventories name the node: files need not be
//! the same everywhere, and a change of leadership prunes nothing. What two files (or an addon) both have is
//! removed with the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kedge_base::{Backoff, Changed, FolderWatch};
use kube::api::DynamicObject;

use crate::apply::converge;
use crate::error::Error;
use crate::inventory::{ADDONS, Inventory, MANIFESTS, ObjectRef};
use crate::render;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// Bigger files are a mistake: no API server takes objects of this size.
const SIZE_LIMIT: u64 = 64 << 20;

/// The folder of one node.
pub struct Manifests {
    client: kube::Client,
    folder: PathBuf,
    node: String,
}

impl Manifests {
    /// `folder` is made when it is missing.
    pub fn new(client: kube::Client, folder: PathBuf, node: String) -> Self {
        Self { client, folder, node }
    }

    /// Applies what is there, and follows all changes; never ends. What fails is tried again: refusals may
    /// be over when another file has brought a namespace or a kind. `report` hears of each file how it went.
    pub async fn follow(self, mut report: impl FnMut(&str, Result<Done, &Error>) + Send) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let error = match self.follow_folder(&mut backoff, &mut report).await {
                Ok(never) => match never {},
                Err(error) => Error::Read { path: self.folder.clone(), source: error },
            };
            report("", Err(&error));
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn follow_folder(
        &self,
        backoff: &mut Backoff,
        report: &mut (impl FnMut(&str, Result<Done, &Error>) + Send),
    ) -> std::io::Result<std::convert::Infallible> {
        std::fs::create_dir_all(&self.folder)?;
        let mut watch = FolderWatch::new(&self.folder)?;
        report("", Ok(Done::default()));
        // `None` stands for every file, those that are only known from inventories too.
        let mut waiting: Option<BTreeSet<String>> = None;
        loop {
            let names = match waiting.take() {
                Some(names) => Ok(names),
                None => self.all().await,
            };
            let mut failed = match names {
                Ok(names) => Some(self.sync(names, report).await),
                Err(error) => {
                    report("", Err(&error));
                    None
                }
            };
            let changed = if failed.as_ref().is_some_and(BTreeSet::is_empty) {
                backoff.reset();
                watch.changed().await?
            } else {
                watch.changed_within(backoff.next_delay()).await?
            };
            waiting = match changed {
                Changed::Everything => None,
                Changed::Files(names) => {
                    if let Some(failed) = &mut failed {
                        failed.extend(names.iter().filter_map(manifest_name));
                    }
                    failed
                }
            };
        }
    }

    /// Files that are here, and files that were.
    async fn all(&self) -> Result<BTreeSet<String>, Error> {
        let read = |source| Error::Read { path: self.folder.clone(), source };
        let mut names = BTreeSet::new();
        for file in std::fs::read_dir(&self.folder).map_err(read)? {
            names.extend(manifest_name(&file.map_err(read)?.file_name()));
        }
        let inventories = Inventory::all_of(&self.client, MANIFESTS).await?;
        let ours = inventories.iter().filter(|inventory| inventory.arguments.get("node") == Some(&self.node));
        names.extend(ours.filter_map(|inventory| inventory.arguments.get("file").cloned()));
        Ok(names)
    }

    /// Returns those to be tried again.
    async fn sync(
        &self,
        names: BTreeSet<String>,
        report: &mut (impl FnMut(&str, Result<Done, &Error>) + Send),
    ) -> BTreeSet<String> {
        let mut failed = BTreeSet::new();
        for name in names {
            let mut result = self.file(&name).await;
            if result.as_ref().is_err_and(may_pass) {
                // An object of a kind that the same file brings, for one.
                result = self.file(&name).await;
            }
            report(&name, result.as_ref().copied());
            if result.as_ref().is_err_and(may_pass) {
                failed.insert(name);
            }
        }
        failed
    }

    async fn file(&self, name: &str) -> Result<Done, Error> {
        let objects = read(&self.folder.join(name), name)?;
        let key = key(&self.node, name);
        let before = Inventory::load_from(&self.client, MANIFESTS, &key).await?;
        if objects.is_none() && before.is_none() {
            return Ok(Done::default());
        }
        let exists = objects.is_some();
        let objects = objects.unwrap_or_default();
        let inventory = Inventory {
            shelf: MANIFESTS,
            addon: key.clone(),
            version: String::new(),
            kedge: kedge_base::VERSION.to_owned(),
            digest: String::new(),
            arguments: BTreeMap::from([
                ("node".to_owned(), self.node.clone()),
                ("file".to_owned(), name.to_owned()),
            ]),
            objects: objects.iter().map(ObjectRef::of).collect(),
            health: Vec::new(),
            existed: None,
            uids: BTreeSet::new(),
        };
        let had = before.iter().flat_map(|before| &before.objects);
        let pruned = had.filter(|object| !inventory.objects.contains(object)).count();
        let keep = if pruned > 0 { self.wanted_by_others(&key).await? } else { BTreeSet::new() };
        converge(&self.client, inventory.clone(), &objects, before, &keep, true, &mut |text| {
            tracing::debug!(file = name, "{text}");
        })
        .await?;
        if !exists {
            inventory.delete(&self.client).await?;
        }
        Ok(Done { applied: objects.len(), pruned })
    }

    async fn wanted_by_others(&self, key: &str) -> Result<BTreeSet<ObjectRef>, Error> {
        let manifests = Inventory::all_of(&self.client, MANIFESTS).await?;
        let addons = Inventory::all_of(&self.client, ADDONS).await?;
        let others = manifests.into_iter().filter(|inventory| inventory.addon != key).chain(addons);
        Ok(others.flat_map(|inventory| inventory.objects).collect())
    }
}

/// Is it worth another try? The others only a change of the file mends.
fn may_pass(error: &Error) -> bool {
    !matches!(error, Error::Manifest { .. } | Error::Read { .. })
}

/// What was done for one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Objects that are as the file says.
    pub applied: usize,
    /// Objects that were in it before.
    pub pruned: usize,
}

/// `None`: not a manifest. Half-written files of editors and copying programs begin with a dot.
fn manifest_name(name: &OsString) -> Option<String> {
    let name = name.to_str()?;
    let known = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    (known && !name.starts_with('.')).then(|| name.to_owned())
}

/// The inventory's name: what a file is called may not be a name of an object.
fn key(node: &str, file: &str) -> String {
    // FNV-1a: it must be the same in every version of Kedge.
    let bytes = node.bytes().chain([0]).chain(file.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The parser shows the place in the text below its message.
fn first_line(what: &str) -> String {
    what.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// `None`: there is no such file (any more).
fn read(path: &Path, name: &str) -> Result<Option<Vec<DynamicObject>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let invalid = |what: String| Error::Manifest { file: name.to_owned(), what };
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return Ok(None),
        Ok(meta) if meta.len() > SIZE_LIMIT => return Err(invalid("it is bigger than 64 MiB".to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut objects = render::plain(&text).map_err(|what| invalid(first_line(&what)))?;
    for object in &mut objects {
        let types = object.types.clone().unwrap_or_default();
        if types.kind.is_empty() || types.api_version.is_empty() {
            return Err(invalid("an object has no apiVersion or no kind".to_owned()));
        }
        if object.metadata.name.as_deref().unwrap_or_default().is_empty() {
            return Err(invalid(format!("a {} has no metadata.name", types.kind)));
        }
    }
    Ok(Some(objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.yaml");
        std::fs::write(&path, text).unwrap();
        match read(&path, "m.yaml") {
            Ok(objects) => Ok(objects.unwrap().iter().map(|o| ObjectRef::of(o).to_string()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn files_of_every_shape_are_read() {
        let yaml = "# comment\n--- # first\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: n}\n\
                    ---\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: n\n";
        assert_eq!(parsed(yaml).unwrap(), ["Namespace n", "ConfigMap n/a"]);
        let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
	{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
	{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}]}"#;
        assert_eq!(parsed(json).unwrap(), ["ConfigMap a", "ConfigMap b"]);
        assert!(parsed("").unwrap().is_empty());
        for (text, words) in [
            ("kind: ConfigMap\nmetadata: {name: a}\n", "apiVersion"),
            ("apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a}\n", "metadata.name"),
            ("a: [", "m.yaml is not a valid manifest"),
            ("just text", "m.yaml is not a valid manifest"),
        ] {
            assert!(parsed(text).unwrap_err().contains(words), "{text}: {:?}", parsed(text));
        }
        let missing = read(Path::new("/nonexistent/m.yaml"), "m.yaml").unwrap();
        assert!(missing.is_none());
    }

    #[test]
    fn only_complete_manifests_count() {
        for (name, is) in [
            ("a.yaml", true),
            ("a.yml", true),
            ("a.json", true),
            (".a.yaml.x1", false),
            (".a.yaml", false),
            ("a.yaml.skip", false),
            ("a.yaml~", false),
        ] {
            assert_eq!(manifest_name(&OsString::from(name)).is_some(), is, "{name}");
        }
        assert_ne!(key("a", "bc"), key("ab", "c"));
    }
}
