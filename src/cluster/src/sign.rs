//! What the API's certificate signers accept and sign. The rules are those of the API documentation
//! (certificates.k8s.io/v1) and of pkg/apis/certificates/helpers.go: they decide for a controller that
//! approves and signs CertificateSigningRequest objects.

use std::collections::BTreeSet;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, DnValue, SanType};

use crate::identity::is_reserved;
use crate::issue::LEAF_LIFE;
use crate::pki::parse_request;
use crate::{Error, Pki, Usage};

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

/// Who made a CertificateSigningRequest object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requester {
    /// `spec.username`.
    pub username: String,
    /// `spec.groups`.
    pub groups: Vec<String>,
    /// The names and addresses that the node is known to have: its Node object's addresses and its name.
    pub names: BTreeSet<String>,
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

    /// May a controller approve this request by itself? A node for itself, and only names it has.
    ///
    /// # Errors
    /// Why not; a person may still approve it.
    pub fn approves(self, csr_pem: &str, usages: &[String], requester: &Requester) -> Result<(), Error> {
        let params = parse_request(csr_pem)?.params;
        self.check(&params, usages)?;
        let refuse = |reason: String| Err(Error::Request(reason));
        if self == Self::KubeApiserverClient {
            return refuse("requests for this signer are approved by a person".into());
        }
        let (common_name, _) = subject(&params)?;
        if common_name != requester.username || !requester.groups.iter().any(|group| group == NODES) {
            return refuse(format!("{:?} asks in the name of {common_name:?}", requester.username));
        }
        let own = |name: &String| {
            requester.names.contains(name)
                || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
                || name == "localhost"
        };
        match names(&params)?.into_iter().find(|name| !own(name)) {
            Some(name) => refuse(format!("the node is not known to have the name or address {name:?}")),
            None => Ok(()),
        }
    }

    /// Does the request have the form that the signer demands?
    fn check(self, params: &CertificateParams, usages: &[String]) -> Result<(), Error> {
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

fn names(params: &CertificateParams) -> Result<Vec<String>, Error> {
    let name = |name: &SanType| match name {
        SanType::DnsName(name) => Ok(name.as_str().to_owned()),
        SanType::IpAddress(address) => Ok(address.to_string()),
        _ => Err(Error::Request("only DNS and IP subjectAltNames are allowed".into())),
    };
    params.subject_alt_names.iter().map(name).collect()
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
        let cases: [(Signer, String, &[&str], Option<&str>); 13] = [
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

    #[test]
    fn a_node_is_approved_for_itself_only() {
        let requester = Requester {
            username: "system:node:n2".into(),
            groups: vec![NODES.into()],
            names: BTreeSet::from(["n2".into(), "192.0.2.2".into()]),
        };
        let usages = ["server auth".to_owned(), "digital signature".to_owned()];
        let approves = |common_name: &str, names: &[&str], requester: &Requester| {
            Signer::KubeletServing.approves(&csr(common_name, NODES, names), &usages, requester).is_ok()
        };
        assert!(approves("system:node:n2", &["n2", "192.0.2.2", "127.0.0.1", "localhost"], &requester));
        assert!(!approves("system:node:n2", &["192.0.2.3"], &requester));
        assert!(!approves("system:node:n3", &["n2"], &requester));
        let stranger = Requester { groups: Vec::new(), ..requester };
        assert!(!approves("system:node:n2", &["n2"], &stranger));
    }
}
