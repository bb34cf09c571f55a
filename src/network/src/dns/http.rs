//! `/health`, `/ready` and `/metrics`, each on the port where CoreDNS has it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kedge_base::{Tasks, https};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A client has this long to send its request, and a connection without requests stays no longer.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_CONNECTIONS: usize = 64;

/// Says what one path answers with now.
pub(crate) type Page = Arc<dyn Fn() -> (StatusCode, String) + Send + Sync>;

/// Serve `page` under `path` until the tasks stop.
pub(crate) fn serve(listener: TcpListener, path: &'static str, page: Page, tasks: &Tasks) {
    let connections = tasks.clone();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tasks.spawn_until_stopped(&format!("http {path}"), async move {
        loop {
            // Those beyond the limit wait in the kernel's queue.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (stream, _) = https::accept(&listener).await;
            let page = page.clone();
            connections.spawn_until_stopped("http connection", async move {
                connection(stream, path, page).await;
                drop(permit);
            });
        }
    });
}

type Answered = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

async fn connection(stream: TcpStream, path: &'static str, page: Page) {
    let service = service_fn(move |request: Request<Incoming>| -> Answered {
        let response = respond(&request, path, &page);
        Box::pin(async move { Ok(response) })
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(path, %error, "a connection ended early");
    }
}

fn respond(request: &Request<Incoming>, path: &str, page: &Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != path {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    } else {
        let (status, body) = page();
        *response.status_mut() = status;
        let kind = if path == "/metrics" {
            kedge_base::prometheus::CONTENT_TYPE
        } else {
            "text/plain; charset=utf-8"
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        *response.body_mut() = Full::new(body.into());
    }
    response
}

/// Bind, with a fall-back to IPv4 where the machine has no IPv6.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) => match super::without_ipv6(address, &error) {
            Some(address) => TcpListener::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    }
}
