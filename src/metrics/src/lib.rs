//! The resource metrics API (`metrics.k8s.io/v1beta1`) as an aggregated API server, in the place of
//! kubernetes-sigs/metrics-server: it reads every kubelet's `/metrics/resource`, keeps the last two
//! looks at each container, and answers `kubectl top` and the HorizontalPodAutoscaler from them.
//!
//! The crate reaches an API server and kubelets over HTTPS, and listens on one port. It keeps nothing on
//! disk.

mod api;
mod auth;
mod certificate;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod points;
mod scrape;
mod server;
mod text;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::Informers;

pub use error::Error;

/// The group and version that are served.
pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to answer.
    pub listen: SocketAddr,
    /// The time between two looks at every kubelet (metrics-server's `--metric-resolution`).
    pub resolution: Duration,
    /// The authority of the kubelets' certificates, PEM.
    pub kubelet_ca: PathBuf,
    /// The token that kubelets are shown; read again and again.
    pub token: PathBuf,
    /// Where the Service, the Secret and the pod are.
    pub namespace: String,
    /// The Service that the APIService names; the certificate is for it.
    pub service: String,
    /// A Secret that exists, where the certificate is kept that all replicas show.
    pub secret: String,
}

impl Default for Config {
    fn default() -> Self {
        let mounted = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 10250)),
            resolution: Duration::from_secs(15),
            kubelet_ca: mounted.join("ca.crt"),
            token: mounted.join("token"),
            namespace: "kube-system".to_owned(),
            service: "metrics-server".to_owned(),
            secret: "metrics-server-tls".to_owned(),
        }
    }
}

/// Starts everything; it runs until the tasks stop.
///
/// # Errors
/// When the certificate cannot be made or stored, the front proxy's authority cannot be read, or the port
/// is taken.
pub async fn start(config: Config, client: kube::Client, tasks: &Tasks) -> Result<(), Error> {
    let certificate = certificate::ensure(&client, &config).await?;
    let auth = auth::Delegated::start(client.clone(), certificate, tasks).await?;
    let informers = Informers::new(client.clone(), tasks);
    let points = Arc::new(points::Points::default());
    scrape::start(&config, &informers, points.clone(), tasks);
    let api = Arc::new(api::Api { client, points, auth: auth.clone() });
    server::listen(config.listen, auth, api, tasks).await
}
