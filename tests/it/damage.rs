//! Damage to the store's files: repaired with a warning, or named in a clear error; never a wrong answer.

use std::fs;
use std::path::{Path, PathBuf};

use kedge_tests::{Cluster, assert_has, step};

#[test]
fn files_cut_flipped_and_deleted() {
    let mut cluster = Cluster::start();
    let proxy = cluster.proxy();
    for index in 0..200 {
        let body = format!(r#"{{"metadata":{{"name":"c-{index:03}"}},"data":{{"value":"{index}"}}}}"#);
        let answer = proxy.send("POST", "/api/v1/namespaces/default/configmaps", "application/json", &body);
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    drop(proxy);
    let expected = contents(&cluster);
    assert!(expected.len() >= 200);

    step("a record that was being written when the power went: cut off with a warning");
    cluster.kill9();
    let segment = newest_segment(&cluster);
    let mut bytes = fs::read(&segment).unwrap();
    let end = *frames(&bytes).last().unwrap();
    // A frame's beginning, and not what its checksum promises.
    let mut torn = b"KFR1".to_vec();
    torn.extend(4096_u32.to_le_bytes());
    torn.resize(200, 0x5a);
    bytes.resize(bytes.len().max(end + 8192), 0);
    bytes[end..end + torn.len()].copy_from_slice(&torn);
    fs::write(&segment, &bytes).unwrap();
    cluster.run();
    cluster.wait_ready();
    assert_eq!(contents(&cluster), expected);

    step("preallocated space cut away");
    cluster.kill9();
    let segment = newest_segment(&cluster);
    let keep = *frames(&fs::read(&segment).unwrap()).last().unwrap();
    fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(keep as u64).unwrap();
    cluster.run();
    cluster.wait_ready();
    assert_eq!(contents(&cluster), expected);

    step("the state engine's folder deleted: rebuilt, with a warning");
    assert_eq!(cluster.stop(), 0);
    let engine =
        find(&data(&cluster), |path| path.is_dir() && path.file_name().is_some_and(|name| name == "engine"))
            .expect("the state engine's folder");
    fs::remove_dir_all(&engine).unwrap();
    let logged = cluster.log().len();
    cluster.run();
    cluster.wait_ready();
    assert_eq!(contents(&cluster), expected);
    let log = cluster.log();
    let new: Vec<&str> =
        log[logged..].lines().filter(|line| line.contains("WARN") && line.contains("engine")).collect();
    assert_eq!(new.len(), 1, "one warning, not {new:#?}");

    step("bytes flipped in the state engine: rebuilt, and never a wrong answer");
    cluster.kubectl(&["create", "configmap", "after"]).ok();
    let expected = contents(&cluster);
    assert_eq!(cluster.stop(), 0);
    let mut flipped = 0;
    for file in
        files(&engine).into_iter().filter(|file| fs::metadata(file).is_ok_and(|data| data.len() > 4096))
    {
        let mut bytes = fs::read(&file).unwrap();
        for at in (64..bytes.len()).step_by(997) {
            bytes[at] ^= 0x55;
        }
        fs::write(&file, bytes).unwrap();
        flipped += 1;
    }
    if flipped > 0 {
        cluster.run();
        cluster.wait_ready();
        assert_eq!(contents(&cluster), expected);
        assert_eq!(cluster.stop(), 0);
    }

    step("a byte flipped in the middle of the log: the start names the file and the remedy, and stops");
    cluster.run();
    cluster.wait_ready();
    for index in 0..8 {
        cluster.kubectl(&["create", "configmap", &format!("last-{index}")]).ok();
    }
    let expected = contents(&cluster);
    cluster.kill9();
    let segment = newest_segment(&cluster);
    let good = fs::read(&segment).unwrap();
    let mut bad = good.clone();
    let frames = frames(&good);
    assert!(frames.len() > 3, "too few frames to damage one in the middle");
    // Inside the payload of a frame that others follow.
    bad[frames[frames.len() / 2 - 1] + 20] ^= 0xff;
    fs::write(&segment, &bad).unwrap();
    let logged = cluster.log().len();
    cluster.run();
    let code = cluster.wait_ended();
    assert_eq!(code, 1);
    let log = cluster.log();
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert_has(&log[logged..], &["error: ", name, "damaged", "restore"]);

    step("the good file put back: everything is there");
    fs::write(&segment, &good).unwrap();
    cluster.run();
    cluster.wait_ready();
    assert_eq!(contents(&cluster), expected);
}

/// Names and values of all ConfigMaps the test wrote.
fn contents(cluster: &Cluster) -> Vec<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name}={.data.value}{\"\\n\"}{end}";
    let text = cluster.kubectl(&["get", "configmaps", "-o", path]).ok();
    text.lines().filter(|line| !line.starts_with("kube-root-ca")).map(str::to_owned).collect()
}

fn data(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("data")
}

/// The segment of the log that is written to: segments are numbered in their names.
fn newest_segment(cluster: &Cluster) -> PathBuf {
    let folder =
        find(&data(cluster), |path| path.is_dir() && path.file_name().is_some_and(|name| name == "wal"))
            .expect("the log's folder");
    let mut segments: Vec<PathBuf> = files(&folder)
        .into_iter()
        .filter(|file| file.extension().is_some_and(|ending| ending == "log"))
        .collect();
    segments.sort();
    segments.pop().expect("a segment of the log")
}

/// Offsets of the log's frames, and of the end of the last one. A segment is a header of 128 bytes, then
/// frames: "KFR1", the payload's length, two more words, the payload.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![128];
    loop {
        let at = *offsets.last().unwrap();
        if bytes.get(at..at + 4) != Some(b"KFR1".as_slice()) {
            return offsets;
        }
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        offsets.push(at + 16 + usize::try_from(length).unwrap());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The first path below `folder` that fits, outside of containerd's own files.
fn find(folder: &Path, fits: impl Fn(&Path) -> bool + Copy) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    if let Some(path) = entries.iter().find(|path| fits(path)) {
        return Some(path.clone());
    }
    entries
        .into_iter()
        .filter(|path| path.is_dir() && path.file_name().is_some_and(|name| name != "containerd"))
        .find_map(|path| find(&path, fits))
}
