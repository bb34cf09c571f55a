//! Snapshot files: a whole cluster in one file, to bring it back here or on another machine.
//!
//! A tar archive (so that stock tools can look into it) and 40 bytes behind its end:
//!
//! ```text
//! kedge-snapshot.json   what it is: format, versions, cluster, revision, time, each part's size and SHA-256
//! pki/ca.crt ...        the cluster's authorities and the key that signs ServiceAccount tokens
//! store.snap            the store's own snapshot format: compressed, with checksums of its own
//! "KEDGESUM", SHA-256 of all before
//! ```
//!
//! It holds private keys: mode 0600. The node's own key is not in it: an identity must not exist twice.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use kedge_base::Order as _;
use kedge_cluster::ClusterConfig;
use kedge_store::backup::{self, Part};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::failure::Remedied;

/// The version of this format.
const FORMAT: u32 = 1;
/// How snapshots in a node's own folder end.
pub(crate) const ENDING: &str = "snapshot";
/// How the names begin that nobody chose, and that are removed again.
pub(crate) const SCHEDULED: &str = "auto-";
const HEADER: &str = "kedge-snapshot.json";
const STORE: &str = "store.snap";
const PKI: &str = "pki/";
const SEAL: &[u8; 8] = b"KEDGESUM";
const SEAL_LENGTH: u64 = 8 + 32;
/// The header and each key are smaller.
const LONGEST: u64 = 4 << 20;

/// The files of a control-plane node's PKI folder that make the cluster.
pub(crate) const KEYS: [&str; 6] =
    ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"];

/// More of them, where there are any: the keys that stored objects are encrypted with, without which the copy
/// could not be read; and what there is of an authority's replacement that is under way.
pub(crate) const MORE_KEYS: [&str; 4] = ["encryption.json", "ca-next.crt", "ca-next.key", "ca-cross.crt"];

/// What a snapshot says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    pub(crate) format: u32,
    pub(crate) kedge_version: String,
    /// The hash of the cluster authority's key: what join strings pin.
    pub(crate) cluster_id: String,
    /// The settings that all nodes of the cluster share.
    pub(crate) cluster: ClusterConfig,
    /// The node that made it.
    pub(crate) node: String,
    pub(crate) time: Timestamp,
    /// The revision of the last change in it.
    pub(crate) revision: u64,
    /// How many keys.
    pub(crate) objects: u64,
    /// A majority had confirmed that nothing newer was acknowledged.
    pub(crate) confirmed: bool,
    pub(crate) parts: Vec<PartInfo>,
}

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartInfo {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A snapshot that was read to its end and found whole.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) header: Header,
    /// Objects by resource.
    pub(crate) resources: BTreeMap<String, u64>,
    /// Of the file.
    pub(crate) bytes: u64,
    /// File name in the PKI folder and content.
    pub(crate) keys: BTreeMap<String, Vec<u8>>,
    pub(crate) store: Part,
}

/// Passes bytes on and keeps their hash.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hash_of(mut input: impl Read) -> io::Result<[u8; 32]> {
    let mut sink = Hashed::new(io::sink());
    io::copy(&mut input, &mut sink)?;
    Ok(sink.hash.finalize().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the file under a temporary name, reads it back, counts, and only then gives it its name.
/// `header.parts` is filled in here.
///
/// # Errors
/// When it cannot be written or does not read back as it was written; nothing is left then.
pub(crate) fn write(
    target: &Path,
    header: Header,
    keys: &[(String, Vec<u8>)],
    store: &Path,
) -> anyhow::Result<Verified> {
    let dir = target.parent().context("a snapshot needs a folder")?;
    let name = target.file_name().context("a snapshot needs a name")?.to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.part", std::process::id()));
    let result = write_file(&temporary, header, keys, store).and_then(|written| {
        let mut verified = verify(&temporary).context("read the snapshot back")?;
        ensure!(verified.header == written, "the snapshot does not read back as it was written");
        fs::rename(&temporary, target).with_context(|| format!("rename it to {}", target.display()))?;
        kedge_base::sync_dir(dir).with_context(|| format!("sync {}", dir.display()))?;
        verified.store.path = target.to_owned();
        Ok(verified)
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("write the snapshot {}", target.display()))
}

fn write_file(
    path: &Path,
    mut header: Header,
    keys: &[(String, Vec<u8>)],
    store: &Path,
) -> anyhow::Result<Header> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    let mut state = File::open(store).context("open the store's copy")?;
    let state_bytes = state.metadata()?.len();
    header.parts = keys
        .iter()
        .map(|(name, bytes)| PartInfo {
            name: format!("{PKI}{name}"),
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        })
        .collect();
    let sha256 = hex(&hash_of(&mut state)?);
    header.parts.push(PartInfo { name: STORE.into(), bytes: state_bytes, sha256 });

    let mut archive = tar::Builder::new(Hashed::new(BufWriter::new(file)));
    let seconds = u64::try_from(header.time.as_second()).unwrap_or_default();
    let mut append = |name: &str, bytes: u64, content: &mut dyn Read| -> io::Result<()> {
        let mut entry = tar::Header::new_gnu();
        entry.set_size(bytes);
        entry.set_mode(0o600);
        entry.set_mtime(seconds);
        archive.append_data(&mut entry, name, content)
    };
    let json = serde_json::to_vec_pretty(&header)?;
    append(HEADER, json.len() as u64, &mut json.as_slice())?;
    for (name, bytes) in keys {
        append(&format!("{PKI}{name}"), bytes.len() as u64, &mut bytes.as_slice())?;
    }
    let mut state = File::open(store).context("open the store's copy")?;
    append(STORE, state_bytes, &mut state)?;
    let mut out = archive.into_inner()?;
    let hash = out.hash.clone().finalize();
    out.write_all(SEAL)?;
    out.write_all(&hash)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(header)
}

/// Reads a snapshot to its end: every checksum, every object.
///
/// # Errors
/// Says what is wrong with which part.
pub(crate) fn verify(path: &Path) -> anyhow::Result<Verified> {
    let context = || format!("{} is no usable snapshot", path.display());
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = file.metadata()?.len();
    check_seal(&file, bytes).with_context(context)?;
    let verified = read_parts(path, bytes).with_context(context)?;
    Ok(verified)
}

fn check_seal(file: &File, bytes: u64) -> anyhow::Result<()> {
    let sealed = bytes.checked_sub(SEAL_LENGTH).context("it is cut short")?;
    let mut input = BufReader::with_capacity(64 << 10, file);
    let hash = hash_of(Read::take(&mut input, sealed))?;
    let mut seal = [0; SEAL_LENGTH as usize];
    input.read_exact(&mut seal)?;
    ensure!(seal[..8] == *SEAL, "it is no snapshot of Kedge, or it is cut short");
    ensure!(seal[8..] == hash, "it is damaged: its checksum is wrong");
    Ok(())
}

fn read_parts(path: &Path, bytes: u64) -> anyhow::Result<Verified> {
    let file = BufReader::new(File::open(path)?);
    let mut archive = tar::Archive::new(file.take(bytes - SEAL_LENGTH));
    let mut header: Option<Header> = None;
    let (mut keys, mut store, mut seen) = (BTreeMap::new(), None, Vec::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let Some(header) = &header else {
            header = Some(read_header(&name, &mut entry)?);
            continue;
        };
        let length = entry.size();
        let sha256 = if name == STORE {
            let part = Part { path: path.to_owned(), offset: entry.raw_file_position(), length };
            store = Some(part);
            hex(&hash_of(&mut entry)?)
        } else {
            let key = name.strip_prefix(PKI).filter(|key| KEYS.contains(key) || MORE_KEYS.contains(key));
            let key = key.with_context(|| format!("it holds {name}, which this version does not know"))?;
            ensure!(length <= LONGEST, "{name} is too long");
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            let sha256 = hex(&Sha256::digest(&content));
            keys.insert(key.to_owned(), content);
            sha256
        };
        let info = PartInfo { name, bytes: length, sha256 };
        ensure!(header.parts.contains(&info), "{} is not what the header says", info.name);
        seen.push(info.name);
    }
    let header = header.context("it is empty")?;
    for part in &header.parts {
        ensure!(seen.contains(&part.name), "{} is missing", part.name);
    }
    for key in KEYS {
        ensure!(keys.contains_key(key), "it lacks the cluster's {key}");
    }
    let store = store.context("it holds no objects")?;
    let (summary, resources) = backup::count(&store)?;
    ensure!(
        (summary.revision, summary.objects) == (header.revision, header.objects),
        "it holds {} objects at revision {}, its header says {} at {}",
        summary.objects,
        summary.revision,
        header.objects,
        header.revision
    );
    Ok(Verified { header, resources, bytes, keys, store })
}

/// The header of a snapshot, without reading the rest.
///
/// # Errors
/// When it is no snapshot.
pub(crate) fn header(path: &Path) -> anyhow::Result<Header> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
    let mut entry = archive.entries()?.next().context("it is empty")??;
    let name = entry.path()?.to_string_lossy().into_owned();
    read_header(&name, &mut entry)
}

fn read_header(name: &str, input: &mut impl Read) -> anyhow::Result<Header> {
    if name != HEADER {
        bail!("it is no snapshot of Kedge");
    }
    let mut text = Vec::new();
    input.take(LONGEST).read_to_end(&mut text)?;
    // The version first: a later header may have other fields.
    let value: serde_json::Value = serde_json::from_slice(&text).context("read its header")?;
    let format = value["format"].as_u64().unwrap_or_default();
    ensure!(
        format == u64::from(FORMAT),
        "it has format {format}, this version of Kedge reads format {FORMAT}; use the version that wrote it ({})",
        value["kedgeVersion"].as_str().unwrap_or("unknown")
    );
    serde_json::from_value(value).context("read its header")
}

/// What a header says before the parts are known.
pub(crate) fn new_header(
    cluster_id: String,
    cluster: ClusterConfig,
    node: String,
    time: Timestamp,
    state: backup::Summary,
    confirmed: bool,
) -> Header {
    Header {
        format: FORMAT,
        kedge_version: kedge_base::git_version(),
        cluster_id,
        cluster,
        node,
        time,
        revision: state.revision,
        objects: state.objects,
        confirmed,
        parts: Vec::new(),
    }
}

/// A snapshot in a node's own folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) time: Timestamp,
    pub(crate) bytes: u64,
    /// Made by the schedule, and removed by it.
    pub(crate) scheduled: bool,
}

/// The snapshots in a folder, newest first, by their files' times; none are read.
///
/// # Errors
/// When the folder is there but cannot be read.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let file = entry?.path();
        let Some(name) = file.file_stem().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') || file.extension().is_none_or(|ending| ending != ENDING) {
            continue;
        }
        let metadata = fs::metadata(&file)?;
        let time = Timestamp::try_from(metadata.modified()?).unwrap_or(Timestamp::UNIX_EPOCH);
        let (name, scheduled) = (name.to_owned(), name.starts_with(SCHEDULED));
        found.push(Listed { name, time, bytes: metadata.len(), scheduled, file });
    }
    found.order_by(|one, other| other.time.cmp(&one.time).then_with(|| other.name.cmp(&one.name)));
    Ok(found)
}

/// The file that a user means: a path, or the name of a snapshot in the node's folder.
///
/// # Errors
/// There is neither.
pub(crate) fn find(folder: &Path, which: &Path) -> anyhow::Result<PathBuf> {
    if which.exists() {
        return Ok(which.to_owned());
    }
    let named = folder.join(format!("{}.{ENDING}", which.display()));
    let is_name = which.components().count() == 1;
    if is_name && named.exists() {
        return Ok(named);
    }
    let or_snapshot = if is_name { " and no snapshot of that name" } else { "" };
    let what = format!("there is no file {}{or_snapshot}", which.display());
    Err(Remedied::new(what, "kedge snapshot list shows those of this node").into())
}

/// `12 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20),
    }
}
