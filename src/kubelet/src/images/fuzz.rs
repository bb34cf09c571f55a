//! Image archives and images' names, for fuzz/.

use std::io::{Seek as _, Write as _};

use super::{archive, reference, unpack};

/// An archive: which blobs and images it holds. The file's checksums of headers are made right.
pub fn archive(data: &[u8]) {
    let mut bytes = data.to_vec();
    for header in bytes.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).and_then(|()| file.rewind()).expect("written");
    archive::fuzz_plan(&file);
}

/// A compressed archive.
pub fn compressed(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("archive");
    std::fs::write(&path, data).expect("written");
    let _ = unpack::open(&path, &dir.path().join("work"));
}

/// The name of an image.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = reference::with_default_tag(text);
    let _ = reference::default_policy(text);
    let (registry, path) = reference::registry_and_path(text);
    // The default registry and its folder are added.
    assert!(registry.len().max(path.len()) <= text.len() + 20);
    if let Some(name) = reference::canonical(text) {
        assert_eq!(reference::canonical(&name).as_deref(), Some(name.as_str()));
    }
}

/// An OCI layout, what `docker save` writes, and the same again in a layout that names itself.
pub fn archive_seeds() -> Vec<Vec<u8>> {
    let tar = |files: &[(&str, &str)]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_bytes()).expect("in memory");
        }
        tar.into_inner().expect("in memory")
    };
    let descriptor = |kind: &str, digest: &str| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{digest}","size":2}}"#)
    };
    let index = r#"{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:a","annotations":{"io.containerd.image.name":"example.com/a:1"}}]}"#;
    let children = format!(r#"{{"manifests":[{}]}}"#, descriptor("manifest.v1+json", "b"));
    let manifest = format!(
        r#"{{"config":{},"layers":[{}]}}"#,
        descriptor("config.v1+json", "c"),
        descriptor("layer.v1.tar", "d")
    );
    vec![
        tar(&[
            ("index.json", index),
            ("blobs/sha256/a", &children),
            ("blobs/sha256/b", &manifest),
            ("blobs/sha256/c", "{}"),
            ("blobs/sha256/d", "x"),
        ]),
        tar(&[
            ("manifest.json", r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#),
            ("c.json", "{}"),
            ("l/layer.tar", "x"),
        ]),
    ]
}
