//! Registry mirrors and credentials from one file, in k3s's format (`registries.yaml`). It becomes
//! `hosts.toml` files, which containerd reads anew at every pull, and logins that go along with a pull: a
//! change needs no restart of anything. The file is looked at when an image is pulled.

#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod hosts;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::AuthConfig;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use tokio::sync::watch;

use crate::Error;
use crate::images::reference;

/// The whole file. Unknown keys are errors.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    /// Registry (`docker.io`, `quay.io`, `host:5000`, `*` for all others) to where its images are.
    #[serde(deserialize_with = "or_default")]
    mirrors: BTreeMap<String, Option<Mirror>>,
    /// Host of a registry or mirror to how it is talked to.
    #[serde(deserialize_with = "or_default")]
    configs: BTreeMap<String, Option<Host>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Mirror {
    /// URLs in the order in which they are tried; the registry itself comes last.
    endpoint: Vec<String>,
    /// A regular expression for the repository to what it is replaced by.
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Host {
    auth: Option<Auth>,
    tls: Option<Tls>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    username: String,
    password: String,
    /// Base64 of `username:password`, as in Docker's configuration.
    auth: String,
    #[serde(alias = "token")]
    identity_token: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

/// What makes two looks at the file equal: change time, size, inode.
type Seen = Option<(i64, i64, u64, u64)>;

/// Registry to the URLs of its mirrors, in the order in which they are tried: those of a node's own
/// configuration, which come after those of the file.
pub type Mirrors = BTreeMap<String, Vec<String>>;

/// Checks a mirror that does not come from the file.
///
/// # Errors
/// What is wrong with it.
pub fn check_mirror(registry: &str, url: &str) -> Result<(), Error> {
    hosts::check_host("mirrors", registry)?;
    hosts::Endpoint::parse(url).map(drop)
}

/// What is wrong with a file of registries, with the certificates and keys that it names: a pull that needs them
/// would fail. No file is fine.
#[must_use]
pub fn check_registries(file: &Path) -> Vec<String> {
    let parsed = match kedge_base::read_optional(file) {
        Ok(None) => return Vec::new(),
        Ok(Some(bytes)) => parse(&String::from_utf8_lossy(&bytes)),
        Err(error) => Err(Error::io("read it", error)),
    };
    match parsed {
        Ok(file) => hosts::check_files(&file),
        Err(error) => vec![error.text()],
    }
}

/// The file and what was made of it. Clones share.
#[derive(Clone)]
pub struct Registries(Arc<Inner>);

struct Inner {
    file: PathBuf,
    further: Mirrors,
    hosts_dir: PathBuf,
    known: Mutex<Known>,
    problem: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Known {
    /// `None` before the first look.
    seen: Option<Seen>,
    file: Arc<File>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registries({})", self.0.file.display())
    }
}

impl Registries {
    /// `file` may be missing; `hosts_dir` is containerd's `config_path`.
    #[must_use]
    pub fn new(file: PathBuf, further: Mirrors, hosts_dir: PathBuf) -> Self {
        let (known, problem) = (Mutex::default(), watch::Sender::new(None));
        Self(Arc::new(Inner { file, further, hosts_dir, known, problem }))
    }

    /// What is wrong with the file now, and every change of it. What was read before goes on being used.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.0.problem.subscribe()
    }

    /// Takes over what the file says now; cheap when it has not changed.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong, or `hosts_dir` cannot be written.
    pub fn refresh(&self) -> Result<(), Error> {
        let mut known = self.0.known.lock();
        let seen: Seen = std::fs::metadata(&self.0.file)
            .ok()
            .map(|meta| (meta.ctime(), meta.ctime_nsec(), meta.size(), meta.ino()));
        if known.seen == Some(seen) && self.0.problem.borrow().is_none() {
            return Ok(());
        }
        let result = self.read().and_then(|file| {
            hosts::write(&self.0.hosts_dir, &hosts::render(&file)?)?;
            Ok(file)
        });
        let result = match result {
            Ok(file) => {
                if known.seen.is_some() {
                    tracing::info!(file = %self.0.file.display(), "mirrors and logins of registries were read anew");
                }
                *known = Known { seen: Some(seen), file: Arc::new(file) };
                Ok(())
            }
            Err(error) => Err(format!("{}; what it said before is still used", error.text())),
        };
        let problem = result.as_ref().err().cloned();
        self.0.problem.send_if_modified(|old| {
            let changed = *old != problem;
            *old = problem;
            changed
        });
        result.map_err(|problem| Error::other(format!("{}: {problem}", self.0.file.display())))
    }

    fn read(&self) -> Result<File, Error> {
        let mut file = match kedge_base::read_optional(&self.0.file) {
            Ok(None) => File::default(),
            Ok(Some(bytes)) => parse(&String::from_utf8_lossy(&bytes))?,
            Err(error) => return Err(Error::io("read it", error)),
        };
        for (registry, urls) in &self.0.further {
            let mirror = file.mirrors.entry(registry.clone()).or_default().get_or_insert_default();
            mirror.endpoint.extend(urls.iter().cloned());
        }
        Ok(file)
    }

    /// Logins for the image's registry and its mirrors; each is for one host only.
    pub(crate) fn logins(&self, image: &str) -> Vec<AuthConfig> {
        self.0.known.lock().file.clone().logins(image)
    }

    /// The file that is read.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.0.file
    }
}

/// A section with nothing in it is as good as none.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

fn parse(text: &str) -> Result<File, Error> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(File::default());
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        // Below its message the parser shows the place in the text, which may be a password.
        let text = error.to_string();
        Error::other(text.lines().next().unwrap_or_default().trim_start_matches("error: "))
    })?;
    hosts::render(&file)?;
    Ok(file)
}

impl File {
    fn host(&self, host: &str) -> Option<&Host> {
        self.configs.get(host).or_else(|| self.configs.get("*")).and_then(Option::as_ref)
    }

    fn logins(&self, image: &str) -> Vec<AuthConfig> {
        let (registry, _) = reference::registry_and_path(image);
        let mirror = self.mirrors.get(&registry).or_else(|| self.mirrors.get("*")).and_then(Option::as_ref);
        let mut hosts: Vec<String> = Vec::new();
        for endpoint in mirror.into_iter().flat_map(|mirror| &mirror.endpoint) {
            hosts.extend(hosts::Endpoint::parse(endpoint).map(|endpoint| endpoint.host));
        }
        hosts.push(registry);
        let mut found: Vec<AuthConfig> = Vec::new();
        for host in hosts {
            let Some(auth) = self.host(&host).and_then(|host| host.auth.as_ref()) else { continue };
            let login = auth.login(&host);
            if !found.contains(&login) {
                found.push(login);
            }
        }
        found
    }
}

impl Auth {
    fn login(&self, host: &str) -> AuthConfig {
        let decoded = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((username, password)) => (username.to_owned(), password.to_owned()),
            None => (self.username.clone(), self.password.clone()),
        };
        AuthConfig {
            username,
            password,
            identity_token: self.identity_token.clone(),
            // containerd sends it to this host only.
            server_address: format!("https://{}", hosts::real_host(host)),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://second.example"]
  "*":
    endpoint: [https://all.example/v2/cache]
configs:
  mirror.example:5000:
    auth: {username: me, password: secret}
    tls: {ca_file: /etc/ca.pem, cert_file: /etc/c.pem, key_file: /etc/k.pem}
  docker.io:
    auth: {auth: "aHViOnB3"}
  quay.io:
    auth: {token: t}
"#;

    #[test]
    fn logins_go_to_the_host_they_are_for() {
        let file = parse(EXAMPLE).expect("valid");
        let logins = |image: &str| -> Vec<(String, String)> {
            file.logins(image).into_iter().map(|login| (login.server_address, login.username)).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            logins("nginx"),
            [pair("https://mirror.example:5000", "me"), pair("https://registry-1.docker.io", "hub")]
        );
        assert_eq!(logins("quay.io/a/b:1"), [pair("https://quay.io", "")]);
        assert!(logins("other.example/x").is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("mirors: {}", "mirors"),
            ("mirrors: {docker.io: {endpoints: [https://x]}}", "endpoints"),
            ("mirrors: {docker.io: {endpoint: [mirror.example]}}", "mirror.example"),
            ("mirrors: {https://docker.io: {endpoint: [https://x]}}", "https://docker.io"),
            ("mirrors: {docker.io: {endpoint: [https://x], rewrite: {'^a/(.*)': 'b/$1'}}}", "rewrite"),
            ("configs: {x: {tls: {cert_file: /c}}}", "key_file"),
            ("configs: {x: {tls: {ca_file: ca.pem}}}", "ca.pem"),
            ("- a", ""),
        ] {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text} is wrong")).text();
            assert!(error.contains(words), "{text}: {error}");
        }
        for text in ["", "# nothing\n", "mirrors:\nconfigs:\n", "mirrors: {docker.io: }"] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn certificates_that_are_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.yaml");
        assert_eq!(check_registries(&file), Vec::<String>::new());
        std::fs::write(&file, "mirors: {}").unwrap();
        assert!(check_registries(&file)[0].contains("mirors"));
        let text = EXAMPLE.replace("/etc/", &format!("{}/", dir.path().display()));
        std::fs::write(&file, text).unwrap();
        let pem = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
        std::fs::write(dir.path().join("c.pem"), "no PEM").unwrap();
        std::fs::write(dir.path().join("k.pem"), pem("CERTIFICATE")).unwrap();
        let problems = check_registries(&file);
        for (name, why) in [
            ("ca_file", "No such file"),
            ("cert_file", "it holds no certificate in PEM"),
            ("key_file", "it holds no private key in PEM"),
        ] {
            let told = |problem: &String| problem.contains(name) && problem.contains(why);
            assert!(problems.iter().any(told), "{name}: {why}: {problems:?}");
        }
        for (name, what) in [("ca.pem", "CERTIFICATE"), ("c.pem", "CERTIFICATE"), ("k.pem", "PRIVATE KEY")] {
            std::fs::write(dir.path().join(name), pem(what)).unwrap();
        }
        assert_eq!(check_registries(&file), Vec::<String>::new());
    }

    #[test]
    fn changes_are_seen_and_mistakes_change_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, hosts) = (dir.path().join("registries.yaml"), dir.path().join("hosts"));
        let registries = Registries::new(file.clone(), Mirrors::new(), hosts.clone());
        let toml = hosts.join("docker.io/hosts.toml");
        registries.refresh().expect("a missing file is fine");
        std::fs::write(&file, EXAMPLE).expect("written");
        registries.refresh().expect("valid");
        assert!(toml.exists() && hosts.join("_default/hosts.toml").exists());
        assert_eq!(registries.logins("nginx").len(), 2);

        std::fs::write(&file, "mirors: {}").expect("written");
        assert!(registries.refresh().expect_err("wrong").text().contains("registries.yaml"));
        assert!(registries.problem().borrow().is_some());
        assert!(toml.exists());
        assert_eq!(registries.logins("nginx").len(), 2);

        std::fs::create_dir_all(hosts.join("mine.example")).expect("made");
        std::fs::write(hosts.join("mine.example/hosts.toml"), "server = \"https://x\"\n").expect("written");
        std::fs::remove_file(&file).expect("removed");
        registries.refresh().expect("valid");
        assert!(registries.problem().borrow().is_none());
        assert!(!toml.exists(), "what was made goes");
        assert!(hosts.join("mine.example/hosts.toml").exists(), "what others made stays");
        assert!(registries.logins("nginx").is_empty());
    }

    #[test]
    fn mirrors_of_the_configuration_come_after_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, hosts) = (dir.path().join("registries.yaml"), dir.path().join("hosts"));
        let further = [
            ("docker.io".to_owned(), vec!["https://b.example".to_owned()]),
            ("quay.io".to_owned(), vec!["http://c.example:5000".to_owned()]),
        ];
        let registries = Registries::new(file.clone(), further.into(), hosts.clone());
        let endpoints = |registry: &str| -> Vec<String> {
            let text = std::fs::read_to_string(hosts.join(registry).join("hosts.toml")).unwrap();
            let lines = text.lines().filter_map(|line| line.strip_prefix("[host.\"")?.strip_suffix("\"]"));
            lines.map(str::to_owned).collect()
        };
        registries.refresh().unwrap();
        assert_eq!(endpoints("docker.io"), ["https://b.example"]);
        assert_eq!(endpoints("quay.io"), ["http://c.example:5000"]);
        std::fs::write(&file, "mirrors: {docker.io: {endpoint: [https://a.example]}}").unwrap();
        registries.refresh().unwrap();
        assert_eq!(endpoints("docker.io"), ["https://a.example", "https://b.example"]);
        for (registry, url) in [("docker.io", "b.example"), ("https://x", "https://b"), ("", "https://b")] {
            assert!(check_mirror(registry, url).is_err(), "{registry}={url}");
        }
    }
}
