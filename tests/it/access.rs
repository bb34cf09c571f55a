//! Who is let in, and what they may do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use base64::Engine as _;
use kedge_tests::{Cluster, Out, assert_has, kubectl_program, run, step};

#[test]
fn tokens_roles_and_strangers() {
    let cluster = Cluster::start();
    let authority = cluster
        .kubectl(&[
            "config",
            "view",
            "--raw",
            "-o",
            "jsonpath={.clusters[0].cluster.certificate-authority-data}",
        ])
        .ok();
    let authority = base64::engine::general_purpose::STANDARD.decode(authority.trim()).unwrap();
    let ca = cluster.dir().join("ca.crt");
    fs::write(&ca, authority).unwrap();
    // No kubeconfig: nothing but what is given here identifies the caller.
    let with_token = |token: Option<&str>, arguments: &[&str]| -> Out {
        let mut command = Command::new(kubectl_program());
        command.env("KUBECONFIG", "/dev/null").env("HOME", cluster.dir());
        command.arg(format!("--server=https://127.0.0.1:{}", cluster.port));
        command.arg(format!("--certificate-authority={}", ca.display()));
        // Without any identity kubectl would ask for a name and a password.
        command.arg(format!("--token={}", token.unwrap_or("none")));
        run(command.args(arguments), b"")
    };

    step("the administrator");
    let who = cluster.kubectl(&["auth", "whoami", "-o", "json"]).json();
    let groups = who["status"]["userInfo"]["groups"].to_string();
    assert_has(&groups, &["system:authenticated"]);
    assert_eq!(cluster.kubectl(&["auth", "can-i", "*", "*", "--all-namespaces"]).ok().trim(), "yes");

    step("strangers");
    let stranger = with_token(None, &["get", "pods"]);
    assert_has(&stranger.failed(1), &["You must be logged in to the server"]);
    let raw = |path: &str| with_http_code(&cluster, &ca, path);
    assert_eq!(raw("/livez"), "200", "health needs no identity");
    assert_eq!(raw("/version"), "200");
    assert_eq!(raw("/api/v1/namespaces"), "403", "anonymous callers see nothing");

    step("a service account's token, before and after a role is given");
    cluster.kubectl(&["create", "serviceaccount", "worker"]).ok();
    let token = cluster.kubectl(&["create", "token", "worker"]).ok();
    let token = token.trim();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let name = "system:serviceaccount:default:worker";
    assert_has(&with_token(Some(token), &["auth", "whoami"]).ok(), &[name, "system:serviceaccounts:default"]);
    assert_has(
        &with_token(Some(token), &["get", "pods"]).failed(1),
        &[
            "Error from server (Forbidden): pods is forbidden",
            &format!(
                "User \"{name}\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
            ),
        ],
    );
    let refused = cluster.kubectl(&["auth", "can-i", "list", "pods", "--as", name]);
    assert_eq!((refused.code, refused.stdout.trim()), (1, "no"));
    cluster.kubectl(&["create", "role", "see", "--verb=get,list,watch", "--resource=pods"]).ok();
    cluster.kubectl(&["create", "rolebinding", "see", "--role=see", "--serviceaccount=default:worker"]).ok();
    kedge_tests::eventually("the role to count", || {
        (with_token(Some(token), &["get", "pods"]).code == 0).then_some(())
    });
    assert_ne!(with_token(Some(token), &["get", "pods", "-n", "kube-system"]).code, 0);
    assert_ne!(with_token(Some(token), &["delete", "pod", "any"]).code, 0);
    assert_ne!(with_token(Some(token), &["get", "secrets"]).code, 0);

    step("a token ends with its account and with one changed letter");
    let changed = if token.ends_with('A') { "B" } else { "A" };
    let forged = format!("{}{changed}", &token[..token.len() - 1]);
    // The last letter carries spare bits: change one in the middle of the signature as well.
    let middle = forged.rfind('.').unwrap() + 10;
    let letter = if &forged[middle..=middle] == "x" { "y" } else { "x" };
    let forged = format!("{}{letter}{}", &forged[..middle], &forged[middle + 1..]);
    assert_has(&with_token(Some(&forged), &["get", "pods"]).failed(1), &["Unauthorized"]);
    cluster.kubectl(&["delete", "serviceaccount", "worker"]).ok();
    kedge_tests::eventually("the token to be refused", || {
        with_token(Some(token), &["get", "pods"]).stderr.contains("Unauthorized").then_some(())
    });

    step("acting as somebody else, and its limits");
    let out = cluster.kubectl(&["get", "secrets", "--as=ann", "--as-group=team"]);
    assert_has(&out.failed(1), &["User \"ann\" cannot list resource \"secrets\""]);
    cluster
        .kubectl(&["create", "clusterrolebinding", "team-views", "--clusterrole=view", "--group=team"])
        .ok();
    kedge_tests::eventually("the group's role to count", || {
        (cluster.kubectl(&["get", "pods", "--as=ann", "--as-group=team"]).code == 0).then_some(())
    });
    assert_ne!(
        cluster.kubectl(&["get", "secrets", "--as=ann", "--as-group=team"]).code,
        0,
        "view must not show secrets"
    );
    assert_has(
        &cluster
            .kubectl(&[
                "create",
                "clusterrole",
                "more",
                "--verb=*",
                "--resource=*",
                "--as=ann",
                "--as-group=team",
            ])
            .failed(1),
        &["Forbidden"],
    );

    step("nobody gives more than they have");
    cluster
        .kubectl(&[
            "create",
            "clusterrole",
            "roles",
            "--verb=create,update,patch,get",
            "--resource=clusterroles",
        ])
        .ok();
    cluster.kubectl(&["create", "clusterrolebinding", "roles", "--clusterrole=roles", "--user=bob"]).ok();
    kedge_tests::eventually("bob to be let in", || {
        (cluster.kubectl(&["auth", "can-i", "create", "clusterroles", "--as=bob"]).code == 0).then_some(())
    });
    assert_has(
        &cluster
            .kubectl(&["create", "clusterrole", "all", "--verb=*", "--resource=secrets", "--as=bob"])
            .failed(1),
        &["is attempting to grant RBAC permissions not currently held"],
    );

    step("Pod Security");
    cluster.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted"]).ok();
    let overrides = r#"{"spec":{"hostNetwork":true}}"#;
    assert_has(
        &cluster
            .kubectl(&["run", "bad", "--image=kedge.dev/hello:1.0", &format!("--overrides={overrides}")])
            .failed(1),
        &["violates PodSecurity \"restricted:latest\"", "host namespaces (hostNetwork=true)"],
    );
}

/// The status code of a request without any identity.
/// Where everybody on the machine may look lies nobody's secret and no key.
#[test]
fn what_is_on_the_disk_is_for_root_alone() {
    const WORD: &str = "a-word-that-nobody-else-may-read";
    let mut cluster = Cluster::start();
    cluster.kubectl(&["create", "secret", "generic", "s", &format!("--from-literal=k={WORD}")]).ok();
    cluster.kedge(&["snapshot", "save"]).ok();
    let encoded = base64::engine::general_purpose::STANDARD.encode(WORD);
    let exposed = |cluster: &Cluster| -> Vec<std::path::PathBuf> {
        let mut files = open_files(&cluster.dir().join("data"));
        files.retain(|file| {
            let bytes = fs::read(file).unwrap_or_default();
            let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
            has(WORD.as_bytes()) || has(encoded.as_bytes()) || has(b"PRIVATE KEY")
        });
        files
    };
    let none: [&std::path::Path; 0] = [];
    assert_eq!(exposed(&cluster), none);

    step("a folder that an older version left open is closed at the next start");
    assert_eq!(cluster.stop(), 0);
    fs::set_permissions(cluster.dir().join("data/store"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!exposed(&cluster).is_empty(), "the Secret was looked for in the wrong place");
    cluster.run();
    cluster.wait_ready();
    assert_eq!(exposed(&cluster), none);
}

/// The files below that a user without any rights can open.
fn open_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        let mode = meta.permissions().mode();
        if meta.is_dir() && mode & 0o001 != 0 {
            found.extend(open_files(&entry.path()));
        } else if meta.is_file() && mode & 0o004 != 0 {
            found.push(entry.path());
        }
    }
    found
}

fn with_http_code(cluster: &Cluster, ca: &std::path::Path, path: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(ca);
    command.arg(format!("https://127.0.0.1:{}{path}", cluster.port));
    run(&mut command, b"").ok()
}
