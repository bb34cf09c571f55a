//! Exec, attach and port-forward: containerd has a streaming server of its own on the loopback
//! interface; the upgraded connection's bytes are passed both ways and not looked into. That serves
//! SPDY/3.1 and the older WebSocket subprotocols; the newer ones are the API server's matter, which
//! translates them to SPDY. A subprotocol that containerd does not speak is refused here.

use http::header::{CONNECTION, HOST, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use tokio::net::TcpStream;

use super::{Answer, Query, Refusal, Target, text};
use crate::Error;
use crate::core::Shared;

/// WebSocket subprotocols that the streaming server of containerd 1.6 speaks.
const KNOWN: [&str; 5] = [
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "portforward.k8s.io",
];

pub(super) async fn exec(
    core: &Shared,
    request: Request<Incoming>,
    target: &Target,
    query: &Query,
) -> Result<Answer, Refusal> {
    let tty = query.flag("tty");
    let wanted = cri::ExecRequest {
        container_id: target.id.clone(),
        cmd: query.all("command"),
        tty,
        stdin: query.flag("input"),
        stdout: query.flag("output"),
        // A terminal has one stream for both.
        stderr: query.flag("error") && !tty,
    };
    if wanted.cmd.is_empty() {
        return Err(Refusal::bad_request("you must specify at least one command for the container"));
    }
    let url = core.runtime.cri().exec(wanted).await.map_err(runtime)?.into_inner().url;
    pass_on(core, request, &url).await
}

pub(super) async fn attach(
    core: &Shared,
    request: Request<Incoming>,
    target: &Target,
    query: &Query,
) -> Result<Answer, Refusal> {
    // CRI attaches to it still, and its streams would end empty, as if it had said nothing. Told so, kubectl run
    // reads the log.
    if core.runtime.has_ended(&target.id).await.map_err(|error| Refusal::internal(&error))? {
        let text = format!(
            "error attaching to container: container {} has ended; its output is in its log",
            target.id
        );
        return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    let wanted = cri::AttachRequest {
        container_id: target.id.clone(),
        // For a container without an input it leads nowhere, but the client expects the stream.
        stdin: query.flag("input"),
        tty: target.tty,
        stdout: query.flag("output"),
        stderr: query.flag("error") && !target.tty,
    };
    let url = core.runtime.cri().attach(wanted).await.map_err(runtime)?.into_inner().url;
    pass_on(core, request, &url).await
}

pub(super) async fn port_forward(
    core: &Shared,
    request: Request<Incoming>,
    sandbox: &str,
    query: &Query,
) -> Result<Answer, Refusal> {
    let is_websocket = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.to_str().is_ok_and(|protocol| protocol.eq_ignore_ascii_case("websocket")));
    // SPDY clients name the port with each of their streams.
    let port = if is_websocket { ports(query)? } else { Vec::new() };
    let wanted = cri::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port };
    let url = core.runtime.cri().port_forward(wanted).await.map_err(runtime)?.into_inner().url;
    pass_on(core, request, &url).await
}

/// The ports of a WebSocket client (`NewV4Options` in kubelet `pkg/cri/streaming/portforward`).
pub(super) fn ports(query: &Query) -> Result<Vec<i32>, Refusal> {
    let texts = query.all("port");
    if texts.is_empty() {
        return Err(Refusal::bad_request("query parameter \"port\" is required"));
    }
    let parse = |text: &str| match text.parse::<u16>() {
        Ok(0) => Err(Refusal::bad_request(format!("port {text:?} must be > 0"))),
        Ok(port) => Ok(port.into()),
        Err(error) => Err(Refusal::bad_request(format!("unable to parse {text:?} as a port: {error}"))),
    };
    texts.iter().flat_map(|text| text.split(',')).map(parse).collect()
}

fn runtime(status: tonic::Status) -> Refusal {
    Refusal::internal(&Error::from(status))
}

async fn pass_on(core: &Shared, mut request: Request<Incoming>, url: &str) -> Result<Answer, Refusal> {
    if !request.headers().contains_key(UPGRADE) {
        return Err(Refusal::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    if let Some(protocols) = request.headers().get(SEC_WEBSOCKET_PROTOCOL) {
        let offered = protocols.to_str().unwrap_or_default();
        if !offered.split(',').any(|protocol| KNOWN.contains(&protocol.trim())) {
            return Err(Refusal::bad_request(format!(
                "unable to upgrade: the container runtime does not speak {offered}; use SPDY/3.1"
            )));
        }
    }
    let failed = |error: &dyn std::fmt::Display| {
        Refusal(StatusCode::BAD_GATEWAY, format!("the container runtime's streaming server: {error}"))
    };
    let uri: Uri = url.parse().map_err(|error| failed(&error))?;
    let address = uri.authority().map(ToString::to_string).unwrap_or_default();
    let stream = TcpStream::connect(&address).await.map_err(|error| failed(&error))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    core.tasks.spawn_until_stopped("stream connection", async move {
        // The answer tells of a failure.
        let _ = connection.with_upgrades().await;
    });
    let mut outgoing = Request::builder()
        .method(request.method())
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()));
    if let Some(headers) = outgoing.headers_mut() {
        *headers = passed_on(request.headers());
        headers.insert(HOST, HeaderValue::from_str(&address).map_err(|error| failed(&error))?);
    }
    let outgoing = outgoing.body(Empty::<bytes::Bytes>::new()).map_err(|error| failed(&error))?;
    let client = hyper::upgrade::on(&mut request);
    let mut response = sender.send_request(outgoing).await.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status();
        let words =
            response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return Ok(text(code, String::from_utf8_lossy(&words).into_owned()));
    }
    let server = hyper::upgrade::on(&mut response);
    core.tasks.spawn_until_stopped("stream", async move {
        let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
        kedge_base::pass_bytes(TokioIo::new(client), TokioIo::new(server)).await;
    });
    let mut answer = Response::new(text(StatusCode::OK, "").into_body());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = passed_on(response.headers());
    Ok(answer)
}

/// What belongs to the stream; who the client was is not containerd's matter.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let wanted = |name: &HeaderName| {
        *name == CONNECTION
            || *name == UPGRADE
            || name.as_str().starts_with("x-stream-protocol")
            || name.as_str().starts_with("sec-websocket")
    };
    let mut kept = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| wanted(name)) {
        kept.append(name.clone(), value.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websocket_clients_name_their_ports() {
        let cases: [(&str, Result<&[i32], &str>); 6] = [
            ("port=80", Ok(&[80])),
            ("port=80,8080&port=65535", Ok(&[80, 8080, 65535])),
            ("", Err("query parameter \"port\" is required")),
            ("port=0", Err("port \"0\" must be > 0")),
            ("port=65536", Err("unable to parse \"65536\" as a port")),
            ("port=80,http", Err("unable to parse \"http\" as a port")),
        ];
        for (text, expected) in cases {
            let query = Query::of(&Request::builder().uri(format!("/x?{text}")).body(()).expect("request"));
            match (ports(&query), expected) {
                (Ok(ports), Ok(expected)) => assert_eq!(ports, expected, "{text}"),
                (Err(Refusal(code, words)), Err(expected)) => {
                    assert_eq!(code, StatusCode::BAD_REQUEST);
                    assert!(words.starts_with(expected), "{text}: {words}");
                }
                (ports, _) => panic!("{text}: {:?}", ports.ok()),
            }
        }
    }
}
