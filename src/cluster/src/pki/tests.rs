//! The folder over time: opened, renewed, damaged.

use super::*;
use crate::issue::{LEAF_LIFE, alternative_names};

fn node() -> NodeIdentity {
    NodeIdentity {
        name: "n1".into(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        service_addresses: vec!["10.96.0.1".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
    }
}

fn names(pem: &str) -> std::collections::BTreeSet<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    alternative_names(&parsed)
}

#[test]
fn opens_again_without_changing_anything() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path(), &node()).unwrap();
    let second = Pki::open(dir.path(), &node()).unwrap();
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(first.ca_hash(), second.ca_hash());
    assert_eq!(first.ca_hash().len(), 64);
    assert_eq!(first.service_account_key_pem(), second.service_account_key_pem());
    for leaf in Leaf::ALL {
        assert_eq!(first.pem(leaf), second.pem(leaf), "{leaf:?}");
    }
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
    }
}

#[test]
fn every_leaf_is_signed_by_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    for leaf in Leaf::ALL {
        let (ca, front_proxy_ca) = (pki.ca_der(), pki.front_proxy_ca_der().unwrap());
        let (own, other) =
            if leaf == Leaf::FrontProxyClient { (front_proxy_ca, &ca) } else { (&ca, front_proxy_ca) };
        let der = pki.slot(leaf).unwrap().certificate();
        assert!(signed_by(&der, own), "{leaf:?}");
        assert!(!signed_by(&der, other), "{leaf:?}");
    }
}

#[test]
fn a_new_address_issues_only_what_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let before = Pki::open(dir.path(), &node()).unwrap();
    let mut moved = node();
    moved.addresses.push("198.51.100.7".parse().unwrap());
    let after = Pki::open(dir.path(), &moved).unwrap();
    assert!(names(&after.pem(Leaf::Apiserver).0).contains("198.51.100.7"));
    assert_ne!(before.pem(Leaf::Kubelet), after.pem(Leaf::Kubelet));
    assert_eq!(before.pem(Leaf::Admin), after.pem(Leaf::Admin));
    let changed = after.set_addresses(&["203.0.113.9".parse().unwrap()]).unwrap();
    assert_eq!(changed, [Leaf::Apiserver, Leaf::Kubelet]);
    assert!(names(&after.pem(Leaf::Apiserver).0).contains("203.0.113.9"));
}

#[test]
fn a_half_made_folder_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path(), &node()).unwrap();
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    fs::remove_file(dir.path().join("admin.crt")).unwrap();
    fs::remove_file(dir.path().join("sa.pub")).unwrap();
    fs::write(dir.path().join("kubelet.key"), "cut short").unwrap();
    let second = Pki::open(dir.path(), &node()).unwrap();
    assert_eq!(first.ca_hash(), second.ca_hash(), "the authority's key was kept");
    assert_eq!(first.service_account_public_pem(), second.service_account_public_pem());
    assert!(dir.path().join("admin.crt").exists());
    assert_ne!(first.pem(Leaf::Kubelet), second.pem(Leaf::Kubelet));
}

#[test]
fn what_cannot_be_made_again_is_named_and_kept() {
    for (file, content) in
        [("ca.key", Some("garbage")), ("ca.crt", Some("garbage")), ("sa.key", Some("")), ("ca.key", None)]
    {
        let dir = tempfile::tempdir().unwrap();
        drop(Pki::open(dir.path(), &node()).unwrap());
        let path = dir.path().join(file);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = Pki::open(dir.path(), &node()).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("restore"), "{error}");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), content);
    }
}

#[test]
fn leaves_are_due_at_two_thirds_of_their_life() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    let now = pki.clock().system_time();
    assert!(pki.renew_due(now).is_empty());
    assert!(pki.renew_due(now + Duration::from_secs(LEAF_LIFE / 2)).is_empty());
    assert_eq!(pki.renew_due(now + Duration::from_secs(LEAF_LIFE * 2 / 3)), Leaf::ALL);
    assert!(pki.next_renewal() > now);
}

#[test]
fn a_request_gets_the_usages_it_is_given_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["n2".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n2");
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = pki.sign_csr(&request, &[Usage::Client], Duration::from_secs(3600)).unwrap();
    let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(signed_by(&der, &pki.ca_der()));
    assert!(!parsed.is_ca());
    let usages = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.client_auth && !usages.server_auth);
    assert!(pki.sign_csr("no request", &[], Duration::from_secs(1)).is_err());
}
