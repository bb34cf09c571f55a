//! Reads an image archive: an OCI layout, or what `docker save` writes, plain or compressed with gzip or
//! zstd. CRI has no call for this, so blobs go into containerd's content store and names into its image
//! store; CRI hears of them by containerd's events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::export::{is_index, is_manifest};
use super::store::Store;
use super::{reference, unpack};
use crate::Error;
use crate::volumes::blocking;

const CHUNK: usize = 1 << 20;
/// Manifests, indexes and configurations are small (the OCI distribution specification lets registries refuse
/// manifests of more than 4 MiB); more in memory would be a mistake in the archive.
const LARGEST_JSON: u64 = 16 << 20;
/// An index of indexes of manifests of layers; nobody nests deeper.
const DEEPEST: usize = 8;
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// How an archive is imported.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Where a compressed archive is unpacked meanwhile; a folder with room for it.
    pub work_dir: PathBuf,
    /// Keep the images until they are unpinned: nobody could fetch them again. If not, a person imports them.
    pub pin: bool,
}

/// Where an entry of the archive lies in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// A blob to be stored, with the labels that keep what it refers to from being collected.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) from: From,
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, Debug)]
pub(super) enum From {
    File(Span),
    Bytes(Vec<u8>),
}

#[derive(Debug, Default)]
struct Plan {
    /// Children before parents.
    blobs: Vec<Blob>,
    images: BTreeMap<String, Target>,
    /// Digests of blobs that are in the list or about to be.
    known: HashSet<String>,
    /// What files of `docker save` are: images share layers.
    files: HashMap<String, (String, u64, bool)>,
}

/// What an image's name leads to: media type, digest, size.
pub(super) type Target = (String, String, u64);

/// Imports the images of an archive and returns their names.
///
/// # Errors
/// When the file is not an image archive, or containerd refuses it.
pub async fn import(
    containerd_socket: &Path,
    archive: &Path,
    options: &ImportOptions,
) -> Result<Vec<String>, Error> {
    let (path, work_dir) = (archive.to_path_buf(), options.work_dir.clone());
    let (file, plan) = blocking(move || {
        let file = unpack::open(&path, &work_dir)?;
        let entries = entries(&file)?;
        let plan = read_plan(&file, &entries)?;
        Ok((Arc::new(file), plan))
    })
    .await?;
    if plan.images.is_empty() {
        return Err(Error::other(format!("{} holds no named image", archive.display())));
    }
    let store = Store::new(containerd_socket)?;
    let lease = store.lease().await?;
    let result = async {
        for blob in &plan.blobs {
            store.write_blob(&lease, &file, blob).await?;
        }
        for (name, target) in &plan.images {
            store.put_image(&lease, name, target, options.pin).await?;
        }
        Ok(())
    }
    .await;
    store.release(lease).await;
    result.map(|()| plan.images.into_keys().collect())
}

pub(super) fn read_at(file: &File, span: Span) -> Result<Vec<u8>, Error> {
    let size = usize::try_from(span.size).map_err(|_| Error::other("an entry of the archive is too big"))?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, span.offset).map_err(|error| Error::io("read the archive", error))?;
    Ok(bytes)
}

/// The JSON of an entry.
fn json_at(file: &File, name: &str, span: Span) -> Result<Value, Error> {
    if span.size > LARGEST_JSON {
        return Err(Error::other(format!("{name} in the archive is too big: {} bytes", span.size)));
    }
    serde_json::from_slice(&read_at(file, span)?)
        .map_err(|error| Error::other(format!("{name} in the archive: {error}")))
}

fn entries(file: &File) -> Result<HashMap<String, Span>, Error> {
    // Its own words would show what it has read, which may be anybody's file.
    let failed = |error: io::Error| {
        let expected = "a tar archive is expected, plain or compressed with gzip or zstd";
        match error.kind() {
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Error::other(format!("this is no image archive: {expected}"))
            }
            kind => Error::io(format!("read the archive ({expected})"), kind.into()),
        }
    };
    let length = file.metadata().map_err(failed)?.len();
    let mut archive = tar::Archive::new(file);
    let mut found = HashMap::new();
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.header().entry_type().is_file() {
            let name = entry.path().map_err(failed)?.to_string_lossy().trim_start_matches("./").to_owned();
            let span = Span { offset: entry.raw_file_position(), size: entry.size() };
            if span.offset.checked_add(span.size).is_none_or(|end| end > length) {
                return Err(Error::other(format!("{name} in the archive is cut short")));
            }
            found.insert(name, span);
        }
    }
    Ok(found)
}

fn read_plan(file: &File, entries: &HashMap<String, Span>) -> Result<Plan, Error> {
    let read_json = |name: &str| -> Result<Option<Value>, Error> {
        entries.get(name).map(|span| json_at(file, name, *span)).transpose()
    };
    let mut plan = Plan::default();
    if let Some(index) = read_json("index.json")? {
        for descriptor in index["manifests"].as_array().into_iter().flatten() {
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .find_map(|key| descriptor["annotations"][*key].as_str())
                .and_then(reference::canonical);
            if let Some(name) = name {
                let target = add_layout(file, entries, descriptor, &mut plan, 0)?;
                plan.images.insert(name, target);
            }
        }
        if !plan.images.is_empty() {
            return Ok(plan);
        }
    }
    let Some(manifest) = read_json("manifest.json")? else {
        return Err(Error::other(
            "the archive is neither an OCI layout with named images nor from `docker save`",
        ));
    };
    for image in manifest.as_array().into_iter().flatten() {
        let target = add_docker(file, entries, image, &mut plan)?;
        for tag in image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(name) = reference::canonical(tag) {
                plan.images.insert(name, target.clone());
            }
        }
    }
    Ok(plan)
}

/// Which blobs an archive holds, for fuzz/.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz_plan(file: &File) {
    let Ok(plan) = entries(file).and_then(|entries| read_plan(file, &entries)) else { return };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    for blob in &plan.blobs {
        if let From::File(span) = blob.from {
            assert!(span.offset.checked_add(span.size).is_some_and(|end| end <= length), "beyond the file");
        }
    }
}

fn missing(name: &str) -> Error {
    Error::other(format!("the archive lacks {name}"))
}

/// Adds the blob of a descriptor and all that it refers to. What is planned already is not looked at again:
/// images share layers, and an archive may be made so that each of its blobs names all others.
fn add_layout(
    file: &File,
    entries: &HashMap<String, Span>,
    descriptor: &Value,
    plan: &mut Plan,
    depth: usize,
) -> Result<Target, Error> {
    let media_type = descriptor["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
    let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let name = format!("blobs/{}", digest.replace(':', "/"));
    let span = *entries.get(&name).ok_or_else(|| missing(&name))?;
    if depth > DEEPEST {
        return Err(Error::other(format!("{name} in the archive is nested too deeply")));
    }
    if !plan.known.insert(digest.clone()) {
        return Ok((media_type, digest, span.size));
    }
    let mut labels = HashMap::new();
    let (is_index, is_manifest) = (is_index(&media_type), is_manifest(&media_type));
    if is_index || is_manifest {
        let value = json_at(file, &name, span)?;
        if is_index {
            for (at, child) in value["manifests"].as_array().into_iter().flatten().enumerate() {
                let child_name =
                    format!("blobs/{}", child["digest"].as_str().unwrap_or_default().replace(':', "/"));
                // An archive of one platform may name the others.
                if entries.contains_key(&child_name) {
                    let (_, digest, _) = add_layout(file, entries, child, plan, depth + 1)?;
                    labels.insert(format!("containerd.io/gc.ref.content.m.{at}"), digest);
                }
            }
        } else {
            let (_, digest, _) = add_layout(file, entries, &value["config"], plan, depth + 1)?;
            labels.insert("containerd.io/gc.ref.content.config".to_owned(), digest);
            for (at, layer) in value["layers"].as_array().into_iter().flatten().enumerate() {
                let (_, digest, _) = add_layout(file, entries, layer, plan, depth + 1)?;
                labels.insert(format!("containerd.io/gc.ref.content.l.{at}"), digest);
            }
        }
    }
    plan.blobs.push(Blob { digest: digest.clone(), size: span.size, from: From::File(span), labels });
    Ok((media_type, digest, span.size))
}

/// `docker save` has no manifest of the registry's kind: one is made from the files.
fn add_docker(
    file: &File,
    entries: &HashMap<String, Span>,
    image: &Value,
    plan: &mut Plan,
) -> Result<Target, Error> {
    let mut add = |name: &str| -> Result<(String, u64, bool), Error> {
        if let Some(known) = plan.files.get(name) {
            return Ok(known.clone());
        }
        let span = *entries.get(name).ok_or_else(|| missing(name))?;
        let (digest, gzip) = digest_of(file, span)?;
        plan.files.insert(name.to_owned(), (digest.clone(), span.size, gzip));
        plan.blobs.push(Blob {
            digest: digest.clone(),
            size: span.size,
            from: From::File(span),
            labels: HashMap::new(),
        });
        Ok((digest, span.size, gzip))
    };
    let (config, config_size, _) = add(image["Config"].as_str().unwrap_or_default())?;
    let mut labels = HashMap::from([("containerd.io/gc.ref.content.config".to_owned(), config.clone())]);
    let mut layers = Vec::new();
    for (at, layer) in image["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str).enumerate()
    {
        let (digest, size, gzip) = add(layer)?;
        labels.insert(format!("containerd.io/gc.ref.content.l.{at}"), digest.clone());
        let media_type = if gzip { LAYER_GZIP } else { LAYER };
        layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config, "size": config_size },
        "layers": layers,
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    let size = bytes.len() as u64;
    plan.blobs.push(Blob { digest: digest.clone(), size, from: From::Bytes(bytes), labels });
    Ok((MANIFEST.to_owned(), digest, size))
}

fn digest_of(file: &File, span: Span) -> Result<(String, bool), Error> {
    let mut hasher = Sha256::new();
    let (mut done, mut gzip) = (0, false);
    while done < span.size {
        let size = (span.size - done).min(CHUNK as u64);
        let bytes = read_at(file, Span { offset: span.offset + done, size })?;
        if done == 0 {
            gzip = bytes.starts_with(&[0x1f, 0x8b]);
        }
        hasher.update(&bytes);
        done += size;
    }
    Ok((format!("sha256:{}", hex(&hasher.finalize())), gzip))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut builder = tar::Builder::new(file.reopen().expect("a second handle"));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes.as_slice()).expect("appended");
        }
        builder.finish().expect("finished");
        file
    }

    #[test]
    fn what_is_no_archive_is_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "root:x:0:0:root:/root:/bin/sh\n".repeat(64)).expect("written");
        let said = entries(file.as_file()).expect_err("no archive").text();
        assert!(said.contains("no image archive") && !said.contains("root"), "{said}");
    }

    #[test]
    fn docker_archives_get_a_manifest() {
        let layer = b"layer".to_vec();
        let manifest = json!([{ "Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"] }]);
        let file = archive(&[
            ("c.json", b"{}".to_vec()),
            ("l/layer.tar", layer.clone()),
            ("manifest.json", manifest.to_string().into_bytes()),
        ]);
        let entries = entries(file.as_file()).expect("entries");
        let plan = read_plan(file.as_file(), &entries).expect("a plan");
        let (_, digest, _) = &plan.images["docker.io/library/app:1"];
        let top = plan.blobs.last().expect("blobs");
        assert_eq!(&top.digest, digest);
        let expected = format!("sha256:{}", hex(&Sha256::digest(&layer)));
        assert_eq!(top.labels.get("containerd.io/gc.ref.content.l.0"), Some(&expected));
    }

    #[test]
    fn a_blob_that_names_itself_is_taken_once() {
        let index = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:a",
            "annotations":{"org.opencontainers.image.ref.name":"example.com/a:1"}}"#;
        let list = format!(r#"{{"manifests":[{}]}}"#, [index; 9].join(","));
        let file = archive(&[("index.json", list.clone().into()), ("blobs/sha256/a", list.into())]);
        let entries = entries(file.as_file()).expect("entries");
        let plan = read_plan(file.as_file(), &entries).expect("a plan");
        assert_eq!((plan.blobs.len(), plan.images.len()), (1, 1));
    }

    #[test]
    fn an_entry_beyond_the_end_is_refused() {
        let file = archive(&[("index.json", vec![b'x'; 600])]);
        file.as_file().set_len(700).expect("cut");
        let error = entries(file.as_file()).expect_err("cut short").text();
        assert!(error.contains("archive"), "{error}");
    }

    #[test]
    fn other_archives_are_refused() {
        let file = archive(&[("readme", b"hello".to_vec())]);
        let entries = entries(file.as_file()).expect("entries");
        assert!(read_plan(file.as_file(), &entries).is_err());
    }
}
