//! CertificateSigningRequests: who asks is written down by the server and never by the client; approving and
//! signing need the signer's permission (`pkg/registry/certificates/certificates/strategy.go`,
//! `plugin/pkg/admission/certificates`).

use kedge_api::status::Status;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;

use super::{Operation, Request};
use crate::authn::MASTERS;
use crate::authz::rbac::{Attributes, Decision};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn applies(request: &Request<'_>) -> bool {
    &*request.resource.group == GROUP && &*request.resource.plural == "certificatesigningrequests"
}

/// The requester of a new request; the spec of an old one does not change.
pub(super) fn mutate(request: &Request<'_>, value: &mut Value) {
    if !applies(request) {
        return;
    }
    match (request.operation, request.old) {
        (Operation::Create, _) => {
            let user = request.user;
            let Some(spec) = value["spec"].as_object_mut() else { return };
            for (field, given) in [
                ("username", json!(user.name)),
                ("uid", json!(user.uid)),
                ("groups", json!(user.groups)),
                ("extra", json!(user.extra)),
            ] {
                let empty = given.as_str().is_some_and(str::is_empty)
                    || given.as_array().is_some_and(Vec::is_empty)
                    || given.as_object().is_some_and(serde_json::Map::is_empty);
                if empty {
                    spec.remove(field);
                } else {
                    spec.insert(field.to_owned(), given);
                }
            }
        }
        (Operation::Update, Some(old)) => value["spec"] = old["spec"].clone(),
        _ => {}
    }
}

pub(super) fn validate(request: &Request<'_>, value: &Value) -> Result<(), Status> {
    if !applies(request) {
        return Ok(());
    }
    let signer = value["spec"]["signerName"].as_str().unwrap_or_default();
    match (request.operation, request.subresource) {
        (Operation::Create, "") if signer == CLIENT_SIGNER && asks_for_masters(value) => {
            Err(request
                .forbidden(&format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")))
        }
        (Operation::Update, "approval") if !may(request, "approve", signer) => {
            Err(request
                .forbidden(&format!("user not permitted to approve requests with signerName {signer:?}")))
        }
        (Operation::Update, "status")
            if request.old.is_some_and(|old| {
                old["status"]["certificate"] != value["status"]["certificate"]
                    || old["status"]["conditions"] != value["status"]["conditions"]
            }) && !may(request, "sign", signer) =>
        {
            Err(request.forbidden(&format!("user not permitted to sign requests with signerName {signer:?}")))
        }
        _ => Ok(()),
    }
}

/// Does the subject name the group that may do everything?
fn asks_for_masters(value: &Value) -> bool {
    use base64::Engine as _;
    let text = value["spec"]["request"].as_str().unwrap_or_default();
    let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(text) else { return false };
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&pem) else { return false };
    let Ok((_, parsed)) = x509_parser::certification_request::X509CertificationRequest::from_der(&der) else {
        return false;
    };
    let subject = &parsed.certification_request_info.subject;
    subject.iter_organization().any(|organization| organization.as_str() == Ok(MASTERS))
}

/// The permission for this very signer, or for all of its domain (`example.com/*`).
fn may(request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let wildcard = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    [Some(signer.to_owned()), wildcard].into_iter().flatten().any(|name| {
        let attributes = Attributes {
            user: &request.user.name,
            groups: &request.user.groups,
            verb,
            namespace: "",
            api_group: GROUP,
            resource: "signers",
            subresource: "",
            name: &name,
            path: "",
            is_resource: true,
        };
        matches!(crate::authz::authorize(request.state, request.user, &attributes), Decision::Allow(_))
    })
}
