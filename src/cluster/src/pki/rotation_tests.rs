//! The authority replaced on folders: who is trusted by whom at each stage, and what a crash leaves.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::tls::roots;
use crate::tls::tests::handshake;
use crate::{AuthorityStage, AuthorityState, AuthorityStep};

fn node() -> NodeIdentity {
    NodeIdentity {
        name: "n1".into(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        service_addresses: vec!["10.96.0.1".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
    }
}

/// A client that keeps what it had at its start, as kubectl does with a kubeconfig.
fn kept(ca: &str, (certificate, key): (String, String)) -> Arc<ClientConfig> {
    let chain =
        CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(ca).unwrap())
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

fn steps(pki: &Pki, state: &AuthorityState) -> Vec<AuthorityStep> {
    let mut done = Vec::new();
    while let Some(step) = state.next_step(pki.role(), &pki.authority_report().unwrap()) {
        assert!(done.len() < 8, "it does not end: {done:?}");
        pki.authority_step(state, step).unwrap();
        done.push(step);
    }
    done
}

fn at(state: &AuthorityState, stage: AuthorityStage) -> AuthorityState {
    AuthorityState { stage, ..state.clone() }
}

struct Client {
    ca: String,
    admin: (String, String),
}

impl Client {
    fn of(pki: &Pki) -> Self {
        Self { ca: pki.ca_pem(), admin: pki.pem(Leaf::Admin) }
    }

    fn connects(&self, server: &Arc<ServerConfig>) -> bool {
        handshake(server.clone(), kept(&self.ca, self.admin.clone()), "localhost") == Ok(1)
    }
}

#[test]
fn old_and_new_get_along_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    // Made once, as running listeners and clients are.
    let server = pki.cluster_server_config(Leaf::Apiserver).unwrap();
    let inside = pki.cluster_client_config(Some(Leaf::ApiserverKubeletClient)).unwrap();
    let (before, hash) = (Client::of(&pki), pki.ca_hash());
    assert!(before.connects(&server));

    let state = pki.new_authority().unwrap();
    assert_eq!(pki.ca_hash(), hash, "it signs nothing yet");
    assert_eq!(steps(&pki, &state), [AuthorityStep::Trust]);
    assert_eq!(blocks_of(&pki), 2);
    assert!(before.connects(&server) && handshake(server.clone(), inside.clone(), "localhost") == Ok(1));
    let leaf = pki.pem(Leaf::Apiserver);

    let issuing = at(&state, AuthorityStage::Issuing);
    assert_eq!(steps(&pki, &issuing), [AuthorityStep::Sign, AuthorityStep::Reissue]);
    assert_ne!(pki.pem(Leaf::Apiserver), leaf);
    assert_eq!(pki.ca_hash(), state.new_hash());
    let after = Client { ca: state.new.clone(), admin: pki.pem(Leaf::Admin) };
    assert!(after.connects(&server), "who knows only the new one");
    assert!(
        before.connects(&server),
        "who knows only the old one, by what the old one signed for the new one"
    );
    assert_eq!(handshake(server.clone(), inside.clone(), "localhost"), Ok(1));

    // A start in the middle changes nothing.
    let again = Pki::open(dir.path(), &node()).unwrap();
    assert_eq!((again.ca_pem(), again.pem(Leaf::Node)), (pki.ca_pem(), pki.pem(Leaf::Node)));
    assert_eq!(steps(&again, &issuing), []);

    assert_eq!(steps(&pki, &at(&state, AuthorityStage::Finishing)), [AuthorityStep::Forget]);
    assert!(after.connects(&server) && handshake(server.clone(), inside, "localhost") == Ok(1));
    assert!(!before.connects(&server), "the old one vouches for nobody any more");
    let mixed = Client { ca: after.ca, admin: before.admin };
    assert!(!mixed.connects(&server), "a client certificate of the old one is refused");
    assert_eq!((blocks_of(&pki), pki.ca_pem()), (1, state.new));
    assert!(!dir.path().join("ca-next.key").exists() && !dir.path().join("ca-cross.crt").exists());
    let again = Pki::open(dir.path(), &node()).unwrap();
    assert_eq!(again.pem(Leaf::Apiserver), pki.pem(Leaf::Apiserver));
}

fn blocks_of(pki: &Pki) -> usize {
    crate::trust::blocks(&pki.ca_pem()).len()
}

#[test]
fn a_resumed_session_does_not_outlive_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    let server = pki.cluster_server_config(Leaf::Apiserver).unwrap();
    let old = kept(&pki.ca_pem(), pki.pem(Leaf::Admin));
    assert_eq!(handshake(server.clone(), old.clone(), "localhost"), Ok(1));
    let state = pki.new_authority().unwrap();
    steps(&pki, &at(&state, AuthorityStage::Finishing));
    assert!(handshake(server, old, "localhost").is_err(), "the same client, with the ticket it was given");
}

#[test]
fn a_crash_between_key_and_certificate_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    let state = pki.new_authority().unwrap();
    steps(&pki, &state);
    let path = |name: &str| dir.path().join(name);
    fs::copy(path("ca-next.key"), path("ca.key")).unwrap();
    let after = Pki::open(dir.path(), &node()).unwrap();
    assert_eq!(after.ca_hash(), state.new_hash());
    assert!(!path("ca-next.key").exists());
    assert_eq!(blocks_of(&after), 2);
    assert_eq!(steps(&after, &at(&state, AuthorityStage::Issuing)), [AuthorityStep::Reissue]);
}

#[test]
fn another_control_plane_node_takes_the_key_and_a_worker_only_trusts() {
    let (dir, other_dir, worker_dir) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pki = Pki::open(dir.path(), &node()).unwrap();
    for name in ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key"] {
        fs::copy(dir.path().join(name), other_dir.path().join(name)).unwrap();
    }
    let other = Pki::open(other_dir.path(), &node()).unwrap();
    for leaf in Leaf::WORKER {
        for end in ["crt", "key"] {
            let name = format!("{}.{end}", leaf.file_stem());
            fs::copy(dir.path().join(&name), worker_dir.path().join(&name)).unwrap();
        }
    }
    fs::copy(dir.path().join("ca.crt"), worker_dir.path().join("ca.crt")).unwrap();
    let worker = Pki::open_worker(worker_dir.path(), &node()).unwrap();

    let state = pki.new_authority().unwrap();
    steps(&pki, &state);
    let next = |pki: &Pki| state.next_step(pki.role(), &pki.authority_report().unwrap());
    assert_eq!(next(&other), Some(AuthorityStep::Trust));
    other.authority_step(&state, AuthorityStep::Trust).unwrap();
    assert_eq!(next(&other), Some(AuthorityStep::GetKey));
    assert!(other.take_authority_key(&state, &other.shared_keys().unwrap()).is_err(), "it has no such key");
    other.take_authority_key(&state, &pki.shared_keys().unwrap()).unwrap();
    assert_eq!(next(&other), None);
    assert_eq!(steps(&worker, &state), [AuthorityStep::Trust]);

    // The one that signs already and those that do not yet: all of them reach each other.
    let issuing = at(&state, AuthorityStage::Issuing);
    assert_eq!(steps(&pki, &issuing), [AuthorityStep::Sign, AuthorityStep::Reissue]);
    for one in [&pki, &other, &worker] {
        for two in [&pki, &other, &worker] {
            let server = one.cluster_server_config(Leaf::Node).unwrap();
            let client = two.cluster_client_config(Some(Leaf::Node)).unwrap();
            assert_eq!(
                handshake(server, client, &one.node_id().server_name()),
                Ok(if two.role() == Role::ControlPlane && two.ca_hash() == state.new_hash() { 4 } else { 2 })
            );
        }
    }
    assert!(worker.authority_step(&issuing, AuthorityStep::Reissue).is_err(), "others sign for it");
    let pending = worker.pending(Leaf::Kubelet).unwrap();
    let own = Own { id: worker.node_id(), role: Role::Worker };
    let signed = pki.sign_leaf(Leaf::Kubelet, &pending.request, &node(), own).unwrap();
    worker.install(&pending, &signed).unwrap();
    assert!(worker.authority_report().unwrap().issuers.contains(&state.new_hash()));
    // Who took the key later is asked by nobody before.
    other.take_authority_key(&state, &pki.shared_keys().unwrap()).unwrap();
    assert_eq!(steps(&other, &issuing), [AuthorityStep::Sign, AuthorityStep::Reissue]);
}

#[test]
fn given_up() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &node()).unwrap();
    let before = (pki.ca_pem(), pki.pem(Leaf::Admin));
    let state = pki.new_authority().unwrap();
    steps(&pki, &state);
    let aborted = AuthorityState::aborted(Some(&state), state.since).unwrap().unwrap();
    assert_eq!(steps(&pki, &aborted), [AuthorityStep::Forget]);
    assert_eq!((pki.ca_pem(), pki.pem(Leaf::Admin)), before);
    assert!(!dir.path().join("ca-next.key").exists());
}
