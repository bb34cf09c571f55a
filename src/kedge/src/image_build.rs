//! Kedge's own images, made from the running binary so that no registry is ever asked.
//!
//! All of them share one layer that holds just `/kedge`; they differ in what they run, which the files
//! `images/NAME/image.yaml` of the source tree say.

mod layout;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kedge_base::Order as _;
use serde::Deserialize;

use self::layout::Binary;

/// Every folder of `images/`; a test looks that none is forgotten.
const DEFINITIONS: [(&str, &str); 3] = [
    ("pause", include_str!("../../../images/pause/image.yaml")),
    ("kedge", include_str!("../../../images/kedge/image.yaml")),
    ("hello", include_str!("../../../images/hello/image.yaml")),
];
/// All of Kedge's own images have names that begin so; nothing is ever fetched from there.
const OWN: &str = "kedge.dev/";
/// How much of a binary is looked at at a time.
const CHUNK: usize = 1 << 20;

/// A file `images/NAME/image.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    name: String,
    /// `${version}` stands for Kedge's version.
    tags: Vec<String>,
    entrypoint: Vec<String>,
    /// UID:GID
    user: String,
    /// `${tag}` stands for the tag.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// TCP ports that it listens on.
    #[serde(default)]
    ports: Vec<u16>,
}

/// What one image runs.
struct Image {
    /// With its tag.
    name: String,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    user: String,
    ports: Vec<u16>,
}

/// The image that every pod's sandbox runs; containerd's configuration names it.
pub(crate) fn pause_image() -> String {
    format!("{OWN}pause:{}", kedge_base::VERSION)
}

/// The names of all images that Kedge makes.
pub(crate) fn names() -> Vec<String> {
    // The definitions are part of the binary, and a test reads them.
    images().into_iter().flatten().map(|image| image.name).collect()
}

/// Make and import what containerd does not have yet. Cheap when nothing is missing.
///
/// # Errors
/// When the binary cannot be read, `work_dir` cannot be written or containerd refuses the archive.
pub(crate) async fn ensure(socket: &Path, work_dir: &Path) -> anyhow::Result<Vec<String>> {
    let names = names();
    let present = kedge_kubelet::list_images(socket).await.context("list images")?;
    if names.iter().all(|name| present.contains(name)) {
        return Ok(Vec::new());
    }
    let archive = work_dir.join("kedge-images.tar");
    let (target, folder) = (archive.clone(), work_dir.to_owned());
    let made = tokio::task::spawn_blocking(move || {
        let file = File::open("/proc/self/exe")?;
        let binary = Binary { architecture: architecture().to_owned(), file };
        build(vec![binary], &folder, &target)
    })
    .await
    .context("make images")?;
    made.with_context(|| format!("make images in {}", work_dir.display()))?;
    let options = kedge_kubelet::ImportOptions { work_dir: work_dir.to_owned(), pin: true };
    let imported =
        kedge_kubelet::import_images(socket, &archive, &options).await.context("import Kedge's images");
    let _ = fs::remove_file(&archive);
    let imported = imported?;
    // Those of an earlier version may go when nothing uses them any more.
    let old: Vec<String> =
        present.into_iter().filter(|name| name.starts_with(OWN) && !names.contains(name)).collect();
    kedge_kubelet::set_images_pinned(socket, &old, false).await.context("unpin old images")?;
    Ok(imported)
}

/// Write an archive of all images for the machines that `binaries` run on, or for this one when there are
/// none. With more than one, each image is one index of them.
///
/// # Errors
/// When a file is no binary for Linux on amd64 or arm64, or nothing can be written.
pub(crate) fn build_for(binaries: &[PathBuf], archive: &Path) -> anyhow::Result<Vec<String>> {
    let own = [PathBuf::from("/proc/self/exe")];
    let paths = if binaries.is_empty() { own.as_slice() } else { binaries };
    let mut opened: Vec<Binary> = Vec::new();
    for path in paths {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let looked = machine(&file).and_then(|machine| is_kedge(&file).map(|()| machine));
        let architecture = looked.with_context(|| format!("look at {}", path.display()))?.to_owned();
        if opened.iter().any(|other| other.architecture == architecture) {
            anyhow::bail!("two binaries are for {architecture}; name one for each architecture");
        }
        opened.push(Binary { architecture, file });
    }
    let folder = archive.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = tempfile::Builder::new()
        .prefix(".kedge-images-")
        .tempdir_in(folder)
        .with_context(|| format!("make a folder in {}", folder.display()))?;
    build(opened, work.path(), archive).with_context(|| format!("write {}", archive.display()))?;
    Ok(names())
}

fn build(mut binaries: Vec<Binary>, work_dir: &Path, archive: &Path) -> io::Result<()> {
    fs::create_dir_all(work_dir)?;
    binaries.order_by(|a, b| a.architecture.cmp(&b.architecture));
    layout::build(&images().map_err(io::Error::other)?, binaries, work_dir, archive)
}

fn images() -> anyhow::Result<Vec<Image>> {
    let mut images = Vec::new();
    for (folder, text) in DEFINITIONS {
        let definition: Definition =
            serde_saphyr::from_str(text).with_context(|| format!("read images/{folder}/image.yaml"))?;
        for tag in &definition.tags {
            let tag = tag.replace("${version}", kedge_base::VERSION);
            let mut environment = vec!["PATH=/".to_owned()];
            environment.extend(
                definition
                    .environment
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.replace("${tag}", &tag))),
            );
            images.push(Image {
                name: format!("{}:{tag}", definition.name),
                entrypoint: definition.entrypoint.clone(),
                environment,
                user: definition.user.clone(),
                ports: definition.ports.clone(),
            });
        }
    }
    Ok(images)
}

/// OCI's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// OCI's name of the architecture that a binary is made for, from its ELF header.
fn machine(file: &File) -> anyhow::Result<&'static str> {
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0).context("it is no binary of Kedge")?;
    match (&header[..5], u16::from_le_bytes([header[18], header[19]])) {
        (b"\x7fELF\x02", 0x3e) => Ok("amd64"),
        (b"\x7fELF\x02", 0xb7) => Ok("arm64"),
        _ => anyhow::bail!("it is no binary for Linux on amd64 or arm64"),
    }
}

/// Every binary of Kedge holds the names of its images.
fn is_kedge(file: &File) -> anyhow::Result<()> {
    let name = regex::bytes::Regex::new(&regex::escape(&format!("{OWN}pause")))?;
    let mut bytes = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut bytes, offset).context("read it")?;
        if name.is_match(&bytes[..read]) {
            return Ok(());
        }
        // The name may lie across the end of what was read.
        let overlap = name.as_str().len();
        anyhow::ensure!(read > overlap, "it is no binary of Kedge");
        offset += (read - overlap) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_of_images_is_built() {
        let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
        let mut found: Vec<String> = fs::read_dir(folders)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let mut known: Vec<&str> = DEFINITIONS.iter().map(|(folder, _)| *folder).collect();
        found.sort();
        known.sort_unstable();
        assert_eq!(found, known);
        let images = images().unwrap();
        assert!(images.iter().all(|image| image.name.starts_with(OWN) && image.entrypoint[0] == "/kedge"));
        assert!(names().contains(&pause_image()));
        let hello = images.iter().find(|image| image.name == "kedge.dev/hello:2.0").unwrap();
        assert_eq!(hello.environment, ["PATH=/", "HELLO_VERSION=2.0"]);
    }

    #[test]
    fn binaries_tell_their_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let file = |bytes: &[u8]| {
            let path = dir.path().join("binary");
            fs::write(&path, bytes).unwrap();
            File::open(path).unwrap()
        };
        let elf = |machine: u8| {
            let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
            bytes.extend([machine, 0]);
            bytes
        };
        assert_eq!(machine(&file(&elf(0x3e))).unwrap(), "amd64");
        assert_eq!(machine(&file(&elf(0xb7))).unwrap(), "arm64");
        assert!(machine(&file(&elf(0x28))).is_err());
        assert!(machine(&file(b"#!/bin/sh\n")).is_err());
        assert_eq!(machine(&File::open("/proc/self/exe").unwrap()).unwrap(), architecture());
        let twice = [PathBuf::from("/proc/self/exe"), PathBuf::from("/proc/self/exe")];
        assert!(build_for(&twice, &dir.path().join("x.tar")).is_err());
        let foreign = dir.path().join("foreign");
        fs::write(&foreign, elf(0x3e)).unwrap();
        let error = build_for(&[foreign], &dir.path().join("x.tar")).unwrap_err();
        assert!(format!("{error:#}").contains("it is no binary of Kedge"), "{error:#}");
        is_kedge(&File::open("/proc/self/exe").unwrap()).unwrap();
    }
}
