//! What each certificate says: subjects, names, usages and lifetimes. Pure: nothing here touches a file.
//!
//! Subjects follow kubeadm's (k8s.io/kubernetes/cmd/kubeadm/app/phases/certs), because RBAC's default
//! bindings and the Node authorizer go by them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::Error;
use crate::identity::{NODE_PREFIX, Own};

/// Certificates are valid from this long ago on, for peers whose clock is behind.
pub(crate) const BACK_DATED: u64 = 24 * 60 * 60;
const DAY: u64 = 24 * 60 * 60;
pub(crate) const CA_LIFE: u64 = 3650 * DAY;
pub(crate) const LEAF_LIFE: u64 = 365 * DAY;

/// The common name of what the API server shows to kubelets.
pub(crate) const APISERVER_KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// What the certificates of one node have to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The name of the Node object.
    pub name: String,
    /// Every address this node may be reached at.
    pub addresses: Vec<IpAddr>,
    /// Further addresses of the API server: the cluster IPs of the Service `kubernetes`, a virtual address.
    pub service_addresses: Vec<IpAddr>,
    /// For instance `cluster.local`.
    pub cluster_domain: String,
}

/// The certificates that Kedge keeps for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaf {
    /// The API server's, for its listener.
    Apiserver,
    /// The kubelet's, for its listener.
    Kubelet,
    /// What the kubelet shows to an API server: `system:node:NAME`.
    KubeletClient,
    /// The administrator's client certificate (`system:masters`).
    Admin,
    /// What the API server shows to kubelets.
    ApiserverKubeletClient,
    /// What the API server shows to aggregated API servers; signed by the front-proxy authority.
    FrontProxyClient,
    /// The node itself towards other nodes, on the cluster port. Its key is the node's identity: it is made
    /// once and outlives every certificate.
    Node,
}

impl Leaf {
    /// All of them: what a control-plane node has.
    pub const ALL: [Self; 7] = [
        Self::Apiserver,
        Self::Kubelet,
        Self::KubeletClient,
        Self::Admin,
        Self::ApiserverKubeletClient,
        Self::FrontProxyClient,
        Self::Node,
    ];
    /// What every node has, a worker too.
    pub const WORKER: [Self; 3] = [Self::Kubelet, Self::KubeletClient, Self::Node];

    /// The file name without `.crt` or `.key`.
    pub fn file_stem(self) -> &'static str {
        match self {
            Self::Apiserver => "apiserver",
            Self::Kubelet => "kubelet",
            Self::KubeletClient => "kubelet-client",
            Self::Node => "node",
            Self::Admin => "admin",
            Self::ApiserverKubeletClient => "apiserver-kubelet-client",
            Self::FrontProxyClient => "front-proxy-client",
        }
    }
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Behind a listener.
    Server,
    /// By the side that connects.
    Client,
}

impl Usage {
    pub(crate) fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// The content of a leaf certificate, comparable with one on disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) common_name: String,
    pub(crate) organization: Option<String>,
    /// DNS names and addresses in text form.
    pub(crate) names: BTreeSet<String>,
    usages: &'static [Usage],
}

impl Profile {
    pub(crate) fn of(leaf: Leaf, node: &NodeIdentity, own: Own) -> Self {
        let (common_name, organization, names, usages): (
            String,
            Option<&str>,
            BTreeSet<String>,
            &'static [Usage],
        ) = match leaf {
            Leaf::Apiserver => ("kube-apiserver".into(), None, apiserver_names(node), &[Usage::Server]),
            Leaf::Kubelet => (
                format!("system:node:{}", node.name),
                Some("system:nodes"),
                kubelet_names(node),
                &[Usage::Server],
            ),
            Leaf::KubeletClient => (
                format!("system:node:{}", node.name),
                Some("system:nodes"),
                BTreeSet::new(),
                &[Usage::Client],
            ),
            Leaf::Node => (
                format!("{NODE_PREFIX}{}", node.name),
                Some(own.role.organization()),
                BTreeSet::from([own.id.server_name()]),
                &[Usage::Server, Usage::Client],
            ),
            Leaf::Admin => {
                ("kubernetes-admin".into(), Some("system:masters"), BTreeSet::new(), &[Usage::Client])
            }
            Leaf::ApiserverKubeletClient => {
                (APISERVER_KUBELET_CLIENT.into(), Some("system:masters"), BTreeSet::new(), &[Usage::Client])
            }
            Leaf::FrontProxyClient => ("front-proxy-client".into(), None, BTreeSet::new(), &[Usage::Client]),
        };
        Self { common_name, organization: organization.map(str::to_owned), names, usages }
    }

    /// Does the certificate say exactly this?
    pub(crate) fn matches(&self, certificate: &X509Certificate<'_>) -> bool {
        let subject = certificate.subject();
        let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let organization = subject.iter_organization().next().and_then(|name| name.as_str().ok());
        common_name == Some(self.common_name.as_str())
            && organization == self.organization.as_deref()
            && alternative_names(certificate) == self.names
    }

    pub(crate) fn params(&self, now: u64) -> Result<CertificateParams, Error> {
        let mut params = self.request_params()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = self.usages.iter().map(|usage| usage.purpose()).collect();
        seal(&mut params, now, Duration::from_secs(LEAF_LIFE))?;
        Ok(params)
    }

    /// What a certificate signing request says: subject and names; the signer decides on the rest.
    pub(crate) fn request_params(&self) -> Result<CertificateParams, Error> {
        let issue = |source| Error::Issue { name: self.common_name.clone(), source };
        let names: Vec<String> = self.names.iter().cloned().collect();
        let mut params = CertificateParams::new(names).map_err(issue)?;
        params.distinguished_name = subject(&self.common_name, self.organization.as_deref());
        Ok(params)
    }
}

/// A certificate authority's content.
pub(crate) fn authority_params(common_name: &str, now: u64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    seal(&mut params, now, Duration::from_secs(CA_LIFE))?;
    Ok(params)
}

/// Lifetime, a random serial number and the link to the issuer.
pub(crate) fn seal(params: &mut CertificateParams, now: u64, life: Duration) -> Result<(), Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACK_DATED));
    params.not_after = epoch + Duration::from_secs(now) + life;
    let mut serial = [0_u8; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| Error::Random)?;
    // A serial number is a positive integer without leading zeros.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(())
}

/// DNS names and addresses of a certificate, in text form.
pub(crate) fn alternative_names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let mut names = BTreeSet::new();
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => {
                names.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                if let Some(address) = address(bytes) {
                    names.insert(address.to_string());
                }
            }
            _ => {}
        }
    }
    names
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn apiserver_names(node: &NodeIdentity) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "::1"]
            .into_iter()
            .map(str::to_owned)
            .collect();
    names.insert(format!("kubernetes.default.svc.{}", node.cluster_domain));
    names.insert(node.name.clone());
    names.extend(node.addresses.iter().chain(&node.service_addresses).map(IpAddr::to_string));
    names
}

fn kubelet_names(node: &NodeIdentity) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    names.insert(node.name.clone());
    names.extend(node.addresses.iter().map(IpAddr::to_string));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, Role};

    const OWN: Own = Own { id: NodeId::new(7), role: Role::ControlPlane };

    fn node() -> NodeIdentity {
        NodeIdentity {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            service_addresses: vec!["10.96.0.1".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn the_apiserver_answers_to_every_name_of_its_service() {
        let names = Profile::of(Leaf::Apiserver, &node(), OWN).names;
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "n1",
            "127.0.0.1",
            "::1",
            "192.0.2.1",
            "2001:db8::1",
            "10.96.0.1",
        ] {
            assert!(names.contains(name), "{name} is missing from {names:?}");
        }
    }

    #[test]
    fn subjects_are_those_that_default_roles_expect() {
        let cases = [
            (Leaf::Kubelet, "system:node:n1", Some("system:nodes")),
            (Leaf::KubeletClient, "system:node:n1", Some("system:nodes")),
            (Leaf::Node, "kedge:node:n1", Some("kedge:control-plane")),
            (Leaf::Admin, "kubernetes-admin", Some("system:masters")),
            (Leaf::ApiserverKubeletClient, "kube-apiserver-kubelet-client", Some("system:masters")),
            (Leaf::FrontProxyClient, "front-proxy-client", None),
        ];
        for (leaf, common_name, organization) in cases {
            let profile = Profile::of(leaf, &node(), OWN);
            assert_eq!(profile.common_name, common_name);
            assert_eq!(profile.organization.as_deref(), organization);
        }
    }
}
