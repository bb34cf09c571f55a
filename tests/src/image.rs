//! Container images made without any tool and without any registry: Debian's static busybox in a layer.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The image that [`crate::Cluster::import_busybox`] brings in.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";

/// The commands that the tests use in containers.
const APPLETS: [&str; 34] = [
    "sh", "cat", "chmod", "cp", "cut", "date", "echo", "env", "false", "grep", "head", "hostname", "id",
    "ip", "kill", "ln", "ls", "mkdir", "mv", "nc", "nslookup", "ps", "pwd", "rm", "sed", "sleep", "stat",
    "tail", "tar", "test", "touch", "true", "wc", "wget",
];

/// Writes an image as an OCI layout in a tar.
///
/// # Panics
/// When there is no static busybox or the file cannot be written.
pub fn oci_archive(name: &str, archive: &Path) {
    let Parts { layer, config, manifest } = parts(name);
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entry["annotations"] = json!({ "io.containerd.image.name": name });
    let index = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }));
    let layout = bytes(&json!({ "imageLayoutVersion": "1.0.0" }));
    let blob = |content: &[u8]| format!("blobs/sha256/{}", digest(content));
    write(
        archive,
        &[
            ("oci-layout".into(), &layout),
            ("index.json".into(), &index),
            (blob(&config), &config),
            (blob(&manifest), &manifest),
            (blob(&layer), &layer),
        ],
    );
}

/// What a registry needs of one image.
pub(crate) struct Parts {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

/// The busybox image; `label` makes it another image than those with other labels.
pub(crate) fn parts(label: &str) -> Parts {
    let layer = layer();
    let mut config = config(&layer);
    config["config"]["Labels"] = json!({ "test": label });
    let config = bytes(&config);
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    Parts { layer, config, manifest }
}

/// Writes an image as `docker save` did before it knew OCI.
///
/// # Panics
/// When there is no static busybox or the file cannot be written.
pub fn docker_archive(name: &str, archive: &Path) {
    let layer = layer();
    let config = bytes(&config(&layer));
    let config_name = format!("{}.json", digest(&config));
    let layer_name = format!("{}/layer.tar", digest(&layer));
    let manifest = bytes(&json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]));
    write(archive, &[(config_name, &config), (layer_name, &layer), ("manifest.json".into(), &manifest)]);
}

/// An uncompressed tar: busybox, a link for each command, and the folders programs expect.
fn layer() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("busybox is missing: apt-get install busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("root/", 0o700),
        ("tmp/", 0o1777),
        ("var/", 0o755),
        ("var/run/", 0o755),
    ] {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        tar.append_data(&mut header, name, std::io::empty()).expect("write a folder");
    }
    for (name, mode, content) in [
        ("bin/busybox", 0o755, busybox.as_slice()),
        ("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
        ("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n"),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        tar.append_data(&mut header, name, content).expect("write a file");
    }
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("write a link");
    }
    tar.into_inner().expect("finish the layer")
}

fn config(layer: &[u8]) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "kedge-tests" }],
    })
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn write(archive: &Path, entries: &[(String, &Vec<u8>)]) {
    let file = std::fs::File::create(archive).expect("create the archive");
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, content) in entries {
        let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice()).expect("write an entry");
    }
    tar.into_inner().and_then(|mut file| file.flush()).expect("finish the archive");
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", digest(content)), "size": content.len() })
}

pub(crate) fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("write JSON")
}

/// OCI's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
