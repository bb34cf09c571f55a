//! The TLS listener, and the way in for components of the same process.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use bytes::Bytes;
use http::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use kedge_base::{Tasks, https};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::authn::{self, User};
use crate::handler;
use crate::state::State;

/// A client that does not finish its handshake or headers in this time is cut off.
const PATIENCE: Duration = Duration::from_secs(30);

/// What TLS encrypts and hands to the kernel in one call, at most; a chunk of a watch fits.
const SENT_AT_ONCE: usize = 128 << 10;

/// The user of the connection's verified client certificate.
#[derive(Clone)]
struct Peer(Option<User>);

/// Accept connections until the tasks stop.
pub(crate) fn listen(state: Arc<State>, listener: TcpListener, tasks: &Tasks) {
    let acceptor = TlsAcceptor::from(state.config.tls.clone());
    let router = Router::new().fallback(serve).with_state(state);
    let connections = tasks.child("connections");
    tasks.spawn_until_stopped("listener", async move {
        loop {
            let (stream, _) = https::accept(&listener).await;
            let (acceptor, router) = (acceptor.clone(), router.clone());
            connections.spawn_until_stopped("connection", connection(stream, acceptor, router));
        }
    });
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let Some(mut stream) = https::handshake(&acceptor, stream, PATIENCE).await else { return };
    stream.get_mut().1.set_buffer_limit(Some(SENT_AT_ONCE));
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(authn::from_certificate);
    let router = router.layer(axum::Extension(Peer(user)));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(60));
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router)).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

async fn serve(Shared(state): Shared<Arc<State>>, request: Request) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
    handler::handle(state, request, peer).await
}

/// A tower service that hands requests of one component of this process to the API server: no
/// socket, no TLS, the user is given. `kube::Client::new` takes it.
#[derive(Clone)]
pub struct LocalService {
    pub(crate) state: Arc<State>,
    pub(crate) user: User,
}

impl<B> Service<http::Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (state, user) = (self.state.clone(), self.user.clone());
        let request = request.map(Body::new);
        Box::pin(async move { Ok(handler::handle(state, request, Some(user)).await) })
    }
}
