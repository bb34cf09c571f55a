//! Certificate signing requests: approves those of nodes, signs what is approved, deletes old ones
//! (upstream pkg/controller/certificates: approver, signer, cleaner).
//!
//! Upstream leaves `kubernetes.io/kubelet-serving` to an administrator or a cloud's controller,
//! because it cannot tell which addresses are a machine's. Here they are approved when the node
//! itself asks (the API server has authenticated its certificate) and every name is one that its
//! Node object has: only that node may write those (NodeRestriction), and a node that lies about
//! its address could at most serve as itself. Without it `kubectl logs` would need a hand-made
//! approval for each node, or no verification at all.

#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod request;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kedge_client::{Error, Informer, Queue};
use kube::api::{DeleteParams, PostParams, Preconditions};

use self::request::{
    API_CLIENT, Asked, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, condition, is_issued, names_are_the_nodes,
    node_of, parse, suits_signer, with_condition,
};
use crate::context::{Context, ignore_not_found};
use crate::{Signer, time};

/// What a certificate gets at most, and when nothing is asked for (`--cluster-signing-duration`).
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST: Duration = Duration::from_secs(600);
/// How long a request stays after it was answered, and when nobody answers it.
const ANSWERED_STAYS: i64 = 3600;
const PENDING_STAYS: i64 = 24 * 3600;

pub(crate) fn start(ctx: &Context) {
    let requests = ctx.informers.informer::<CertificateSigningRequest>();
    let nodes = ctx.informers.informer::<Node>();
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        requests: requests.clone(),
        nodes: nodes.clone(),
        signer: ctx.config.signer.clone(),
    });
    if controller.signer.is_none() {
        tracing::debug!("certificate requests are neither approved nor signed: no authority is configured");
    }
    let queue: Queue<String> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&requests, move |change| {
        if change.new.is_some() {
            adder.add(change.key().name);
        }
    });
    let (adder, known) = (queue.clone(), requests.clone());
    ctx.on_change(&nodes, move |change| {
        let addresses = |node: &Option<Arc<Node>>| {
            node.as_ref().and_then(|node| node.status.as_ref()?.addresses.clone()).unwrap_or_default()
        };
        // A request may wait for the node to tell its addresses.
        if addresses(&change.old) != addresses(&change.new) {
            for csr in known.list().iter().filter(|csr| csr.spec.signer_name == KUBELET_SERVING) {
                adder.add(csr.metadata.name.clone().unwrap_or_default());
            }
        }
    });
    let synced = async move {
        requests.synced().await;
        nodes.synced().await;
    };
    ctx.run("certificates", queue, 1, synced, move |name: String| {
        let this = controller.clone();
        async move { this.reconcile(&name).await }
    });
}

struct Controller {
    ctx: Context,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    signer: Option<Arc<dyn Signer>>,
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(csr) = self.requests.get("", name) else { return Ok(None) };
        let left = time::until(stays_until(&csr), Timestamp::now());
        let api = kube::Api::<CertificateSigningRequest>::all(self.ctx.client.clone());
        if left.is_zero() {
            let params = DeleteParams::default()
                .preconditions(Preconditions { uid: csr.metadata.uid.clone(), resource_version: None });
            ignore_not_found(api.delete(name, &params).await)?;
            return Ok(None);
        }
        let answered =
            is_issued(&csr) || condition(&csr, "Denied").is_some() || condition(&csr, "Failed").is_some();
        if answered || self.signer.is_none() {
            return Ok(Some(left));
        }
        let write = if condition(&csr, "Approved").is_some() {
            self.sign(&csr).map(|signed| ("status", signed))
        } else {
            self.approve(&csr).await?.map(|approved| ("approval", approved))
        };
        if let Some((subresource, changed)) = write {
            match api.replace_subresource(subresource, name, &PostParams::default(), &changed).await {
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                result => result?,
            };
        }
        Ok(Some(left))
    }

    /// The request with its approval; `None` when it is for somebody else to decide.
    async fn approve(
        &self,
        csr: &CertificateSigningRequest,
    ) -> Result<Option<CertificateSigningRequest>, Error> {
        let signer = csr.spec.signer_name.as_str();
        let unknown = csr.spec.username.as_ref().is_none_or(String::is_empty);
        if unknown || !matches!(signer, KUBELET_CLIENT | KUBELET_SERVING) {
            return Ok(None);
        }
        let Ok(asked) = parse(&csr.spec.request.0) else { return Ok(None) };
        if suits_signer(csr, &asked).is_err() {
            return Ok(None);
        }
        if signer == KUBELET_SERVING {
            return Ok(self.approve_serving(csr, &asked));
        }
        let own = csr.spec.username.as_deref() == Some(asked.common_name.as_str());
        let kinds = [
            (
                own,
                "selfnodeclient",
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
            (true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
        ];
        for (applies, permission, text) in kinds {
            if applies && self.may(csr, permission).await? {
                return Ok(Some(with_condition(csr, "Approved", "AutoApproved", text)));
            }
        }
        let name = csr.metadata.name.as_deref().unwrap_or_default();
        let user = csr.spec.username.as_deref().unwrap_or_default();
        tracing::info!(
            request = name,
            user,
            "certificate request of a kubelet is not approved: its user may not create certificatesigningrequests/nodeclient or /selfnodeclient"
        );
        Ok(None)
    }

    fn approve_serving(
        &self,
        csr: &CertificateSigningRequest,
        asked: &Asked,
    ) -> Option<CertificateSigningRequest> {
        let node = self.nodes.get("", node_of(asked)?)?;
        let is_node = csr.spec.groups.iter().flatten().any(|group| group == "system:nodes");
        let text =
            "Auto approving kubelet serving certificate: the node asks for its own names and addresses.";
        (is_node && names_are_the_nodes(asked, &node))
            .then(|| with_condition(csr, "Approved", "AutoApproved", text))
    }

    /// Ask the API server whether the requester may have such a certificate.
    async fn may(&self, csr: &CertificateSigningRequest, permission: &str) -> Result<bool, Error> {
        let spec = &csr.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                groups: spec.groups.clone(),
                uid: spec.uid.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    verb: Some("create".into()),
                    subresource: Some(permission.to_owned()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = kube::Api::<SubjectAccessReview>::all(self.ctx.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// The request with its certificate, or with the reason why it gets none.
    fn sign(&self, csr: &CertificateSigningRequest) -> Option<CertificateSigningRequest> {
        let signer = self.signer.as_ref()?;
        let name = csr.spec.signer_name.as_str();
        if !matches!(name, API_CLIENT | KUBELET_CLIENT | KUBELET_SERVING | LEGACY) {
            return None;
        }
        let failed = |text: &str| Some(with_condition(csr, "Failed", "SignerValidationFailure", text));
        let asked = match parse(&csr.spec.request.0) {
            Ok(asked) => asked,
            Err(error) => return failed(&error),
        };
        if let Err(why) = suits_signer(csr, &asked) {
            return failed(why);
        }
        let pem = String::from_utf8_lossy(&csr.spec.request.0);
        let usages = csr.spec.usages.clone().unwrap_or_default();
        match signer.sign(&pem, name, &usages, lifetime(csr.spec.expiration_seconds)) {
            Ok(certificate) => {
                let mut signed = csr.clone();
                signed.status.get_or_insert_default().certificate =
                    Some(ByteString(certificate.into_bytes()));
                Some(signed)
            }
            Err(error) => {
                tracing::warn!(request = csr.metadata.name, error = %error, "certificate not signed");
                failed(&error.to_string())
            }
        }
    }
}

fn lifetime(asked: Option<i32>) -> Duration {
    let asked = asked.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    asked.map_or(LIFETIME, |asked| asked.clamp(SHORTEST, LIFETIME))
}

/// When the request is deleted.
fn stays_until(csr: &CertificateSigningRequest) -> Timestamp {
    let answered = ["Denied", "Failed", "Approved"].iter().find_map(|kind| condition(csr, kind));
    let since = |condition: k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition| {
        condition.last_update_time.or(condition.last_transition_time).map(|time| time.0)
    };
    if let Some(at) = answered.and_then(since) {
        return time::plus(at, ANSWERED_STAYS);
    }
    let created = csr.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    time::plus(created, PENDING_STAYS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use base64::Engine;
    use serde_json::json;

    #[derive(Debug)]
    struct Fixed;

    impl Signer for Fixed {
        fn sign(
            &self,
            csr_pem: &str,
            signer_name: &str,
            _: &[String],
            lifetime: Duration,
        ) -> Result<String, crate::SignerError> {
            assert!(csr_pem.contains("CERTIFICATE REQUEST"));
            Ok(format!("{signer_name} {}", lifetime.as_secs()))
        }
    }

    /// A request with a fresh key.
    fn request(node: &str, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("valid names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
        base64::engine::general_purpose::STANDARD.encode(pem)
    }

    fn world(allowed: bool) -> World {
        world_with(allowed, Some(Arc::new(Fixed)))
    }

    fn world_with(allowed: bool, signer: Option<Arc<dyn Signer>>) -> World {
        let mut world = World::new();
        let mut config = (*world.ctx.config).clone();
        config.signer = signer;
        world.ctx.config = Arc::new(config);
        let review = json!({ "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}, "status": { "allowed": allowed } });
        world.can("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review);
        world.create::<Node>(json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" }] } }));
        start(&world.ctx);
        world
    }

    fn ask(world: &World, name: &str, signer: &str, user: &str, purpose: &str, request: &str) {
        world.create::<CertificateSigningRequest>(json!({ "metadata": { "name": name }, "spec": {
            "signerName": signer, "username": user, "groups": ["system:nodes"], "request": request,
            "expirationSeconds": 60, "usages": ["digital signature", purpose] } }));
    }

    fn issued(world: &World, name: &str) -> Option<String> {
        let csr = world.get::<CertificateSigningRequest>("", name)?;
        Some(String::from_utf8_lossy(&csr.status?.certificate?.0).into_owned())
    }

    #[test]
    fn a_nodes_own_requests_are_approved_and_signed() {
        run(async {
            let world = world(true);
            ask(&world, "client", KUBELET_CLIENT, "system:node:n1", "client auth", &request("n1", &[]));
            ask(
                &world,
                "serving",
                KUBELET_SERVING,
                "system:node:n1",
                "server auth",
                &request("n1", &["n1", "10.0.0.1"]),
            );
            ask(
                &world,
                "stolen",
                KUBELET_SERVING,
                "system:node:n1",
                "server auth",
                &request("n1", &["10.0.0.9"]),
            );
            ask(&world, "other", API_CLIENT, "me", "client auth", &request("n1", &[]));
            world
                .until("the client's", |w| {
                    issued(w, "client").as_deref() == Some("kubernetes.io/kube-apiserver-client-kubelet 600")
                })
                .await;
            world.until("the server's", |w| issued(w, "serving").is_some()).await;
            world.settle().await;
            assert_eq!((issued(&world, "stolen"), issued(&world, "other")), (None, None));
            // The node gets another address.
            let node = world.get::<Node>("", "n1").expect("there");
            world.edit(&node, |node| node["status"]["addresses"][0]["address"] = json!("10.0.0.9"));
            world.until("the server's at its new address", |w| issued(w, "stolen").is_some()).await;
            // An administrator approves.
            let csr = world.get::<CertificateSigningRequest>("", "other").expect("there");
            world.edit(&csr, |csr| csr["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True", "lastUpdateTime": time::now() }] }));
            world.until("signed", |w| issued(w, "other").is_some()).await;
        });
    }

    #[test]
    fn nobody_else_is_approved_and_bad_requests_fail() {
        run(async {
            let world = world(false);
            ask(&world, "client", KUBELET_CLIENT, "system:node:n1", "client auth", &request("n1", &[]));
            ask(&world, "bad", KUBELET_CLIENT, "system:node:n1", "server auth", &request("n1", &[]));
            let csr = world.get::<CertificateSigningRequest>("", "bad").expect("there");
            world.edit(&csr, |csr| csr["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True", "lastUpdateTime": time::now() }] }));
            world
                .until("failed", |w| {
                    w.get::<CertificateSigningRequest>("", "bad")
                        .is_some_and(|csr| condition(&csr, "Failed").is_some())
                })
                .await;
            world.settle().await;
            let csr = world.get::<CertificateSigningRequest>("", "client").expect("there");
            assert!(csr.status.is_none() && issued(&world, "bad").is_none());
        });
    }

    #[test]
    fn old_requests_go() {
        run(async {
            let world = world(false);
            let made = |name: &str, created: &str, condition: serde_json::Value| {
                world.create::<CertificateSigningRequest>(json!({ "metadata": { "name": name, "creationTimestamp": created },
                    "spec": { "signerName": "example.com/x", "request": "", "username": "x" }, "status": { "conditions": [condition] } }));
            };
            let (old, now) = ("2020-01-01T00:00:00Z", Timestamp::now().to_string());
            made("denied", old, json!({ "type": "Denied", "status": "True", "lastUpdateTime": old }));
            made("approved", old, json!({ "type": "Approved", "status": "True", "lastUpdateTime": old }));
            made("fresh", old, json!({ "type": "Approved", "status": "True", "lastUpdateTime": now }));
            made("pending", old, json!({ "type": "Other", "status": "True" }));
            made("young", &now, json!({ "type": "Other", "status": "True" }));
            world.until("three gone", |w| w.list::<CertificateSigningRequest>().len() == 2).await;
            world.settle().await;
            assert_eq!(world.list::<CertificateSigningRequest>().len(), 2);
        });
    }

    #[test]
    fn without_an_authority_or_a_requester_nothing_is_approved() {
        run(async {
            let unsigned = world_with(true, None);
            ask(&unsigned, "client", KUBELET_CLIENT, "system:node:n1", "client auth", &request("n1", &[]));
            let nameless = world(true);
            ask(&nameless, "client", KUBELET_CLIENT, "", "client auth", &request("n1", &[]));
            for world in [&unsigned, &nameless] {
                world.settle().await;
                let csr = world.get::<CertificateSigningRequest>("", "client").expect("there");
                assert!(csr.status.is_none());
            }
        });
    }
}
