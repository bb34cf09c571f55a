//! Which addons there are: those in the binary and those of folders that an operator added.

use std::collections::BTreeMap;
use std::path::Path;

use include_dir::{Dir, include_dir};

use crate::definition::Addon;
use crate::error::Error;

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../addons");
const DEFINITION: &str = "addon.yaml";

/// Addons by name.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    addons: BTreeMap<String, Addon>,
}

impl Catalog {
    /// Those that the binary brings.
    ///
    /// # Errors
    /// When one of them is not valid, which a test of this crate excludes.
    pub fn embedded() -> Result<Self, Error> {
        let mut catalog = Self::default();
        for folder in EMBEDDED.dirs() {
            let name = folder.path().display().to_string();
            let mut definition = None;
            let mut manifests = Vec::new();
            for file in folder.files() {
                let file_name = file
                    .path()
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let text = file.contents_utf8().unwrap_or_default().to_owned();
                if file_name == DEFINITION {
                    definition = Some(text);
                } else if is_manifest(&file_name) {
                    manifests.push((file_name, text));
                }
            }
            catalog.add(&name, definition, manifests)?;
        }
        Ok(catalog)
    }

    /// The addon in this folder, if it is one.
    pub(crate) fn read(folder: &Path) -> Result<Option<Addon>, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Read { path, source }
        };
        if !folder.join(DEFINITION).is_file() {
            return Ok(None);
        }
        let mut definition = String::new();
        let mut manifests = Vec::new();
        for file in std::fs::read_dir(folder).map_err(failed(folder))? {
            let path = file.map_err(failed(folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name == DEFINITION {
                definition = std::fs::read_to_string(&path).map_err(failed(&path))?;
            } else if is_manifest(&name) && path.is_file() {
                manifests.push((name, std::fs::read_to_string(&path).map_err(failed(&path))?));
            }
        }
        manifests.sort();
        Addon::parse(&folder.display().to_string(), &definition, manifests).map(Some)
    }

    pub(crate) fn insert(&mut self, addon: Addon) {
        self.addons.insert(addon.name.clone(), addon);
    }

    /// Adds every folder of `dir` that holds an `addon.yaml`; a name that exists already is replaced.
    ///
    /// # Errors
    /// When a file cannot be read or an addon is not valid.
    pub fn load(&mut self, dir: &Path) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Read { path, source }
        };
        for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
            let folder = entry.map_err(failed(dir))?.path();
            if let Some(addon) = Self::read(&folder)? {
                self.insert(addon);
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        place: &str,
        definition: Option<String>,
        mut manifests: Vec<(String, String)>,
    ) -> Result<(), Error> {
        let Some(definition) = definition else {
            return Err(Error::Definition {
                place: place.to_owned(),
                what: "it has no addon.yaml".to_owned(),
            });
        };
        manifests.sort();
        let addon = Addon::parse(place, &definition, manifests)?;
        self.addons.insert(addon.name.clone(), addon);
        Ok(())
    }

    /// The addon with this name.
    ///
    /// # Errors
    /// [`Error::Unknown`], with the nearest name if one is near.
    pub fn get(&self, name: &str) -> Result<&Addon, Error> {
        self.addons.get(name).ok_or_else(|| {
            let near = self.addons.keys().map(|known| (strsim::osa_distance(name, known), known));
            let near = near.filter(|(distance, known)| *distance <= (known.len() / 3).max(1));
            let begun =
                || self.addons.keys().find(|known| known.starts_with(name) || name.starts_with(*known));
            let near = near.min().map(|(_, known)| known).or_else(begun);
            let hint = near.map(|known| format!(" (did you mean {known}?)")).unwrap_or_default();
            Error::Unknown { name: name.to_owned(), hint }
        })
    }

    /// All of them in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Addon> {
        self.addons.values()
    }
}

fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render;

    #[test]
    fn every_embedded_addon_renders_with_its_defaults() {
        let catalog = Catalog::embedded().unwrap();
        assert!(catalog.iter().count() > 0);
        for addon in catalog.iter() {
            let values =
                render::with_cluster(&addon.values(&BTreeMap::new()).unwrap(), &render::tests::cluster());
            let objects = render::objects(addon, &values).unwrap();
            assert_eq!(render::checks(addon, &values).unwrap().len(), addon.health.len());
            for object in objects {
                assert!(object.types.is_some() && object.metadata.name.is_some(), "{}", addon.name);
            }
        }
    }

    #[test]
    fn what_would_not_work_is_refused() {
        let catalog = Catalog::embedded().unwrap();
        for (word, accepted) in [
            ("dns:1.2.3.4,8.8.8.8:5353", true),
            ("dns:1.2.3.4,foo", false),
            ("dns:stub_domains=corp.example=192.0.2.53;lab.example=192.0.2.54", true),
            ("dns:stub_domains=corp.example", false),
            ("dns:replicas=0", false),
            ("dns:replicas=2", true),
            ("dns:replicas=999999", false),
            ("metrics:replicas=0", false),
            ("metrics:replicas=999999", false),
            ("metrics:resolution=1", false),
        ] {
            let (name, arguments) = word.split_once(':').unwrap();
            let addon = catalog.get(name).unwrap();
            let result = addon.split_arguments(arguments).and_then(|given| addon.values(&given));
            assert_eq!(result.is_ok(), accepted, "{word}: {result:?}");
        }
    }

    #[test]
    fn a_folder_adds_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mine");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(dir.path().join("no-addon")).unwrap();
        std::fs::write(folder.join(DEFINITION), "name: mine\nversion: '1'\ndescription: x\n").unwrap();
        std::fs::write(folder.join("b.yaml"), "kind: B").unwrap();
        std::fs::write(folder.join("a.yaml"), "kind: A").unwrap();
        std::fs::write(folder.join("README.md"), "no manifest").unwrap();
        let mut catalog = Catalog::default();
        catalog.load(dir.path()).unwrap();
        let names: Vec<_> =
            catalog.get("mine").unwrap().manifests.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, ["a.yaml", "b.yaml"]);
        let embedded = Catalog::embedded().unwrap();
        for (name, near) in [
            ("metrcs", Some("metrics")),
            ("flanel", Some("flannel")),
            ("dsn", Some("dns")),
            ("load", Some("load-balancer")),
            ("wordpress", None),
        ] {
            let said = embedded.get(name).unwrap_err().to_string();
            let hint = near.map(|near| format!("did you mean {near}?"));
            assert!(hint.map_or(!said.contains("did you mean"), |hint| said.contains(&hint)), "{said}");
        }
        assert!(catalog.get("min").unwrap_err().to_string().contains("did you mean mine?"));
        std::fs::write(folder.join(DEFINITION), "name: mine\nversion: '1'\n").unwrap();
        assert!(catalog.load(dir.path()).unwrap_err().to_string().contains("is not a valid addon"));
    }
}
