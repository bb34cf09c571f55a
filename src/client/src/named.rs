//! Who makes a request: its User-Agent, which is also the manager of the fields that it writes.

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use kube::client::Body;
use tower::{BoxError, Service, ServiceExt as _};

/// A client in the namespace `default` that calls itself `name`, as upstream's components do
/// (`kube-scheduler`, `kubelet`).
pub fn named<S, B>(service: S, name: &'static str) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service.map_request(move |mut request: Request<Body>| {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(name));
        request
    });
    kube::Client::new(service, "default")
}
