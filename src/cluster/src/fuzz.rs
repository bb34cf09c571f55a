//! What fuzz/ calls: every decoder of this crate, with what has to hold of it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{
    Admitted, AnnounceRequest, JoinRequest, LeaveRequest, NodeRecord, RemovedRecord, RenewRequest, Renewed,
    StandingRequest,
};
use crate::{HostPort, JoinString, NodeId, PeerIdentity, Signer, Token, TokenRecord};

/// Join strings and their parts.
pub fn join_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(join) = text.parse::<JoinString>() {
        let again: JoinString = join.to_string().parse().expect("what was written");
        assert_eq!((&again.server, &again.token), (&join.server, &join.token));
        assert!(join.ca_hash.starts_with(&again.ca_hash));
    }
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
    if let Ok(place) = text.parse::<HostPort>() {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let _ = Signer::from_name(text);
}

fn round_trip<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(decoded) = serde_json::from_slice::<T>(data) else { return };
    let bytes = serde_json::to_vec(&decoded).expect("JSON");
    let again: T = serde_json::from_slice(&bytes).expect("what was written");
    assert_eq!(serde_json::to_vec(&again).expect("JSON"), bytes);
}

/// What nodes say to each other, and what the store keeps of them.
pub fn messages(data: &[u8]) {
    round_trip::<JoinRequest>(data);
    round_trip::<Admitted>(data);
    round_trip::<StandingRequest>(data);
    round_trip::<RenewRequest>(data);
    round_trip::<Renewed>(data);
    round_trip::<LeaveRequest>(data);
    round_trip::<AnnounceRequest>(data);
    round_trip::<NodeRecord>(data);
    round_trip::<RemovedRecord>(data);
    round_trip::<TokenRecord>(data);
}

/// Certificates and requests for them, DER in PEM's place: the damage is in what is read, not in its wrapping.
pub fn certificate(data: &[u8]) {
    let der = rustls_pki_types::CertificateDer::from(data);
    let _ = PeerIdentity::of(&der);
    let pem = |label: &str| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(data);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let usages = ["digital signature".to_owned(), "server auth".to_owned()];
    let texts = [pem("CERTIFICATE REQUEST"), pem("CERTIFICATE"), String::from_utf8_lossy(data).into_owned()];
    for text in &texts {
        for signer in ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"] {
            if let (Some(signer), Ok(request)) = (Signer::from_name(signer), crate::pki::parse_request(text))
            {
                let _ = signer.check(&request.params, &usages);
            }
        }
        let _ = crate::tls::roots(text);
    }
}

/// A certificate, and a request for one.
pub fn certificate_seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params =
        rcgen::CertificateParams::new(vec!["n.example".into(), "192.0.2.1".into()]).expect("names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    let certificate = params.self_signed(&key).expect("signed").der().to_vec();
    let request = params.serialize_request(&key).expect("signed").der().to_vec();
    vec![certificate, request]
}
