//! Encryption at rest: what is on the disk and in snapshots, keys that come and go, nodes that get them.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_tests::{Cluster, Network, assert_has, eventually, step};
use serde_json::Value;

use kedge_tests::trio::invitation;

fn status(node: &Cluster) -> Value {
    node.kedge(&["secrets-encryption", "status", "--output", "json"]).json()
}

/// Of a resource: how many objects, and how many are encrypted.
fn counts(status: &Value, resource: &str) -> (u64, u64) {
    let all = status["resources"].as_array().expect("resources");
    let one = all.iter().find(|one| one["resource"] == resource);
    one.map_or((0, 0), |one| (one["objects"].as_u64().unwrap(), one["encrypted"].as_u64().unwrap()))
}

fn secret(node: &Cluster, name: &str, value: &str) {
    node.kubectl(&["create", "secret", "generic", name, &format!("--from-literal=password={value}")]).ok();
}

fn password(node: &Cluster, name: &str) -> String {
    let text = node.field(&format!("secret/{name}"), ".data.password");
    String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// The file's bytes, and those of every compressed stream in it: snapshots are compressed.
fn readable(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut all = bytes.clone();
    let starts = bytes
        .windows(2)
        .enumerate()
        .filter(|(_, two)| [[0x78, 0x01], [0x78, 0x9c]].contains(&[two[0], two[1]]));
    for (at, _) in starts {
        let mut inflated = Vec::new();
        // What is no stream ends in an error at once; a stream may be followed by something else.
        let _ = flate2::read::ZlibDecoder::new(&bytes[at..]).read_to_end(&mut inflated);
        if inflated.len() > 100 {
            all.extend(inflated);
        }
    }
    all
}

/// The files below a folder that hold a text, as it is or as Secrets hold it.
fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(folder, &mut found);
    let encoded = STANDARD.encode(text);
    found.retain(|path| {
        let bytes = readable(path);
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        has(text) || has(&encoded)
    });
    found
}

#[test]
fn nothing_on_the_disk_can_be_read_without_the_key() {
    let mut node = Cluster::start();
    let data = node.dir().join("data");
    let store = data.join("store");
    secret(&node, "before", "zq-before-zq");
    let off = status(&node);
    assert!(off["enabled"] == false && counts(&off, "secrets").0 == 0, "{off}");
    assert_has(&node.kedge(&["secrets-encryption", "rotate"]).failed(1), &["nothing is encrypted", "enable"]);
    let unknown = node.kedge(&["secrets-encryption", "enable", "--resources", "secret"]).failed(1);
    assert_has(&unknown, &["no resource secret", "plural"]);

    step("enabled: what is there is rewritten");
    let version = node.field("secret/before", ".metadata.resourceVersion");
    let done = node.kedge(&["secrets-encryption", "enable", "--output", "json"]).json();
    assert!(done["result"] == "enabled" && done["stage"] == "settled", "{done}");
    let (objects, encrypted) = counts(&done, "secrets");
    assert!(objects >= 1 && objects == encrypted && done["toBeRewritten"] == 0, "{done}");
    assert_eq!(password(&node, "before"), "zq-before-zq");
    assert_ne!(node.field("secret/before", ".metadata.resourceVersion"), version);
    let file = data.join("pki/encryption.json");
    assert_eq!(fs::metadata(&file).expect("the file of keys").permissions().mode() & 0o777, 0o600);
    let again = node.kedge(&["secrets-encryption", "enable", "--output", "json"]).json();
    assert_eq!(again["key"], done["key"], "a second time changes nothing");

    step("what is written now is on the disk as ciphertext only, also in a snapshot");
    secret(&node, "planted", "zq-planted-zq");
    node.kubectl(&["create", "configmap", "open", "--from-literal=value=zq-open-zq"]).ok();
    node.kubectl(&["label", "secret/planted", "is=changed"]).ok();
    let saved = node.kedge(&["snapshot", "save", "--name", "sealed", "--output", "json"]).json();
    let snapshot = PathBuf::from(saved["file"].as_str().expect("a file"));
    assert!(!holding(&store, "zq-open-zq").is_empty(), "the search finds what is not encrypted");
    assert!(holding(snapshot.parent().unwrap(), "zq-open-zq").contains(&snapshot));
    assert_eq!(holding(&data, "zq-planted-zq"), Vec::<PathBuf>::new());

    step("a crash changes nothing");
    node.kill9();
    node.run();
    node.wait_ready();
    assert_eq!(
        (password(&node, "planted"), password(&node, "before")),
        ("zq-planted-zq".into(), "zq-before-zq".into())
    );
    assert_eq!(node.field("secret/planted", ".metadata.labels.is"), "changed");

    step("a new key: rewritten in the background, also when it is killed meanwhile");
    many(&node);
    let key = status(&node)["key"].clone();
    let mut rotating = node.spawn(&["secrets-encryption", "rotate"]);
    eventually("the new key in the record", || {
        (status(&node)["key"] != key || status(&node)["stage"] != "settled").then_some(())
    });
    node.kill9();
    let _ = rotating.kill();
    rotating.wait().expect("wait for the command");
    node.run();
    node.wait_ready();
    let now = eventually("everything rewritten", || {
        let now = status(&node);
        (now["stage"] == "settled").then_some(now)
    });
    let (objects, encrypted) = counts(&now, "secrets");
    assert!(objects > 300 && objects == encrypted && now["key"] != key && now["toBeRewritten"] == 0, "{now}");
    assert_eq!(node.get(&["secrets", "-n", "many"])["items"].as_array().unwrap().len(), 300);
    assert_eq!(password(&node, "planted"), "zq-planted-zq");

    step("without its keys the node refuses to start, and says what to do");
    assert_eq!(node.stop(), 0);
    fs::rename(&file, data.join("aside.json")).expect("move the keys");
    let logged = node.log().len();
    node.run();
    assert_ne!(node.wait_ended(), 0);
    let log = node.log()[logged..].to_owned();
    assert_has(&log, &["is encrypted with the key", "pki/encryption.json", "kedge"]);
    fs::rename(data.join("aside.json"), &file).expect("put the keys back");
    node.run();
    node.wait_ready();
    assert_eq!(password(&node, "planted"), "zq-planted-zq");

    step("a snapshot brings its keys with it");
    node.kedge(&["secrets-encryption", "rotate"]).ok();
    node.kedge(&["secrets-encryption", "rotate"]).ok();
    node.kubectl(&["delete", "secret", "planted"]).ok();
    node.kedge(&["snapshot", "restore", "sealed", "--yes"]).ok();
    node.write_kubeconfig();
    assert_eq!(password(&node, "planted"), "zq-planted-zq");
    assert!(status(&node)["enabled"] == true);

    step("disabled: everything in the clear again");
    let off = node.kedge(&["secrets-encryption", "disable", "--output", "json"]).json();
    assert!(off["enabled"] == false && counts(&off, "secrets").1 == 0, "{off}");
    assert_eq!(password(&node, "planted"), "zq-planted-zq");
    assert!(!holding(&store, "zq-planted-zq").is_empty(), "it is in the clear now");
}

/// 300 Secrets in a namespace of their own.
fn many(node: &Cluster) {
    node.kubectl(&["create", "namespace", "many"]).ok();
    let mut manifest = String::new();
    for index in 0..300 {
        manifest.push_str(&format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s-{index:03}, namespace: many}}\nstringData: {{n: '{index}'}}\n"
        ));
    }
    node.apply(&manifest);
}

#[test]
fn control_plane_nodes_get_the_keys_and_workers_do_not() {
    let network = Network::new(4);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let second = Cluster::prepare_on(&network, 2);
    second.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    second.write_kubeconfig();
    secret(&first, "shared", "zq-shared-zq");
    let keys = |node: &Cluster| fs::read_to_string(node.dir().join("data/pki/encryption.json")).ok();

    step("asked of one, done by both");
    let done = second.kedge(&["secrets-encryption", "enable", "--output", "json"]).json();
    assert!(done["stage"] == "settled" && done["toBeRewritten"] == 0, "{done}");
    assert!(keys(&first).is_some() && keys(&first) == keys(&second));
    assert_eq!(
        (password(&first, "shared"), password(&second, "shared")),
        ("zq-shared-zq".into(), "zq-shared-zq".into())
    );
    secret(&second, "later", "zq-later-zq");
    eventually("the Secret at the first node", || {
        let out = first.kubectl(&["get", "secret", "later", "-o", "jsonpath={.data.password}"]);
        (out.stdout == STANDARD.encode("zq-later-zq")).then_some(())
    });
    for node in [&first, &second] {
        assert_eq!(holding(&node.dir().join("data"), "zq-later-zq"), Vec::<PathBuf>::new());
    }

    step("who joins as control plane gets the key with the authority's, a worker does not");
    let third = Cluster::prepare_on(&network, 3);
    third.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    assert_eq!(keys(&third), keys(&first));
    third.write_kubeconfig();
    assert_eq!(password(&third, "later"), "zq-later-zq");
    let worker = Cluster::prepare_on(&network, 4);
    worker.kedge(&["join", &invitation(&first, &[]), "--worker", "--timeout", "90"]).ok();
    assert_eq!(keys(&worker), None);

    step("a node that is down holds a new key up until it is back or removed");
    first.wait(&format!("node/{}", third.node), "condition=Ready");
    let mut third = third;
    third.kill9();
    let waiting = first.kedge(&["secrets-encryption", "rotate", "--timeout", "5"]).failed(1);
    assert_has(&waiting, &[&third.node, "goes on by itself"]);
    assert_eq!(status(&first)["stage"], "spreading");
    assert_eq!(password(&first, "later"), "zq-later-zq");
    third.kedge(&["start"]).ok();
    let now = eventually("the rotation to go on", || {
        let now = status(&first);
        (now["stage"] == "settled").then_some(now)
    });
    assert_ne!(now["key"], done["key"]);
    eventually("the third node to have forgotten nothing", || (keys(&third) == keys(&first)).then_some(()));
    assert_eq!(password(&third, "shared"), "zq-shared-zq");
}
