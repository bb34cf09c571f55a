//! The README's tour with stock kubectl: deploy, update, scale, look around, expose, delete.

use std::fs;

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};
use serde_json::Value;

fn deployment(version: &str, replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: hello
  annotations: {{kubernetes.io/change-cause: "hello {version}"}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: hello}}}}
  strategy:
    type: RollingUpdate
    rollingUpdate: {{maxSurge: 0, maxUnavailable: 1}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: kedge.dev/hello:{version}
        ports: [{{containerPort: 8080}}]
        env:
        - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
        readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}
        resources: {{requests: {{cpu: 10m, memory: 8Mi}}}}
"#
    )
}

#[test]
fn deploy_update_scale_undo() {
    let cluster = Cluster::start();

    step("a Deployment with two replicas");
    assert_eq!(cluster.apply(&deployment("1.0", 2)).trim(), "deployment.apps/hello created");
    cluster.rolled_out("deployment/hello");
    let first = pod_names(&cluster);
    assert_eq!(first.len(), 2);
    assert_eq!(cluster.apply(&deployment("1.0", 2)).trim(), "deployment.apps/hello unchanged");
    for (what, manager) in [
        ("deployment/hello".to_owned(), "kube-controller-manager"),
        (format!("pod/{}", first[0]), "kubelet"),
        (format!("node/{}", cluster.node), "kubelet"),
    ] {
        let managers = cluster.field(&what, ".metadata.managedFields[*].manager");
        assert!(
            managers.split(' ').any(|name| name == manager) && !managers.contains("unknown"),
            "{managers}"
        );
    }

    step("a rolling update: never more than two pods, never fewer than one available");
    let start = cluster.get(&["pods", "-l", "app=hello"]);
    let revision = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods?limit=1"]).json();
    let revision = revision["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(cluster.apply(&deployment("2.0", 2)).trim(), "deployment.apps/hello configured");
    cluster.rolled_out("deployment/hello");
    let mut roll = Roll::new(&start);
    // The whole history since then, replayed: nothing can be missed between two looks.
    let path = format!(
        "/api/v1/namespaces/default/pods?watch=1&labelSelector=app%3Dhello&resourceVersion={revision}&timeoutSeconds=3"
    );
    let events = cluster.kubectl(&["get", "--raw", &path]).ok();
    for line in events.lines() {
        roll.see(&serde_json::from_str(line).unwrap());
    }
    assert!(roll.created >= 2, "the watch did not show the new pods:\n{events}");
    let second = pod_names(&cluster);
    assert!(second.iter().all(|name| !first.contains(name)), "{first:?} {second:?}");
    assert!(images(&cluster).iter().all(|image| image == "kedge.dev/hello:2.0"));

    step("four replicas by apply, five by scale, four again");
    cluster.apply(&deployment("2.0", 4));
    cluster.rolled_out("deployment/hello");
    let four = pod_names(&cluster);
    assert_eq!(four.len(), 4);
    assert!(second.iter().all(|name| four.contains(name)), "scaling replaced pods");
    for replicas in [5, 4] {
        cluster.kubectl(&["scale", "deployment/hello", &format!("--replicas={replicas}")]).ok();
        cluster.rolled_out("deployment/hello");
        eventually("the number of pods", || (pod_names(&cluster).len() == replicas).then_some(()));
    }
    assert_eq!(cluster.field("deployment/hello", ".status.availableReplicas"), "4");

    step("rollout history and undo");
    let history = cluster.kubectl(&["rollout", "history", "deployment/hello"]).ok();
    assert_has(&history, &["REVISION", "CHANGE-CAUSE", "hello 1.0", "hello 2.0"]);
    let detail = cluster.kubectl(&["rollout", "history", "deployment/hello", "--revision=1"]).ok();
    assert_has(&detail, &["kedge.dev/hello:1.0"]);
    cluster.kubectl(&["rollout", "undo", "deployment/hello"]).ok();
    cluster.rolled_out("deployment/hello");
    assert!(images(&cluster).iter().all(|image| image == "kedge.dev/hello:1.0"));
    let revision = ".metadata.annotations.deployment\\.kubernetes\\.io/revision";
    assert_eq!(cluster.field("deployment/hello", revision), "3");
    assert_eq!(cluster.get(&["replicasets", "-l", "app=hello"])["items"].as_array().unwrap().len(), 2);

    step("rollout restart, pause and resume");
    cluster.kubectl(&["rollout", "pause", "deployment/hello"]).ok();
    cluster.kubectl(&["set", "image", "deployment/hello", "web=kedge.dev/hello:2.0"]).ok();
    cluster.wait("deployment/hello", "condition=Progressing=Unknown");
    assert!(images(&cluster).iter().all(|image| image == "kedge.dev/hello:1.0"), "a paused rollout moved");
    cluster.kubectl(&["rollout", "resume", "deployment/hello"]).ok();
    cluster.rolled_out("deployment/hello");
    assert!(images(&cluster).iter().all(|image| image == "kedge.dev/hello:2.0"));

    step("describe tells the story");
    let text = cluster.kubectl(&["describe", "deployment", "hello"]).ok();
    assert_has(
        &text,
        &[
            "StrategyType:",
            "0 max surge",
            "1 max unavailable",
            "MinimumReplicasAvailable",
            "NewReplicaSetAvailable",
            "ScalingReplicaSet",
            "Scaled up replica set hello-",
        ],
    );
    let pod = pod_names(&cluster).remove(0);
    let text = cluster.kubectl(&["describe", "pod", &pod]).ok();
    assert_has(
        &text,
        &[
            "Successfully assigned default/",
            "Pulled",
            "Created",
            "Started",
            "Controlled By:  ReplicaSet/hello-",
        ],
    );

    step("delete takes everything with it");
    cluster.kubectl(&["delete", "deployment", "hello", "--timeout=300s"]).ok();
    eventually("replica sets and pods to go", || {
        let left = cluster.get(&["replicasets,pods", "-l", "app=hello"]);
        left["items"].as_array().unwrap().is_empty().then_some(())
    });
}

#[test]
fn look_into_and_reach() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    cluster.apply(&deployment("1.0", 2));
    let box_pod = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"box","labels":{{"app":"box"}}}},"spec":{{
        "terminationGracePeriodSeconds":1,"containers":[{{"name":"c","image":"{BUSYBOX}",
        "command":["sh","-c","i=0; while true; do echo line $i; i=$((i+1)); sleep 1; done"]}}]}}}}"#
    );
    cluster.apply(&box_pod);
    cluster.rolled_out("deployment/hello");
    cluster.wait("pod/box", "condition=Ready");
    let pods = pod_names(&cluster);

    step("get in every form");
    let wide = cluster.kubectl(&["get", "pods", "-o", "wide"]).ok();
    assert_has(
        &wide,
        &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "1/1", "Running", &cluster.node],
    );
    assert_has(&cluster.kubectl(&["get", "deployment", "hello"]).ok(), &["UP-TO-DATE", "AVAILABLE", "2/2"]);
    assert_has(&cluster.kubectl(&["get", "pod", "box", "-o", "yaml"]).ok(), &["kind: Pod", "podIP: "]);
    assert_eq!(cluster.get(&["pod", "box"])["status"]["phase"], "Running");
    assert_eq!(cluster.field("pod/box", ".spec.containers[0].image"), BUSYBOX);
    let columns = cluster.kubectl(&[
        "get",
        "pod",
        "box",
        "--no-headers",
        "-o",
        "custom-columns=A:.metadata.name,B:.status.phase",
    ]);
    assert_eq!(columns.ok().split_whitespace().collect::<Vec<_>>(), ["box", "Running"]);
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=hello", "-o", "name"]).ok().lines().count(), 2);
    assert_has(
        &cluster.kubectl(&["get", "all"]).ok(),
        &["pod/box", "deployment.apps/hello", "service/kubernetes"],
    );

    step("logs");
    let log = cluster.kubectl(&["logs", &pods[0]]).ok();
    assert_has(&log, &["hello 1.0 listens on port 8080"]);
    eventually("some lines", || cluster.kubectl(&["logs", "box"]).ok().contains("line 3").then_some(()));
    assert_eq!(cluster.kubectl(&["logs", "box", "--tail=1"]).ok().lines().count(), 1);
    assert_eq!(cluster.kubectl(&["logs", "box", "--limit-bytes=6"]).ok(), "line 0");
    let stamped = cluster.kubectl(&["logs", "box", "--timestamps"]).ok();
    let stamp = stamped.split(' ').next().unwrap();
    assert!(stamp.contains('T') && (stamp.ends_with('Z') || stamp.contains('+')), "{stamped}");
    let followed = follow(&cluster);
    assert_has(&followed, &["line 0", "line 1"]);
    assert_has(&cluster.kubectl(&["logs", "-l", "app=hello", "--prefix"]).ok(), &[&pods[0], &pods[1]]);

    step("exec: output, input, exit codes, a terminal");
    assert_eq!(cluster.exec("box", "echo out; echo err >&2"), "out\n");
    let out = cluster.kubectl(&["exec", "box", "--", "sh", "-c", "echo err >&2; exit 7"]);
    assert_eq!(out.code, 7, "{out}");
    assert_has(&out.stderr, &["err", "command terminated with exit code 7"]);
    let big = "0123456789abcdef".repeat(64 * 1024);
    let counted = cluster.kubectl_with(&["exec", "-i", "box", "--", "wc", "-c"], &big).ok();
    assert_eq!(counted.trim(), big.len().to_string());
    assert_eq!(cluster.kubectl_with(&["exec", "-i", "box", "--", "cat"], &big).ok(), big);
    let terminal = terminal(&cluster);
    assert_has(&terminal, &["tty: yes"]);
    let wrong = cluster.kubectl(&["exec", "box", "--", "no-such-program"]);
    assert_ne!(wrong.code, 0, "{wrong}");
    assert_has(&wrong.stderr, &["no-such-program"]);
    assert_has(&cluster.kubectl(&["exec", &pods[0], "--", "/kedge", "version"]).ok(), &["v1.36."]);

    step("exec over SPDY too, as older clients do");
    let old = kedge_tests::run(
        cluster
            .kubectl_command()
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .args(["exec", "box", "--", "echo", "spdy"]),
        b"",
    );
    assert_eq!(old.ok(), "spdy\n");

    step("attach");
    let attached = attach(&cluster);
    assert_has(&attached, &["line "]);

    step("cp there and back");
    let (here, back) = (cluster.dir().join("here"), cluster.dir().join("back"));
    fs::write(&here, &big).unwrap();
    cluster.kubectl(&["cp", &here.display().to_string(), "box:/tmp/there"]).ok();
    assert_eq!(cluster.exec("box", "wc -c < /tmp/there").trim(), big.len().to_string());
    cluster.kubectl(&["cp", "box:/tmp/there", &back.display().to_string()]).ok();
    assert_eq!(fs::read_to_string(&back).unwrap(), big);

    step("port-forward, to a pod and through a Deployment");
    for target in [format!("pod/{}", pods[0]), "deployment/hello".to_owned()] {
        let forward = cluster.port_forward(&target, 8080);
        for _ in 0..3 {
            assert_has(
                &forward.get("/").body,
                &["hello 1.0", "pod: hello-", &format!("node: {}", cluster.node)],
            );
        }
    }

    step("expose: the node port answers on the node, the cluster IP inside pods");
    cluster
        .kubectl(&["expose", "deployment", "hello", "--type=NodePort", "--port=80", "--target-port=8080"])
        .ok();
    let port = cluster.field("service/hello", ".spec.ports[0].nodePort");
    assert!((30000..=32767).contains(&port.parse::<u16>().unwrap()), "{port}");
    let address = format!("{}:{port}", cluster.node_address());
    let body = cluster.http(&address, "/");
    assert_has(&body, &["hello 1.0", "pod: hello-"]);
    eventually("both pods to answer", || {
        let answers: Vec<String> = (0..20).map(|_| cluster.http(&address, "/")).collect();
        pods.iter().all(|pod| answers.iter().any(|answer| answer.contains(pod.as_str()))).then_some(())
    });
    let ip = cluster.field("service/hello", ".spec.clusterIP");
    assert_has(&cluster.exec("box", &format!("wget -qO- http://{ip}/")), &["hello 1.0"]);
    let pod_ip = cluster.field(&format!("pod/{}", pods[0]), ".status.podIP");
    assert_has(&cluster.exec("box", "env"), &["KUBERNETES_SERVICE_HOST="]);
    assert_has(&cluster.exec("box", &format!("wget -qO- http://{pod_ip}:8080/")), &[&pods[0]]);
    let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=hello"]);
    assert_eq!(slices["items"][0]["endpoints"].as_array().unwrap().len(), 2);

    step("hairpin: a pod reaches itself through its own Service");
    cluster.kubectl(&["expose", "pod", "box", "--port=8000", "--name=self"]).ok();
    let own = cluster.field("service/self", ".spec.clusterIP");
    eventually("the pod's own Service to answer", || {
        let line = format!("echo hi | nc -l -p 8000 & sleep 1; nc -w 3 {own} 8000 </dev/null");
        let out = cluster.kubectl(&["exec", "box", "--", "sh", "-c", &line]);
        out.stdout.contains("hi").then_some(())
    });

    step("session affinity keeps a client with one pod");
    cluster.kubectl(&["patch", "service", "hello", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#]).ok();
    eventually("one pod to answer all", || {
        let line = format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do wget -qO- http://{ip}/ | grep pod; done");
        let answers = cluster.exec("box", &line);
        let mut pods: Vec<&str> = answers.lines().collect();
        pods.dedup();
        (pods.len() == 1).then_some(())
    });

    step("run and run --rm");
    let out = cluster.kubectl_with(
        &[
            "run",
            "once",
            "--rm",
            "-i",
            "--restart=Never",
            &format!("--image={BUSYBOX}"),
            "--",
            "sh",
            "-c",
            "read x; echo got $x",
        ],
        "word\n",
    );
    assert_has(&out.ok(), &["got word"]);
    assert_has(&cluster.kubectl(&["get", "pod", "once"]).failed(1), &["pods \"once\" not found"]);
    // Nothing is lost of what ends before anybody can attach.
    let lines: [(&str, &[&str]); 3] = [
        ("echo first", &["first"]),
        ("sleep 0.02; echo first", &["first"]),
        ("echo first; sleep 0.4; echo last", &["first", "last"]),
    ];
    for (line, words) in lines.repeat(3) {
        let image = format!("--image={BUSYBOX}");
        let run = ["run", "short", "--rm", "-i", "--restart=Never", &image, "--", "sh", "-c", line];
        assert_has(&cluster.kubectl(&run).ok(), words);
    }

    step("delete: the Service and its port are gone");
    cluster.kubectl(&["delete", "service", "hello"]).ok();
    eventually("the node port to be closed", || {
        std::net::TcpStream::connect_timeout(&address.parse().unwrap(), std::time::Duration::from_secs(2))
            .err()
            .map(|_| ())
    });
    cluster.kubectl(&["delete", "pod", "box", "--timeout=300s"]).ok();
}

/// Names of the pods that are not being deleted, in order.
fn pod_names(cluster: &Cluster) -> Vec<String> {
    live(cluster).iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn images(cluster: &Cluster) -> Vec<String> {
    live(cluster)
        .iter()
        .map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned())
        .collect()
}

fn live(cluster: &Cluster) -> Vec<Value> {
    let pods = cluster.get(&["pods", "-l", "app=hello"]);
    let items = pods["items"].as_array().unwrap();
    items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).cloned().collect()
}

/// Follows a pod's log until two lines have come.
fn follow(cluster: &Cluster) -> String {
    first_lines(cluster.kubectl_command().args(["logs", "-f", "box"]), 2)
}

fn attach(cluster: &Cluster) -> String {
    first_lines(cluster.kubectl_command().args(["attach", "box"]), 1)
}

fn first_lines(command: &mut std::process::Command, count: usize) -> String {
    use std::io::BufRead as _;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let lines: Vec<String> = output.lines().take(count).map(|line| line.unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    lines.join("\n")
}

/// `exec -it` needs a terminal on this side: script(1) makes one.
fn terminal(cluster: &Cluster) -> String {
    let line = format!(
        "{} exec -it box -- sh -c 'test -t 0 && test -t 1 && echo tty: yes'",
        kedge_tests::kubectl_program().display()
    );
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    command.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.dir());
    kedge_tests::run(&mut command, b"").ok()
}

/// The pods of a rolling update as a watch shows them.
struct Roll {
    pods: std::collections::BTreeMap<String, bool>,
    created: usize,
}

impl Roll {
    fn new(list: &Value) -> Self {
        let mut roll = Self { pods: std::collections::BTreeMap::new(), created: 0 };
        for pod in list["items"].as_array().unwrap() {
            roll.pods.insert(pod["metadata"]["name"].as_str().unwrap().to_owned(), is_ready(pod));
        }
        assert_eq!(roll.available(), 2);
        roll
    }

    fn available(&self) -> usize {
        self.pods.values().filter(|ready| **ready).count()
    }

    fn see(&mut self, event: &Value) {
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "ADDED" | "MODIFIED" if pod["metadata"]["deletionTimestamp"].is_null() => {
                if self.pods.insert(name, is_ready(pod)).is_none() {
                    self.created += 1;
                }
            }
            // A pod that is being deleted counts no more, as in upstream's ReplicaSet controller.
            "MODIFIED" | "ADDED" | "DELETED" => {
                self.pods.remove(&name);
            }
            other => panic!("{other}: {event}"),
        }
        assert!(self.pods.len() <= 2, "maxSurge 0, and there are {:?}", self.pods);
        assert!(self.available() >= 1, "maxUnavailable 1, and there are {:?}", self.pods);
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
