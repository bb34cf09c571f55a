//! Pulling from a real registry: mirrors, logins, Secrets, digests, and who may use what was pulled.

use std::fs;

use kedge_tests::{Cluster, Registry, assert_has, eventually, step};

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
         containers:\n  - {{name: main, image: '{image}', command: [sleep, '3600']}}\n"
    )
}

/// Waits until the pod waits for its image and gives the message of the failed pull.
fn refused(cluster: &Cluster, name: &str) -> String {
    eventually(&format!("{name} to wait for its image"), || {
        let path = ".status.containerStatuses[0].state.waiting.reason";
        let reason = cluster.field(&format!("pod/{name}"), path);
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()).then_some(())
    });
    let selector = format!("--field-selector=involvedObject.name={name},reason=Failed");
    let message = eventually(&format!("the event about {name}'s pull"), || {
        let events = cluster.get(&["events", &selector]);
        let mut messages = events["items"].as_array()?.iter().filter_map(|event| event["message"].as_str());
        messages.rfind(|message| message.starts_with("Failed to pull image")).map(str::to_owned)
    });
    eventually(&format!("the pull of {name} to be put off"), || {
        let path = ".status.containerStatuses[0].state.waiting.message";
        cluster.field(&format!("pod/{name}"), path).contains("Back-off pulling image").then_some(())
    });
    message
}

#[test]
fn images_are_pulled_through_mirrors_and_with_logins() {
    let open = Registry::start(&["library/app:1", "copies/team/tool:1"], false);
    let closed = Registry::start(&["private/app:1", "private/second:1"], true);
    let mut cluster = Cluster::prepare();
    let file = cluster.dir().join("registries.yaml");
    fs::write(cluster.dir().join("config.yaml"), format!("registries: {}\n", file.display())).unwrap();

    step("a mistake in the file is named and does not stop the node");
    fs::write(&file, "mirors: {}\n").unwrap();
    cluster.run();
    cluster.wait_ready();
    assert_has(&cluster.kedge(&["status"]).ok(), &["problem: ", "registries.yaml", "mirors"]);
    let pid = fs::read_to_string(cluster.dir().join("run/containerd/containerd.pid")).unwrap();

    step("through a mirror, by tag, by digest and with a path before the name");
    let mirrors = format!(
        "mirrors:\n  app.invalid: {{endpoint: ['http://{open}']}}\n  tool.invalid:\n    endpoint: ['http://{open}']\n    \
         rewrite: {{'^(.*)$': 'copies/$1'}}\n  closed.invalid: {{endpoint: ['http://{closed}']}}\n",
        open = open.address,
        closed = closed.address
    );
    fs::write(&file, &mirrors).unwrap();
    let by_digest = format!("app.invalid/library/app@{}", Registry::digest("library/app:1"));
    for (name, image) in [
        ("by-digest", by_digest.as_str()),
        ("by-tag", "app.invalid/library/app:1"),
        ("by-path", "tool.invalid/team/tool:1"),
    ] {
        cluster.apply(&pod(name, image, ""));
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let id = cluster.field("pod/by-digest", ".status.containerStatuses[0].imageID");
    assert_has(&id, &[&Registry::digest("library/app:1")]);
    assert_has(
        &cluster.event("Pod/by-tag", "Pulled"),
        &["Successfully pulled image \"app.invalid/library/app:1\""],
    );
    assert!(!cluster.kedge(&["status"]).ok().contains("registries.yaml"));
    assert_has(&open.log(), &["/v2/copies/team/tool/manifests/1"]);

    step("without a login and with a wrong one the pod waits and says why");
    let with_login = |password: &str| {
        let host = &closed.address;
        format!("{mirrors}configs: {{'{host}': {{auth: {{username: puller, password: {password}}}}}}}\n")
    };
    cluster.apply(&pod("nobody", "closed.invalid/private/app:1", ""));
    assert_has(
        &refused(&cluster, "nobody"),
        &["Failed to pull image \"closed.invalid/private/app:1\"", "authoriz"],
    );
    fs::write(&file, with_login("wrong")).unwrap();
    cluster.apply(&pod("wrong", "closed.invalid/private/app:1", ""));
    assert_has(&refused(&cluster, "wrong"), &["Failed to pull image", "closed.invalid/private/app:1"]);

    step("with the right one both go on");
    fs::write(&file, with_login("right")).unwrap();
    cluster.wait("pod/nobody", "condition=Ready");
    cluster.wait("pod/wrong", "condition=Ready");

    step("by a Secret of the pod, and one of its ServiceAccount");
    fs::write(&file, &mirrors).unwrap();
    for (name, password) in [("right", "right"), ("bad", "wrong")] {
        let password = format!("--docker-password={password}");
        let call = [
            "create",
            "secret",
            "docker-registry",
            name,
            "--docker-server=closed.invalid",
            "--docker-username=puller",
        ];
        cluster.kubectl(&[&call[..], &[password.as_str()]].concat()).ok();
    }
    let image = "closed.invalid/private/second:1";
    cluster.apply(&pod("bad-secret", image, "  imagePullSecrets: [{name: bad}]\n"));
    assert_has(&refused(&cluster, "bad-secret"), &["Failed to pull image", image]);
    cluster.apply(&pod("no-secret", image, "  imagePullSecrets: [{name: missing}]\n"));
    assert_has(
        &cluster.event("Pod/no-secret", "FailedToRetrieveImagePullSecret"),
        &["Unable to retrieve some image pull secrets (missing)"],
    );
    cluster.apply(&pod("secret", image, "  imagePullSecrets: [{name: right}]\n"));
    cluster.wait("pod/secret", "condition=Ready");
    let account =
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: puller}\nimagePullSecrets: [{name: right}]\n";
    cluster.apply(account);
    cluster.apply(&pod("account", image, "  serviceAccountName: puller\n"));
    cluster.wait("pod/account", "condition=Ready");
    assert_has(
        &cluster.event("Pod/account", "Pulled"),
        &["already present on machine and can be accessed by the pod"],
    );

    step("an image that was pulled with a Secret is not for pods without one");
    cluster.apply(&pod("stranger", image, ""));
    assert_has(&refused(&cluster, "stranger"), &["Failed to pull image", image]);

    step("nothing of this needed a restart");
    let now = fs::read_to_string(cluster.dir().join("run/containerd/containerd.pid")).unwrap();
    assert_eq!(pid, now);
    for name in ["by-tag", "nobody", "secret"] {
        let path = ".status.containerStatuses[0].restartCount";
        assert_eq!(cluster.field(&format!("pod/{name}"), path), "0", "{name}");
    }
}
