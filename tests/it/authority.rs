//! The cluster's authority replaced while everything runs: two control-plane nodes, a worker, kubectl with the
//! old and the new kubeconfig, pods, nodes that are killed in the middle, and one that joins.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kedge_tests::{BUSYBOX, Cluster, Network, Out, assert_has, eventually, run, step};
use serde_json::{Value, json};

use kedge_tests::trio::invitation;

/// kubectl with another kubeconfig than the node's own.
fn kubectl(node: &Cluster, kubeconfig: &Path, arguments: &[&str]) -> Out {
    let mut command = node.kubectl_command();
    command.env("KUBECONFIG", kubeconfig).args(["--request-timeout=20s"]).args(arguments);
    run(&mut command, b"")
}

/// What is going on, by `certs check`.
fn replacement(node: &Cluster) -> Value {
    let list = node.kedge(&["certs", "check", "--output", "json"]).json();
    let list = list.as_array().expect("certificates");
    list.iter().find(|one| one["name"] == "ca").expect("the authority")["replacement"].clone()
}

fn authorities(text: &str) -> usize {
    text.matches("BEGIN CERTIFICATE").count()
}

/// A value of a kubeconfig.
fn entry<'a>(kubeconfig: &'a str, name: &str) -> &'a str {
    let line = kubeconfig.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in the kubeconfig"))
}

fn keep_kubeconfig(node: &Cluster, name: &str) -> PathBuf {
    node.write_kubeconfig();
    let path = node.dir().join(name);
    fs::copy(node.kubeconfig(), &path).expect("copy the kubeconfig");
    path
}

#[test]
fn a_new_authority_and_nobody_notices() {
    let network = Network::new(5);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let mut second = Cluster::prepare_on(&network, 2);
    second.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    let mut worker = Cluster::prepare_on(&network, 3);
    worker.kedge(&["join", &invitation(&first, &[]), "--worker", "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", worker.node), "condition=Ready");
    first.kedge(&["enable", "dns"]).ok();
    for node in [&first, &second, &worker] {
        node.import_busybox();
    }
    first.apply(&format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      tolerations: [{{operator: Exists}}]\n      \
         terminationGracePeriodSeconds: 0\n      containers: [{{name: busybox, image: '{BUSYBOX}', imagePullPolicy: Never, \
         command: [sleep, '100000']}}]\n"
    ));
    first.rolled_out("daemonset/web");
    let pods = {
        let list = first.get(&["pods", "-l", "app=web"]);
        let items = list["items"].as_array().expect("pods").clone();
        items.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all_uids = |node: &Cluster| {
        let list = node.get(&["pods", "-l", "app=web"]);
        let mut found: Vec<String> = list["items"]
            .as_array()
            .expect("pods")
            .iter()
            .map(|pod| {
                let restarts = pod["status"]["containerStatuses"][0]["restartCount"].to_string();
                format!("{} {restarts}", pod["metadata"]["uid"])
            })
            .collect();
        found.sort();
        found
    };
    let running = all_uids(&first);
    assert_eq!((pods.len(), running.len()), (3, 3));
    let old = keep_kubeconfig(&first, "old.kubeconfig");
    let old_at_second = keep_kubeconfig(&second, "old.kubeconfig");
    let old_invitation = invitation(&first, &[]);
    assert_eq!(replacement(&first), Value::Null);

    step("kubectl is asked all the while");
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let issued = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let out = kubectl(&first, &old, &["get", "nodes"]);
                asked.fetch_add(1, Ordering::Relaxed);
                if out.code != 0 {
                    eprintln!("{out}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });

        step("a worker that is down is waited for, and named");
        worker.kill9();
        let waiting = second.kedge(&["certs", "rotate-ca", "--timeout", "6"]).failed(1);
        assert_has(&waiting, &[&worker.node, "goes on by itself"]);
        // On a slow machine others have not reported yet either; they are not down.
        eventually("the worker alone to be waited for", || {
            let now = replacement(&first);
            (now["stage"] == "trusting" && now["waitingFor"] == json!([worker.node])).then_some(())
        });
        assert_has(&first.kedge(&["certs", "check"]).ok(), &["is being replaced by", &worker.node]);
        assert_has(&first.kedge(&["certs", "rotate-ca", "--finish"]).failed(1), &[&worker.node]);

        step("both are trusted meanwhile, a control-plane node is killed, and both come back");
        eventually("the bundle in every namespace", || {
            let map = first.field("configmap/kube-root-ca.crt", ".data.ca\\.crt");
            (authorities(&map) == 2).then_some(())
        });
        second.kill9();
        worker.kedge(&["start"]).ok();
        eventually("all that is alive to trust both", || {
            let now = replacement(&first);
            (now["waitingFor"].as_array().map(Vec::len) == Some(1) || now["stage"] == "issuing").then_some(())
        });
        second.kedge(&["start"]).ok();
        let done = first.kedge(&["certs", "rotate-ca", "--output", "json"]).json();
        assert!(done["result"] == "issued" && done["stage"] == "issuing", "{done}");
        assert_eq!(done["waitingFor"].as_array().map(Vec::len), Some(0), "{done}");

        step("every certificate is of the new one");
        for node in [&first, &second, &worker] {
            let list = node.kedge(&["certs", "check", "--output", "json"]).json();
            let list = list.as_array().expect("certificates").clone();
            let new = list.iter().find(|one| one["name"] == "ca").unwrap()["subject"].clone();
            for one in
                list.iter().filter(|one| one["authority"] == false && one["name"] != "front-proxy-client")
            {
                // A worker may have them in the other order.
                let issuer = one["issuer"].as_str().unwrap();
                assert!(issuer.starts_with("CN=kedge-ca-"), "{}: {one} {new}", node.node);
            }
        }
        let auth = first.kubectl(&[
            "get",
            "configmap",
            "extension-apiserver-authentication",
            "-n",
            "kube-system",
            "-o",
            "yaml",
        ]);
        assert!(authorities(&auth.ok()) >= 3, "both client authorities, and the front proxy's");

        step("old and new kubeconfigs work on both, and kubelets are reached");
        let new = keep_kubeconfig(&first, "new.kubeconfig");
        for (node, kubeconfig) in [(&first, &old), (&second, &old_at_second), (&first, &new)] {
            assert_has(&kubectl(node, kubeconfig, &["get", "nodes"]).ok(), &[&worker.node, &second.node]);
        }
        for pod in &pods {
            let seen = eventually("the bundle in the pod", || {
                let file = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
                let out = kubectl(&first, &new, &["exec", pod, "--", "grep", "-c", "BEGIN", file]);
                (out.code == 0 && out.stdout.trim() == "2").then_some(out.stdout)
            });
            assert_eq!(seen.trim(), "2");
        }

        step("a join string from before is good, and the node that joins has the new one's certificates");
        let third = Cluster::prepare_on(&network, 4);
        third.kedge(&["join", &old_invitation, "--timeout", "90"]).ok();
        first.wait(&format!("node/{}", third.node), "condition=Ready");
        let done = first.kedge(&["certs", "rotate-ca", "--output", "json"]).json();
        assert_eq!(done["waitingFor"].as_array().map(Vec::len), Some(0), "{done}");
        stop.store(true, Ordering::Relaxed);
        (new, third)
    });
    let (new, third) = issued;
    assert!(asked.load(Ordering::Relaxed) > 5);
    assert_eq!(failed.load(Ordering::Relaxed), 0, "kubectl was turned away");
    eprintln!("FIGURE kubectl was asked {} times meanwhile", asked.load(Ordering::Relaxed));
    let still: Vec<String> = all_uids(&first).into_iter().filter(|pod| running.contains(pod)).collect();
    assert_eq!(still, running, "pods go on");

    step("finished: the old one vouches for nobody");
    let refused = second.kedge(&["certs", "rotate-ca", "--abort"]).failed(1);
    assert_has(&refused, &["issued certificates already"]);
    let done = second.kedge(&["certs", "rotate-ca", "--finish", "--output", "json"]).json();
    assert!(done["result"] == "finished" && done["stage"] == "settled", "{done}");
    let (old_text, new_text) = (fs::read_to_string(&old).unwrap(), fs::read_to_string(&new).unwrap());
    let mixed = first.dir().join("mixed.kubeconfig");
    let (old_ca, new_ca) =
        (entry(&old_text, "certificate-authority-data"), entry(&new_text, "certificate-authority-data"));
    fs::write(&mixed, old_text.replace(old_ca, new_ca)).expect("write a kubeconfig");
    for node in [&first, &second] {
        assert_has(&kubectl(node, &new, &["get", "nodes"]).ok(), &[&third.node]);
        let out = kubectl(node, &mixed, &["get", "nodes"]);
        assert!(out.code != 0, "an old client certificate is good no more: {out}");
    }
    assert_has(&kubectl(&first, &old, &["get", "nodes"]).failed(1), &["certificate"]);
    eventually("one authority in every namespace", || {
        let map = kubectl(&first, &new, &["get", "configmap", "kube-root-ca.crt", "-o", "yaml"]).ok();
        (authorities(&map) == 1).then_some(())
    });
    for node in [&first, &second, &worker, &third] {
        let text = fs::read_to_string(node.dir().join("data/pki/ca.crt")).expect("the authority");
        assert_eq!(authorities(&text), 1, "{}", node.node);
    }
    first.write_kubeconfig();
    let refused = Cluster::prepare_on(&network, 5).kedge(&["join", &old_invitation]).code;
    assert_ne!(refused, 0, "a join string of the old authority");

    step("everything starts again with the new one, pods that follow the API too");
    for node in [&mut first, &mut second, &mut worker] {
        node.kill9();
    }
    first.run();
    for node in [&second, &worker] {
        node.kedge(&["start"]).ok();
    }
    first.wait_ready();
    for node in [&second, &worker, &third] {
        first.wait(&format!("node/{}", node.node), "condition=Ready");
    }
    let still: Vec<String> = all_uids(&first).into_iter().filter(|pod| running.contains(pod)).collect();
    assert_eq!(still, running, "pods go on");
    first.kubectl(&["create", "service", "clusterip", "later", "--tcp=80:80"]).ok();
    let address = first.field("service/later", ".spec.clusterIP");
    eventually("DNS to know what was made since", || {
        let out = first.kubectl(&["exec", &pods[0], "--", "nslookup", "later.default.svc.cluster.local"]);
        out.stdout.contains(&address).then_some(())
    });
}

#[test]
fn killed_at_any_time_it_goes_on() {
    let mut node = Cluster::start();
    node.kedge(&["enable", "metrics"]).ok();
    let hashes = |node: &Cluster| {
        let list = node.kedge(&["certs", "check", "--output", "json"]).json();
        let mut issuers: Vec<String> = list
            .as_array()
            .expect("certificates")
            .iter()
            .filter(|one| one["name"] != "front-proxy-ca" && one["name"] != "front-proxy-client")
            .map(|one| one["issuer"].to_string())
            .collect();
        issuers.sort();
        issuers.dedup();
        issuers
    };
    let mut known = hashes(&node);
    let first = known.clone();
    assert_eq!(known.len(), 1);
    node.kedge(&["snapshot", "save", "--name", "before"]).ok();
    let uid = "-n kube-system -l k8s-app=metrics-server -o jsonpath={.items[*].metadata.uid}";
    let pod = |node: &Cluster| {
        let words: Vec<&str> = ["get", "pods"].into_iter().chain(uid.split(' ')).collect();
        node.kubectl(&words).ok()
    };
    let metrics = pod(&node);
    for round in 0..5_u64 {
        step(&format!("round {round}: killed while it is replaced, and while the old one is forgotten"));
        for words in [&["certs", "rotate-ca"][..], &["certs", "rotate-ca", "--finish"]] {
            let mut command = node.spawn(words);
            std::thread::sleep(std::time::Duration::from_millis(40 + 90 * round));
            node.kill9();
            let _ = command.kill();
            command.wait().expect("wait for the command");
            node.run();
            node.wait_ready();
            // It may have been killed before the request came through.
            node.kedge(words).ok();
            node.write_kubeconfig();
            node.kubectl(&["get", "nodes"]).ok();
        }
        let now = hashes(&node);
        assert!(now.len() == 1 && now != known, "{known:?}, then {now:?}");
        known = now;
        assert_eq!(authorities(&fs::read_to_string(node.dir().join("data/pki/ca.crt")).unwrap()), 1);
    }

    step("what the metrics addon reads from kubelets, it reads with the last one");
    let mut clock = std::process::Command::new("date");
    let now = run(clock.args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]), b"").ok();
    eventually("fresh metrics", || {
        let out = node.kubectl(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"]);
        let list: Value = serde_json::from_str(&out.stdout).ok()?;
        let taken = list["items"].as_array()?.first()?["timestamp"].as_str()?.to_owned();
        (taken.as_str() > now.trim()).then_some(())
    });
    assert_eq!(pod(&node), metrics);

    step("a snapshot from before brings the first authority back, and pods go on");
    node.kedge(&["snapshot", "restore", "before", "--yes"]).ok();
    node.write_kubeconfig();
    assert_eq!(hashes(&node), first);
    assert_eq!(pod(&node), metrics);
}
