//! The archive: an OCI image layout (opencontainers/image-spec, image-layout.md) in a tar. The same binaries
//! always give the same bytes: no compression, fixed times, fixed owners, fixed order.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use kedge_base::Order as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Image;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What `/kedge` is on machines of one architecture.
pub(super) struct Binary {
    /// OCI's name.
    pub(super) architecture: String,
    pub(super) file: File,
}

/// A binary in its layer.
struct Layer {
    architecture: String,
    blob: Blob,
    path: PathBuf,
}

/// Write the archive with all images; `work_dir` holds the layers meanwhile.
pub(super) fn build(
    images: &[Image],
    binaries: Vec<Binary>,
    work_dir: &Path,
    archive: &Path,
) -> io::Result<()> {
    let mut layers = Vec::new();
    let result = binaries
        .into_iter()
        .try_for_each(|mut binary| {
            let path = work_dir.join(format!("kedge-layer-{}.tar", binary.architecture));
            let blob = write_layer(&mut binary.file, &path)?;
            layers.push(Layer { architecture: binary.architecture, blob, path });
            Ok(())
        })
        .and_then(|()| write_archive(images, &layers, archive));
    for layer in &layers {
        let _ = fs::remove_file(&layer.path);
    }
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

fn write_archive(images: &[Image], layers: &[Layer], archive: &Path) -> io::Result<()> {
    let mut blobs: Vec<(Blob, Vec<u8>)> = Vec::new();
    let mut named = Vec::new();
    for image in images {
        let mut entries = Vec::new();
        for layer in layers {
            let config = to_bytes(&image.config(layer))?;
            let config_blob = Blob::of(&config);
            let manifest = to_bytes(&json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": config_blob.descriptor(CONFIG_TYPE),
                "layers": [layer.blob.descriptor(LAYER_TYPE)],
            }))?;
            let manifest_blob = Blob::of(&manifest);
            let mut entry = manifest_blob.descriptor(MANIFEST_TYPE);
            entry["platform"] = json!({ "architecture": layer.architecture, "os": "linux" });
            entries.push(entry);
            blobs.push((config_blob, config));
            blobs.push((manifest_blob, manifest));
        }
        let mut entry = match entries.as_slice() {
            [only] => only.clone(),
            all => {
                let index =
                    to_bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": all }))?;
                let blob = Blob::of(&index);
                let entry = blob.descriptor(INDEX_TYPE);
                blobs.push((blob, index));
                entry
            }
        };
        entry["annotations"] = json!({
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name,
        });
        named.push(entry);
    }
    blobs.order_by(|(a, _), (b, _)| a.digest.cmp(&b.digest));
    let index = to_bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": named }))?;
    let layout = to_bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?;

    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
    for (name, bytes) in [("oci-layout", &layout), ("index.json", &index)] {
        append(&mut tar, name, 0o644, bytes.len() as u64, &mut bytes.as_slice())?;
    }
    for (blob, bytes) in &blobs {
        append(&mut tar, &format!("blobs/sha256/{}", blob.digest), 0o644, blob.size, &mut bytes.as_slice())?;
    }
    for layer in layers {
        let name = format!("blobs/sha256/{}", layer.blob.digest);
        append(&mut tar, &name, 0o644, layer.blob.size, &mut File::open(&layer.path)?)?;
    }
    tar.into_inner()?.flush()
}

impl Image {
    fn config(&self, layer: &Layer) -> Value {
        let mut config = json!({
            "Entrypoint": self.entrypoint,
            "Env": self.environment,
            "User": self.user,
            "WorkingDir": "/",
        });
        for port in &self.ports {
            config["ExposedPorts"][format!("{port}/tcp")] = json!({});
        }
        json!({
            "architecture": layer.architecture,
            "os": "linux",
            "created": EPOCH,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.blob.digest)] },
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

    fn images() -> Vec<Image> {
        ["1", "2"]
            .map(|tag| Image {
                name: format!("kedge.dev/app:{tag}"),
                entrypoint: vec!["/kedge".to_owned(), "app".to_owned()],
                environment: vec![format!("TAG={tag}")],
                user: "1:1".to_owned(),
                ports: vec![80],
            })
            .into()
    }

    fn archive(binaries: &[(&str, &str)]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let binaries = binaries
            .iter()
            .map(|(architecture, content)| {
                let path = dir.path().join(architecture);
                fs::write(&path, content).unwrap();
                let file = File::open(&path).unwrap();
                fs::remove_file(&path).unwrap();
                Binary { architecture: (*architecture).to_owned(), file }
            })
            .collect();
        let archive = dir.path().join("images.tar");
        build(&images(), binaries, dir.path(), &archive).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the archive is left");
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
        let one = [("amd64", "binary")];
        let two = [("amd64", "binary"), ("arm64", "other")];
        assert_eq!(archive(&one), archive(&one));
        assert_eq!(archive(&two), archive(&two));
        assert_ne!(archive(&one), archive(&[("amd64", "other")]));
        // On any machine and with any compiler: who changes this changes the digests of all images.
        for (archive, digest) in [(archive(&one), ONE), (archive(&two), TWO)] {
            assert_eq!(hex(Sha256::digest(&archive).as_slice()), digest);
        }
    }

    const ONE: &str = "ee8940c2cc29b5da03294a55c52407857cf5211ab65ab160b96b4997bbdcbc78";
    const TWO: &str = "81a36700c15db97c1ef956ce56a17c2497f7ddf138ceb1696881361bf0365d55";

    #[test]
    fn every_reference_leads_to_a_blob_with_that_digest() {
        for binaries in [vec![("amd64", "x")], vec![("amd64", "x"), ("arm64", "a")]] {
            let entries = entries(&archive(&binaries));
            let blob = |descriptor: &Value| {
                let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
                let bytes = entries[&format!("blobs/sha256/{digest}")].clone();
                assert_eq!(hex(Sha256::digest(&bytes).as_slice()), digest);
                assert_eq!(descriptor["size"], bytes.len());
                bytes
            };
            let parse = |bytes: Vec<u8>| -> Value { serde_json::from_slice(&bytes).unwrap() };
            let index = parse(entries["index.json"].clone());
            let mut layers = Vec::new();
            for (image, entry) in images().iter().zip(index["manifests"].as_array().unwrap()) {
                assert_eq!(entry["annotations"]["io.containerd.image.name"], image.name);
                let platforms = match entry["mediaType"].as_str().unwrap() {
                    INDEX_TYPE => parse(blob(entry))["manifests"].as_array().unwrap().clone(),
                    _ => vec![entry.clone()],
                };
                assert_eq!(platforms.len(), binaries.len());
                for (platform, (architecture, content)) in platforms.iter().zip(&binaries) {
                    assert_eq!(platform["platform"]["architecture"], *architecture);
                    let manifest = parse(blob(platform));
                    let config = parse(blob(&manifest["config"]));
                    assert_eq!(config["architecture"], *architecture);
                    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
                    assert_eq!(config["config"]["ExposedPorts"], json!({"80/tcp": {}}));
                    let layer = blob(&manifest["layers"][0]);
                    assert_eq!(self::entries(&layer)["kedge"], content.as_bytes());
                    layers.push(manifest["layers"][0]["digest"].to_string());
                }
            }
            layers.sort();
            layers.dedup();
            assert_eq!(layers.len(), binaries.len(), "all images share one layer for each architecture");
        }
    }
}
