//! What this cluster's authority signs for the API's certificate signers, whatever a controller or a person has
//! approved: the forms of the API documentation (certificates.k8s.io/v1) and of pkg/apis/certificates/helpers.go, and
//! names that are the requester's to have. Which requests are approved is decided in the controllers' crate.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, DnValue, SanType};

use crate::identity::is_reserved;
use crate::issue::{APISERVER_KUBELET_CLIENT, LEAF_LIFE};
use crate::pki::parse_request;
use crate::service::is_nobodys_name;
use crate::{Error, Pki, Registry, Usage};

/// No certificate is valid for a shorter time; the API's own limit for expirationSeconds.
const SHORTEST: Duration = Duration::from_secs(600);
const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
const MASTERS: &str = "system:masters";

/// A signer that this cluster's authority answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// `kubernetes.io/kube-apiserver-client`: any user, approved by hand.
    KubeApiserverClient,
    /// `kubernetes.io/kube-apiserver-client-kubelet`: a kubelet towards the API server.
    KubeApiserverClientKubelet,
    /// `kubernetes.io/kubelet-serving`: a kubelet's listener.
    KubeletServing,
}

impl Signer {
    /// By `spec.signerName`; `None` for signers that are somebody else's.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kube-apiserver-client" => Some(Self::KubeApiserverClient),
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Self::KubeApiserverClientKubelet),
            "kubernetes.io/kubelet-serving" => Some(Self::KubeletServing),
            _ => None,
        }
    }

    /// The name in `spec.signerName`.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeApiserverClient => "kubernetes.io/kube-apiserver-client",
            Self::KubeApiserverClientKubelet => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::KubeletServing => "kubernetes.io/kubelet-serving",
        }
    }

    /// Does the request have the form that the signer demands?
    pub(crate) fn check(self, params: &CertificateParams, usages: &[String]) -> Result<(), Error> {
        let refuse = |reason: &str| Err(Error::Request(reason.to_owned()));
        let (common_name, organizations) = subject(params)?;
        if is_reserved(&common_name) || organizations.iter().any(|name| is_reserved(name)) {
            return refuse("subjects that begin with \"kedge:\" belong to nodes and come from joining only");
        }
        let (required, allowed): (&[&str], &[&str]) = match self {
            Self::KubeApiserverClient => (&["client auth"], &["digital signature", "key encipherment"]),
            Self::KubeApiserverClientKubelet => {
                (&["client auth", "digital signature"], &["key encipherment"])
            }
            Self::KubeletServing => (&["server auth", "digital signature"], &["key encipherment"]),
        };
        let has = |usage: &str| usages.iter().any(|other| other == usage);
        let known = |usage: &String| required.contains(&usage.as_str()) || allowed.contains(&usage.as_str());
        if !required.iter().all(|usage| has(usage)) || !usages.iter().all(known) {
            return Err(Error::Request(format!(
                "usages did not match: required {required:?}, allowed as well {allowed:?}, asked for {usages:?}"
            )));
        }
        if self == Self::KubeApiserverClient {
            if organizations.iter().any(|name| name == MASTERS) {
                return refuse("use of system:masters is not allowed with this signer");
            }
            // Kubelets of older versions trust the name alone.
            if common_name == APISERVER_KUBELET_CLIENT {
                return refuse("this name is the API server's own towards kubelets");
            }
            return Ok(());
        }
        if organizations != [NODES] {
            return refuse("organization in subject is not system:nodes");
        }
        if common_name.strip_prefix(NODE).is_none_or(str::is_empty) {
            return refuse("subject common name does not begin with system:node:");
        }
        let names = &params.subject_alt_names;
        match self {
            Self::KubeletServing => {
                if names.is_empty() {
                    return refuse("DNS or IP subjectAltName is required");
                }
                if names.iter().any(|name| !matches!(name, SanType::DnsName(_) | SanType::IpAddress(_))) {
                    return refuse("only DNS and IP subjectAltNames are allowed");
                }
            }
            _ if !names.is_empty() => return refuse("subjectAltNames are not allowed"),
            _ => {}
        }
        Ok(())
    }
}

impl Pki {
    /// Sign an approved CertificateSigningRequest: `spec.request` (PEM), `spec.usages` and
    /// `spec.expirationSeconds`. Returns `status.certificate`, PEM.
    ///
    /// # Errors
    /// [`Error::Request`] when the signer does not sign such requests: condition `Failed`, reason
    /// `SignerValidationFailure`. [`Error::NoAuthority`] on a worker.
    pub fn sign(
        &self,
        signer: Signer,
        csr_pem: &str,
        usages: &[String],
        ttl: Option<Duration>,
    ) -> Result<String, Error> {
        signer.check(&parse_request(csr_pem)?.params, usages)?;
        let longest = Duration::from_secs(LEAF_LIFE);
        let ttl = ttl.unwrap_or(longest).clamp(SHORTEST, longest);
        let usage = if signer == Signer::KubeletServing { Usage::Server } else { Usage::Client };
        let certificate = self.sign_csr(csr_pem, &[usage], ttl)?;
        Ok(if usage == Usage::Server { certificate + &self.cross()? } else { certificate })
    }

    /// Are the names in a request for a kubelet's listener nobody else's? Which addresses and names a node has, it
    /// writes into its Node object itself; a certificate for them is the right to be trusted there.
    ///
    /// # Errors
    /// [`Error::Request`] names the one that belongs to the API server or to another node of the book.
    pub fn check_serving_names(&self, csr_pem: &str, registry: &Registry) -> Result<(), Error> {
        let params = parse_request(csr_pem)?.params;
        let (common_name, _) = subject(&params)?;
        let (mut names, mut addresses) = (Vec::new(), Vec::<IpAddr>::new());
        for name in &params.subject_alt_names {
            match name {
                SanType::DnsName(name) => names.push(name.as_str().to_ascii_lowercase()),
                SanType::IpAddress(address) => addresses.push(*address),
                _ => {}
            }
        }
        let api = self.identity().service_addresses;
        let name = names.iter().find(|name| name.as_str() != "localhost" && is_nobodys_name(name));
        let address = addresses.iter().find(|address| api.contains(address)).map(IpAddr::to_string);
        if let Some(taken) = name.or(address.as_ref()) {
            return Err(Error::Request(format!("{taken:?} belongs to the API server or a Service")));
        }
        let node = common_name.strip_prefix(NODE).unwrap_or_default();
        registry
            .check_serving_names(node, &names, &addresses)
            .map_err(|refusal| Error::Request(refusal.to_string()))
    }
}

/// Common name and organizations of a request.
fn subject(params: &CertificateParams) -> Result<(String, Vec<String>), Error> {
    let (mut common_name, mut organizations) = (String::new(), Vec::new());
    for (kind, value) in params.distinguished_name.iter() {
        match kind {
            DnType::CommonName => common_name = text(value)?,
            DnType::OrganizationName => organizations.push(text(value)?),
            _ => {}
        }
    }
    Ok((common_name, organizations))
}

fn text(value: &DnValue) -> Result<String, Error> {
    Ok(match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        DnValue::TeletexString(text) => text.as_str().to_owned(),
        _ => {
            return Err(Error::Request("the subject is in a character set that is not used any more".into()));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeIdentity;

    fn csr(common_name: &str, organization: &str, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn signers_demand_what_upstream_demands() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeIdentity {
            name: "n1".into(),
            addresses: Vec::new(),
            service_addresses: Vec::new(),
            cluster_domain: "cluster.local".into(),
        };
        let pki = Pki::open(dir.path(), &node).unwrap();
        let client = ["client auth", "digital signature"];
        let server = ["server auth", "digital signature", "key encipherment"];
        let (user, kubelet, serving) =
            (Signer::KubeApiserverClient, Signer::KubeApiserverClientKubelet, Signer::KubeletServing);
        let cases: [(Signer, String, &[&str], Option<&str>); 14] = [
            (kubelet, csr("system:node:n2", "system:nodes", &[]), &client, None),
            (kubelet, csr("system:node:n2", "system:nodes", &["n2"]), &client, Some("not allowed")),
            (kubelet, csr("n2", "system:nodes", &[]), &client, Some("begin with system:node:")),
            (kubelet, csr("system:node:n2", "others", &[]), &client, Some("not system:nodes")),
            (kubelet, csr("system:node:n2", "system:nodes", &[]), &server, Some("usages did not match")),
            (serving, csr("system:node:n2", "system:nodes", &["n2", "192.0.2.2"]), &server, None),
            (serving, csr("system:node:n2", "system:nodes", &[]), &server, Some("is required")),
            (serving, csr("system:node:n2", "system:nodes", &["n2"]), &client, Some("usages did not match")),
            (user, csr("jane", "dev", &[]), &["client auth"], None),
            (user, csr("jane", "system:masters", &[]), &["client auth"], Some("system:masters")),
            (user, csr("jane", "dev", &[]), &["client auth", "server auth"], Some("usages did not match")),
            (user, csr(APISERVER_KUBELET_CLIENT, "dev", &[]), &["client auth"], Some("towards kubelets")),
            (user, csr("kedge:node:n2", "dev", &[]), &["client auth"], Some("joining only")),
            (user, csr("jane", "kedge:control-plane", &[]), &["client auth"], Some("joining only")),
        ];
        for (signer, request, usages, refusal) in cases {
            let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
            let signed = pki.sign(signer, &request, &usages, None);
            match (signed, refusal) {
                (Ok(_), None) => {}
                (Err(error), Some(hint)) => assert!(error.to_string().contains(hint), "{error}"),
                (signed, refusal) => panic!("{signer:?}: {signed:?}, expected {refusal:?}"),
            }
        }
    }

    #[tokio::test]
    async fn nobody_serves_in_anothers_name() {
        use crate::registry::memory::Memory;
        use crate::{NodeFacts, NodeId, Role};
        let dir = tempfile::tempdir().unwrap();
        let node = NodeIdentity {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            service_addresses: vec!["10.96.0.1".parse().unwrap(), "192.0.2.100".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
        };
        let pki = Pki::open(dir.path(), &node).unwrap();
        let registry = Registry::new(std::sync::Arc::new(Memory::default()), pki.clock().clone());
        for (number, addresses) in [(1, ["192.0.2.1", "2001:db8::1"]), (2, ["192.0.2.2", "2001:db8::2"])] {
            let facts = NodeFacts {
                name: format!("n{number}"),
                role: Role::ControlPlane,
                address: format!("192.0.2.{number}:25000").parse().unwrap(),
                addresses: addresses.map(|address| address.parse().unwrap()).to_vec(),
                failure_domain: None,
            };
            registry.enroll(NodeId::new(number), &facts).await.unwrap();
        }
        for (names, fits) in [
            (&["n2", "192.0.2.2", "2001:db8::2", "localhost", "127.0.0.1"][..], true),
            // A node that is in no book, or one more address of its own.
            (&["198.51.100.9"], true),
            (&["192.0.2.1"], false),
            (&["2001:db8::1"], false),
            (&["192.0.2.100"], false),
            (&["10.96.0.1"], false),
            (&["N1"], false),
            (&["kubernetes.default.svc"], false),
            (&["web.shop.svc.cluster.local"], false),
        ] {
            let asked = pki.check_serving_names(&csr("system:node:n2", NODES, names), &registry);
            assert_eq!(asked.is_ok(), fits, "{names:?}: {asked:?}");
        }
    }
}
