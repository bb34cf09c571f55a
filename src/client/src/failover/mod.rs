//! A client for nodes without an API server of their own: it goes to one of several API servers, and to
//! another when that one does not answer. Nothing is probed: requests themselves show who is well.
//!
//! Each node prefers another server (by its name), so that nodes spread over the control plane; which one
//! follows from the list alone, so that a list that grows or shrinks moves as few nodes as possible.

mod forward;
mod servers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_base::{Chain, Tasks};
use kube::Resource as _;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;

pub use self::forward::forward;
pub use self::servers::Servers;
use crate::connect::{Connector, HttpClient, http_client};
use crate::watch::{Event, Watch};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const TLS_LIMIT: Duration = Duration::from_secs(5);
/// Every API server's certificate has this name, while its addresses may change.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// A request had no answer from any server.
#[derive(Debug, thiserror::Error)]
#[error("no API server answers: {0}")]
pub struct NoServer(String);

/// A `kube::Client` over all of `servers` that calls itself `name`. `tls` says who is trusted and which certificate is shown; one
/// that is swapped in it is used from the next connection on. The servers' certificates must carry the name
/// `kubernetes.default.svc`, whatever their address is.
///
/// A request that no server has seen is repeated with the next one; one that a server may have seen only if
/// it reads. A watch that breaks ends with an error, and whoever watches resumes it on another server.
pub fn client(servers: &Servers, tls: Arc<ClientConfig>, name: &'static str, tasks: &Tasks) -> kube::Client {
    crate::named(Failover::new(servers.clone(), tls, tasks), name)
}

/// Learn of control-plane nodes that come and go, from the endpoints of the Service `kubernetes`.
pub fn follow(servers: &Servers, client: kube::Client, tasks: &Tasks) {
    let servers = servers.clone();
    tasks.spawn_restarting("api server addresses", move || {
        let (servers, client) = (servers.clone(), client.clone());
        async move { learn(servers, client).await }
    });
}

async fn learn(servers: Servers, client: kube::Client) {
    let path = EndpointSlice::url_path(&(), Some("default"));
    let mut events = Watch::<EndpointSlice>::new(client, path, "", "kubernetes.io/service-name=kubernetes");
    let mut slices = std::collections::BTreeMap::new();
    let mut listing = std::collections::BTreeMap::new();
    loop {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match events.next().await {
            Event::Begin => listing.clear(),
            Event::Listed(slice) => {
                listing.insert(name(&slice), addresses(&slice));
                continue;
            }
            Event::Done => slices = std::mem::take(&mut listing),
            Event::Changed(slice) => {
                slices.insert(name(&slice), addresses(&slice));
            }
            Event::Deleted(slice) => {
                slices.remove(&name(&slice));
            }
        }
        let found: Vec<String> = slices.values().flatten().cloned().collect();
        // None at all is more likely a cluster being set up than one without servers.
        if !found.is_empty()
            && let Err(error) = servers.update(&found)
        {
            tracing::warn!(error = %Chain(&error), "the API servers' addresses were not kept on disk");
        }
    }
}

/// `host:port` of the endpoints that serve.
fn addresses(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.iter().flatten();
    let Some(port) = ports.filter(|port| port.name.as_deref() == Some("https")).find_map(|port| port.port)
    else {
        return Vec::new();
    };
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready
        .flat_map(|endpoint| &endpoint.addresses)
        .map(
            |address| {
                if address.contains(':') {
                    format!("[{address}]:{port}")
                } else {
                    format!("{address}:{port}")
                }
            },
        )
        .collect()
}

/// The tower service below a `kube::Client`.
#[derive(Clone)]
pub struct Failover(Arc<Inner>);

struct Inner {
    servers: Servers,
    tls: Arc<ClientConfig>,
    tasks: Tasks,
    /// With the generation of [`Servers::reconnect`] it was made for.
    http: Mutex<(u64, HttpClient)>,
}

impl Failover {
    /// See [`client`].
    pub fn new(servers: Servers, tls: Arc<ClientConfig>, tasks: &Tasks) -> Self {
        let http = Mutex::new((servers.generation(), connections(&tls, tasks)));
        Self(Arc::new(Inner { servers, tls, tasks: tasks.clone(), http }))
    }
}

fn connections(tls: &Arc<ClientConfig>, tasks: &Tasks) -> HttpClient {
    let mut tls = ClientConfig::clone(tls);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let limits = [CONNECT_LIMIT, TLS_LIMIT];
    http_client(Connector { tls, name: Some(SERVER_NAME), limits }, tasks)
}

impl Inner {
    fn http(&self) -> HttpClient {
        let mut http = self.http.lock();
        let generation = self.servers.generation();
        if http.0 != generation {
            // Connections of the old one end with their last request.
            *http = (generation, connections(&self.tls, &self.tasks));
        }
        http.1.clone()
    }

    async fn send(&self, request: Request<kube::client::Body>) -> Result<Response<Incoming>, NoServer> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| NoServer(error.to_string()))?.to_bytes();
        let reads = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let (mut failures, mut unavailable) = (Vec::new(), None);
        for server in self.servers.in_order() {
            let mut attempt = Request::new(Full::new(body.clone()));
            *attempt.method_mut() = head.method.clone();
            *attempt.headers_mut() = head.headers.clone();
            *attempt.uri_mut() = match target(&server, &head.uri) {
                Ok(uri) => uri,
                Err(error) => return Err(NoServer(error.to_string())),
            };
            match self.http().request(attempt).await {
                Ok(response) if reads && is_unavailable(response.status()) => {
                    // It may be without a leader or about to stop; another one may know better.
                    self.servers.failed(&server);
                    unavailable = Some(response);
                }
                Ok(response) => {
                    self.servers.works(&server);
                    return Ok(response);
                }
                Err(error) => {
                    self.servers.failed(&server);
                    let unsent = error.is_connect();
                    tracing::debug!(%server, error = %Chain(&error), "API server does not answer");
                    failures.push(format!("{server}: {}", Chain(&error)));
                    if !reads && !unsent {
                        // It may have been done.
                        break;
                    }
                }
            }
        }
        match unavailable {
            Some(response) => Ok(response),
            None if failures.is_empty() => Err(NoServer("none is known".into())),
            None => Err(NoServer(failures.join("; "))),
        }
    }
}

fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

fn target(server: &Authority, uri: &Uri) -> Result<Uri, http::Error> {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Uri::builder().scheme(Scheme::HTTPS).authority(server.clone()).path_and_query(path).build()
}

impl tower::Service<Request<kube::client::Body>> for Failover {
    type Response = Response<Incoming>;
    type Error = NoServer;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, NoServer>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoServer>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.send(request).await })
    }
}

#[cfg(test)]
mod tests;
