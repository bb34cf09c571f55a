//! A real registry on loopback: Debian's `docker-registry` (the CNCF's Distribution), its storage filled
//! with images made here.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::image::{self, Parts, digest};

/// `right`, as htpasswd writes it.
const PASSWORD_HASH: &str = "$2b$05$3Nyt2Lcnt9ccsK4FmklJjO1jgq2o10Aai1o2I4vrg8pisDvkqi45u";

/// A running registry; it ends and its folder goes when it is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Registry {
    /// User and password of a closed one.
    pub const LOGIN: (&'static str, &'static str) = ("puller", "right");

    /// Holds `images` (`REPOSITORY:TAG`); a closed one wants [`Registry::LOGIN`].
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(images: &[&str], closed: bool) -> Self {
        let dir = tempfile::tempdir().expect("make a folder");
        let store = dir.path().join("store");
        for name in images {
            add(&store, name);
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("find a free port")
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            store.display()
        );
        if closed {
            let passwords = dir.path().join("htpasswd");
            fs::write(&passwords, format!("{}:{PASSWORD_HASH}\n", Self::LOGIN.0))
                .expect("write the passwords");
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display()));
        }
        let file = dir.path().join("config.yml");
        fs::write(&file, config).expect("write the registry's configuration");
        let log = fs::File::create(dir.path().join("log")).expect("make the registry's log");
        let program = std::env::var_os("DOCKER_REGISTRY")
            .map_or_else(|| PathBuf::from("docker-registry"), PathBuf::from);
        let child = Command::new(&program)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("open the log twice"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("start {} (apt-get install docker-registry): {error}", program.display())
            });
        let registry = Self { child, dir, address };
        crate::eventually("the registry to answer", || {
            std::net::TcpStream::connect(&registry.address).ok().map(drop)
        });
        registry
    }

    /// The digest of an image's manifest.
    #[must_use]
    pub fn digest(name: &str) -> String {
        format!("sha256:{}", digest(&image::parts(name).manifest))
    }

    /// What it was asked, a line each.
    ///
    /// # Panics
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("read the registry's log")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The layout of Distribution's file storage.
fn add(store: &Path, name: &str) {
    let root = store.join("docker/registry/v2");
    let (repository, tag) = name.rsplit_once(':').expect("REPOSITORY:TAG");
    let write = |path: PathBuf, content: &[u8]| {
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, content).expect("write a file");
    };
    let Parts { layer, config, manifest } = image::parts(name);
    let repository = root.join("repositories").join(repository);
    for blob in [&layer, &config, &manifest] {
        let hex = digest(blob);
        write(root.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2])), blob);
        write(repository.join(format!("_layers/sha256/{hex}/link")), format!("sha256:{hex}").as_bytes());
    }
    let hex = digest(&manifest);
    let link = format!("sha256:{hex}");
    for place in [
        format!("_manifests/revisions/sha256/{hex}/link"),
        format!("_manifests/tags/{tag}/current/link"),
        format!("_manifests/tags/{tag}/index/sha256/{hex}/link"),
    ] {
        write(repository.join(place), link.as_bytes());
    }
}
