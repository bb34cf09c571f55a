//! Reads an image archive into containerd: an OCI layout, or what `docker save` writes. CRI has no
//! call for this, so blobs go into containerd's content store and names into its image store, in
//! the namespace that CRI uses; CRI hears of them by containerd's events.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::types::Descriptor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::transport::Channel;

use super::reference;
use crate::Error;
use crate::runtime::Runtime;
use crate::volumes::blocking;

/// The containerd namespace of CRI.
const NAMESPACE: &str = "k8s.io";
const LEASE: &str = "kedge-image-import";
const CHUNK: usize = 1 << 20;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where an entry of the archive lies in the file.
#[derive(Clone, Copy, Debug)]
struct Span {
    offset: u64,
    size: u64,
}

/// A blob to be stored, with the labels that keep what it refers to from being collected.
#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
    from: From,
    labels: HashMap<String, String>,
}

#[derive(Clone, Debug)]
enum From {
    File(Span),
    Bytes(Vec<u8>),
}

#[derive(Debug, Default)]
struct Plan {
    /// Children before parents.
    blobs: Vec<Blob>,
    /// Name to (media type, digest, size).
    images: BTreeMap<String, (String, String, u64)>,
}

/// The names of all images that CRI could run.
///
/// # Errors
/// When containerd does not answer.
pub async fn list(containerd_socket: &Path) -> Result<Vec<String>, Error> {
    let mut images = ImagesClient::new(Runtime::new(containerd_socket)?.channel());
    let mut request = tonic::Request::new(api::ListImagesRequest { filters: Vec::new() });
    request
        .metadata_mut()
        .insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
    let answer = images.list(request).await?.into_inner();
    let mut names: Vec<String> = answer.images.into_iter().map(|image| image.name).collect();
    names.sort();
    Ok(names)
}

/// Imports the images of an uncompressed archive and returns their names.
///
/// # Errors
/// When the file is not an image archive, or containerd refuses it.
pub async fn import(containerd_socket: &Path, archive: &Path) -> Result<Vec<String>, Error> {
    let path = archive.to_path_buf();
    let plan = blocking(move || {
        let file = File::open(&path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        let entries = entries(&file)?;
        read_plan(&file, &entries)
    })
    .await?;
    if plan.images.is_empty() {
        return Err(Error::other(format!("{} holds no named image", archive.display())));
    }
    let channel = Runtime::new(containerd_socket)?.channel();
    let lease = api::CreateRequest {
        id: LEASE.to_owned(),
        labels: HashMap::from([("containerd.io/gc.expire".to_owned(), later()?)]),
    };
    let mut leases = LeasesClient::new(channel.clone());
    match leases.create(in_namespace(lease)?).await {
        Err(status) if status.code() != tonic::Code::AlreadyExists => return Err(status.into()),
        _ => {}
    }
    let result = store(&channel, archive, &plan).await;
    let _ = leases.delete(in_namespace(api::DeleteRequest { id: LEASE.to_owned(), sync: false })?).await;
    result?;
    Ok(plan.images.into_keys().collect())
}

/// A lease that a crash leaves behind ends by itself.
fn later() -> Result<String, Error> {
    let now = jiff::Timestamp::now().as_second();
    let time = jiff::Timestamp::from_second(now + 3600).map_err(|error| Error::other(error.to_string()))?;
    Ok(time.to_string())
}

fn in_namespace<T>(message: T) -> Result<tonic::Request<T>, Error> {
    let mut request = tonic::Request::new(message);
    let value = |text: &str| {
        text.parse::<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>()
            .map_err(|error| Error::other(error.to_string()))
    };
    request.metadata_mut().insert("containerd-namespace", value(NAMESPACE)?);
    request.metadata_mut().insert("containerd-lease", value(LEASE)?);
    Ok(request)
}

async fn store(channel: &Channel, archive: &Path, plan: &Plan) -> Result<(), Error> {
    for blob in &plan.blobs {
        write_blob(channel, archive, blob).await?;
    }
    for (name, (media_type, digest, size)) in &plan.images {
        let image = api::Image {
            name: name.clone(),
            labels: HashMap::from([("io.cri-containerd.image".to_owned(), "managed".to_owned())]),
            target: Some(Descriptor {
                media_type: media_type.clone(),
                digest: digest.clone(),
                size: i64::try_from(*size).unwrap_or(i64::MAX),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut images = ImagesClient::new(channel.clone());
        let create = api::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match images.create(in_namespace(create)?).await {
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let update = api::UpdateImageRequest { image: Some(image), ..Default::default() };
                images.update(in_namespace(update)?).await?;
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(())
}

async fn write_blob(channel: &Channel, archive: &Path, blob: &Blob) -> Result<(), Error> {
    let mut content = ContentClient::new(channel.clone());
    let info = in_namespace(api::InfoRequest { digest: blob.digest.clone() })?;
    if content.info(info).await.is_ok() {
        // There already, but perhaps without the labels.
        let info =
            api::Info { digest: blob.digest.clone(), labels: blob.labels.clone(), ..Default::default() };
        let mask = prost_types::FieldMask { paths: vec!["labels".to_owned()] };
        let update = api::UpdateRequest { info: Some(info), update_mask: Some(mask) };
        if !blob.labels.is_empty() {
            content.update(in_namespace(update)?).await?;
        }
        return Ok(());
    }
    let (sender, receiver) = tokio::sync::mpsc::channel::<api::WriteContentRequest>(4);
    let reader = tokio::task::spawn_blocking({
        let (archive, blob) = (archive.to_path_buf(), blob.clone());
        move || send_blob(&archive, &blob, &sender)
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|message| (message, receiver))
    });
    let answer = content.write(in_namespace(stream)?).await;
    let mut failed = None;
    match answer {
        Ok(answer) => {
            let mut answers = answer.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(status) => {
                        failed = Some(status);
                        break;
                    }
                }
            }
        }
        Err(status) => failed = Some(status),
    }
    match reader.await {
        Ok(Err(error)) => return Err(error),
        Err(error) => return Err(Error::other(format!("reading the archive ended abnormally: {error}"))),
        Ok(Ok(())) => {}
    }
    match failed {
        Some(status) if status.code() != tonic::Code::AlreadyExists => Err(status.into()),
        _ => Ok(()),
    }
}

fn send_blob(
    archive: &Path,
    blob: &Blob,
    sender: &tokio::sync::mpsc::Sender<api::WriteContentRequest>,
) -> Result<(), Error> {
    let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
    let message = |offset: u64, data: Vec<u8>, last: bool| api::WriteContentRequest {
        action: if last { api::WriteAction::Commit as i32 } else { api::WriteAction::Write as i32 },
        r#ref: format!("kedge-import-{}", blob.digest),
        total,
        expected: blob.digest.clone(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data,
        labels: if last { blob.labels.clone() } else { HashMap::new() },
    };
    let file =
        File::open(archive).map_err(|error| Error::io(format!("open {}", archive.display()), error))?;
    let mut done = 0;
    loop {
        let wanted = usize::try_from(blob.size - done).unwrap_or(CHUNK).min(CHUNK);
        let data = match &blob.from {
            From::Bytes(bytes) => {
                let start = usize::try_from(done).unwrap_or(bytes.len());
                bytes[start..start + wanted].to_vec()
            }
            From::File(span) => read_at(&file, Span { offset: span.offset + done, size: wanted as u64 })?,
        };
        let last = done + wanted as u64 == blob.size;
        if sender.blocking_send(message(done, data, last)).is_err() {
            // The other side says why.
            return Ok(());
        }
        if last {
            return Ok(());
        }
        done += wanted as u64;
    }
}

fn read_at(file: &File, span: Span) -> Result<Vec<u8>, Error> {
    let size = usize::try_from(span.size).map_err(|_| Error::other("an entry of the archive is too big"))?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, span.offset).map_err(|error| Error::io("read the archive", error))?;
    Ok(bytes)
}

fn entries(file: &File) -> Result<HashMap<String, Span>, Error> {
    let failed = |error| Error::io("read the archive (only uncompressed tar archives are supported)", error);
    let mut archive = tar::Archive::new(file);
    let mut found = HashMap::new();
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.header().entry_type().is_file() {
            let name = entry.path().map_err(failed)?.to_string_lossy().trim_start_matches("./").to_owned();
            found.insert(name, Span { offset: entry.raw_file_position(), size: entry.size() });
        }
    }
    Ok(found)
}

fn read_plan(file: &File, entries: &HashMap<String, Span>) -> Result<Plan, Error> {
    let read_json = |name: &str| -> Result<Option<Value>, Error> {
        let Some(span) = entries.get(name) else { return Ok(None) };
        let bytes = read_at(file, *span)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::other(format!("{name} in the archive: {error}")))
    };
    let mut plan = Plan::default();
    if let Some(index) = read_json("index.json")? {
        for descriptor in index["manifests"].as_array().into_iter().flatten() {
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .find_map(|key| descriptor["annotations"][*key].as_str())
                .and_then(reference::canonical);
            if let Some(name) = name {
                let target = add_layout(file, entries, descriptor, &mut plan)?;
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

fn missing(name: &str) -> Error {
    Error::other(format!("the archive lacks {name}"))
}

/// Adds the blob of a descriptor and all that it refers to.
fn add_layout(
    file: &File,
    entries: &HashMap<String, Span>,
    descriptor: &Value,
    plan: &mut Plan,
) -> Result<(String, String, u64), Error> {
    let media_type = descriptor["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
    let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let name = format!("blobs/{}", digest.replace(':', "/"));
    let span = *entries.get(&name).ok_or_else(|| missing(&name))?;
    let mut labels = HashMap::new();
    let is_index = media_type == INDEX || media_type.ends_with("manifest.list.v2+json");
    let is_manifest = media_type == MANIFEST || media_type.ends_with("distribution.manifest.v2+json");
    if is_index || is_manifest {
        let bytes = read_at(file, span)?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::other(format!("{name} in the archive: {error}")))?;
        if is_index {
            for (at, child) in value["manifests"].as_array().into_iter().flatten().enumerate() {
                let child_name =
                    format!("blobs/{}", child["digest"].as_str().unwrap_or_default().replace(':', "/"));
                // An archive of one platform may name the others.
                if entries.contains_key(&child_name) {
                    let (_, digest, _) = add_layout(file, entries, child, plan)?;
                    labels.insert(format!("containerd.io/gc.ref.content.m.{at}"), digest);
                }
            }
        } else {
            let (_, digest, _) = add_layout(file, entries, &value["config"], plan)?;
            labels.insert("containerd.io/gc.ref.content.config".to_owned(), digest);
            for (at, layer) in value["layers"].as_array().into_iter().flatten().enumerate() {
                let (_, digest, _) = add_layout(file, entries, layer, plan)?;
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
) -> Result<(String, String, u64), Error> {
    let mut add = |name: &str| -> Result<(String, u64, bool), Error> {
        let span = *entries.get(name).ok_or_else(|| missing(name))?;
        let (digest, gzip) = digest_of(file, span)?;
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
    fn other_archives_are_refused() {
        let file = archive(&[("readme", b"hello".to_vec())]);
        let entries = entries(file.as_file()).expect("entries");
        assert!(read_plan(file.as_file(), &entries).is_err());
    }
}
