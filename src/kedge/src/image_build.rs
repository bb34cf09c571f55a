//! Kedge's own images, made from the running binary so that no registry is ever asked.
//!
//! All of them share one layer that holds just `/kedge`; they differ in what they run. The archive is an
//! OCI image layout (opencontainers/image-spec, image-layout.md) in a tar, the same bytes for the same
//! binary: fixed times, fixed owners, fixed order.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What one image runs.
struct Image {
    name: String,
    entrypoint: &'static [&'static str],
    environment: Vec<String>,
    user: &'static str,
    port: Option<u16>,
}

/// The image that every pod's sandbox runs; containerd's configuration names it.
pub(crate) fn pause_image() -> String {
    format!("kedge.dev/pause:{}", kedge_base::VERSION)
}

/// The image that addons run: the whole binary, told by its arguments what to be.
fn kedge_image() -> String {
    format!("kedge.dev/kedge:{}", kedge_base::VERSION)
}

/// The names of all images that Kedge makes.
pub(crate) fn names() -> Vec<String> {
    images().into_iter().map(|image| image.name).collect()
}

/// Make and import what containerd does not have yet. Cheap when nothing is missing.
///
/// # Errors
/// When the binary cannot be read, `work_dir` cannot be written or containerd refuses the archive.
pub(crate) async fn ensure(socket: &Path, work_dir: &Path) -> anyhow::Result<Vec<String>> {
    let present = kedge_kubelet::list_images(socket).await.context("list images")?;
    if names().iter().all(|name| present.contains(name)) {
        return Ok(Vec::new());
    }
    let archive = work_dir.join("kedge-images.tar");
    let (target, folder) = (archive.clone(), work_dir.to_owned());
    let made = tokio::task::spawn_blocking(move || {
        fs::create_dir_all(&folder)?;
        let mut binary = File::open("/proc/self/exe")?;
        build(&mut binary, &folder, &target)
    })
    .await
    .context("make images")?;
    made.with_context(|| format!("make images in {}", work_dir.display()))?;
    let imported = kedge_kubelet::import_images(socket, &archive).await.context("import Kedge's images");
    let _ = fs::remove_file(&archive);
    imported
}

fn images() -> Vec<Image> {
    let hello = |version: &str| Image {
        name: format!("kedge.dev/hello:{version}"),
        entrypoint: &["/kedge", "hello"],
        environment: vec![format!("HELLO_VERSION={version}")],
        user: "65534:65534",
        port: Some(8080),
    };
    vec![
        Image {
            name: pause_image(),
            entrypoint: &["/kedge", "pause"],
            environment: Vec::new(),
            user: "65535:65535",
            port: None,
        },
        Image {
            name: kedge_image(),
            entrypoint: &["/kedge"],
            environment: Vec::new(),
            user: "65534:65534",
            port: None,
        },
        hello("1.0"),
        hello("2.0"),
    ]
}

/// Write the archive with all images to `archive`; `work_dir` holds the layer meanwhile.
fn build(binary: &mut File, work_dir: &Path, archive: &Path) -> io::Result<()> {
    let layer_path = work_dir.join("kedge-layer.tar");
    let result =
        write_layer(binary, &layer_path).and_then(|layer| write_archive(&layer, &layer_path, archive));
    let _ = fs::remove_file(&layer_path);
    if result.is_err() {
        let _ = fs::remove_file(archive);
    }
    result
}

/// A blob's address.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self { digest: hex(Sha256::digest(bytes).as_slice()), size: bytes.len() as u64 }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.size })
    }
}

fn write_layer(binary: &mut File, path: &Path) -> io::Result<Blob> {
    let size = binary.metadata()?.len();
    let writer = Hashing { inner: io::BufWriter::new(File::create(path)?), hash: Sha256::new(), size: 0 };
    let mut tar = tar::Builder::new(writer);
    append(&mut tar, "kedge", 0o755, size, binary)?;
    let mut writer = tar.into_inner()?;
    writer.flush()?;
    Ok(Blob { digest: hex(writer.hash.finalize().as_slice()), size: writer.size })
}

fn write_archive(layer: &Blob, layer_path: &Path, archive: &Path) -> io::Result<()> {
    let mut blobs: Vec<(Blob, Vec<u8>)> = Vec::new();
    let mut manifests = Vec::new();
    for image in images() {
        let config = to_bytes(&image.config(layer))?;
        let config_blob = Blob::of(&config);
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config_blob.descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE)],
        }))?;
        let manifest_blob = Blob::of(&manifest);
        let mut entry = manifest_blob.descriptor(MANIFEST_TYPE);
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        entry["annotations"] = json!({
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name,
        });
        manifests.push(entry);
        blobs.push((config_blob, config));
        blobs.push((manifest_blob, manifest));
    }
    blobs.sort_by(|(a, _), (b, _)| a.digest.cmp(&b.digest));
    let index = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))?;
    let layout = to_bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?;

    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
    for (name, bytes) in [("oci-layout", &layout), ("index.json", &index)] {
        append(&mut tar, name, 0o644, bytes.len() as u64, &mut bytes.as_slice())?;
    }
    for (blob, bytes) in &blobs {
        append(&mut tar, &format!("blobs/sha256/{}", blob.digest), 0o644, blob.size, &mut bytes.as_slice())?;
    }
    let mut file = File::open(layer_path)?;
    append(&mut tar, &format!("blobs/sha256/{}", layer.digest), 0o644, layer.size, &mut file)?;
    tar.into_inner()?.flush()
}

impl Image {
    fn config(&self, layer: &Blob) -> Value {
        let mut environment = vec!["PATH=/".to_owned()];
        environment.extend(self.environment.iter().cloned());
        let mut config = json!({
            "Entrypoint": self.entrypoint,
            "Env": environment,
            "User": self.user,
            "WorkingDir": "/",
        });
        if let Some(port) = self.port {
            config["ExposedPorts"][format!("{port}/tcp")] = json!({});
        }
        json!({
            "architecture": architecture(),
            "os": "linux",
            "created": EPOCH,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
            "history": [{ "created": EPOCH, "created_by": "kedge" }],
        })
    }
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    mode: u32,
    size: u64,
    content: &mut impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, name, content.take(size))
}

/// OCI's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn to_bytes(value: &Value) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Passes bytes on and remembers their digest and number.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn archive(content: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("binary");
        fs::write(&binary, content).unwrap();
        let archive = dir.path().join("images.tar");
        build(&mut File::open(&binary).unwrap(), dir.path(), &archive).unwrap();
        assert!(!dir.path().join("kedge-layer.tar").exists());
        fs::read(&archive).unwrap()
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            entries.insert(name, bytes);
        }
        entries
    }

    #[test]
    fn the_same_binary_gives_the_same_bytes() {
        assert_eq!(archive(b"binary"), archive(b"binary"));
        assert_ne!(archive(b"binary"), archive(b"other"));
    }

    #[test]
    fn every_reference_leads_to_a_blob_with_that_digest() {
        let entries = entries(&archive(b"the binary"));
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let bytes = entries[&format!("blobs/sha256/{digest}")].clone();
            assert_eq!(hex(Sha256::digest(&bytes).as_slice()), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        let found: Vec<&str> = manifests
            .iter()
            .map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap())
            .collect();
        assert_eq!(found, names());
        let mut layers = Vec::new();
        for entry in manifests {
            let manifest: Value = serde_json::from_slice(&blob(entry)).unwrap();
            let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
            assert_eq!(config["config"]["Entrypoint"][0], "/kedge");
            let layer = blob(&manifest["layers"][0]);
            assert_eq!(self::entries(&layer)["kedge"], b"the binary");
            layers.push(manifest["layers"][0]["digest"].clone());
        }
        layers.dedup();
        assert_eq!(layers.len(), 1, "all images share one layer");
    }
}
