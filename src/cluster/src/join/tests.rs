//! Whole joins over sockets on 127.0.0.1, with the store in memory.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_base::{Chain, Tasks};
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpListener;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::registry::memory::Memory;
use crate::wire::Peer;
use crate::{
    Body, ClusterConfig, ClusterFacts, Dialer, HostPort, Leaf, Members, NodeId, NodeIdentity, Pki, Registry,
    Service, TokenOptions, serve,
};

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct Facts;

impl ClusterFacts for Facts {
    fn config(&self) -> ClusterConfig {
        ClusterConfig {
            cluster_id: "c1".into(),
            pod_cidrs: vec!["10.244.0.0/16".into()],
            cluster_domain: "cluster.local".into(),
            kubernetes_service: vec!["10.96.0.1".parse().unwrap()],
            ..ClusterConfig::default()
        }
    }

    fn api_servers(&self) -> Vec<HostPort> {
        vec!["192.0.2.1:6443".parse().unwrap()]
    }
}

fn identity(name: &str) -> NodeIdentity {
    NodeIdentity {
        name: name.into(),
        addresses: vec![LOCAL],
        service_addresses: vec!["10.96.0.1".parse().unwrap(), "192.0.2.100".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
    }
}

/// A cluster of one control-plane node.
struct Cluster {
    pki: Arc<Pki>,
    memory: Arc<Memory>,
    registry: Registry,
    address: HostPort,
    _tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(dir.path(), &identity("n1")).unwrap());
        let memory = Arc::new(Memory::default());
        let registry = Registry::new(memory.clone(), pki.clock().clone());
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let address: HostPort = listener.local_addr().unwrap().to_string().parse().unwrap();
        let own = NodeFacts {
            name: "n1".into(),
            role: Role::ControlPlane,
            address: address.clone(),
            addresses: vec![LOCAL],
            failure_domain: None,
        };
        registry.enroll(pki.node_id(), &own).await.unwrap();
        let tasks = Tasks::new("test");
        let service = Arc::new(Service::new(pki.clone(), registry.clone(), Arc::new(Facts)));
        // In the store's place: says who asked.
        let store = tower::service_fn(|request: Request<Incoming>| async move {
            let peer = request.extensions().get::<PeerIdentity>().unwrap();
            let body = http_body_util::Full::new(bytes::Bytes::from(peer.name.clone()));
            let body = http_body_util::BodyExt::map_err(body, |never| match never {});
            Ok::<_, Infallible>(Response::new(Body::new(body)))
        });
        serve(listener, service, Some(BoxCloneSyncService::new(store)), &tasks).unwrap();
        Self { pki, memory, registry, address, _tasks: tasks, _dir: dir }
    }

    async fn invite(&self, options: &TokenOptions) -> JoinString {
        let (token, _) = self.registry.create_token(options).await.unwrap();
        JoinString { server: self.address.clone(), token, ca_hash: self.pki.ca_hash()[..32].to_owned() }
    }

    fn peer(&self) -> Peer {
        Peer {
            id: self.pki.node_id(),
            name: "n1".into(),
            address: self.address.clone(),
            failure_domain: None,
        }
    }
}

/// A node without a cluster.
struct Joiner {
    dir: tempfile::TempDir,
    staging: Staging,
    clock: Arc<Clock>,
    facts: NodeFacts,
}

impl Joiner {
    fn new(name: &str, port: u16, role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            staging: Staging::new(dir.path().join("join")),
            clock: Arc::new(Clock::open(&dir.path().join("time-floor")).unwrap()),
            facts: NodeFacts {
                name: name.into(),
                role,
                address: HostPort { host: LOCAL.to_string(), port },
                addresses: vec![LOCAL],
                failure_domain: None,
            },
            dir,
        }
    }

    async fn join(&self, string: &JoinString) -> Result<Admitted, Error> {
        join(string, &self.facts, &self.staging, &self.clock).await
    }

    fn pki(&self) -> std::path::PathBuf {
        self.dir.path().join("pki")
    }

    /// All that is on disk after a successful join.
    fn open(&self) -> Pki {
        self.staging.install(&self.pki()).unwrap();
        self.staging.install(&self.pki()).unwrap();
        self.staging.finish(&self.pki()).unwrap();
        match self.facts.role {
            Role::ControlPlane => Pki::open(&self.pki(), &identity(&self.facts.name)).unwrap(),
            Role::Worker => Pki::open_worker(&self.pki(), &identity(&self.facts.name)).unwrap(),
        }
    }
}

fn refused(result: Result<Admitted, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_control_plane_node_joins() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    let joiner = Joiner::new("n2", 2, Role::ControlPlane);
    // The keys of the single node it was are replaced.
    drop(Pki::open(&joiner.pki(), &identity("n2")).unwrap());
    let admitted = joiner.join(&string.to_string().parse().unwrap()).await.unwrap();
    assert_eq!(admitted.peers, [cluster.peer()]);
    assert_eq!(admitted.config, Facts.config());
    assert_eq!(admitted.api_servers, Facts.api_servers());
    let pki = joiner.open();
    assert_eq!(pki.node_id(), admitted.id);
    assert_eq!(pki.ca_pem(), cluster.pki.ca_pem());
    assert_eq!(pki.front_proxy_ca_pem(), cluster.pki.front_proxy_ca_pem());
    assert_eq!(pki.service_account_key_pem(), cluster.pki.service_account_key_pem());
    assert!(pki.renew_due(pki.clock().system_time()).is_empty());
    assert_eq!(cluster.memory.members().keys().collect::<Vec<_>>(), [&admitted.id]);
    assert!(!joiner.dir.path().join("join").exists());
    let mut kept = Admitted::read(&joiner.pki()).unwrap().unwrap();
    assert_eq!(kept, Admitted { control_plane: None, ..admitted.clone() });
    kept.peers.clear();
    kept.write(&joiner.pki()).unwrap();
    assert_eq!(Admitted::read(&joiner.pki()).unwrap().unwrap().peers, []);
    assert_eq!(Admitted::read(joiner.dir.path()).unwrap(), None);

    // And it reaches the store there, as itself.
    let stream =
        Dialer::new(&pki).unwrap().dial(cluster.pki.node_id(), &string.server.to_string()).await.unwrap();
    assert_eq!(ask_store(stream).await, (200, "n2".into()));
    let wrong = Dialer::new(&pki).unwrap().dial(admitted.id, &string.server.to_string()).await;
    assert!(wrong.is_err(), "the certificate must carry the member's id");
}

async fn ask_store(stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>) -> (u16, String) {
    use http_body_util::BodyExt as _;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let request = Request::get("https://n1/raft").body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let answer = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_worker_joins_renews_moves_and_leaves() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    let joiner = Joiner::new("w1", 2, Role::Worker);
    let admitted = joiner.join(&string).await.unwrap();
    assert_eq!(admitted.control_plane, None);
    assert_eq!(cluster.memory.members().len(), 0, "a worker is no member of the store");
    let pki = Arc::new(joiner.open());
    assert_eq!(pki.role(), Role::Worker);
    assert!(!joiner.pki().join("ca.key").exists());
    assert!(pki.renew_due(pki.clock().system_time()).is_empty());

    // The first one it knows is dead.
    let dead = Peer { id: NodeId::new(9), address: "127.0.0.1:1".parse().unwrap(), ..cluster.peer() };
    let members = Members::new(pki.clone(), vec![dead.clone()]).unwrap();
    assert!(matches!(members.standing().await, Err(Error::NoControlPlane(_))));
    members.set_peers(vec![dead, cluster.peer()]);
    let standing = members.standing().await.unwrap();
    assert_eq!((standing.node.name.as_str(), standing.control_plane.len()), ("w1", 1));
    assert_eq!(members.peers(), [cluster.peer()], "what it learned is kept");
    let moved = vec![LOCAL, "198.51.100.7".parse().unwrap()];
    assert_eq!(pki.set_addresses(&moved).unwrap(), [Leaf::Kubelet]);
    assert_eq!(pki.renew_due(pki.clock().system_time()), [Leaf::Kubelet]);
    for leaf in Leaf::WORKER {
        let before = pki.pem(leaf);
        members.renew(leaf).await.unwrap();
        let after = pki.pem(leaf);
        assert_ne!(before.0, after.0, "{leaf:?}");
        assert_eq!(before.1 == after.1, leaf == Leaf::Node, "only the node's own key stays: {leaf:?}");
    }
    assert!(pki.renew_due(pki.clock().system_time()).is_empty());
    assert!(members.renew(Leaf::Admin).await.is_err());
    members.announce("198.51.100.7:25000".parse().unwrap(), moved).await.unwrap();
    // A worker has no business in the store.
    let stream =
        Dialer::new(&pki).unwrap().dial(cluster.pki.node_id(), &string.server.to_string()).await.unwrap();
    assert_eq!(ask_store(stream).await.0, 403);

    assert_eq!(members.leave().await.unwrap().unwrap().name, "w1");
    assert_eq!(members.leave().await.unwrap(), None, "leaving again is no error");
    let gone = members.standing().await.unwrap_err();
    assert!(gone.to_string().contains("was removed from the cluster on"), "{gone}");
}

#[tokio::test]
async fn a_removed_control_plane_node_is_shut_out_and_told() {
    let cluster = Cluster::start().await;
    let joiner = Joiner::new("n2", 2, Role::ControlPlane);
    let admitted = joiner.join(&cluster.invite(&TokenOptions::default()).await).await.unwrap();
    let pki = Arc::new(joiner.open());
    cluster.registry.remove("n2").await.unwrap();
    let stream =
        Dialer::new(&pki).unwrap().dial(cluster.pki.node_id(), &cluster.address.to_string()).await.unwrap();
    assert_eq!(ask_store(stream).await.0, 403);
    let told = Members::new(pki, admitted.peers).unwrap().standing().await;
    assert!(matches!(told, Err(Error::Refused(Refusal::Removed { .. }))), "{told:?}");
}

#[tokio::test]
async fn every_refusal_is_its_own_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let good = cluster.invite(&TokenOptions::default()).await;
    let only_workers = TokenOptions { roles: vec![Role::Worker], ..TokenOptions::default() };
    let only_workers = cluster.invite(&only_workers).await;
    let expired = cluster.invite(&TokenOptions { ttl: Duration::ZERO, ..TokenOptions::default() }).await;
    let before = cluster.memory.dump();
    let joiner = Joiner::new("n2", 2, Role::ControlPlane);

    let unknown = JoinString { token: crate::Token::generate().unwrap(), ..good.clone() };
    assert_eq!(refused(joiner.join(&unknown).await), Refusal::UnknownToken);
    assert!(matches!(refused(joiner.join(&expired).await), Refusal::TokenExpired { .. }));
    assert!(matches!(refused(joiner.join(&only_workers).await), Refusal::TokenRole { .. }));
    let same_name = Joiner::new("n1", 2, Role::Worker);
    assert_eq!(refused(same_name.join(&good).await), Refusal::NameTaken { name: "n1".into() });
    let same_address = Joiner::new("n2", cluster.address.port, Role::Worker);
    let taken = refused(same_address.join(&good).await);
    assert_eq!(taken, Refusal::AddressTaken { address: cluster.address.to_string(), by: "n1".into() });
    let bad_name = Joiner::new("Node_2", 2, Role::Worker);
    assert!(matches!(refused(bad_name.join(&good).await), Refusal::Invalid { .. }));

    let wrong_hash = JoinString { ca_hash: "0".repeat(32), ..good.clone() };
    match joiner.join(&wrong_hash).await {
        Err(Error::WrongAuthority { expected, found, .. }) => {
            assert_eq!(expected, "0".repeat(32));
            assert_eq!(found.as_deref(), Some(&cluster.pki.ca_hash()[..32]));
        }
        other => panic!("{other:?}"),
    }
    let port = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    let nobody = JoinString { server: HostPort { host: LOCAL.to_string(), port }, ..good.clone() };
    let error = joiner.join(&nobody).await.unwrap_err();
    let text = Chain(&error).to_string();
    assert!(matches!(error, Error::Unreachable { .. }) && text.contains("ufw allow"), "{text}");

    assert_eq!(cluster.memory.dump(), before);
    assert!(!joiner.pki().exists());
    assert!(joiner.staging.install(&joiner.pki()).is_err(), "there is nothing to install");
    // After all these the token is still good.
    joiner.join(&good).await.unwrap();
}

#[tokio::test]
async fn clocks_and_versions_must_fit() {
    let cluster = Cluster::start().await;
    let good = cluster.invite(&TokenOptions::default()).await;
    let mut joiner = Joiner::new("n2", 2, Role::Worker);
    // A floor in the future makes this node's clock wrong.
    let floor = |days: u64| {
        let file = joiner.dir.path().join("future");
        let time = cluster.pki.clock().now() + days * 24 * 60 * 60;
        std::fs::write(&file, time.to_string()).unwrap();
        Arc::new(Clock::open(&file).unwrap())
    };
    let (day, years) = (floor(1), floor(1_000));
    joiner.clock = day;
    let refusal = refused(joiner.join(&good).await);
    assert!(matches!(refusal, Refusal::ClocksApart { .. }), "{refusal:?}");
    joiner.clock = years;
    let error = joiner.join(&good).await.unwrap_err();
    assert!(matches!(error, Error::ClockApart { not_after: Some(_), .. }), "{error:?}");

    let mut request = JoinRequest {
        token: good.token.to_string(),
        facts: joiner.facts.clone(),
        version: Version::own(),
        clock: cluster.registry.now(),
        requests: joiner.staging.requests(&joiner.facts).unwrap(),
    };
    request.version.kubernetes = "1.35.9".into();
    let service = Service::new(cluster.pki.clone(), cluster.registry.clone(), Arc::new(Facts));
    let asker = crate::service::Asker { source: LOCAL, peer: None };
    let mut changed = serde_json::to_value(&request).unwrap();
    changed.as_object_mut().unwrap().remove("facts");
    // Also when the other version's request has another form.
    for body in [serde_json::to_vec(&request).unwrap(), serde_json::to_vec(&changed).unwrap()] {
        match service.answer(&asker, "join", &body).await {
            Err(refusal @ Refusal::VersionsApart { .. }) => {
                let text = refusal.to_string();
                assert!(text.contains("1.35.9") && text.contains(kedge_base::KUBERNETES_VERSION), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn two_joins_race_with_one_token() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    let joiners: Vec<Joiner> =
        (2..6).map(|number| Joiner::new(&format!("n{number}"), number, Role::ControlPlane)).collect();
    let results = futures::future::join_all(joiners.iter().map(|joiner| joiner.join(&string))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        assert!(matches!(refused(result), Refusal::TokenUsed { .. }));
    }
    assert_eq!(cluster.registry.nodes().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_join_that_was_killed_is_repeated() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    let joiner = Joiner::new("n2", 2, Role::ControlPlane);
    let first = joiner.join(&string).await.unwrap();
    // Killed after the cluster admitted it and before the answer was on disk.
    std::fs::remove_file(joiner.dir.path().join("join/admitted.json")).unwrap();
    let second = joiner.join(&string).await.unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(cluster.registry.nodes().await.unwrap().len(), 2);
    // Killed with the answer on disk: no request is needed, and no private key is kept in it.
    let offline = JoinString { server: "127.0.0.1:1".parse().unwrap(), ..string.clone() };
    let third = joiner.join(&offline).await.unwrap();
    assert_eq!((third.id, third.control_plane), (first.id, None));
    // Killed between the two renames.
    drop(Pki::open(&joiner.pki(), &identity("n2")).unwrap());
    std::fs::rename(joiner.pki(), joiner.dir.path().join("pki.before-join")).unwrap();
    assert_eq!(joiner.open().node_id(), first.id);
    // Another node cannot use what was left.
    let other = Joiner::new("n3", 3, Role::ControlPlane);
    assert_eq!(refused(other.join(&string).await), Refusal::TokenUsed { by: "n2".into() });
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let cluster = Cluster::start().await;
    let good = cluster.invite(&TokenOptions::default()).await;
    let joiner = Joiner::new("n2", 2, Role::Worker);
    let mut stopped = 0;
    for _ in 0..12 {
        let guess = JoinString { token: crate::Token::generate().unwrap(), ..good.clone() };
        match refused(joiner.join(&guess).await) {
            Refusal::UnknownToken => {}
            Refusal::TooManyAttempts { retry_after_seconds } => stopped = retry_after_seconds,
            other => panic!("{other:?}"),
        }
    }
    assert!(stopped > 0);
    let refusal = refused(joiner.join(&good).await);
    assert!(matches!(refusal, Refusal::TooManyAttempts { .. }), "{refusal:?}");
}

#[tokio::test]
async fn only_a_control_plane_node_passes_for_the_cluster() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    let worker = Joiner::new("w1", 2, Role::Worker);
    worker.join(&string).await.unwrap();
    let worker = worker.open();
    let ca = CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap();
    let name = ServerName::try_from("join.kedge.internal").unwrap();
    let verify = |pki: &Pki, pin: &Pin| {
        let own = CertificateDer::from_pem_slice(pki.pem(Leaf::Node).0.as_bytes()).unwrap();
        let now = rustls::time_provider::TimeProvider::current_time(&**pki.clock()).unwrap();
        pin.verify_server_cert(&own, std::slice::from_ref(&ca), &name, &[], now)
    };
    let pin = Pin::new(&string.ca_hash);
    assert!(verify(&cluster.pki, &pin).is_ok());
    assert!(verify(&worker, &pin).is_err());
    // The right authority beside another one's certificate.
    let stranger = tempfile::tempdir().unwrap();
    let stranger = Pki::open(stranger.path(), &identity("n1")).unwrap();
    assert!(verify(&stranger, &pin).is_err());
    assert_eq!(pin.mismatch.lock().take(), Some(None));
}

#[test]
fn a_node_with_a_cluster_or_objects_of_users_does_not_join() {
    let state = |nodes: &[&str], objects: &[&str]| LocalState {
        other_nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        objects: objects.iter().map(|name| (*name).to_owned()).collect(),
    };
    assert!(state(&[], &[]).check(false).is_ok());
    assert!(matches!(state(&["n2"], &[]).check(true), Err(Error::AlreadyInCluster { .. })));
    let error = state(&[], &["default/web"]).check(false).unwrap_err();
    assert!(error.to_string().contains("default/web") && error.to_string().contains("--force"), "{error}");
    assert!(state(&[], &["default/web"]).check(true).is_ok());
    let error = state(&[], &["a", "b", "c", "d", "e", "f", "g"]).check(false).unwrap_err();
    assert!(error.to_string().contains(": a, b, c, d, e and 2 more;"), "{error}");
}

#[test]
fn ids_of_peers_are_those_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &identity("n1")).unwrap();
    let der = |leaf| CertificateDer::from_pem_slice(pki.pem(leaf).0.as_bytes()).unwrap();
    let peer = PeerIdentity::of(&der(Leaf::Node)).unwrap();
    assert_eq!(peer, PeerIdentity { id: pki.node_id(), name: "n1".into(), role: Role::ControlPlane });
    for leaf in [Leaf::Kubelet, Leaf::KubeletClient, Leaf::Admin, Leaf::Apiserver] {
        assert_eq!(PeerIdentity::of(&der(leaf)), None, "{leaf:?}");
    }
    assert_ne!(pki.node_id(), NodeId::new(1));
}

#[tokio::test]
async fn a_node_removed_before_its_answer_arrived_comes_with_a_new_key() {
    let cluster = Cluster::start().await;
    let joiner = Joiner::new("n2", 2, Role::ControlPlane);
    let first = joiner.join(&cluster.invite(&TokenOptions::default()).await).await.unwrap();
    std::fs::remove_file(joiner.dir.path().join("join/admitted.json")).unwrap();
    cluster.registry.remove("n2").await.unwrap();
    let second = joiner.join(&cluster.invite(&TokenOptions::default()).await).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(joiner.open().node_id(), second.id);
}

#[tokio::test]
async fn keys_of_another_answer_do_not_stay() {
    let (one, two) = (Cluster::start().await, Cluster::start().await);
    let mut joiner = Joiner::new("n2", 2, Role::ControlPlane);
    joiner.join(&one.invite(&TokenOptions::default()).await).await.unwrap();
    joiner.facts.role = Role::Worker;
    joiner.join(&two.invite(&TokenOptions::default()).await).await.unwrap();
    let pki = joiner.open();
    assert_eq!(pki.ca_pem(), two.pki.ca_pem());
    for file in ["ca.key", "sa.key", "front-proxy-ca.key"] {
        assert!(!joiner.pki().join(file).exists(), "{file}");
    }
}

#[tokio::test]
async fn nobody_joins_as_the_api_server() {
    let cluster = Cluster::start().await;
    let string = cluster.invite(&TokenOptions::default()).await;
    for name in ["kubernetes", "localhost", "kubernetes.default.svc", "web.default.svc.cluster.local"] {
        let refusal = refused(Joiner::new(name, 2, Role::Worker).join(&string).await);
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{name}: {refusal:?}");
    }
    // The Service's address, and a virtual one.
    for address in ["10.96.0.1", "192.0.2.100"] {
        let mut joiner = Joiner::new("n2", 2, Role::Worker);
        joiner.facts.addresses.push(address.parse().unwrap());
        let refusal = refused(joiner.join(&string).await);
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{address}: {refusal:?}");
    }
}
