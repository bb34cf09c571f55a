//! Answers that go on and on, watches and logs, as the messages of a WebSocket (apiserver
//! `endpoints/handlers/watch.go` and `httpstream/wsstream/stream.go`): browsers have nothing else for them. What
//! the client sends is thrown away.

use axum::body::{Body, BodyDataStream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Sink, SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kedge_base::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{close, is_websocket, protocols, server, switching, until_closed, without_token};
use crate::respond;

/// The bytes as they are, which is also what a client gets that names no subprotocol.
const BINARY: &str = "binary.k8s.io";
/// The bytes as text.
const BASE64: &str = "base64.binary.k8s.io";
/// What goes between here and the client alone.
const HANDSHAKE: [http::HeaderName; 6] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
];

/// What a message is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One event of a watch, a line of JSON.
    Lines,
    Binary,
    Base64,
}

/// A client that wants its answer over a WebSocket.
pub(crate) struct Reader {
    headers: HeaderMap,
    client: OnUpgrade,
    is_watch: bool,
}

impl Reader {
    /// Takes the handshake out of a request for a watch or for logs: what is left is a plain request.
    pub(crate) fn take(request: &mut Request<Body>, is_watch: bool) -> Option<Self> {
        if *request.method() != Method::GET || !is_websocket(request.headers()) {
            return None;
        }
        let mut headers = request.headers().clone();
        without_token(&mut headers);
        for name in HANDSHAKE {
            request.headers_mut().remove(name);
        }
        Some(Self { headers, client: hyper::upgrade::on(request), is_watch })
    }

    /// The answer's body becomes messages; an answer that tells of a failure stays as it is.
    pub(crate) fn answer(self, tasks: &Tasks, response: Response<Body>) -> Response<Body> {
        if response.status() != StatusCode::OK {
            return response;
        }
        let Some((protocol, form)) = form(&self.headers, self.is_watch) else {
            return respond::text(StatusCode::FORBIDDEN, "");
        };
        let answer = switching(&self.headers, protocol);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            tasks.spawn_until_stopped("websocket reader", async move {
                let Ok(client) = self.client.await else { return };
                let client = server(TokioIo::new(client)).await;
                run(client, response.into_body().into_data_stream(), form).await;
            });
        }
        answer
    }
}

/// The subprotocol that is answered and what it means; none: the client offers nothing that is known here.
fn form(headers: &HeaderMap, is_watch: bool) -> Option<(Option<&str>, Form)> {
    let mut offered = protocols(headers).filter(|protocol| !protocol.is_empty()).peekable();
    if is_watch {
        return Some((offered.next(), Form::Lines));
    }
    if offered.peek().is_none() {
        return Some((None, Form::Binary));
    }
    offered.find_map(|protocol| match protocol {
        BINARY => Some((Some(protocol), Form::Binary)),
        BASE64 => Some((Some(protocol), Form::Base64)),
        _ => None,
    })
}

async fn run<C: AsyncRead + AsyncWrite + Unpin>(
    client: WebSocketStream<C>,
    mut body: BodyDataStream,
    form: Form,
) {
    let (mut sink, mut source) = client.split();
    tokio::select! {
        () = send(&mut body, &mut sink, form) => {}
        () = until_closed(&mut source) => return,
    }
    close(&mut sink).await;
    let _ = tokio::time::timeout(super::GOODBYE, until_closed(&mut source)).await;
}

async fn send(body: &mut BodyDataStream, sink: &mut (impl Sink<Message> + Unpin), form: Form) {
    // An empty message says that the stream stands.
    if form != Form::Lines && sink.send(message(Bytes::new(), form)).await.is_err() {
        return;
    }
    let mut rest = Vec::new();
    while let Some(Ok(bytes)) = body.next().await {
        let pieces = if form == Form::Lines { lines(&mut rest, &bytes) } else { vec![bytes] };
        for piece in pieces {
            if sink.send(message(piece, form)).await.is_err() {
                return;
            }
        }
    }
}

/// The whole lines; a line's beginning waits in `rest`.
fn lines(rest: &mut Vec<u8>, bytes: &[u8]) -> Vec<Bytes> {
    let mut all = Vec::new();
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        if piece.ends_with(b"\n") {
            all.push(std::mem::take(rest).into());
        }
    }
    all
}

fn message(bytes: Bytes, form: Form) -> Message {
    match form {
        Form::Lines => match String::from_utf8(bytes.into()) {
            Ok(text) => Message::text(text),
            Err(error) => Message::binary(error.into_bytes()),
        },
        Form::Binary => Message::Binary(bytes),
        Form::Base64 => Message::text(STANDARD.encode(&bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::{client_of, server_of};

    #[test]
    fn subprotocols() {
        let cases: [(&str, bool, Option<(Option<&str>, Form)>); 6] = [
            ("", false, Some((None, Form::Binary))),
            ("binary.k8s.io", false, Some((Some("binary.k8s.io"), Form::Binary))),
            ("x, base64.binary.k8s.io", false, Some((Some("base64.binary.k8s.io"), Form::Base64))),
            ("v4.channel.k8s.io", false, None),
            ("", true, Some((None, Form::Lines))),
            ("anything", true, Some((Some("anything"), Form::Lines))),
        ];
        for (offered, is_watch, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, offered.parse().expect("header"));
            assert_eq!(form(&headers, is_watch), expected, "{offered}");
        }
    }

    async fn sent(form: Form) -> Vec<Message> {
        let pieces = ["one\ntw", "o\nthree\n"].map(|text| Ok::<_, std::io::Error>(Bytes::from(text)));
        let body = Body::from_stream(futures::stream::iter(pieces)).into_data_stream();
        let (client, backend) = tokio::io::duplex(64);
        let (mut client, backend) = tokio::join!(client_of(client), server_of(backend));
        let read = async {
            let mut all = Vec::new();
            while let Some(Ok(message)) = client.next().await {
                all.push(message);
            }
            all
        };
        tokio::join!(run(backend, body, form), read).1
    }

    #[tokio::test]
    async fn messages() {
        let text = |text: &str| Message::text(text.to_owned());
        let all = sent(Form::Lines).await;
        assert_eq!(all[..3], [text("one\n"), text("two\n"), text("three\n")]);
        assert!(matches!(all[3], Message::Close(_)));
        let all = sent(Form::Binary).await;
        assert_eq!(all[..3], ["", "one\ntw", "o\nthree\n"].map(|text| Message::Binary(text.into())));
        let all = sent(Form::Base64).await;
        assert_eq!(all[..3], [text(""), text("b25lCnR3"), text("bwp0aHJlZQo=")]);
    }
}
