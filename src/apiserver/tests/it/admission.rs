//! Pod Security, LimitRange, ResourceQuota and evictions.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, config_map};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NAMESPACE: &str = "/api/v1/namespaces/default";

async fn account(client: &Client) {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    client.make(path, &json!({ "metadata": { "name": "default" } })).await;
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "kedge.dev/pause:1" }] },
    })
}

async fn warnings(client: &Client, method: Method, path: &str, body: &Value) -> Vec<String> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let response = client.raw(method, path, &[("content-type", kind)], body.to_string().into_bytes()).await;
    assert!(response.status().is_success(), "{response:?}");
    let headers = response.headers().get_all("warning").iter();
    headers.map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_held_against_their_namespaces_policy() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    client.make(PODS, &pod("old")).await;
    let label = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    let told = warnings(&client, Method::PATCH, NAMESPACE, &label).await;
    assert_eq!(
        told,
        [
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \\\"restricted:latest\\\"\"",
            "299 - \"old: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile\"",
        ]
    );
    let mut bad = pod("bad");
    bad["spec"]["hostNetwork"] = json!(true);
    let (status, answer) = client.post(PODS, &bad).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let message = answer["message"].as_str().expect("message");
    assert!(
        message.starts_with(
            "pods \"bad\" is forbidden: violates PodSecurity \"restricted:latest\": host namespaces (hostNetwork=true), allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)"
        ),
        "{message}"
    );
    let mut good = pod("good");
    good["spec"]["securityContext"] =
        json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    good["spec"]["containers"][0]["securityContext"] =
        json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    client.make(PODS, &good).await;
    // Labels of a pod that was there before may still change; its workload is only warned about.
    let (status, answer) = client
        .patch(&format!("{PODS}/old"), "merge", &json!({ "metadata": { "labels": { "a": "b" } } }))
        .await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let deployment = json!({
        "metadata": { "name": "web" }, "spec": { "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": pod("x")["spec"] } },
    });
    let told =
        warnings(&client, Method::POST, "/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    assert!(told[0].contains("would violate PodSecurity \\\"restricted:latest\\\""), "{told:?}");
    let label = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "strict" } } });
    let (status, answer) = client.patch(NAMESPACE, "merge", &label).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            Some(
                "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
            )
        )
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_ranges_default_and_bound() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    let range = json!({ "metadata": { "name": "r" }, "spec": { "limits": [
        { "type": "Container", "default": { "cpu": "500m" }, "defaultRequest": { "cpu": "100m" }, "max": { "cpu": "1" } },
    ] } });
    client.make("/api/v1/namespaces/default/limitranges", &range).await;
    let made = client.make(PODS, &pod("a")).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "500m" }, "requests": { "cpu": "100m" } })
    );
    let mut big = pod("b");
    big["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "2" } });
    let (status, answer) = client.post(PODS, &big).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::FORBIDDEN,
            Some("pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2")
        )
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_never_overspent() {
    const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "configmaps": "5" } } });
    client.make(QUOTAS, &quota).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| json!({ "metadata": { "name": name } });
    let (status, answer) = client.post(maps, &map("early")).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::FORBIDDEN,
            Some("configmaps \"early\" is forbidden: status unknown for quota: q, resources: configmaps")
        )
    );
    // What the controller would say.
    let status = json!({ "status": { "hard": { "configmaps": "5" }, "used": { "configmaps": "1" } } });
    assert_eq!(client.patch(&format!("{QUOTAS}/q/status"), "merge", &status).await.0, StatusCode::OK);
    let dry = client.post(&format!("{maps}?dryRun=All"), &map("dry")).await;
    assert_eq!(dry.0, StatusCode::CREATED);
    let writers = (0..12).map(|index| {
        let client = client.clone();
        async move { client.post(maps, &map(&format!("m{index}"))).await }
    });
    let answers = futures::future::join_all(writers).await;
    let made = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(made, 4);
    let refused = answers.iter().find(|(status, _)| *status == StatusCode::FORBIDDEN).expect("one");
    let message = refused.1["message"].as_str().expect("message");
    assert!(
        message.ends_with(
            "exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"
        ),
        "{message}"
    );
    let (_, quota) = client.get(&format!("{QUOTAS}/q")).await;
    assert_eq!(quota["status"]["used"]["configmaps"], "5");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_refuses_evictions() {
    const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    for name in ["a", "b", "sick"] {
        client.make(PODS, &pod(name)).await;
        let ready = if name == "sick" { "False" } else { "True" };
        let status =
            json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] } });
        assert_eq!(client.patch(&format!("{PODS}/{name}/status"), "merge", &status).await.0, StatusCode::OK);
    }
    let budget = json!({ "metadata": { "name": "web" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    client.make(BUDGETS, &budget).await;
    let evict = |name: &str, query: &str| {
        let client = client.clone();
        let (path, body) =
            (format!("{PODS}/{name}/eviction{query}"), json!({ "metadata": { "name": name } }));
        async move { client.post(&path, &body).await }
    };
    let (status, answer) = evict("a", "").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        answer["details"]["causes"][0]["message"],
        "The disruption budget web is still being processed by the server."
    );
    let status = json!({ "status": { "observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2 } });
    assert_eq!(client.patch(&format!("{BUDGETS}/web/status"), "merge", &status).await.0, StatusCode::OK);
    assert_eq!(evict("a", "?dryRun=All").await.0, StatusCode::CREATED);
    assert_eq!(client.get(&format!("{PODS}/a")).await.0, StatusCode::OK, "a dry run evicts nothing");
    // A pod that is not ready costs nothing while the budget is met.
    assert_eq!(evict("sick", "").await.0, StatusCode::CREATED);
    assert_eq!(evict("a", "").await.0, StatusCode::CREATED);
    assert_eq!(client.get(&format!("{PODS}/a")).await.0, StatusCode::NOT_FOUND);
    let (status, answer) = evict("b", "").await;
    assert_eq!(
        (status, &answer["message"], &answer["details"]["causes"][0]),
        (
            StatusCode::TOO_MANY_REQUESTS,
            &json!("Cannot evict pod as it would violate the pod's disruption budget."),
            &json!({ "reason": "DisruptionBudget",
                "message": "The disruption budget web needs 1 healthy pods and has 2 currently" })
        )
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_in_a_namespace_that_ends() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let path = "/api/v1/namespaces/doomed";
    let (status, answer) = client.post(&format!("{path}/configmaps"), &config_map("a")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    client.make("/api/v1/namespaces", &json!({ "metadata": { "name": "doomed" } })).await;
    client.make(&format!("{path}/configmaps"), &config_map("a")).await;
    client.delete(path, &json!({})).await;
    let (status, answer) = client.post(&format!("{path}/configmaps"), &config_map("b")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert_eq!(answer["details"]["causes"][0]["reason"], "NamespaceTerminating");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_priority_class_is_the_default() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    let class = |name: &str, default: bool| json!({ "metadata": { "name": name }, "value": 7, "globalDefault": default });
    client.make(CLASSES, &class("first", true)).await;
    let made = client.make(PODS, &pod("a")).await;
    assert_eq!((&made["spec"]["priorityClassName"], &made["spec"]["priority"]), (&"first".into(), &json!(7)));
    let (status, answer) = client.post(CLASSES, &class("second", true)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer["message"],
        "priorityclasses.scheduling.k8s.io \"second\" is forbidden: PriorityClass first is already marked as default. Only one default can exist"
    );
    client.make(CLASSES, &class("second", false)).await;
    let second = format!("{CLASSES}/second");
    let (status, _) = client.patch(&second, "merge", &json!({ "globalDefault": true })).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let first = format!("{CLASSES}/first");
    let (status, _) = client.patch(&first, "merge", &json!({ "description": "still the default" })).await;
    assert_eq!(status, StatusCode::OK);
    client.delete(&first, &json!({})).await;
    let (status, _) = client.patch(&second, "merge", &json!({ "globalDefault": true })).await;
    assert_eq!(status, StatusCode::OK);
    let made = client.make(PODS, &pod("b")).await;
    assert_eq!(made["spec"]["priorityClassName"], "second");
    let (status, answer) = client.delete(&format!("{CLASSES}/system-node-critical"), &json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        answer["message"]
            .as_str()
            .is_some_and(|text| text.ends_with("a system priority class and cannot be deleted")),
        "{answer}"
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_bound_to_a_node_ends_with_it() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    let node = json!({ "metadata": { "name": "n" } });
    client.make("/api/v1/nodes", &node).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = |kind: &str| json!({ "spec": { "boundObjectRef": { "apiVersion": "v1", "kind": kind, "name": "n" } } });
    let (status, answer) = client.post(path, &request("ConfigMap")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["message"], "cannot bind token for object of type v1, Kind=ConfigMap");
    let made = client.make(path, &request("Node")).await;
    let review = json!({ "spec": { "token": made["status"]["token"] } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = client.make(reviews, &review).await;
    assert_eq!(known["status"]["authenticated"], true, "{known}");
    assert_eq!(known["status"]["user"]["extra"]["authentication.kubernetes.io/node-name"], json!(["n"]));
    client.delete("/api/v1/nodes/n", &json!({})).await;
    client.make("/api/v1/nodes", &node).await;
    let known = client.make(reviews, &review).await;
    assert_ne!(known["status"]["authenticated"], true, "the node has another uid now: {known}");
    fixture.stop().await;
}
