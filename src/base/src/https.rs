//! Connections of HTTPS servers: how all of them are accepted, and how the servers beside the API server answer.
//! Those share one kind of service, body and executor: HTTP/1 and HTTP/2 are compiled anew for every combination
//! of them.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Tasks;

/// Whatever went wrong in a body.
pub type BoxError = Box<dyn Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// After a connection that could not be accepted: out of file descriptors, most likely, and going on at once would
/// only burn CPU.
const PAUSE: Duration = Duration::from_millis(100);

/// The next connection, with or without TLS, and where it comes from.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// TLS on a connection that was accepted. `None`: the client does not speak it, shows a certificate that is no good,
/// or has not finished within `limit`.
pub async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let source = stream.peer_addr().ok();
    match tokio::time::timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(?source, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(?source, "TLS handshake took too long"),
    }
    None
}

/// What answers the requests of one connection.
#[derive(Clone)]
pub struct Answering(Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>);

impl Answering {
    /// By this function.
    pub fn new<F>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(answer(request))))
    }
}

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answer = (self.0)(request);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// The protocols' settings. HTTP/2 streams are tasks of `tasks`.
pub fn protocols(tasks: &Tasks) -> auto::Builder<Executor> {
    auto::Builder::new(Executor(tasks.clone()))
}

/// Serves one connection to its end; a request may take it over.
///
/// # Errors
/// The connection broke, or the client does not speak HTTP.
pub async fn serve(
    protocols: auto::Builder<Executor>,
    stream: TlsStream<TcpStream>,
    answering: Answering,
) -> Result<(), BoxError> {
    protocols.serve_connection_with_upgrades(TokioIo::new(stream), answering).await
}

/// Runs HTTP/2 streams.
#[derive(Clone)]
pub struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_until_stopped("stream", future);
    }
}
