//! Asks every kubelet for its resource metrics, again and again: kubelets tell nobody by themselves.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kedge_base::{Chain, Tasks};
use kedge_client::https::{self, Identity};
use kedge_client::{Informer, Informers};
use parking_lot::Mutex;

use crate::Config;
use crate::points::{Look, Points};

/// The second look comes sooner, so that there are rates soon after the start.
const SECOND: Duration = Duration::from_secs(5);
/// A kubelet that is slower than this is left out (metrics-server: 90 % of the resolution at most).
const PATIENCE: Duration = Duration::from_secs(10);
/// Kubelets that are asked at a time.
const AT_ONCE: usize = 16;

struct Scraper {
    nodes: Informer<Node>,
    points: Arc<Points>,
    resolution: Duration,
    kubelet_ca: PathBuf,
    token: PathBuf,
    /// Connections stay open from look to look.
    clients: Mutex<HashMap<String, kube::Client>>,
}

pub(crate) fn start(config: &Config, informers: &Informers, points: Arc<Points>, tasks: &Tasks) {
    let scraper = Arc::new(Scraper {
        nodes: informers.informer(),
        points,
        resolution: config.resolution,
        kubelet_ca: config.kubelet_ca.clone(),
        token: config.token.clone(),
        clients: Mutex::default(),
    });
    tasks.spawn_restarting("scraper", move || {
        let scraper = scraper.clone();
        async move { scraper.run().await }
    });
}

impl Scraper {
    async fn run(&self) {
        self.nodes.synced().await;
        let mut second = true;
        loop {
            let begun = tokio::time::Instant::now();
            self.look().await;
            let pause = if second { SECOND.min(self.resolution) } else { self.resolution };
            second = false;
            tokio::time::sleep_until(begun + pause).await;
        }
    }

    async fn look(&self) {
        let nodes = self.nodes.list();
        let known = |name: &str| nodes.iter().any(|node| node.metadata.name.as_deref() == Some(name));
        self.points.retain(known);
        self.clients.lock().retain(|url, _| nodes.iter().any(|node| url_of(node).as_ref() == Some(url)));
        futures::stream::iter(&nodes)
            .for_each_concurrent(AT_ONCE, |node| async move {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                let patience = PATIENCE.min(self.resolution * 9 / 10);
                let asked = tokio::time::timeout(patience, self.ask(node)).await;
                let failed = match asked {
                    Ok(Ok(text)) => {
                        let resolution = i64::try_from(self.resolution.as_millis()).unwrap_or(i64::MAX / 4);
                        let now = jiff::Timestamp::now().as_millisecond();
                        return self.points.add(name, Look::parse(&text, now), resolution);
                    }
                    Ok(Err(error)) => error,
                    Err(_) => "no answer in time".to_owned(),
                };
                tracing::warn!(node = name, error = failed, "kubelet gives no metrics");
                self.points.forget(name);
                if let Some(url) = url_of(node) {
                    // The authority's file is read again with the next try.
                    self.clients.lock().remove(&url);
                }
            })
            .await;
    }

    async fn ask(&self, node: &Node) -> Result<String, String> {
        let url = url_of(node).ok_or("the node has no internal address")?;
        let client = self.client(&url).await?;
        let request = http::Request::get("/metrics/resource")
            .header(http::header::ACCEPT, "text/plain;version=0.0.4")
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        client.request_text(request).await.map_err(|error| Chain(&error).to_string())
    }

    async fn client(&self, url: &str) -> Result<kube::Client, String> {
        if let Some(client) = self.clients.lock().get(url) {
            return Ok(client.clone());
        }
        let authority = tokio::fs::read_to_string(&self.kubelet_ca)
            .await
            .map_err(|error| format!("{}: {error}", self.kubelet_ca.display()))?;
        let identity = Identity::TokenFile(self.token.clone());
        let client =
            https::client(url, &authority, identity, "").map_err(|error| Chain(&error).to_string())?;
        self.clients.lock().insert(url.to_owned(), client.clone());
        Ok(client)
    }
}

/// The kubelet's server: the first internal address, and the port that the node's status tells.
fn url_of(node: &Node) -> Option<String> {
    let status = node.status.as_ref()?;
    let addresses = status.addresses.as_deref().unwrap_or_default();
    let internal = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    let address: IpAddr = internal.address.parse().ok()?;
    let endpoints = status.daemon_endpoints.as_ref();
    let port = endpoints.and_then(|all| all.kubelet_endpoint.as_ref()).map_or(10250, |kubelet| kubelet.port);
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    Some(format!("https://{host}:{port}"))
}
