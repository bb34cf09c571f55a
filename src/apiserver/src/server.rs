//! The TLS listener, and the way in for components of the same process.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use kedge_base::Tasks;
use kedge_base::https::{self, Answering, Newcomer, Newcomers};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::authn::{self, User};
use crate::handler;
use crate::state::State;

/// What TLS encrypts and hands to the kernel in one call, at most; a chunk of a watch fits.
const SENT_AT_ONCE: usize = 128 << 10;

/// Accept connections until the tasks stop.
pub(crate) fn listen(state: Arc<State>, listener: TcpListener, tasks: &Tasks) {
    let acceptor = TlsAcceptor::from(state.config.tls.clone());
    let connections = tasks.child("connections");
    let newcomers = Newcomers::default();
    tasks.spawn_until_stopped("listener", async move {
        loop {
            let (stream, _, newcomer) = newcomers.accept(&listener).await;
            let (state, acceptor, tasks) = (state.clone(), acceptor.clone(), connections.clone());
            connections
                .spawn_until_stopped("connection", connection(state, stream, acceptor, newcomer, tasks));
        }
    });
}

async fn connection(
    state: Arc<State>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    newcomer: Newcomer,
    tasks: Tasks,
) {
    let Some(mut stream) = https::handshake(&acceptor, stream, &newcomer).await else { return };
    stream.get_mut().1.set_buffer_limit(Some(SENT_AT_ONCE));
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(authn::from_certificate);
    let mut protocols = https::protocols(&tasks);
    protocols.http2().max_concurrent_streams(1000);
    let answering = Answering::new(move |request: Request<Incoming>| {
        let answer = handler::handle(state.clone(), request.map(Body::new), user.clone());
        async move { answer.await.map(|body| body.map_err(https::BoxError::from).boxed_unsync()) }
    });
    if let Err(error) = https::serve(protocols, stream, answering, newcomer).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// A tower service that hands requests of one component of this process to the API server: no
/// socket, no TLS, the user is given. `kube::Client::new` takes it.
#[derive(Clone)]
pub struct LocalService {
    pub(crate) state: Arc<State>,
    pub(crate) user: User,
}

impl<B> Service<Request<B>> for LocalService
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

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (state, user) = (self.state.clone(), self.user.clone());
        let request = request.map(Body::new);
        Box::pin(async move { Ok(handler::handle(state, request, Some(user)).await) })
    }
}
