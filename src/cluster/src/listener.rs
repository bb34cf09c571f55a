//! The cluster port: one TLS listener for nodes that join and for members. Members show their certificate;
//! what is not the cluster's own business goes to the store's service, with [`PeerIdentity`] in the
//! request's extensions.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use kedge_base::Tasks;
use kedge_base::https::{self, Answering, Newcomer, Newcomers};
pub use kedge_base::https::{Body, BoxError};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::util::BoxCloneSyncService;
use tower::{Service as _, ServiceExt as _};

use crate::service::{Asker, Service};
use crate::wire::{PREFIX, REQUEST_LIMIT};
use crate::{Error, Leaf, PeerIdentity, Refusal, Role};

/// A stranger's connection ends after this time.
const STRANGER_LIMIT: Duration = Duration::from_secs(90);
/// So many connections at once, from one source and from all, that have not shown a member's certificate.
const STRANGERS_OF_SOURCE: usize = 16;
const STRANGERS: usize = 256;
/// A connection on which nothing comes back to a ping for so long is dead.
const PING_EVERY: Duration = Duration::from_secs(10);

/// The store's own service: gets what control-plane nodes send each other.
pub type StoreService = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// Serve the cluster port until `tasks` stop.
///
/// # Errors
/// When the certificates are of no use for TLS.
pub fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    store: Option<StoreService>,
    tasks: &Tasks,
) -> Result<(), Error> {
    let pki = service.pki();
    let config = pki.cluster_server_config(Leaf::Node)?;
    let port = Port { acceptor: TlsAcceptor::from(config), service, store, tasks: tasks.clone() };
    tasks.spawn_until_stopped("cluster port", accept(listener, port));
    Ok(())
}

#[derive(Clone)]
struct Port {
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    store: Option<StoreService>,
    tasks: Tasks,
}

async fn accept(listener: TcpListener, port: Port) {
    let doors = Arc::new(Doors::default());
    let newcomers = Newcomers::default();
    loop {
        let (stream, source, newcomer) = newcomers.accept(&listener).await;
        let Some(stranger) = Doors::enter(&doors, source.ip().to_canonical()) else {
            tracing::debug!(%source, "too many connections without a certificate");
            continue;
        };
        let future = Box::pin(connection(port.clone(), stream, source, stranger, newcomer));
        port.tasks.spawn_until_stopped("cluster connection", future);
    }
}

/// Counts connections that have not shown who they are, so that strangers keep no member out.
#[derive(Debug, Default)]
struct Doors(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until it shows a certificate or goes.
#[derive(Debug)]
struct Stranger(Arc<Doors>, IpAddr);

impl Doors {
    fn enter(doors: &Arc<Self>, source: IpAddr) -> Option<Stranger> {
        let mut counts = doors.0.lock();
        let total: usize = counts.values().sum();
        let own = counts.get(&source).copied().unwrap_or(0);
        if total >= STRANGERS || own >= STRANGERS_OF_SOURCE {
            return None;
        }
        counts.insert(source, own + 1);
        Some(Stranger(doors.clone(), source))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock();
        match counts.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.1);
            }
        }
    }
}

async fn connection(
    port: Port,
    stream: TcpStream,
    source: SocketAddr,
    stranger: Stranger,
    newcomer: Newcomer,
) {
    let Some(stream) = https::handshake(&port.acceptor, stream, &newcomer).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = certificates.and_then(<[_]>::first).and_then(PeerIdentity::of);
    let is_member = peer.is_some();
    let asker = Arc::new(Asker { source: source.ip().to_canonical(), peer });
    let mut builder = https::protocols(&port.tasks);
    let answering = Answering::new(move |request| respond(port.clone(), asker.clone(), request));
    builder
        .http2()
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(256);
    let serving = https::serve(builder, stream, answering, newcomer);
    let ended = if is_member {
        drop(stranger);
        serving.await
    } else {
        let ended = tokio::time::timeout(STRANGER_LIMIT, serving).await.unwrap_or(Ok(()));
        drop(stranger);
        ended
    };
    if let Err(error) = ended {
        tracing::debug!(%source, error = %error, "connection on the cluster port ended");
    }
}

async fn respond(port: Port, asker: Arc<Asker>, request: Request<Incoming>) -> Response<Body> {
    let Some(path) = request.uri().path().strip_prefix(PREFIX).map(str::to_owned) else {
        return store(port, &asker, request).await;
    };
    let answered = async {
        if request.method() != Method::POST {
            return Err(Refusal::Invalid { message: "requests are POSTs".into() });
        }
        let body = Limited::new(request.into_body(), REQUEST_LIMIT).collect().await;
        let body = body.map_err(|error| Refusal::Invalid { message: error.to_string() })?.to_bytes();
        Box::pin(port.service.answer(&asker, &path, &body)).await
    };
    match answered.await {
        Ok(body) => json(StatusCode::OK, body),
        Err(refusal) => refused(&refusal),
    }
}

/// Only control-plane nodes that were not taken off reach the store.
async fn store(port: Port, asker: &Asker, mut request: Request<Incoming>) -> Response<Body> {
    let Some(peer) = &asker.peer else {
        return refused(&Refusal::Unauthenticated { message: "none was shown".into() });
    };
    if peer.role != Role::ControlPlane {
        return refused(&Refusal::Forbidden { message: "only control-plane nodes reach the store".into() });
    }
    if let Some(removed) = port.service.registry().gone(peer.id) {
        return refused(&Refusal::Removed { name: removed.name, since: removed.at });
    }
    let Some(mut store) = port.store else {
        return refused(&Refusal::Unavailable { message: "the store does not answer here".into() });
    };
    request.extensions_mut().insert(peer.clone());
    let Ok(ready) = store.ready().await;
    let Ok(response) = ready.call(request).await;
    response
}

fn refused(refusal: &Refusal) -> Response<Body> {
    json(refusal.status(), serde_json::to_vec(refusal).unwrap_or_default())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_few_and_make_room_when_they_go() {
        let doors = Arc::new(Doors::default());
        let source = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
        let mut inside: Vec<Stranger> =
            (0..STRANGERS_OF_SOURCE).map(|_| Doors::enter(&doors, source(1)).unwrap()).collect();
        assert!(Doors::enter(&doors, source(1)).is_none());
        for number in 2.. {
            match Doors::enter(&doors, source(number)) {
                Some(stranger) => inside.push(stranger),
                None => break,
            }
        }
        assert_eq!(inside.len(), STRANGERS);
        inside.remove(0);
        assert!(Doors::enter(&doors, source(1)).is_some());
        inside.clear();
        assert!(doors.0.lock().is_empty(), "nothing is remembered of who is gone");
    }
}
