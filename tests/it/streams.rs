//! exec, attach and port-forward as new clients do them (over WebSockets) and as old ones do (over SPDY).

use std::fs;
use std::process::{Command, Stdio};

use kedge_tests::{BUSYBOX, Cluster, Proxy, assert_has, eventually, run, step};

/// How a client speaks.
#[derive(Clone, Copy, Debug)]
struct Client {
    name: &'static str,
    /// The value of kubectl's switches.
    websockets: &'static str,
    /// What its log says of a stream that it has opened.
    exec: &'static str,
}

const CLIENTS: [Client; 2] = [
    Client { name: "WebSockets", websockets: "true", exec: "v5.channel.k8s.io" },
    Client { name: "SPDY", websockets: "false", exec: "SPDY/3.1" },
];

impl Client {
    fn kubectl(self, cluster: &Cluster) -> Command {
        let mut command = cluster.kubectl_command();
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", self.websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", self.websockets);
        command
    }

    fn exec(self, cluster: &Cluster, line: &str) -> Command {
        let mut command = self.kubectl(cluster);
        command.args(["exec", "-i", "box", "--", "sh", "-c", line]);
        command
    }
}

#[test]
fn streams_over_websockets_and_spdy() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    cluster.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"box"}},"spec":{{
        "terminationGracePeriodSeconds":1,"containers":[
        {{"name":"c","image":"{BUSYBOX}","stdin":true,"tty":true,
        "command":["sh","-c","dd if=/dev/urandom of=/tmp/big bs=1M count=100; httpd -p 8000 -h /tmp; exec sh"],
        "readinessProbe":{{"tcpSocket":{{"port":8000}},"periodSeconds":1}}}}]}}}}"#
    ));
    cluster.wait("pod/box", "condition=Ready");
    let sum = cluster.exec("box", "sha256sum < /tmp/big");
    let big = cluster.dir().join("big");
    for client in CLIENTS {
        streams(&cluster, client, &sum, &big);
    }
    debugging(&cluster);
}

/// Containers that join a pod that runs.
fn debugging(cluster: &Cluster) {
    let debug = |name: &str, profile: &str, command: &[&str]| {
        let image = format!("--image={BUSYBOX}");
        let profile = format!("--profile={profile}");
        let mut all = vec!["debug", "box", "-c", name, &image, &profile, "--image-pull-policy=Never"];
        all.extend(["--target=c", "--"]);
        all.extend(command);
        cluster.kubectl(&all).ok();
    };
    let said = |name: &str, wanted: &str| {
        eventually("the debug container's log", || {
            let out = cluster.kubectl(&["logs", "box", "-c", name]);
            (out.code == 0 && out.stdout.contains(wanted)).then_some(out.stdout)
        })
    };
    step("debug: a container that sees another one's processes");
    debug("seeing", "general", &["ps"]);
    said("seeing", "httpd");

    step("debug: a privileged one in a pod that has none");
    debug("mighty", "sysadmin", &["grep", "CapEff", "/proc/self/status"]);
    // The capability to administrate the system.
    let mask = said("mighty", "CapEff:");
    let mask = u64::from_str_radix(mask.trim_start_matches("CapEff:").trim(), 16).expect("a mask");
    assert!(mask & (1 << 21) != 0, "{mask:x}");

    step("debug: one that cannot start says why");
    debug("rootless", "restricted", &["true"]);
    eventually("the reason", || {
        let out = cluster.kubectl(&["logs", "box", "-c", "rootless"]);
        out.stderr.contains("is waiting to start: CreateContainerConfigError").then_some(())
    });
}

fn streams(cluster: &Cluster, client: Client, sum: &str, big: &std::path::Path) {
    let name = client.name;
    step(&format!("{name}: the protocol that is spoken"));
    let out = run(client.kubectl(cluster).args(["exec", "box", "-v=8", "--", "echo", "hi"]), b"");
    assert_has(&out.stderr, &["101 Switching Protocols", client.exec]);
    assert!(!out.stderr.contains("fallback to secondary"), "{out}");
    assert_eq!(out.ok(), "hi\n");

    step(&format!("{name}: outputs stay apart, and exit codes are told"));
    let out = run(&mut client.exec(cluster, "echo out; echo err >&2; exit 42"), b"");
    assert_eq!((out.code, out.stdout.as_str()), (42, "out\n"), "{out}");
    assert_has(&out.stderr, &["err\n", "command terminated with exit code 42"]);
    let out = run(client.kubectl(cluster).args(["exec", "box", "--", "no-such-program"]), b"");
    assert_ne!(out.code, 0, "{out}");
    assert_has(&out.stderr, &["no-such-program"]);
    let out = run(client.kubectl(cluster).args(["exec", "box", "-c", "other", "--", "true"]), b"");
    assert_has(&out.failed(1), &["container other is not valid for pod box"]);

    step(&format!("{name}: 100 MB out, and in again until the input ends"));
    let file = fs::File::create(big).expect("create");
    let status = client
        .exec(cluster, "cat /tmp/big")
        .stdin(Stdio::null())
        .stdout(file)
        .status()
        .expect("kubectl runs");
    assert!(status.success(), "{status}");
    let here = run(Command::new("sha256sum").stdin(Stdio::null()).arg(big), b"").ok();
    assert_eq!(here.split_whitespace().next(), sum.split_whitespace().next());
    let back = client
        .exec(cluster, "sha256sum")
        .stdin(fs::File::open(big).expect("open"))
        .output()
        .expect("kubectl runs");
    assert_eq!(String::from_utf8_lossy(&back.stdout), sum);

    step(&format!("{name}: why a command did not start, told to a client that is sending"));
    let out = client
        .kubectl(cluster)
        .args(["exec", "-i", "box", "--", "no-such-program"])
        .stdin(fs::File::open(big).expect("open"))
        .output()
        .expect("kubectl runs");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{told}");
    assert_has(&told, &["no-such-program", "executable file not found"]);

    step(&format!("{name}: the command ends before its input does"));
    let mut early = client.exec(cluster, "head -c 5; exit 3").stdin(Stdio::piped()).spawn().expect("starts");
    {
        use std::io::Write as _;
        early.stdin.as_mut().expect("a pipe").write_all(&[b'x'; 2000]).expect("written");
    }
    // Its input is still open.
    let input = early.stdin.take();
    assert_eq!(early.wait().expect("ended").code(), Some(3));
    drop(input);

    step(&format!("{name}: a terminal and its size"));
    let line = format!(
        "stty rows 33 cols 77; {} exec -it box -- sh -c 'sleep 1; stty size'",
        kedge_tests::kubectl_program().display()
    );
    let mut terminal = Command::new("script");
    terminal
        .args(["-qec", &line, "/dev/null"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.dir())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", client.websockets);
    assert_has(&run(&mut terminal, b"").ok(), &["33 77"]);

    step(&format!("{name}: attach to a container's shell"));
    let line = format!("{} attach -it box", kedge_tests::kubectl_program().display());
    let mut terminal = Command::new("script");
    terminal
        .args(["-qec", &line, "/dev/null"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.dir())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", client.websockets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut attached = terminal.spawn().expect("script runs");
    let mut input = attached.stdin.take().expect("a pipe");
    let marker = format!("/tmp/attached-{}", client.websockets);
    eventually("the attached shell to do something", || {
        use std::io::Write as _;
        input.write_all(format!("echo yes > {marker}\n").as_bytes()).ok()?;
        let out = cluster.kubectl(&["exec", "box", "--", "cat", &marker]);
        (out.stdout == "yes\n").then_some(())
    });
    attached.kill().expect("killed");
    attached.wait().expect("ended");

    step(&format!("{name}: a command that reads ends when its client is gone"));
    let mut reader = client.exec(cluster, "cat; true").stdin(Stdio::piped()).spawn().expect("starts");
    let runs = || cluster.exec("box", "ps").contains("cat; true");
    eventually("the command to run", || runs().then_some(()));
    reader.kill().expect("killed");
    reader.wait().expect("ended");
    eventually("the command to end", || (!runs()).then_some(()));

    step(&format!("{name}: port-forward"));
    let forward = Proxy::start(client.kubectl(cluster).args(["port-forward", "box", ":8000"]));
    cluster.exec("box", "echo small > /tmp/small");
    let readers: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| forward.get("/small").body)).collect();
        threads.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    assert_eq!(readers, ["small\n"; 4]);
    let fetched = download(forward.address(), "/big");
    assert!(fetched.ends_with(&fs::read(big).expect("read")), "{} bytes came", fetched.len());
    let closed = Proxy::start(client.kubectl(cluster).args(["port-forward", "box", ":9"]));
    assert_eq!(download(closed.address(), "/"), b"", "nobody listens there");
}

/// Everything that a server answers, with its headers.
fn download(address: &str, path: &str) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    // A connection that the other end resets has ended as well.
    let _ = stream.read_to_end(&mut answer);
    answer
}
