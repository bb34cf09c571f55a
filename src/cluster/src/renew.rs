//! A worker's certificates are renewed by the control plane: the kubelet's by CertificateSigningRequest
//! objects, as a kubelet does it, and the node's own through the cluster port.

use std::sync::Arc;
use std::time::Duration;

use kedge_base::{Backoff, Chain};
use kedge_client::k8s_openapi::ByteString;
use kedge_client::k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kedge_client::kube::api::{Api, ObjectMeta, PostParams};
use kedge_client::kube::{Client, Resource as _, ResourceExt as _};
use kedge_client::{Event, Watch};
use tokio::sync::Notify;

use crate::{Error, Leaf, Members, Pki, Signer};

/// As long as upstream's kubelet waits for a signature.
const SIGNED_WITHIN: Duration = Duration::from_secs(15 * 60);
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Ask the API server for one of the kubelet's certificates and put it in place: [`Leaf::Kubelet`] or
/// [`Leaf::KubeletClient`].
///
/// # Errors
/// [`Error::NotSigned`] when the request is denied, fails or stays unanswered; the old certificate stays in use.
pub async fn renew_by_request(pki: &Pki, client: &Client, leaf: Leaf) -> Result<(), Error> {
    let (signer, usage) = match leaf {
        Leaf::Kubelet => (Signer::KubeletServing, "server auth"),
        Leaf::KubeletClient => (Signer::KubeApiserverClientKubelet, "client auth"),
        other => {
            return Err(Error::NotSigned(format!("the API server signs no {:?}", other.file_stem())));
        }
    };
    let pending = pki.pending(leaf)?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pending.request.clone().into_bytes()),
            signer_name: signer.name().to_owned(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let failed = |error: &dyn std::error::Error| Error::NotSigned(Chain(error).to_string());
    let name = api.create(&PostParams::default(), &object).await.map_err(|error| failed(&error))?.name_any();
    let object = tokio::time::timeout(SIGNED_WITHIN, decided(client, &name))
        .await
        .map_err(|_| Error::NotSigned(format!("nobody decided on {name}; kubectl get csr shows it")))?;
    match object.as_ref().and_then(outcome) {
        Some(Ok(certificate)) => pki.install(&pending, &certificate),
        Some(Err(reason)) => Err(Error::NotSigned(format!("{name}: {reason}"))),
        None => Err(Error::NotSigned(format!("{name} was deleted"))),
    }
}

/// The request once it is decided; `None`: it is gone.
async fn decided(client: &Client, name: &str) -> Option<CertificateSigningRequest> {
    let path = CertificateSigningRequest::url_path(&(), None);
    let mut requests =
        Watch::<CertificateSigningRequest>::new(client.clone(), path, &format!("metadata.name={name}"), "");
    let mut listed = false;
    loop {
        match requests.next().await {
            Event::Begin => listed = false,
            Event::Listed(object) | Event::Changed(object) => {
                if outcome(&object).is_some() {
                    return Some(object);
                }
                listed = true;
            }
            Event::Done if listed => {}
            Event::Done | Event::Deleted(_) => return None,
        }
    }
}

/// The certificate, or why there will be none; `None`: not decided.
fn outcome(object: &CertificateSigningRequest) -> Option<Result<String, String>> {
    let status = object.status.as_ref()?;
    let refused = status.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "Denied" | "Failed") && condition.status == "True"
    });
    if let Some(condition) = refused {
        let message = condition.message.as_deref().unwrap_or("no reason was given");
        return Some(Err(format!("{}: {message}", condition.type_)));
    }
    let certificate = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty())?;
    Some(Ok(String::from_utf8_lossy(&certificate.0).into_owned()))
}

/// Keeps the certificates of this node fresh.
#[derive(Clone)]
pub struct Renewal {
    pki: Arc<Pki>,
    /// On a worker: whom to ask.
    control_plane: Option<(Arc<Members>, Client)>,
    wake: Arc<Notify>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").finish_non_exhaustive()
    }
}

impl Renewal {
    /// On a control-plane node, which signs for itself.
    pub fn control_plane(pki: Arc<Pki>) -> Self {
        Self { pki, control_plane: None, wake: Arc::default() }
    }

    /// On a worker.
    pub fn worker(pki: Arc<Pki>, members: Arc<Members>, client: Client) -> Self {
        Self { pki, control_plane: Some((members, client)), wake: Arc::default() }
    }

    /// The node's addresses changed: certificates that name them are replaced, here at once, on a worker
    /// as soon as the control plane signs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn set_addresses(&self, addresses: &[std::net::IpAddr]) -> Result<Vec<Leaf>, Error> {
        let changed = self.pki.set_addresses(addresses)?;
        if !changed.is_empty() {
            self.wake.notify_one();
        }
        Ok(changed)
    }

    /// Renew what is due.
    ///
    /// # Errors
    /// The last failure; what could be renewed was.
    pub async fn renew_due(&self) -> Result<Vec<Leaf>, Error> {
        let Some((members, client)) = &self.control_plane else {
            return self.pki.renew();
        };
        self.pki.clock().record()?;
        let (mut renewed, mut failure) = (Vec::new(), None);
        for leaf in self.pki.renew_due(self.pki.clock().system_time()) {
            let done = match leaf {
                Leaf::Node => members.renew(leaf).await,
                _ => match Box::pin(renew_by_request(&self.pki, client, leaf)).await {
                    // The cluster port signs as well, for instance when the kubelet's certificate expired.
                    Err(error) => {
                        tracing::warn!(certificate = leaf.file_stem(), error = %Chain(&error), "not signed by request");
                        members.renew(leaf).await
                    }
                    done => done,
                },
            };
            match done {
                Ok(()) => renewed.push(leaf),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(renewed), Err)
    }

    /// Sleep until something is due or an address changes, renew it, for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(60 * 60));
        loop {
            let wait = match self.renew_due().await {
                Ok(renewed) => {
                    if !renewed.is_empty() {
                        tracing::info!(?renewed, "certificates renewed");
                    }
                    backoff.reset();
                    let now = self.pki.clock().system_time();
                    // A day at most: the clock of a board may jump.
                    let until = self.pki.next_renewal().duration_since(now).unwrap_or(Duration::ZERO);
                    until.clamp(Duration::from_secs(60), LONGEST_SLEEP)
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "certificates not renewed, trying again");
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use kedge_client::k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    #[test]
    fn a_request_is_decided_by_its_certificate_or_its_condition() {
        let object = |conditions: &[(&str, &str)], certificate: Option<&str>| CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                certificate: certificate.map(|pem| ByteString(pem.into())),
                conditions: Some(
                    conditions
                        .iter()
                        .map(|(kind, status)| CertificateSigningRequestCondition {
                            type_: (*kind).into(),
                            status: (*status).into(),
                            message: Some("because".into()),
                            ..CertificateSigningRequestCondition::default()
                        })
                        .collect(),
                ),
            }),
            ..CertificateSigningRequest::default()
        };
        assert_eq!(outcome(&CertificateSigningRequest::default()), None);
        assert_eq!(outcome(&object(&[("Approved", "True")], None)), None);
        assert_eq!(outcome(&object(&[("Approved", "True")], Some(""))), None);
        assert_eq!(outcome(&object(&[("Approved", "True")], Some("PEM"))), Some(Ok("PEM".into())));
        for kind in ["Denied", "Failed"] {
            assert_eq!(outcome(&object(&[(kind, "True")], None)), Some(Err(format!("{kind}: because"))));
        }
    }

    fn node() -> crate::NodeIdentity {
        crate::NodeIdentity {
            name: "w1".into(),
            addresses: vec!["192.0.2.9".parse().unwrap()],
            service_addresses: Vec::new(),
            cluster_domain: "cluster.local".into(),
        }
    }

    /// An API server with one CertificateSigningRequest, signed by a controller as soon as it is there, or
    /// denied.
    fn api_server(authority: Arc<Pki>, deny: bool) -> Client {
        let made: Arc<parking_lot::Mutex<Option<CertificateSigningRequest>>> = Arc::default();
        let service = tower::service_fn(move |request: http::Request<kedge_client::kube::client::Body>| {
            let (authority, made) = (authority.clone(), made.clone());
            async move {
                if request.method() == http::Method::POST {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let mut object: CertificateSigningRequest = serde_json::from_slice(&body).unwrap();
                    assert_eq!(object.metadata.generate_name.as_deref(), Some("csr-"));
                    object.metadata.name = Some("csr-x".into());
                    let pem = String::from_utf8(object.spec.request.0.clone()).unwrap();
                    let signer = Signer::from_name(&object.spec.signer_name).unwrap();
                    let usages = object.spec.usages.clone().unwrap();
                    let certificate = authority.sign(signer, &pem, &usages, None).unwrap();
                    let mut status = CertificateSigningRequestStatus::default();
                    if deny {
                        status.conditions = Some(vec![CertificateSigningRequestCondition {
                            type_: "Denied".into(),
                            status: "True".into(),
                            message: Some("not you".into()),
                            ..CertificateSigningRequestCondition::default()
                        }]);
                    } else {
                        status.certificate = Some(ByteString(certificate.into_bytes()));
                    }
                    let answer = serde_json::to_vec(&object).unwrap();
                    object.status = Some(status);
                    *made.lock() = Some(object);
                    return Ok::<_, std::io::Error>(http::Response::new(Full::new(Bytes::from(answer))));
                }
                assert!(
                    request.uri().query().unwrap().contains("metadata.name%3Dcsr-x"),
                    "{}",
                    request.uri()
                );
                let event = serde_json::json!({ "type": "ADDED", "object": made.lock().clone().unwrap() });
                Ok(http::Response::new(Full::new(Bytes::from(format!("{event}\n")))))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn the_kubelets_certificates_are_renewed_by_request() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(dir.path(), &node()).unwrap());
        for leaf in [Leaf::Kubelet, Leaf::KubeletClient] {
            let before = pki.pem(leaf);
            renew_by_request(&pki, &api_server(pki.clone(), false), leaf).await.unwrap();
            let after = pki.pem(leaf);
            assert!(before.0 != after.0 && before.1 != after.1, "{leaf:?}");
            let kept = std::fs::read_to_string(pki.certificate_path(leaf)).unwrap();
            assert_eq!(kept, after.0);
            let denied = renew_by_request(&pki, &api_server(pki.clone(), true), leaf).await.unwrap_err();
            assert!(denied.to_string().contains("Denied: not you"), "{denied}");
            assert_eq!(pki.pem(leaf), after);
        }
        let client = api_server(pki.clone(), false);
        assert!(renew_by_request(&pki, &client, Leaf::Admin).await.is_err());
        // What another authority signed is not put in place.
        let other_dir = tempfile::tempdir().unwrap();
        let other = Arc::new(Pki::open(other_dir.path(), &node()).unwrap());
        let before = pki.pem(Leaf::Kubelet);
        let error = renew_by_request(&pki, &api_server(other, false), Leaf::Kubelet).await.unwrap_err();
        assert!(error.to_string().contains("another authority"), "{error}");
        assert_eq!(pki.pem(Leaf::Kubelet), before);
        assert!(pki.renew_due(pki.clock().system_time()).is_empty());
    }
}
