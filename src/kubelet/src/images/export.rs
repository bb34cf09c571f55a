//! Writes images of this node into one archive: an OCI image layout that `ctr images import`, `docker load`
//! and our own import read. The same images always give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::archive::{INDEX, MANIFEST};
use super::reference;
use super::store::{Named, Store};
use crate::Error;

/// What the archive will hold.
#[derive(Default)]
struct Plan {
    /// Digest to size.
    blobs: BTreeMap<String, u64>,
    index: Vec<Value>,
    /// `docker load` of old versions reads this instead of the index.
    docker: Vec<Value>,
}

/// Writes the named images, or all that have a tag, and returns their names. A file that ends with `.gz` or
/// `.tgz` is compressed; the file appears when it is complete.
///
/// # Errors
/// When an image is not here or not complete, or the file cannot be written.
pub async fn export(containerd_socket: &Path, file: &Path, names: &[String]) -> Result<Vec<String>, Error> {
    let store = Store::new(containerd_socket)?;
    let chosen = choose(&store.list().await?, names)?;
    let mut plan = Plan::default();
    for image in &chosen {
        plan.add(&store, image).await?;
    }
    write(&store, file, &plan).await?;
    Ok(chosen.into_iter().map(|image| image.name).collect())
}

fn choose(present: &[Named], names: &[String]) -> Result<Vec<Named>, Error> {
    if names.is_empty() {
        let tagged = |image: &&Named| !image.name.contains('@') && !image.name.starts_with("sha256:");
        let all: Vec<Named> = present.iter().filter(tagged).cloned().collect();
        return if all.is_empty() { Err(Error::other("there is no image on this node")) } else { Ok(all) };
    }
    let mut chosen: BTreeMap<String, Named> = BTreeMap::new();
    for name in names {
        let wanted = reference::canonical(name)
            .ok_or_else(|| Error::other(format!("{name:?} is not a name of an image")))?;
        let found = present.iter().find(|image| image.name == wanted).ok_or_else(|| {
            Error::other(format!(
                "the image {wanted} is not on this node; kedge images list shows those that are"
            ))
        })?;
        chosen.insert(wanted, found.clone());
    }
    Ok(chosen.into_values().collect())
}

impl Plan {
    async fn add(&mut self, store: &Store, image: &Named) -> Result<(), Error> {
        let (media_type, digest, size) = &image.target;
        let incomplete = |what: String| {
            Error::other(format!(
                "the image {} is not complete on this node: {what}; pull or import it again",
                image.name
            ))
        };
        let mut manifests = Vec::new();
        if is_index(media_type) {
            let index = parse(&store.read_small(digest).await?, digest)?;
            self.blobs.insert(digest.clone(), *size);
            for child in index["manifests"].as_array().into_iter().flatten() {
                let child = child["digest"].as_str().unwrap_or_default();
                // Only what was pulled is here, usually one platform; the index keeps its digest all the same.
                if let Some(size) = store.size(child).await? {
                    manifests.push((child.to_owned(), size));
                }
            }
        } else {
            manifests.push((digest.clone(), *size));
        }
        let mut whole = Vec::new();
        let mut lacks = "no platform's manifest is here".to_owned();
        for (digest, size) in manifests {
            let manifest = parse(&store.read_small(&digest).await?, &digest)?;
            let parts = std::iter::once(&manifest["config"])
                .chain(manifest["layers"].as_array().into_iter().flatten())
                .filter_map(|part| part["digest"].as_str());
            let mut blobs = BTreeMap::from([(digest.clone(), size)]);
            let mut missing = None;
            for part in parts {
                match store.size(part).await? {
                    Some(size) => drop(blobs.insert(part.to_owned(), size)),
                    None => missing = Some(part.to_owned()),
                }
            }
            match missing {
                Some(part) => lacks = format!("{part} is missing"),
                None => {
                    self.blobs.extend(blobs);
                    whole.push(manifest);
                }
            }
        }
        let Some(first) = whole.first() else { return Err(incomplete(lacks)) };
        let tag = image.name.rsplit_once(':').map_or(image.name.as_str(), |(_, tag)| tag);
        self.index.push(json!({
            "mediaType": media_type,
            "digest": digest,
            "size": size,
            "annotations": {
                "io.containerd.image.name": image.name,
                "org.opencontainers.image.ref.name": tag,
            },
        }));
        let place = |part: &Value| blob_name(part["digest"].as_str().unwrap_or_default());
        self.docker.push(json!({
            "Config": place(&first["config"]),
            "RepoTags": [image.name],
            "Layers": first["layers"].as_array().into_iter().flatten().map(place).collect::<Vec<_>>(),
        }));
        Ok(())
    }
}

pub(super) fn is_index(media_type: &str) -> bool {
    media_type == INDEX || media_type.ends_with("manifest.list.v2+json")
}

pub(super) fn is_manifest(media_type: &str) -> bool {
    media_type == MANIFEST || media_type.ends_with("distribution.manifest.v2+json")
}

fn parse(bytes: &[u8], digest: &str) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::other(format!("{digest} is no manifest: {error}")))
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// What the writing thread is told.
enum Part {
    Entry {
        name: String,
        size: u64,
    },
    Data(Vec<u8>),
    /// Everything was sent: without it the file is thrown away.
    Done,
}

async fn write(store: &Store, file: &Path, plan: &Plan) -> Result<(), Error> {
    let (sender, receiver) = mpsc::channel(8);
    let target = file.to_path_buf();
    let writer = tokio::task::spawn_blocking(move || write_file(&target, receiver));
    let sent = send(store, plan, &sender).await;
    drop(sender);
    let written = writer.await.map_err(|error| Error::other(format!("writing ended abnormally: {error}")))?;
    // When the disk is full, that is the cause of the other error.
    written.map_err(|error| Error::io(format!("write {}", file.display()), error)).and(sent)
}

async fn send(store: &Store, plan: &Plan, sender: &mpsc::Sender<Part>) -> Result<(), Error> {
    let gone = |_| Error::other("the archive cannot be written");
    let small = [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": plan.index })),
        ("manifest.json", Value::from(plan.docker.clone())),
    ];
    for (name, value) in small {
        let bytes = value.to_string().into_bytes();
        let entry = Part::Entry { name: name.to_owned(), size: bytes.len() as u64 };
        sender.send(entry).await.map_err(gone)?;
        sender.send(Part::Data(bytes)).await.map_err(gone)?;
    }
    for (digest, size) in &plan.blobs {
        sender.send(Part::Entry { name: blob_name(digest), size: *size }).await.map_err(gone)?;
        let mut answers = store.read(digest).await?;
        while let Some(answer) = answers.message().await? {
            sender.send(Part::Data(answer.data)).await.map_err(gone)?;
        }
    }
    sender.send(Part::Done).await.map_err(gone)
}

fn write_file(target: &Path, parts: mpsc::Receiver<Part>) -> io::Result<()> {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial: PathBuf = target.with_file_name(format!(".{name}.partial"));
    let result = File::create(&partial).and_then(|file| {
        let buffered = io::BufWriter::with_capacity(1 << 20, &file);
        if name.ends_with(".gz") || name.ends_with(".tgz") {
            // No time and no name in its header.
            let mut encoder = flate2::write::GzEncoder::new(buffered, flate2::Compression::default());
            write_parts(&mut encoder, parts)?;
            encoder.finish()?.flush()?;
        } else {
            let mut buffered = buffered;
            write_parts(&mut buffered, parts)?;
            buffered.flush()?;
        }
        file.sync_all()?;
        std::fs::rename(&partial, target)
    });
    if result.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    result
}

fn write_parts(out: &mut impl Write, mut parts: mpsc::Receiver<Part>) -> io::Result<()> {
    const BLOCK: u64 = 512;
    let zeros = [0; 2 * BLOCK as usize];
    let mut left = 0;
    let mut padding = 0;
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Data(bytes) => {
                left = u64::checked_sub(left, bytes.len() as u64)
                    .ok_or_else(|| io::Error::other("a blob is longer than containerd said"))?;
                out.write_all(&bytes)?;
                continue;
            }
            Part::Entry { .. } | Part::Done if left > 0 => {
                return Err(io::Error::other("a blob is shorter than containerd said"));
            }
            Part::Entry { name, size } => {
                out.write_all(&zeros[..padding])?;
                let mut header = tar::Header::new_ustar();
                header.set_path(name)?;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                header.set_size(size);
                header.set_cksum();
                out.write_all(header.as_bytes())?;
                left = size;
                padding = usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or(0);
            }
            Part::Done => {
                out.write_all(&zeros[..padding])?;
                return out.write_all(&zeros);
            }
        }
    }
    Err(io::Error::other("the images could not be read to their end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn written(name: &str, parts: Vec<Part>) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().expect("a folder");
        let (sender, receiver) = mpsc::channel(parts.len().max(1));
        for part in parts {
            sender.try_send(part).map_err(|_| "full").expect("room");
        }
        drop(sender);
        let file = dir.path().join(name);
        let result = write_file(&file, receiver);
        let left = std::fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(left, usize::from(result.is_ok()), "nothing but the archive is left");
        result.map(|()| std::fs::read(file).expect("written"))
    }

    fn parts() -> Vec<Part> {
        vec![
            Part::Entry { name: "a".into(), size: 3 },
            Part::Data(b"ab".to_vec()),
            Part::Data(b"c".to_vec()),
            Part::Entry { name: "empty".into(), size: 0 },
            Part::Entry { name: "b".into(), size: 512 },
            Part::Data(vec![7; 512]),
            Part::Done,
        ]
    }

    #[test]
    fn the_archive_is_a_tar_and_appears_when_it_is_complete() {
        let bytes = written("x.tar", parts()).expect("written");
        assert_eq!(bytes, written("y.tar", parts()).expect("written"), "always the same bytes");
        let mut plain = Vec::new();
        let packed = written("x.tar.gz", parts()).expect("written");
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
        assert_eq!(plain, bytes);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found: Vec<(String, u64)> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                (entry.path().expect("a path").display().to_string(), entry.size())
            })
            .collect();
        assert_eq!(found, [("a".to_owned(), 3), ("empty".to_owned(), 0), ("b".to_owned(), 512)]);
    }

    #[test]
    fn half_an_archive_is_none() {
        let mut cut = parts();
        cut.pop();
        assert!(written("x.tar", cut).is_err());
        let short = vec![Part::Entry { name: "a".into(), size: 3 }, Part::Data(vec![1]), Part::Done];
        assert!(written("x.tar", short).is_err());
        let long = vec![Part::Entry { name: "a".into(), size: 1 }, Part::Data(vec![1, 2]), Part::Done];
        assert!(written("x.tar", long).is_err());
    }

    #[test]
    fn images_are_chosen_by_any_spelling() {
        let image = |name: &str| Named {
            name: name.to_owned(),
            target: (MANIFEST.to_owned(), "sha256:1".to_owned(), 1),
            pinned: false,
            by_hand: false,
        };
        let digest = format!("docker.io/library/app@sha256:{}", "1".repeat(64));
        let present = [image("docker.io/library/app:1"), image(&digest), image("sha256:1")];
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            choose(&present, &wanted)
                .map(|found| found.into_iter().map(|image| image.name).collect::<Vec<_>>())
                .map_err(|error| error.text())
        };
        assert_eq!(names(&[]).expect("all"), ["docker.io/library/app:1"]);
        assert_eq!(names(&["app:1", "docker.io/library/app:1"]).expect("one"), ["docker.io/library/app:1"]);
        assert_eq!(names(&[&digest]).expect("one"), [digest]);
        assert!(
            names(&["app:2"]).expect_err("missing").contains("docker.io/library/app:2 is not on this node")
        );
        assert!(names(&["App"]).expect_err("no name").contains("not a name"));
    }
}
