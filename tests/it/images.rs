//! Images without a registry: archives, export and import, the watched folders, what is pruned; and a
//! cluster that has no way out.

use std::fs;
use std::path::Path;
use std::process::Command;

use kedge_tests::{
    BUSYBOX, Cluster, Network, assert_has, docker_archive, eventually, oci_archive, run, step,
};
use serde_json::Value;

const EXTRA: &str = "extra.invalid/box:1";
const LATE: &str = "late.invalid/box:1";

fn listed(cluster: &Cluster, name: &str) -> Option<Value> {
    let images = cluster.kedge(&["images", "list", "--output", "json"]).json();
    images
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["names"].as_array().unwrap().iter().any(|n| n == name))
        .cloned()
}

fn packed(name: &str, file: &Path, program: &str) {
    let plain = file.with_extension("");
    oci_archive(name, &plain);
    run(Command::new(program).arg("-f").arg(&plain), b"").ok();
    assert!(file.exists(), "{}", file.display());
    let _ = fs::remove_file(plain);
}

#[test]
fn archives_are_watched_exported_and_pruned() {
    let mut cluster = Cluster::prepare();
    let folder = cluster.dir().join("data/images");
    fs::create_dir_all(&folder).unwrap();
    packed(BUSYBOX, &folder.join("box.tar.gz"), "gzip");
    fs::write(folder.join("broken.tar"), "half of something").unwrap();
    cluster.run();
    cluster.wait_ready();

    step("an archive in the folder is there for the first pod; a broken one is named");
    let pinned = listed(&cluster, BUSYBOX).expect("imported at start");
    assert_eq!(pinned["pinned"], true, "{pinned}");
    assert_eq!(pinned["inUse"], false, "{pinned}");
    assert_has(&cluster.kedge(&["status"]).ok(), &["problem: ", "data/images/broken.tar: "]);
    let image = format!("--image={BUSYBOX}");
    cluster.kubectl(&["run", "box", &image, "--image-pull-policy=Never", "--", "sleep", "3600"]).ok();
    cluster.wait("pod/box", "condition=Ready");
    assert_eq!(listed(&cluster, BUSYBOX).unwrap()["inUse"], true);
    fs::remove_file(folder.join("broken.tar")).unwrap();
    eventually("the problem to be over", || {
        (!cluster.kedge(&["status"]).ok().contains("broken.tar")).then_some(())
    });

    step("one that appears is imported; a name that begins with a dot is not looked at");
    let partial = folder.join(".late.tar.zst.tmp");
    packed(LATE, &cluster.dir().join("late.tar.gz"), "gzip");
    fs::copy(cluster.dir().join("late.tar.gz"), &partial).unwrap();
    fs::rename(&partial, folder.join("late.tar.gz")).unwrap();
    eventually("the archive to be imported", || listed(&cluster, LATE));

    step("export: the same bytes again, plain and compressed");
    let file = |name: &str| cluster.dir().join(name);
    let path = |name: &str| file(name).display().to_string();
    assert_has(&cluster.kedge(&["images", "export", &path("one.tar"), "busybox:test"]).ok(), &[BUSYBOX]);
    cluster.kedge(&["images", "export", &path("again.tar"), BUSYBOX]).ok();
    assert_eq!(fs::read(file("one.tar")).unwrap(), fs::read(file("again.tar")).unwrap());
    let error = cluster.kedge(&["images", "export", &path("none.tar"), "missing:1"]).failed(1);
    assert_has(&error, &["docker.io/library/missing:1 is not on this node"]);
    assert!(!file("none.tar").exists());
    assert_has(
        &cluster.kedge(&["images", "export", &path("all.tar.gz")]).ok(),
        &[BUSYBOX, LATE, "kedge.dev/hello:1.0"],
    );

    step("containerd's own tool reads it");
    let socket = cluster.dir().join("run/containerd/containerd.sock");
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&socket).args(["--namespace", "kedge-test"]).args(arguments);
        run(&mut command, b"")
    };
    assert_has(&ctr(&["images", "import", &path("one.tar")]).ok(), &[BUSYBOX]);
    ctr(&["images", "remove", "--sync", BUSYBOX]).ok();

    step("prune removes what nobody uses and keeps what is used, pinned or Kedge's own");
    docker_archive(EXTRA, &file("extra.tar"));
    cluster.kedge(&["images", "import", &path("extra.tar")]).ok();
    assert_has(&cluster.kedge(&["images", "list"]).ok(), &[EXTRA, "in use, pinned", "MiB"]);
    assert_has(&cluster.kedge(&["images", "prune"]).ok(), &[&format!("removed {EXTRA}")]);
    assert!(listed(&cluster, EXTRA).is_none());
    for kept in [BUSYBOX, LATE, "kedge.dev/hello:2.0"] {
        assert!(listed(&cluster, kept).is_some(), "{kept}");
    }

    step("without its file an image goes, but not what another file or a person holds");
    let copy = |from: &str, to: &str| {
        fs::copy(file(from), folder.join(".tmp")).unwrap();
        fs::rename(folder.join(".tmp"), folder.join(to)).unwrap();
    };
    copy("late.tar.gz", "same.tar.gz");
    copy("extra.tar", "extra.tar");
    eventually("the archive to be imported", || (listed(&cluster, EXTRA)?["pinned"] == true).then_some(()));
    cluster.kedge(&["images", "import", &path("extra.tar")]).ok();
    assert_eq!(listed(&cluster, EXTRA).unwrap()["pinned"], true, "importing it by hand unpins nothing");
    fs::remove_file(folder.join("late.tar.gz")).unwrap();
    fs::remove_file(folder.join("extra.tar")).unwrap();
    eventually("the image to be let go of", || (listed(&cluster, EXTRA)?["pinned"] == false).then_some(()));
    assert_eq!(listed(&cluster, LATE).expect("held by another file")["pinned"], true);
    fs::remove_file(folder.join("same.tar.gz")).unwrap();
    eventually("the image to go", || listed(&cluster, LATE).is_none().then_some(()));
    assert!(listed(&cluster, EXTRA).is_some(), "somebody imported it");

    step("one that a container uses goes when none does, at the next change");
    fs::remove_file(folder.join("box.tar.gz")).unwrap();
    eventually("the image to be let go of", || (listed(&cluster, BUSYBOX)?["pinned"] == false).then_some(()));
    cluster.kubectl(&["delete", "pod", "box", "--now"]).ok();
    eventually("no container of it", || (listed(&cluster, BUSYBOX)?["inUse"] == false).then_some(()));
    copy("late.tar.gz", "late.tar.gz");
    eventually("the image to go", || listed(&cluster, BUSYBOX).is_none().then_some(()));
    cluster.kedge(&["images", "import", &path("all.tar.gz")]).ok();
    assert!(listed(&cluster, BUSYBOX).is_some(), "what was exported can be imported");

    step("Kedge's own images: the same bytes each time");
    for name in ["own.tar", "own-again.tar"] {
        cluster.kedge(&["images", "build", &path(name)]).ok();
    }
    assert_eq!(fs::read(file("own.tar")).unwrap(), fs::read(file("own-again.tar")).unwrap());
}

const KIND: &str = "
apiVersion: example.invalid/v1
kind: Lamp
metadata: {name: first}
spec: {on: true}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: lamps.example.invalid}
spec:
  group: example.invalid
  scope: Namespaced
  names: {plural: lamps, singular: lamp, kind: Lamp}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn maps(names: &[&str]) -> String {
    let map = |name: &&str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: made}}\ndata: {{a: b}}\n"
        )
    };
    names.iter().map(map).collect()
}

#[test]
fn manifests_are_applied_and_pruned() {
    let mut cluster = Cluster::prepare();
    let folder = cluster.dir().join("data/manifests");
    fs::create_dir_all(&folder).unwrap();
    // The namespace comes with a later file, the kind after its object: all of it is tried again.
    fs::write(folder.join("10-maps.yaml"), maps(&["one", "two"])).unwrap();
    fs::write(
        folder.join("20-namespace.json"),
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"made"}}"#,
    )
    .unwrap();
    fs::write(folder.join("30-kind.yml"), KIND).unwrap();
    cluster.run();
    cluster.wait_ready();
    let exists = |what: &str| cluster.kubectl(&["-n", "made", "get", what]).code == 0;
    let names = |what: &'static str, wanted: bool| {
        eventually(&format!("{what} to be {}", if wanted { "there" } else { "gone" }), || {
            (exists(what) == wanted).then_some(())
        });
    };

    step("what is there at the start is applied");
    names("configmap/one", true);
    names("configmap/two", true);
    eventually("the object of the new kind", || {
        (cluster.kubectl(&["get", "lamps.example.invalid/first"]).code == 0).then_some(())
    });
    eventually("every problem to be over", || {
        (!cluster.kedge(&["status"]).ok().contains("data/manifests")).then_some(())
    });

    step("an object that goes out of its file goes out of the cluster");
    fs::write(folder.join("10-maps.yaml"), maps(&["one", "three"])).unwrap();
    names("configmap/three", true);
    names("configmap/two", false);

    step("a broken file is named and prunes nothing");
    fs::write(folder.join("10-maps.yaml"), "kind: [").unwrap();
    eventually("the event about it", || {
        let events =
            cluster.get(&["events", "--field-selector=involvedObject.kind=Node,reason=ManifestFailed"]);
        let mut messages = events["items"].as_array()?.iter().filter_map(|event| event["message"].as_str());
        messages.any(|text| text.contains("10-maps.yaml is not a valid manifest")).then_some(())
    });
    assert_has(&cluster.kedge(&["status"]).ok(), &["problem: ", "10-maps.yaml"]);
    assert!(exists("configmap/one") && exists("configmap/three"));

    step("what two files have goes with the last of them");
    fs::write(folder.join("15-same.yaml"), maps(&["one"])).unwrap();
    fs::write(folder.join("10-maps.yaml"), maps(&["three"])).unwrap();
    eventually("the problem to be over", || {
        (!cluster.kedge(&["status"]).ok().contains("10-maps.yaml")).then_some(())
    });
    assert!(exists("configmap/one"));
    fs::remove_file(folder.join("15-same.yaml")).unwrap();
    names("configmap/one", false);

    step("a file that goes while the node is down is noticed at the next start");
    assert_eq!(cluster.stop(), 0);
    fs::remove_file(folder.join("10-maps.yaml")).unwrap();
    cluster.run();
    cluster.wait_ready();
    let exists = |what: &str| cluster.kubectl(&["-n", "made", "get", what]).code == 0;
    eventually("the object to be pruned", || (!exists("configmap/three")).then_some(()));
    assert!(cluster.kubectl(&["get", "lamps.example.invalid/first"]).code == 0);
}

#[test]
fn a_cluster_comes_up_with_no_way_out() {
    let network = Network::new(1);
    network.remove_default_route(1);
    let mut cluster = Cluster::prepare_on(&network, 1);
    cluster.run();
    cluster.wait_ready();
    let routes =
        run(Command::new("ip").args(["-n", &network.namespace(1), "route", "show", "default"]), b"").ok();
    assert_eq!(routes, "");

    step("DNS, a Deployment and its Service work");
    cluster.kedge(&["enable", "dns"]).ok();
    cluster.import_busybox();
    cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0"]).ok();
    cluster.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]).ok();
    cluster.rolled_out("deployment/web");
    let image = format!("--image={BUSYBOX}");
    cluster.kubectl(&["run", "box", &image, "--", "sleep", "3600"]).ok();
    cluster.wait("pod/box", "condition=Ready");
    let answer = eventually("the Service by its name", || {
        let out = cluster.kubectl(&["exec", "box", "--", "wget", "-q", "-O", "-", "http://web/"]);
        (out.code == 0).then_some(out.stdout)
    });
    assert_has(&answer, &["hello 1.0"]);
}
