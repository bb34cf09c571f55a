//! Repositories of addons that an operator adds: a folder or a git repository, copied below one folder of
//! the node. Each copy is checked as a whole before it takes the place of the one before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kedge_base::Order as _;
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::definition::Addon;
use crate::error::Error;
use crate::render;

/// In the copy's folder: where it came from.
const ORIGIN: &str = "repository.json";
/// In the copy's folder: its content.
const CONTENT: &str = "content";
/// Copies that are being made.
const WORK: &str = ".work-";
/// More than any set of addons needs: protects the node's disk from a wrong folder.
const MAX_FILES: usize = 10_000;
const MAX_BYTES: u64 = 64 << 20;

/// What a repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Folder,
    Git,
}

/// A repository that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// How it is called here.
    pub name: String,
    /// The folder or the URL.
    pub source: String,
    pub kind: Kind,
    /// The branch or tag; without one, the other side's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The commit of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The addons in it.
    #[serde(default)]
    pub addons: Vec<String>,
}

/// What is to be added.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// A folder, or what `git clone` takes.
    pub source: &'a str,
    /// Otherwise the last part of the source.
    pub name: Option<&'a str>,
    /// A branch or tag of a git repository.
    pub reference: Option<&'a str>,
}

/// The repositories of one node.
#[derive(Debug, Clone)]
pub struct Repositories {
    dir: PathBuf,
}

fn refuse(text: impl Into<String>) -> Error {
    Error::Repository(text.into())
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

impl Repositories {
    /// `dir`: where the copies are; it need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// All of them, in the order of their names.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Repository>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.dir)(error)),
        };
        let mut list = Vec::new();
        for entry in entries.flatten() {
            let file = entry.path().join(ORIGIN);
            if entry.file_name().to_string_lossy().starts_with(WORK) || !file.is_file() {
                continue;
            }
            let text = fs::read_to_string(&file).map_err(failed(&file))?;
            let found: Repository = serde_json::from_str(&text)
                .map_err(|error| refuse(format!("{}: {error}; remove that folder", file.display())))?;
            list.push(found);
        }
        list.order_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// Puts their addons into the catalogue. What cannot be used is told and left out: an addon that
    /// somebody added must not stop those of Kedge.
    pub fn load(&self, catalog: &mut Catalog) -> Vec<Error> {
        let repositories = match self.list() {
            Ok(list) => list,
            Err(error) => return vec![error],
        };
        let mut problems = Vec::new();
        for repository in repositories {
            match addons(&self.dir.join(&repository.name).join(CONTENT)) {
                Ok(addons) => {
                    for addon in addons {
                        // A newer Kedge may bring one of that name; its own counts.
                        if catalog.get(&addon.name).is_err() {
                            catalog.insert(addon);
                        }
                    }
                }
                Err(error) => problems.push(error),
            }
        }
        problems
    }

    /// Copies a repository. `catalog`: what there is already; no name may be taken twice.
    ///
    /// # Errors
    /// When the source is none, an addon in it is not valid or its name is taken. Nothing is changed then.
    pub fn add(&self, added: Added<'_>, catalog: &Catalog) -> Result<Repository, Error> {
        let (kind, source) = classify(added.source)?;
        if kind == Kind::Folder && added.reference.is_some() {
            return Err(refuse(format!("{source} is a folder: it has no branches")));
        }
        let name = match added.name {
            Some(name) => name.to_owned(),
            None => name_of(&source),
        };
        if !is_name(&name) {
            return Err(refuse(format!(
                "{name:?} cannot be a repository's name: small letters, digits and -; give one with --name"
            )));
        }
        if self.list()?.iter().any(|known| known.name == name) {
            return Err(refuse(format!(
                "there is a repository {name} already; kedge addons repo update {name} brings it up to date, \
                 --name gives this one another name"
            )));
        }
        let reference = added.reference.map(str::to_owned);
        self.take(Repository { name, source, kind, reference, commit: None, addons: Vec::new() }, catalog)
    }

    /// Copies it again from where it came.
    ///
    /// # Errors
    /// As [`Repositories::add`]; the copy that is there stays then.
    pub fn update(&self, name: &str, catalog: &Catalog) -> Result<Repository, Error> {
        let known = self.find(name)?;
        self.take(known, catalog)
    }

    /// Forgets it. Addons of it that are enabled stay as they are.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove(&self, name: &str) -> Result<Repository, Error> {
        let known = self.find(name)?;
        let dir = self.dir.join(&known.name);
        fs::remove_dir_all(&dir).map_err(failed(&dir))?;
        Ok(known)
    }

    fn find(&self, name: &str) -> Result<Repository, Error> {
        let list = self.list()?;
        let names: Vec<String> = list.iter().map(|known| known.name.clone()).collect();
        list.into_iter().find(|known| known.name == name).ok_or_else(|| {
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            refuse(format!("there is no repository {name:?}; there are: {known}"))
        })
    }

    /// Copies, checks, and puts the copy in its place.
    fn take(&self, mut repository: Repository, catalog: &Catalog) -> Result<Repository, Error> {
        let work = self.dir.join(format!("{WORK}{}", repository.name));
        // Left behind by one that was broken off.
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).map_err(failed(&work))?;
        let result = self.fill(&work, &mut repository, catalog).and_then(|()| {
            let (place, old) =
                (self.dir.join(&repository.name), self.dir.join(format!("{WORK}old-{}", repository.name)));
            let _ = fs::remove_dir_all(&old);
            if place.exists() {
                fs::rename(&place, &old).map_err(failed(&place))?;
            }
            fs::rename(&work, &place).map_err(failed(&place))?;
            let _ = fs::remove_dir_all(&old);
            Ok(())
        });
        if result.is_err() {
            let _ = fs::remove_dir_all(&work);
        }
        result.map(|()| repository)
    }

    fn fill(&self, work: &Path, repository: &mut Repository, catalog: &Catalog) -> Result<(), Error> {
        let content = work.join(CONTENT);
        match repository.kind {
            Kind::Folder => {
                let source = Path::new(&repository.source);
                if !source.is_dir() {
                    return Err(refuse(format!("{} is no folder (any more)", repository.source)));
                }
                copy(source, &content, &mut Budget::default())?;
            }
            Kind::Git => repository.commit = Some(clone(repository, &content)?),
        }
        let found = addons(&content)?;
        if found.is_empty() {
            return Err(refuse(format!(
                "{} has no addons: an addon is a folder with an addon.yaml, at the top or in addons/",
                repository.source
            )));
        }
        let others: Vec<Repository> =
            self.list()?.into_iter().filter(|other| other.name != repository.name).collect();
        for addon in &found {
            if let Some(other) = others.iter().find(|other| other.addons.contains(&addon.name)) {
                return Err(refuse(format!(
                    "the addon {} is in the repository {} already; give one of them another name, or run kedge \
                     addons repo remove {}",
                    addon.name, other.name, other.name
                )));
            }
            let own = repository.addons.contains(&addon.name);
            if !own && catalog.get(&addon.name).is_ok() {
                return Err(refuse(format!("Kedge has an addon {} of its own", addon.name)));
            }
            check(addon)?;
        }
        repository.addons = found.into_iter().map(|addon| addon.name).collect();
        let text = serde_json::to_string_pretty(repository).map_err(|error| refuse(error.to_string()))?;
        let file = work.join(ORIGIN);
        fs::write(&file, text).map_err(failed(&file))
    }
}

/// It renders with its defaults.
fn check(addon: &Addon) -> Result<(), Error> {
    let names = ["version", "cluster_dns", "cluster_domain", "pod_cidr", "data_dir"];
    let cluster = names.map(|name| (name.to_owned(), "x".to_owned())).into();
    let values = render::with_cluster(&addon.values(&Default::default())?, &cluster);
    render::objects(addon, &values).map(drop)
}

/// The addons of a content: it is one, or has some at the top or in `addons/`.
fn addons(content: &Path) -> Result<Vec<Addon>, Error> {
    if let Some(addon) = Catalog::read(content)? {
        return Ok(vec![addon]);
    }
    let mut found = Vec::new();
    for dir in [content.to_owned(), content.join("addons")] {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            found.extend(Catalog::read(&entry.path())?);
        }
    }
    found.order_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(refuse(format!("{} has two addons {}", content.display(), pair[0].name)));
    }
    Ok(found)
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 50 && !name.starts_with('-') && name.bytes().all(plain)
}

/// The last part of a path or URL.
fn name_of(source: &str) -> String {
    let last = source.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
    last.strip_suffix(".git").unwrap_or(last).to_lowercase().replace(['_', '.'], "-")
}

/// A folder's path is made absolute; everything else must be something that git takes.
fn classify(source: &str) -> Result<(Kind, String), Error> {
    let path = Path::new(source);
    if path.is_dir() && !path.join(".git").exists() {
        let path = path.canonicalize().map_err(failed(path))?;
        return Ok((Kind::Folder, path.display().to_string()));
    }
    if path.is_dir() {
        let path = path.canonicalize().map_err(failed(path))?;
        return Ok((Kind::Git, path.display().to_string()));
    }
    let is_url = ["https://", "http://", "ssh://", "git://", "file://"].iter().any(|s| source.starts_with(s));
    // git@host:path
    let is_scp = source.split_once(':').is_some_and(|(host, path)| {
        host.contains('@') && !host.starts_with('-') && !host.contains('/') && !path.is_empty()
    });
    if is_url || is_scp {
        return Ok((Kind::Git, source.to_owned()));
    }
    Err(refuse(format!("{source} is neither a folder nor a URL of a git repository")))
}

/// How much may still be copied.
struct Budget {
    files: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: MAX_FILES, bytes: MAX_BYTES }
    }
}

/// Files and folders; links are left out: they may lead anywhere.
fn copy(from: &Path, to: &Path, budget: &mut Budget) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(failed(to))?;
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let entry = entry.map_err(failed(from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed(&path))?;
        if kind.is_dir() {
            copy(&path, &target, budget)?;
        } else if kind.is_file() {
            let size = entry.metadata().map_err(failed(&path))?.len();
            if budget.files == 0 || budget.bytes < size {
                return Err(refuse(format!("{} is too large for a folder of addons", from.display())));
            }
            budget.files -= 1;
            budget.bytes -= size;
            fs::copy(&path, &target).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Returns the commit.
fn clone(repository: &Repository, to: &Path) -> Result<String, Error> {
    let mut command = git();
    command.args(["clone", "--quiet", "--depth", "1", "--no-tags", "--config", "core.symlinks=false"]);
    if let Some(reference) = &repository.reference {
        command.arg(format!("--branch={reference}"));
    }
    let source = Path::new(&repository.source);
    // A shallow copy of a local repository needs a URL.
    let source =
        if source.is_dir() { format!("file://{}", repository.source) } else { repository.source.clone() };
    run(command.arg("--").arg(source).arg(to), &repository.source)?;
    let commit = run(git().arg("-C").arg(to).args(["rev-parse", "HEAD"]), &repository.source)?;
    let _ = fs::remove_dir_all(to.join(".git"));
    Ok(commit.trim().to_owned())
}

fn git() -> Command {
    let mut command = Command::new("git");
    command
        // Nobody is there to be asked for a password; ext:: and the like would run programs.
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", "https:http:ssh:git:file")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .stdin(Stdio::null());
    command
}

fn run(command: &mut Command, source: &str) -> Result<String, Error> {
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refuse(format!("git is needed for {source}: install the package git, or give a folder"))
        }
        _ => refuse(format!("git does not start: {error}")),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(refuse(format!("git cannot copy {source}: {}", text.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_addon(dir: &Path, name: &str, version: &str) {
        fs::create_dir_all(dir).unwrap();
        let text = format!("name: {name}\nversion: '{version}'\ndescription: d\n");
        fs::write(dir.join("addon.yaml"), text).unwrap();
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: default}\n";
        fs::write(dir.join("map.yaml"), map).unwrap();
    }

    fn added(source: &str) -> Added<'_> {
        Added { source, name: None, reference: None }
    }

    #[test]
    fn a_folder_is_added_updated_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("My_Addons");
        write_addon(&source.join("one"), "one", "1");
        let repositories = Repositories::new(dir.path().join("data"));
        let base = Catalog::embedded().unwrap();
        let text = source.display().to_string();
        let made = repositories.add(added(&text), &base).unwrap();
        assert_eq!((made.name.as_str(), made.addons.as_slice()), ("my-addons", &["one".to_owned()][..]));
        let error = repositories.add(added(&text), &base).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");

        write_addon(&source.join("addons/two"), "two", "1");
        write_addon(&source.join("one"), "one", "2");
        let catalog = |repositories: &Repositories| {
            let mut catalog = base.clone();
            assert!(repositories.load(&mut catalog).is_empty());
            catalog
        };
        assert_eq!(catalog(&repositories).get("one").unwrap().version, "1", "a copy");
        repositories.update("my-addons", &catalog(&repositories)).unwrap();
        assert_eq!(catalog(&repositories).get("one").unwrap().version, "2");
        assert!(catalog(&repositories).get("two").is_ok());

        // What is not valid does not replace what is there.
        fs::write(source.join("one/addon.yaml"), "name: one\n").unwrap();
        assert!(repositories.update("my-addons", &base).is_err());
        assert_eq!(catalog(&repositories).get("one").unwrap().version, "2");

        repositories.remove("my-addons").unwrap();
        assert!(catalog(&repositories).get("one").is_err());
        assert!(repositories.remove("my-addons").unwrap_err().to_string().contains("there are: none"));
    }

    #[test]
    fn what_cannot_be_added_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let repositories = Repositories::new(dir.path().join("data"));
        let base = Catalog::embedded().unwrap();
        let own = dir.path().join("own");
        write_addon(&own, "dns", "9");
        let empty = dir.path().join("empty");
        fs::create_dir_all(&empty).unwrap();
        let broken = dir.path().join("broken");
        write_addon(&broken.join("b"), "b", "1");
        fs::write(broken.join("b/map.yaml"), "kind: ${unknown}\n").unwrap();
        for (source, words) in [
            (own, "Kedge has an addon dns of its own"),
            (empty, "has no addons"),
            (broken, "unknown"),
            (dir.path().join("absent"), "neither a folder nor a URL"),
        ] {
            let error =
                repositories.add(added(&source.display().to_string()), &base).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(repositories.add(added("ext::sh -c true"), &base).is_err());
        assert_eq!(repositories.list().unwrap(), Vec::new());
    }

    #[test]
    fn names_come_from_sources() {
        for (source, name) in [
            ("https://example.com/team/addons.git", "addons"),
            ("git@example.com:team/My_Addons.git", "my-addons"),
            ("/srv/addons/", "addons"),
        ] {
            assert_eq!(name_of(source), name);
        }
        assert!(!is_name("../x") && !is_name("-x") && is_name("x-1"));
        assert_eq!(classify("git@example.com:team/a.git").unwrap().0, Kind::Git);
        assert!(classify("--upload-pack=x@y:z").is_err());
    }

    #[test]
    fn a_git_repository_is_cloned_and_followed() {
        let is_there = Command::new("git").arg("--version").output().is_ok();
        if !is_there {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("remote");
        write_addon(&source.join("one"), "one", "1");
        let git = |arguments: &[&str]| {
            let mut command = git();
            let identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"];
            let done = command.arg("-C").arg(&source).args(identity).args(arguments).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "one"]);
        let repositories = Repositories::new(dir.path().join("data"));
        let base = Catalog::embedded().unwrap();
        let url = format!("file://{}", source.display());
        let first = repositories.add(added(&url), &base).unwrap();
        assert_eq!((first.kind, first.addons.len()), (Kind::Git, 1));
        write_addon(&source.join("one"), "one", "2");
        git(&["commit", "--quiet", "-am", "two"]);
        let second = repositories.update("remote", &base).unwrap();
        assert_ne!(first.commit, second.commit);
        let mut catalog = base.clone();
        assert!(repositories.load(&mut catalog).is_empty());
        assert_eq!(catalog.get("one").unwrap().version, "2");
        let wrong = Added { source: &url, name: Some("other"), reference: Some("absent") };
        assert!(repositories.add(wrong, &base).unwrap_err().to_string().contains("git cannot copy"));
    }
}
