use std::path::PathBuf;
use kedge_base::Tasks;
use kedge_cluster::*;
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(tracing_subscriber::EnvFilter::new("info")).init();
    let dir = PathBuf::from(std::env::args().nth(1).unwrap());
    let port: u16 = 16443;
    let pki = Pki::open(&dir.join("pki"), &NodeIdentity { name: "n1".into(), addresses: vec!["127.0.0.1".parse().unwrap()], service_addresses: vec!["10.96.0.1".parse().unwrap()], cluster_domain: "cluster.local".into() }).unwrap();
    let (c, k) = pki.pem(Leaf::Admin);
    std::fs::write(dir.join("kubeconfig"), kubeconfig(&[format!("https://127.0.0.1:{port}")], pki.ca_pem(), &c, &k)).unwrap();
    let tasks = Tasks::new("t");
    let t = std::time::Instant::now();
    let server = kedge_apiserver::ApiServer::start(kedge_apiserver::Config {
        listen: format!("127.0.0.1:{port}").parse().unwrap(),
        tls: pki.server_config(Leaf::Apiserver, Some(pki.ca_pem())).unwrap(),
        kubelet_client: pki.client_config(Some(Leaf::ApiserverKubeletClient), pki.ca_pem()).unwrap(),
        advertise_address: "127.0.0.1".parse().unwrap(),
        issuer: "https://kubernetes.default.svc.cluster.local".into(),
        service_account_key: pki.service_account_key_pem().into(),
        cluster_ca: pki.ca_pem().into(),
        service_range: ("10.96.0.0".parse().unwrap(), 16), node_ports: (30000, 32767), event_ttl_seconds: 3600,
    }, kedge_store::Config::new(dir.join("store")), &tasks).await.unwrap();
    eprintln!("ready in {:?}", t.elapsed());
    std::future::pending::<()>().await;
    drop(server);
}
