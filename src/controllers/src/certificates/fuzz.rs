//! Requests for certificates, for fuzz/.

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::request::{self, KUBELET_CLIENT, KUBELET_SERVING};

/// The request inside (DER), as it is read after its signature was found to be right; and the bytes as PEM. What is
/// approved by itself asks for nothing but the node's own.
pub fn certificate_request(data: &[u8]) {
    let _ = request::parse(data);
    let Ok((_, inner)) = X509CertificationRequest::from_der(data) else { return };
    let _ = inner.verify_signature();
    let Ok(asked) = request::asked(&inner) else { return };
    let mut node = Node::default();
    node.metadata.name = Some("n".to_owned());
    node.status.get_or_insert_default().addresses = Some(
        [("Hostname", "n.example"), ("InternalIP", "192.0.2.1")]
            .map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address: address.to_owned() })
            .to_vec(),
    );
    for (signer, usage) in [(KUBELET_SERVING, "server auth"), (KUBELET_CLIENT, "client auth")] {
        let spec = CertificateSigningRequestSpec {
            signer_name: signer.to_owned(),
            username: Some("system:node:n".to_owned()),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        };
        let csr = CertificateSigningRequest { spec, ..CertificateSigningRequest::default() };
        if request::suits_signer(&csr, &asked).is_err() {
            continue;
        }
        assert_eq!((asked.organizations.len(), asked.others), (1, 0));
        if signer == KUBELET_CLIENT {
            assert!(asked.dns.is_empty() && asked.ips.is_empty());
        } else if request::names_are_the_nodes(&asked, &node) {
            assert_eq!(request::node_of(&asked), Some("n"));
            let known = |name: &String| ["n", "n.example"].contains(&name.to_ascii_lowercase().as_str());
            assert!(asked.dns.iter().all(known));
            assert!(asked.ips.iter().all(|ip| ip.to_string() == "192.0.2.1"));
        }
    }
}
