//! HTTPS connections of the servers beside the API server. They share one kind of service, body and
//! executor: HTTP/1 and HTTP/2 are compiled anew for every combination of them.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::Tasks;

/// Whatever went wrong in a body.
pub type BoxError = Box<dyn Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

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
