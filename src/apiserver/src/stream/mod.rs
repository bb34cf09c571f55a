//! Streams of clients that use WebSockets (KEP-4006), for kubelets and container runtimes that speak
//! SPDY: exec and attach over `v5.channel.k8s.io` are translated, port-forward over
//! `SPDY/3.1+portforward.k8s.io` is taken out of its messages. The older subprotocols need nothing of
//! this: container runtimes speak them, so their bytes pass through (`proxy`). Watches and logs come over
//! WebSockets too (`reader`).

#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod reader;
mod spdy;
mod translate;
mod tunnel;

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use futures::stream::{Stream, StreamExt as _};
use futures::{Sink, SinkExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kedge_base::Tasks;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::respond;

pub(crate) use reader::Reader;
pub(crate) use translate::Wanted;

/// The subprotocol in which a client can close one channel.
const V5: &str = "v5.channel.k8s.io";
/// What is spoken with the kubelet in its place.
pub(crate) const V4: &str = "v4.channel.k8s.io";
const TUNNEL_PREFIX: &str = "SPDY/3.1+";
const SUFFIX: &str = ".k8s.io";
/// Carries a bearer token: it is for this server alone.
const TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
/// As large as upstream takes a message to be, in bytes.
const LARGEST_MESSAGE: usize = 32 << 20;
const BUFFER: usize = 16 << 10;
/// How long a client may take to hang up when its stream has failed or ended.
const GOODBYE: Duration = Duration::from_secs(30);

/// What is to be done with a request for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The kubelet understands it as it is.
    Through,
    Translate,
    /// With the SPDY subprotocols that the client offers.
    Tunnel(Vec<String>),
}

/// The way that a request for this subresource of a pod goes.
pub(crate) fn way(subresource: &str, method: &Method, headers: &HeaderMap) -> Way {
    if *method != Method::GET || !is_websocket(headers) {
        return Way::Through;
    }
    match subresource {
        "exec" | "attach" if protocols(headers).any(|protocol| protocol == V5) => Way::Translate,
        "portforward" => {
            let tunnelled = protocols(headers)
                .filter_map(|protocol| protocol.strip_prefix(TUNNEL_PREFIX))
                .filter(|protocol| protocol.ends_with(SUFFIX))
                .map(str::to_owned)
                .collect::<Vec<_>>();
            if tunnelled.is_empty() { Way::Through } else { Way::Tunnel(tunnelled) }
        }
        _ => Way::Through,
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    upgrade.eq_ignore_ascii_case("websocket") && is_upgrade(headers)
}

/// Whether a client asks for another protocol on its connection.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().split(',').any(|token| token.trim() == "upgrade"))
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The offered subprotocols without the one that carries a token.
pub(crate) fn without_token(headers: &mut HeaderMap) {
    if !protocols(headers).any(|protocol| protocol.starts_with(TOKEN_PREFIX)) {
        return;
    }
    let kept: Vec<&str> = protocols(headers).filter(|protocol| !protocol.starts_with(TOKEN_PREFIX)).collect();
    let kept = HeaderValue::from_str(&kept.join(", "));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(kept) = kept
        && !kept.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, kept);
    }
}

/// Answer an exec or attach request, and translate what follows. `connect` opens the kubelet's
/// stream with [`V4`], or says as a `Status` why there is none: the client's connection stands by
/// then, so that is reported on its error channel.
pub(crate) fn translated<B>(
    tasks: &Tasks,
    mut request: Request<Body>,
    wanted: Wanted,
    connect: impl Future<Output = Result<B, Value>> + Send + 'static,
) -> Response<Body>
where
    B: AsyncRead + AsyncWrite + Send + 'static,
{
    let answer = switching(request.headers(), Some(V5));
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = hyper::upgrade::on(&mut request);
        tasks.spawn_until_stopped("stream translation", async move {
            let Ok(client) = client.await else { return };
            translate::run(server(TokioIo::new(client)).await, connect, wanted).await;
        });
    }
    answer
}

/// Answer a port-forward request whose SPDY connection to the kubelet stands; `protocol` is the
/// kubelet's choice.
pub(crate) fn tunnelled(
    tasks: &Tasks,
    mut request: Request<Body>,
    backend: Upgraded,
    protocol: Option<&str>,
) -> Response<Body> {
    let protocol = protocol.map(|protocol| format!("{TUNNEL_PREFIX}{protocol}"));
    let answer = switching(request.headers(), protocol.as_deref());
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = hyper::upgrade::on(&mut request);
        tasks.spawn_until_stopped("stream tunnel", async move {
            let Ok(client) = client.await else { return };
            tunnel::run(server(TokioIo::new(client)).await, TokioIo::new(backend)).await;
        });
    }
    answer
}

/// The server's half of the handshake (RFC 6455, 4.2.2): 101, or 400 with the reason.
fn switching(headers: &HeaderMap, protocol: Option<&str>) -> Response<Body> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut answer = respond::text(StatusCode::BAD_REQUEST, "missing or bad WebSocket Version");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return answer;
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty()) else {
        return respond::text(StatusCode::BAD_REQUEST, "mismatch challenge/response");
    };
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = answer.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(Ok(protocol)) = protocol.map(HeaderValue::from_str) {
        fields.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    answer
}

/// The server's end of a WebSocket whose handshake is done.
async fn server<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// Say goodbye: everything was sent.
async fn close(sink: &mut (impl Sink<Message> + Unpin)) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(frame))).await;
}

/// Take what still comes until the client has closed the connection.
async fn until_closed(source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) {
    while let Some(Ok(_)) = source.next().await {}
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    pub(super) async fn server_of<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
        server(stream).await
    }

    pub(super) async fn client_of<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    #[tokio::test]
    async fn what_a_server_said_arrives_though_it_takes_no_more() {
        use tokio::io::AsyncReadExt as _;
        let (client, user) = tokio::io::duplex(64);
        let (server, mut peer) = tokio::io::duplex(64);
        let peer = async move {
            peer.read_exact(&mut [0; 10]).await.expect("read");
            peer.write_all(b"enough").await.expect("written");
            // It leaves unread what is still coming.
        };
        let user = async move {
            let (mut read, mut write) = tokio::io::split(user);
            let mut got = String::new();
            // Far more than fits anywhere, and all of it is taken.
            let written = write.write_all(&[0; 1 << 20]);
            let (written, read) = tokio::join!(written, read.read_to_string(&mut got));
            written.expect("written");
            read.expect("read");
            assert_eq!(got, "enough");
        };
        tokio::join!(kedge_base::pass_bytes(client, server), peer, user);
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.parse().expect("name"), HeaderValue::from_static(value)))
            .collect()
    }

    const WEBSOCKET: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];

    #[test]
    fn every_client_goes_its_way() {
        let tunnel = |names: &[&str]| Way::Tunnel(names.iter().map(|name| (*name).to_owned()).collect());
        let cases = [
            ("exec", "v5.channel.k8s.io", Way::Translate),
            ("attach", "v4.channel.k8s.io, v5.channel.k8s.io", Way::Translate),
            ("exec", "v4.channel.k8s.io", Way::Through),
            ("exec", "base64.channel.k8s.io", Way::Through),
            ("portforward", "v5.channel.k8s.io", Way::Through),
            ("portforward", "v4.channel.k8s.io", Way::Through),
            ("portforward", "SPDY/3.1+portforward.k8s.io,SPDY/3.1+other", tunnel(&["portforward.k8s.io"])),
            ("proxy", "v5.channel.k8s.io", Way::Through),
        ];
        for (subresource, offered, expected) in cases {
            let mut headers = headers(&WEBSOCKET);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
            assert_eq!(way(subresource, &Method::GET, &headers), expected, "{subresource} {offered}");
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            assert_eq!(way(subresource, &Method::GET, &headers), Way::Through, "{subresource} over SPDY");
        }
    }

    #[test]
    fn a_token_stays_here() {
        let mut map = headers(&[(
            "sec-websocket-protocol",
            "base64url.bearer.authorization.k8s.io.abc, v4.channel.k8s.io",
        )]);
        without_token(&mut map);
        assert_eq!(map[SEC_WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
        let mut map = headers(&[("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.abc")]);
        without_token(&mut map);
        assert!(map.is_empty());
    }

    #[test]
    fn handshakes_are_checked() {
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let version = ("sec-websocket-version", "13");
        let cases: [(&[(&'static str, &'static str)], u16); 4] = [
            (&[key, version], 101),
            (&[key], 400),
            (&[version], 400),
            (&[key, ("sec-websocket-version", "8")], 400),
        ];
        for (list, code) in cases {
            let answer = switching(&headers(list), Some(V5));
            assert_eq!(answer.status(), code, "{list:?}");
            if code == 101 {
                // The example of RFC 6455, 1.3.
                assert_eq!(answer.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                assert_eq!(answer.headers()[SEC_WEBSOCKET_PROTOCOL], V5);
            }
        }
    }
}
