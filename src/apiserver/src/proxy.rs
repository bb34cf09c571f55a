//! Streams and proxies: logs, exec, attach and port-forward go to the kubelet of the pod's node;
//! `proxy` subresources go to a pod, a Service's endpoint or a kubelet. Bytes are passed on and not
//! looked into, but for the WebSocket subprotocols that kubelets do not know (`stream`).

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kedge_api::status::Status;
use serde_json::Value;

use crate::authz::{self, rbac::Attributes};
use crate::connect;
use crate::links;
use crate::log_options;
use crate::outbound;
use crate::respond;
use crate::stream::{self, Wanted, Way};
use crate::verbs::{Context, read};

/// Pages up to this size are looked through for links.
const PAGE_LIMIT: usize = 8 << 20;
/// In which SPDY clients and servers negotiate what the streams mean.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Where a request goes on to.
struct Destination {
    address: String,
    port: u16,
    tls: Tls,
    path: String,
}

enum Tls {
    None,
    /// The kubelet's certificate is checked against the cluster CA, and ours is shown.
    Kubelet,
    /// A pod's or Service's own (`https:name:port`): whatever it shows will do, as upstream.
    Unverified,
}

/// Whether this subresource is a stream or proxy.
pub(crate) fn is_stream(group: &str, resource: &str, subresource: &str) -> bool {
    group.is_empty()
        && matches!(
            (resource, subresource),
            ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("services" | "nodes", "proxy")
        )
}

pub(crate) async fn run(context: &Arc<Context>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let subresource = context.info.subresource.as_str();
    let is_pod_stream =
        context.info.resource == "pods" && matches!(subresource, "exec" | "attach" | "portforward");
    if is_pod_stream {
        may_create(context)?;
    }
    if subresource == "log" {
        log_options::check(&context.query, &context.info.name)?;
    }
    connect::admit(context).await?;
    let way = if is_pod_stream {
        if !stream::is_upgrade(request.headers()) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        stream::way(subresource, request.method(), request.headers())
    } else {
        Way::Through
    };
    if subresource == "proxy" && is_bare(&request) {
        return moved(&request);
    }
    let to = destination(context)?;
    match way {
        Way::Through => forward(context, request, to).await,
        Way::Translate => {
            let path = path_and_query(context, &request, &to)?;
            let tasks = context.state.tasks.clone();
            let wanted = Wanted::of(&context.query);
            let context = context.clone();
            let connect = async move { exec_backend(&context, &to, path).await };
            Ok(stream::translated(&tasks, request, wanted, connect))
        }
        Way::Tunnel(protocols) => {
            let path = path_and_query(context, &request, &to)?;
            match spdy(context, &to, path, &protocols).await? {
                Ok((headers, backend)) => {
                    let protocol = headers.get(STREAM_PROTOCOL).and_then(|value| value.to_str().ok());
                    Ok(stream::tunnelled(&context.state.tasks, request, backend, protocol))
                }
                Err(refusal) => Ok(as_status(refusal).await),
            }
        }
    }
}

/// A read of a proxy's root without the slash: links that the page has would lead astray.
fn is_bare(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.uri().path().ends_with("/proxy")
        && !stream::is_upgrade(request.headers())
}

/// Sends the client to the same path with a slash (apimachinery `util/proxy/upgradeaware.go`).
fn moved(request: &Request<Body>) -> Result<Response<Body>, Status> {
    let uri = request.uri();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(http::header::LOCATION, format!("{}/{query}", uri.path()))
        .body(Body::empty())
        .map_err(|error| Status::internal(error.to_string()))
}

/// Whoever opens a stream into a pod needs `create`, also when the request is a WebSocket's GET
/// (upstream's `AuthorizePodWebsocketUpgradeCreatePermission`).
fn may_create(context: &Context) -> Result<(), Status> {
    if context.info.verb == "create" {
        return Ok(());
    }
    let attributes = Attributes { verb: "create", ..authz::attributes(&context.user, &context.info) };
    authz::require(&context.state, &context.user, &attributes)
}

fn destination(context: &Context) -> Result<Destination, Status> {
    let info = &context.info;
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("nodes", "proxy") => {
            let (name, _) = split_port(&info.name);
            kubelet(context, &name, format!("/{}", info.rest))
        }
        ("services", "proxy") => service(context),
        ("pods", "proxy") => {
            let (name, port) = split_port(&info.name);
            let tls = tls_of(&info.name);
            let pod = object(context, "pods", &format!("{}/{name}", info.namespace), &name)?;
            let address = pod["status"]["podIP"].as_str().filter(|address| !address.is_empty());
            let address = address
                .ok_or_else(|| Status::bad_request(format!("address not allowed: pod {name} has no IP")))?;
            let port = match port {
                Some(port) => port,
                None => pod["spec"]["containers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .flat_map(|container| container["ports"].as_array().into_iter().flatten())
                    .find_map(|port| port["containerPort"].as_u64())
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(80),
            };
            Ok(Destination { address: address.to_owned(), port, tls, path: format!("/{}", info.rest) })
        }
        ("pods", stream) => {
            let pod = object(context, "pods", &context.key(), &info.name)?;
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            if node.is_empty() {
                // Logs of a pod without a node are empty upstream, the others fail.
                return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)));
            }
            let (namespace, name) = (&info.namespace, &info.name);
            let container = match stream {
                "portforward" => String::new(),
                _ => container(context, &pod)?,
            };
            let path = match stream {
                "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
                "exec" => format!("/exec/{namespace}/{name}/{container}"),
                "attach" => format!("/attach/{namespace}/{name}/{container}"),
                _ => format!("/portForward/{namespace}/{name}"),
            };
            kubelet(context, node, path)
        }
        _ => Err(context.not_found()),
    }
}

fn object(context: &Context, resource: &str, key: &str, name: &str) -> Result<Value, Status> {
    let stored = context.state.cache.bucket(resource).get(key);
    let missing = || Status::not_found(&kedge_api::status::GroupResource::new("", resource), name);
    read::parse(&stored.ok_or_else(missing)?.bytes)
}

/// `[scheme:]name[:port]`, as the names of proxied objects are written.
fn split_port(text: &str) -> (String, Option<u16>) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name, port] => ((*name).to_owned(), port.parse().ok()),
        [_, name, port] => ((*name).to_owned(), port.parse().ok()),
        _ => (text.to_owned(), None),
    }
}

/// The container that is meant when the client names none (`registry/core/pod/strategy.go`).
fn container(context: &Context, pod: &Value) -> Result<String, Status> {
    let names = |kind: &str| -> Vec<String> {
        let list = pod["spec"][kind].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = &context.info.name;
    let preferred = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match context.query.get("container") {
        Some(name) => {
            if containers.iter().chain(&init).chain(&ephemeral).any(|known| known == name) {
                return Ok(name.to_owned());
            }
            Err(Status::bad_request(format!("container {name} is not valid for pod {pod_name}")))
        }
        None => match containers.as_slice() {
            [one] => Ok(one.clone()),
            _ if preferred.is_some_and(|name| containers.iter().any(|known| known == name)) => {
                Ok(preferred.unwrap_or_default().to_owned())
            }
            _ => {
                let init = if init.is_empty() {
                    String::new()
                } else {
                    format!(" or one of the init containers: [{}]", init.join(" "))
                };
                Err(Status::bad_request(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]{init}",
                    containers.join(" ")
                )))
            }
        },
    }
}

fn kubelet(context: &Context, node: &str, path: String) -> Result<Destination, Status> {
    let node = object(context, "nodes", &format!("/{node}"), node)?;
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Only addresses: names are never resolved between nodes.
    let address = ["InternalIP", "ExternalIP"]
        .iter()
        .find_map(|kind| addresses.iter().find(|address| address["type"] == *kind))
        .and_then(|address| address["address"].as_str())
        .ok_or_else(|| Status::service_unavailable("the node has not announced an address yet"))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok(Destination {
        address: address.to_owned(),
        port: u16::try_from(port).unwrap_or(10250),
        tls: Tls::Kubelet,
        path,
    })
}

/// The scheme in front of a proxied object's name says whether it wants TLS.
fn tls_of(name: &str) -> Tls {
    if name.starts_with("https:") && name.matches(':').count() == 2 { Tls::Unverified } else { Tls::None }
}

/// Whether a Service's port is the one that is asked for, by name or by number.
fn is_port(port: &Value, asked: &str) -> bool {
    port["name"] == asked || port["port"].as_u64().is_some_and(|number| number.to_string() == asked)
}

/// A ready endpoint of the Service (`registry/core/service/proxy.go`).
fn service(context: &Context) -> Result<Destination, Status> {
    let info = &context.info;
    let parts: Vec<&str> = info.name.split(':').collect();
    let (name, port_name) = match parts.as_slice() {
        [name] => (*name, ""),
        [name, port] => (*name, *port),
        [_, name, port] => (*name, *port),
        _ => return Err(Status::bad_request(format!("invalid service request {:?}", info.name))),
    };
    let service = object(context, "services", &format!("{}/{name}", info.namespace), name)?;
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port =
        ports.iter().find(|port| port_name.is_empty() || is_port(port, port_name)).ok_or_else(|| {
            Status::service_unavailable(format!("no service port {port_name:?} found for service {name:?}"))
        })?;
    let wanted = port["name"].as_str().unwrap_or_default();
    let of_a_pod = |endpoint: &Value, address: &str| is_of_a_pod(context, endpoint, address);
    let (address, port) = outbound::ready_endpoint(&context.state, &info.namespace, name, wanted, of_a_pod)
        .map_err(Status::service_unavailable)?;
    let (address, path) = (address.to_string(), format!("/{}", info.rest));
    Ok(Destination { address, port, tls: tls_of(&info.name), path })
}

/// Whether a pod of the namespace has the address. Who writes EndpointSlices of a namespace could otherwise send the API
/// server anywhere (`registry/core/service/storage`, `isValidAddress`).
fn is_of_a_pod(context: &Context, endpoint: &Value, address: &str) -> bool {
    let (target, namespace) = (&endpoint["targetRef"], context.info.namespace.as_str());
    if target["kind"] != "Pod" || target["namespace"] != namespace {
        return false;
    }
    let name = target["name"].as_str().unwrap_or_default();
    let pod = object(context, "pods", &format!("{namespace}/{name}"), name).unwrap_or_default();
    pod["status"]["podIPs"].as_array().into_iter().flatten().any(|own| own["ip"] == address)
}

fn unreachable(error: impl std::fmt::Display) -> Status {
    Status::service_unavailable(format!("error trying to reach service: {error}"))
}

async fn connect(context: &Context, to: &Destination) -> Result<SendRequest<Body>, Status> {
    // Only addresses: names are never resolved.
    if to.address.parse::<IpAddr>().is_err() {
        return Err(unreachable(format!("{:?} is no address", to.address)));
    }
    let config = match to.tls {
        Tls::None => None,
        Tls::Unverified => Some(outbound::tls(&context.state, None, true, None).map_err(unreachable)?),
        Tls::Kubelet => Some(context.state.config.kubelet_client.clone()),
    };
    let tls = config.map(|config| (to.address.as_str(), config));
    outbound::connect(&context.state.tasks, &to.address, to.port, tls).await.map_err(unreachable)
}

fn path_and_query(
    context: &Context,
    request: &Request<Body>,
    to: &Destination,
) -> Result<PathAndQuery, Status> {
    let query =
        request.uri().query().map(|query| format!("?{}", kubelet_query(context, query))).unwrap_or_default();
    format!("{}{query}", to.path).parse().map_err(unreachable)
}

fn host(to: &Destination) -> Result<HeaderValue, Status> {
    HeaderValue::try_from(outbound::host_port(&to.address, to.port)).map_err(unreachable)
}

/// A SPDY connection to the kubelet and the headers that it was accepted with, or the refusal.
async fn spdy(
    context: &Context,
    to: &Destination,
    path: PathAndQuery,
    protocols: &[String],
) -> Result<Result<(HeaderMap, Upgraded), Response<Incoming>>, Status> {
    let mut sender = connect(context, to).await?;
    let mut outgoing = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, host(to)?)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "SPDY/3.1");
    for protocol in protocols {
        outgoing = outgoing.header(STREAM_PROTOCOL, protocol);
    }
    let outgoing = outgoing.body(Body::empty()).map_err(unreachable)?;
    let mut response = sender.send_request(outgoing).await.map_err(unreachable)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Err(response));
    }
    let backend = hyper::upgrade::on(&mut response).await.map_err(unreachable)?;
    Ok(Ok((response.headers().clone(), backend)))
}

/// The kubelet's stream for a client whose WebSocket stands already; what goes wrong is told with
/// the words of client-go's SPDY executor, which is what does this upstream.
async fn exec_backend(
    context: &Context,
    to: &Destination,
    path: PathAndQuery,
) -> Result<TokioIo<Upgraded>, Value> {
    match spdy(context, to, path, &[stream::V4.to_owned()]).await {
        Ok(Ok((_, backend))) => Ok(TokioIo::new(backend)),
        Ok(Err(refusal)) => {
            let body = crate::body::collect(Body::new(refusal.into_body())).await.unwrap_or_default();
            match serde_json::from_slice::<Value>(&body) {
                Ok(status) if status["kind"] == "Status" => Err(status),
                _ => {
                    let text = String::from_utf8_lossy(&body);
                    Err(Status::internal(format!("unable to upgrade connection: {}", text.trim())).to_value())
                }
            }
        }
        Err(error) => Err(Status::internal(format!("error sending request: {error}")).to_value()),
    }
}

async fn forward(
    context: &Arc<Context>,
    mut request: Request<Body>,
    to: Destination,
) -> Result<Response<Body>, Status> {
    let path = path_and_query(context, &request, &to)?;
    let mut sender = connect(context, &to).await?;
    let is_upgrade = request.headers().contains_key(UPGRADE);
    let client = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let mut outgoing = Request::builder().method(parts.method).uri(path);
    if let Some(headers) = outgoing.headers_mut() {
        *headers = passed_on(&parts.headers, is_upgrade);
        stream::without_token(headers);
        headers.insert(HOST, host(&to)?);
    }
    let outgoing = outgoing.body(body).map_err(unreachable)?;
    let root = root_of(&parts.uri, &to.path);
    let has_body = !is_head;
    let mut response = sender.send_request(outgoing).await.map_err(unreachable)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        outbound::join(&context.state.tasks, client, &mut response);
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = passed_on(response.headers(), true);
        return Ok(answer);
    }
    // A kubelet's refusal is plain text; clients expect a Status.
    if matches!(to.tls, Tls::Kubelet) && !response.status().is_success() && !is_node_proxy(context) {
        return Ok(as_status(response).await);
    }
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = passed_on(&parts.headers, false);
    if context.info.subresource == "proxy" && has_body {
        return through_here(answer, &root).await;
    }
    Ok(answer)
}

/// The proxy's own path: the request's without what goes on to the destination.
fn root_of(uri: &http::Uri, rest: &str) -> String {
    uri.path().strip_suffix(rest).unwrap_or(uri.path()).trim_end_matches('/').to_owned()
}

/// Links and redirections of what the proxy shows lead through it again.
async fn through_here(answer: Response<Body>, root: &str) -> Result<Response<Body>, Status> {
    let (mut parts, body) = answer.into_parts();
    let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let moved = text(http::header::LOCATION).map(|to| links::address(to, root));
    let kind = text(http::header::CONTENT_TYPE).unwrap_or_default();
    let is_page = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
        && !parts.headers.contains_key(http::header::CONTENT_ENCODING)
        && text(http::header::CONTENT_LENGTH).is_none_or(|length| {
            length.parse().is_ok_and(|length: usize| length > 0 && length <= PAGE_LIMIT)
        });
    if let Some(moved) = moved.and_then(|moved| HeaderValue::try_from(moved).ok()) {
        parts.headers.insert(http::header::LOCATION, moved);
    }
    if !is_page {
        return Ok(Response::from_parts(parts, body));
    }
    let bytes = axum::body::to_bytes(body, PAGE_LIMIT)
        .await
        .map_err(|error| Status::service_unavailable(format!("error trying to reach service: {error}")))?;
    let bytes = match std::str::from_utf8(&bytes) {
        Ok(page) => links::page(page, root).into(),
        Err(_) => bytes,
    };
    if parts.headers.contains_key(http::header::CONTENT_LENGTH) {
        parts.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

/// Kubelets have other names for the parameters of streams than the API
/// (`pkg/registry/core/pod/strategy.go`, `streamParams`).
fn kubelet_query(context: &Context, query: &str) -> String {
    if context.info.resource != "pods" {
        return query.to_owned();
    }
    match context.info.subresource.as_str() {
        "exec" | "attach" => stream_query(query),
        "portforward" => {
            let ports: Vec<&str> = context.query.all("ports").collect();
            if ports.is_empty() { String::new() } else { format!("port={}", ports.join(",")) }
        }
        _ => query.to_owned(),
    }
}

fn stream_query(query: &str) -> String {
    let renamed = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = match name {
            "stdin" => "input",
            "stdout" => "output",
            "stderr" => "error",
            "tty" => "tty",
            other => return Some(format!("{other}={value}")),
        };
        // What the API server takes for false when it reads options; kubelets know no true but 1.
        (value != "0" && !value.eq_ignore_ascii_case("false")).then(|| format!("{name}=1"))
    };
    query.split('&').filter_map(renamed).collect::<Vec<_>>().join("&")
}

fn is_node_proxy(context: &Context) -> bool {
    context.info.resource == "nodes"
}

async fn as_status(response: Response<Incoming>) -> Response<Body> {
    let code = response.status();
    let body = crate::body::collect(Body::new(response.into_body())).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    let status = match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::plain(404, "NotFound", text),
        StatusCode::FORBIDDEN => Status::plain(403, "Forbidden", text),
        _ => {
            let mut status = Status::internal(text);
            status.code = code.as_u16();
            status
        }
    };
    respond::status(&status)
}

/// The headers without those that concern one connection or authenticate the client to us.
fn passed_on(headers: &HeaderMap, is_upgrade: bool) -> HeaderMap {
    let dropped =
        ["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "authorization", "cookie"];
    let keep = |name: &HeaderName| {
        let connection = *name == CONNECTION || *name == UPGRADE;
        (!connection || is_upgrade)
            && !dropped.contains(&name.as_str())
            && !name.as_str().starts_with("impersonate-")
            && !name.as_str().starts_with("x-remote-")
    };
    headers.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.clone(), value.clone())).fold(
        HeaderMap::new(),
        |mut kept, (name, value)| {
            kept.append(name, value);
            kept
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_the_kubelets_names() {
        assert_eq!(
            stream_query("command=sh&stdin=true&stdout=1&stderr=false&tty=True&command=stdin&container="),
            "command=sh&input=1&output=1&tty=1&command=stdin&container="
        );
        assert_eq!(stream_query("command=tty%3Dtrue&tty=0&stdin"), "command=tty%3Dtrue&input=1");
    }

    #[test]
    fn what_concerns_one_connection_or_us_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for name in
            ["authorization", "impersonate-user", "connection", "upgrade", "x-stream-protocol-version"]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let names = |is_upgrade| {
            let kept = passed_on(&headers, is_upgrade);
            let mut names: Vec<String> = kept.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["x-stream-protocol-version"]);
        assert_eq!(names(true), ["connection", "upgrade", "x-stream-protocol-version"]);
    }
}
