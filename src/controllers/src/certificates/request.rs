//! What a certificate signing request asks for, and whether that is what its signer gives out
//! (upstream pkg/apis/certificates/helpers.go and controller/certificates/signer). Pure.

use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::Node;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::time;

pub(super) const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub(super) const LEGACY: &str = "kubernetes.io/legacy-unknown";
const NODE_PREFIX: &str = "system:node:";

/// The request inside, as far as it is looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
    /// Names of other types: mail addresses, URIs and so on.
    pub(super) others: usize,
}

/// Read and verify the PEM of a request.
pub(super) fn parse(pem: &[u8]) -> Result<Asked, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".into());
    }
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|error| format!("unable to parse csr: {error}"))?;
    request.verify_signature().map_err(|error| format!("the request is not signed by its key: {error}"))?;
    asked(&request)
}

/// What a request asks for, its signature aside.
pub(super) fn asked(request: &X509CertificationRequest<'_>) -> Result<Asked, String> {
    let subject = &request.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).unwrap_or_default()
    };
    let mut asked = Asked {
        common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        ..Asked::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => asked.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let ip = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                    asked.ips.push(ip.map_err(|_| "an IP address has the wrong length".to_owned())?);
                }
                _ => asked.others += 1,
            }
        }
    }
    Ok(asked)
}

fn usages(csr: &CertificateSigningRequest) -> Vec<&str> {
    let mut usages: Vec<_> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    usages
}

/// Exactly these, with or without `key encipherment`, which only RSA keys need.
fn has_usages(csr: &CertificateSigningRequest, purpose: &str) -> bool {
    let mut found = usages(csr);
    found.retain(|usage| *usage != "key encipherment");
    let mut wanted = ["digital signature", purpose];
    wanted.sort_unstable();
    found == wanted
}

fn node_subject(asked: &Asked) -> Result<(), &'static str> {
    if asked.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes");
    }
    if !asked.common_name.starts_with(NODE_PREFIX) {
        return Err("subject common name does not begin with system:node:");
    }
    Ok(())
}

/// Whether the request is one that its signer signs; upstream's words otherwise.
pub(super) fn suits_signer(csr: &CertificateSigningRequest, asked: &Asked) -> Result<(), &'static str> {
    match csr.spec.signer_name.as_str() {
        API_CLIENT => {
            let allowed = ["client auth", "digital signature", "key encipherment"];
            let found = usages(csr);
            if found.contains(&"client auth") && found.iter().all(|usage| allowed.contains(usage)) {
                Ok(())
            } else {
                Err("usages did not match expected usages: client auth, digital signature, key encipherment")
            }
        }
        KUBELET_CLIENT => {
            node_subject(asked)?;
            if !asked.dns.is_empty() {
                return Err("DNS subjectAltNames are not allowed");
            }
            if !asked.ips.is_empty() {
                return Err("IP subjectAltNames are not allowed");
            }
            if asked.others > 0 {
                return Err("email and URI subjectAltNames are not allowed");
            }
            if !has_usages(csr, "client auth") {
                return Err("usages did not match [digital signature client auth]");
            }
            Ok(())
        }
        KUBELET_SERVING => {
            node_subject(asked)?;
            if asked.dns.is_empty() && asked.ips.is_empty() {
                return Err("DNS or IP subjectAltName is required");
            }
            if asked.others > 0 {
                return Err("email and URI subjectAltNames are not allowed");
            }
            if !has_usages(csr, "server auth") {
                return Err("usages did not match [digital signature server auth]");
            }
            // Nobody but the node itself: the signer would vouch for whoever has the key.
            if csr.spec.username.as_deref() != Some(asked.common_name.as_str()) {
                return Err("requested by a user that is not the node itself");
            }
            Ok(())
        }
        LEGACY => Ok(()),
        _ => Err("unrecognized signerName"),
    }
}

/// The node whose name the subject carries.
pub(super) fn node_of(asked: &Asked) -> Option<&str> {
    asked.common_name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty())
}

/// Whether every name in a serving request is the node's own. IPv4 addresses that the Node object
/// writes in another form count as equal.
pub(super) fn names_are_the_nodes(asked: &Asked, node: &Node) -> bool {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let is_name = |wanted: &String| {
        wanted.eq_ignore_ascii_case(name)
            || addresses
                .iter()
                .any(|address| !address.type_.ends_with("IP") && address.address.eq_ignore_ascii_case(wanted))
    };
    let is_ip = |wanted: &IpAddr| {
        addresses
            .iter()
            .filter(|address| address.type_.ends_with("IP"))
            .any(|address| address.address.parse() == Ok(*wanted))
    };
    asked.dns.iter().all(is_name) && asked.ips.iter().all(is_ip)
}

fn status(csr: &CertificateSigningRequest) -> CertificateSigningRequestStatus {
    csr.status.clone().unwrap_or_default()
}

pub(super) fn condition(
    csr: &CertificateSigningRequest,
    kind: &str,
) -> Option<CertificateSigningRequestCondition> {
    status(csr).conditions?.into_iter().find(|condition| condition.type_ == kind)
}

pub(super) fn is_issued(csr: &CertificateSigningRequest) -> bool {
    status(csr).certificate.is_some_and(|pem| !pem.0.is_empty())
}

/// The request with another condition.
pub(super) fn with_condition(
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    text: &str,
) -> CertificateSigningRequest {
    let mut csr = csr.clone();
    let now = Some(time::now());
    let conditions = csr.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(text.into()),
        last_update_time: now.clone(),
        last_transition_time: now,
    });
    csr
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn csr(signer: &str, user: &str, usages: &[&str]) -> CertificateSigningRequest {
        serde_json::from_value(json!({ "metadata": {}, "spec": {
            "request": "", "signerName": signer, "username": user, "usages": usages } }))
        .expect("a request")
    }

    fn asked(name: &str, organization: &str, dns: &[&str], ips: &[&str]) -> Asked {
        Asked {
            common_name: name.into(),
            organizations: vec![organization.into()],
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
            ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            others: 0,
        }
    }

    #[test]
    fn what_a_signer_signs() {
        let (client, serving) = (["digital signature", "client auth"], ["digital signature", "server auth"]);
        let node = "system:node:n1";
        for (what, signer, user, usages, asked, expected) in [
            ("client", KUBELET_CLIENT, "x", &client[..], asked(node, "system:nodes", &[], &[]), true),
            (
                "with RSA",
                KUBELET_CLIENT,
                "x",
                &["client auth", "digital signature", "key encipherment"],
                asked(node, "system:nodes", &[], &[]),
                true,
            ),
            ("other group", KUBELET_CLIENT, "x", &client, asked(node, "system:masters", &[], &[]), false),
            ("other name", KUBELET_CLIENT, "x", &client, asked("admin", "system:nodes", &[], &[]), false),
            ("with a name", KUBELET_CLIENT, "x", &client, asked(node, "system:nodes", &["n1"], &[]), false),
            (
                "with an address",
                KUBELET_CLIENT,
                "x",
                &client,
                asked(node, "system:nodes", &[], &["10.0.0.1"]),
                false,
            ),
            ("other usages", KUBELET_CLIENT, "x", &serving, asked(node, "system:nodes", &[], &[]), false),
            (
                "serving",
                KUBELET_SERVING,
                node,
                &serving,
                asked(node, "system:nodes", &[], &["10.0.0.1"]),
                true,
            ),
            ("nameless", KUBELET_SERVING, node, &serving, asked(node, "system:nodes", &[], &[]), false),
            (
                "another's",
                KUBELET_SERVING,
                "system:node:n2",
                &serving,
                asked(node, "system:nodes", &["n1"], &[]),
                false,
            ),
            ("any client", API_CLIENT, "x", &client, asked("me", "us", &[], &[]), true),
            ("a server", API_CLIENT, "x", &serving, asked("me", "us", &[], &[]), false),
            ("legacy", LEGACY, "x", &serving, asked("me", "us", &[], &[]), true),
            ("not ours", "example.com/x", "x", &client, asked("me", "us", &[], &[]), false),
        ] {
            assert_eq!(suits_signer(&csr(signer, user, usages), &asked).is_ok(), expected, "{what}");
        }
    }

    #[test]
    fn serving_names_must_be_the_nodes_own() {
        let node: Node =
            serde_json::from_value(json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" }, { "type": "InternalIP", "address": "fd00:0::1" },
            { "type": "Hostname", "address": "host1" } ] } }))
            .expect("a node");
        for (dns, ips, expected) in [
            (vec!["n1"], vec!["10.0.0.1"], true),
            (vec!["HOST1"], vec!["fd00::1"], true),
            (vec!["kubernetes.default"], vec![], false),
            (vec!["n1"], vec!["10.0.0.2"], false),
            (vec!["10.0.0.1"], vec![], false),
        ] {
            let asked = asked("system:node:n1", "system:nodes", &dns, &ips);
            assert_eq!(names_are_the_nodes(&asked, &node), expected, "{dns:?} {ips:?}");
        }
    }
}
