//! The translator between a WebSocket client and a kubelet that is played here frame by frame.

use std::time::Duration;

use futures::stream::StreamExt as _;
use futures::{SinkExt as _, Stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::*;
use crate::stream::tests::{client_of, server_of};

/// A kubelet's end of a SPDY connection.
struct Kubelet {
    io: DuplexStream,
    has_begun: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Open(u32, String),
    Data(u32, Vec<u8>, bool),
    Ping(u32),
}

impl Kubelet {
    /// The next frame; nothing at the connection's end. Pings of the client are answered.
    async fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 8];
        self.io.read_exact(&mut header).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
        if header[0] & 0x80 == 0 {
            return Some(Frame::Data(number(&header), payload, header[4] & 1 == 1));
        }
        match header[3] {
            1 => {
                // Behind the frame's own fields, zlib's header once, and the stored block's header
                // comes one pair: its number, and name and value with their lengths.
                let start = 10 + if self.has_begun { 0 } else { 6 } + 5;
                self.has_begun = true;
                let pair = &payload[start..];
                assert_eq!(&pair[..18], b"\0\0\0\x01\0\0\0\x0astreamtype");
                let length = number(&pair[18..]) as usize;
                let value = String::from_utf8(pair[22..22 + length].to_vec()).expect("text");
                Some(Frame::Open(number(&payload), value))
            }
            6 => Some(Frame::Ping(number(&payload))),
            other => panic!("control frame {other}"),
        }
    }

    /// The next frame that is no ping of the client's.
    async fn next_but_pings(&mut self) -> Option<Frame> {
        loop {
            match self.next().await {
                Some(Frame::Ping(id)) if id % 2 == 1 => {}
                frame => return frame,
            }
        }
    }

    async fn control(&mut self, kind: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).expect("short");
        self.io.write_all(&[0x80, 3, 0, kind, 0, 0, 0, length]).await.expect("sent");
        self.io.write_all(payload).await.expect("sent");
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], last: bool) -> std::io::Result<()> {
        let [_, a, b, c] = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        self.io.write_all(&stream.to_be_bytes()).await?;
        self.io.write_all(&[u8::from(last), a, b, c]).await?;
        self.io.write_all(bytes).await
    }

    /// Read and accept so many streams.
    async fn accept(&mut self, expected: &[&str]) {
        let mut names = Vec::new();
        for at in 0..expected.len() {
            let Some(Frame::Open(id, name)) = self.next_but_pings().await else { panic!("no stream") };
            assert_eq!(id as usize, 2 * at + 1);
            names.push(name);
            self.control(2, &id.to_be_bytes()).await;
        }
        assert_eq!(names, expected);
    }

    async fn status(&mut self, status: &Value) {
        self.data(1, status.to_string().as_bytes(), false).await.expect("sent");
        self.control(3, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
    }
}

fn wanted(names: &str) -> Wanted {
    Wanted {
        stdin: names.contains("stdin"),
        stdout: names.contains("stdout"),
        stderr: names.contains("stderr"),
        tty: names.contains("tty"),
    }
}

/// Run the translator with a client's and a kubelet's part.
async fn play<C, K>(
    streams: &str,
    client: impl FnOnce(WebSocketStream<DuplexStream>) -> C,
    kubelet: impl FnOnce(Kubelet) -> K,
) where
    C: Future<Output = ()>,
    K: Future<Output = ()>,
{
    let (ours, theirs) = tokio::io::duplex(1 << 12);
    let (backend, io) = tokio::io::duplex(1 << 12);
    let translator = async {
        run(server_of(ours).await, async { Ok(backend) }, wanted(streams)).await;
    };
    let client = async { client(client_of(theirs).await).await };
    let kubelet = kubelet(Kubelet { io, has_begun: false });
    let all = async { tokio::join!(translator, client, kubelet) };
    // Far longer than anything takes: a test that hangs is to say so.
    tokio::time::timeout(Duration::from_secs(300), all).await.expect("everybody ends");
}

async fn binary(source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> Option<(u8, Vec<u8>)> {
    match source.next().await {
        Some(Ok(Message::Binary(bytes))) => Some((bytes[0], bytes[1..].to_vec())),
        Some(Ok(Message::Close(frame))) => {
            assert_eq!(u16::from(frame.expect("a code").code), 1000);
            None
        }
        other => panic!("{other:?}"),
    }
}

/// All that comes until the server says goodbye, by channel.
async fn rest(source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> [Vec<u8>; 4] {
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some((channel, bytes)) = binary(source).await {
        channels[usize::from(channel)].extend(bytes);
    }
    channels
}

fn status_of(channels: &[Vec<u8>; 4]) -> Value {
    serde_json::from_slice(&channels[3]).expect("a Status")
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

#[tokio::test]
async fn input_ends_when_the_client_closes_it() {
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        assert_eq!(binary(&mut client).await, Some((1, vec![])), "the sign that we are connected");
        for part in [b"\0ab".to_vec(), b"\0c".to_vec(), vec![255, 0], b"\0too late".to_vec()] {
            client.send(Message::binary(part)).await.expect("sent");
        }
        let channels = rest(&mut client).await;
        assert_eq!(channels[1], b"abc");
        assert_eq!(channels[2], b"oh");
        assert_eq!(status_of(&channels), success());
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.accept(&["error", "stdin", "stdout", "stderr"]).await;
        let mut got = Vec::new();
        while let Some(Frame::Data(3, bytes, last)) = kubelet.next_but_pings().await {
            got.extend(bytes);
            if last {
                break;
            }
        }
        kubelet.data(7, b"oh", true).await.expect("sent");
        kubelet.data(5, &got, true).await.expect("sent");
        kubelet.status(&success()).await;
    };
    play("stdin stdout stderr", client, kubelet).await;
}

#[tokio::test]
async fn exit_codes_and_errors_reach_the_client() {
    let exit = json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": "command terminated with non-zero exit code: exit status 3",
        "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
    });
    for (sent, is_reset, expected) in [
        (exit.to_string(), true, exit.clone()),
        (exit.to_string(), false, exit),
        (String::new(), true, success()),
        ("oops".into(), true, failed("error stream protocol error: not a Status: \"oops\"")),
        (String::new(), false, failed("error reading from error stream: unexpected EOF")),
    ] {
        let client = |mut client: WebSocketStream<DuplexStream>| async move {
            let channels = rest(&mut client).await;
            assert_eq!(status_of(&channels), expected);
        };
        let kubelet = |mut kubelet: Kubelet| async move {
            kubelet.accept(&["error", "stdout"]).await;
            kubelet.data(1, sent.as_bytes(), false).await.expect("sent");
            if is_reset {
                kubelet.control(3, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
                kubelet.control(3, &[0, 0, 0, 3, 0, 0, 0, 5]).await;
            }
        };
        play("stdout", client, kubelet).await;
    }
}

#[tokio::test]
async fn a_refused_stream_is_an_error() {
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        let status = status_of(&rest(&mut client).await);
        assert_eq!(
            status["message"],
            "Internal error occurred: the kubelet refused the stdout stream (SPDY status 3)"
        );
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.control(3, &[0, 0, 0, 3, 0, 0, 0, 3]).await;
        while kubelet.next().await.is_some() {}
    };
    play("stdout", client, kubelet).await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_no_stderr() {
    let size = br#"{"Width":80,"Height":24}"#;
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        let mut resize = vec![4];
        resize.extend(size);
        client.send(Message::binary(resize)).await.expect("sent");
        // Nobody reads these, but they do no harm either.
        client.send(Message::binary(b"\x02x".to_vec())).await.expect("sent");
        client.send(Message::binary(b"\x09x".to_vec())).await.expect("sent");
        client.send(Message::binary(Vec::new())).await.expect("sent");
        assert_eq!(status_of(&rest(&mut client).await), success());
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.accept(&["error", "stdin", "stdout", "resize"]).await;
        assert_eq!(kubelet.next_but_pings().await, Some(Frame::Data(7, size.to_vec(), false)));
        kubelet.status(&success()).await;
        kubelet.control(3, &[0, 0, 0, 5, 0, 0, 0, 5]).await;
    };
    play("stdin stdout stderr tty", client, kubelet).await;
}

#[tokio::test]
async fn a_slow_client_holds_the_kubelet_back() {
    const TOTAL: usize = 8 << 20;
    let (pause, paused) = tokio::sync::oneshot::channel();
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        // The kubelet says how much it got rid of while nobody read.
        let unread: usize = paused.await.expect("told");
        assert!(unread < 1 << 20, "{unread} bytes were taken and kept");
        let channels = rest(&mut client).await;
        assert_eq!(channels[1].len(), TOTAL);
        assert_eq!(status_of(&channels), success());
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.accept(&["error", "stdout"]).await;
        let (mut sent, mut pause) = (0, Some(pause));
        while sent < TOTAL {
            let piece = vec![1; 1 << 14];
            let write = kubelet.data(3, &piece, false);
            tokio::pin!(write);
            // Nothing but the client can make a blocked write go on.
            match tokio::time::timeout(Duration::from_millis(200), &mut write).await {
                Ok(written) => written.expect("sent"),
                Err(_) => {
                    if let Some(pause) = pause.take() {
                        pause.send(sent).expect("told");
                    }
                    write.await.expect("sent");
                }
            }
            sent += piece.len();
            if sent > 2 << 20
                && let Some(pause) = pause.take()
            {
                pause.send(sent).expect("told");
            }
        }
        kubelet.data(3, &[], true).await.expect("sent");
        kubelet.status(&success()).await;
    };
    play("stdout", client, kubelet).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_kubelets_stream() {
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        assert_eq!(binary(&mut client).await, Some((1, vec![])));
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.accept(&["error", "stdin", "stdout"]).await;
        while kubelet.next().await.is_some() {}
    };
    play("stdin stdout", client, kubelet).await;
}

#[tokio::test]
async fn what_is_not_of_the_protocol_ends_the_session() {
    for wrong in [vec![255], vec![255, 7], vec![255, 0, 0]] {
        let client = |mut client: WebSocketStream<DuplexStream>| async move {
            client.send(Message::binary(wrong)).await.expect("sent");
            while let Some(Ok(_)) = client.next().await {}
        };
        let kubelet = |mut kubelet: Kubelet| async move {
            kubelet.accept(&["error", "stdin", "stdout"]).await;
            while kubelet.next().await.is_some() {}
        };
        play("stdin stdout", client, kubelet).await;
    }
}

#[tokio::test]
async fn pings_are_answered_on_both_sides() {
    let client = |mut client: WebSocketStream<DuplexStream>| async move {
        assert_eq!(binary(&mut client).await, Some((1, vec![])));
        client.send(Message::Ping(b"hi".to_vec().into())).await.expect("sent");
        assert_eq!(
            client.next().await.expect("a message").expect("pong"),
            Message::Pong(b"hi".to_vec().into())
        );
        assert_eq!(status_of(&rest(&mut client).await), success());
    };
    let kubelet = |mut kubelet: Kubelet| async move {
        kubelet.accept(&["error", "stdin", "stdout"]).await;
        kubelet.control(6, &[0, 0, 0, 42]).await;
        assert_eq!(kubelet.next_but_pings().await, Some(Frame::Ping(42)));
        kubelet.data(5, &[], true).await.expect("sent");
        kubelet.status(&success()).await;
    };
    play("stdin stdout", client, kubelet).await;
}

#[tokio::test]
async fn a_kubelet_that_cannot_be_reached_is_told_on_the_error_channel() {
    let (ours, theirs) = tokio::io::duplex(1 << 12);
    let translator = async {
        let connect = async { Err::<DuplexStream, Value>(failed("error sending request: refused")) };
        run(server_of(ours).await, connect, wanted("stderr")).await;
    };
    let client = async {
        let mut client = client_of(theirs).await;
        assert_eq!(binary(&mut client).await, Some((2, vec![])));
        let status = status_of(&rest(&mut client).await);
        assert_eq!(status["message"], "Internal error occurred: error sending request: refused");
        assert_eq!(status["code"], 500);
    };
    tokio::join!(translator, client);
}

#[tokio::test]
async fn a_session_in_which_nothing_is_said_ends() {
    idle(&AtomicU64::new(7), Duration::from_millis(20)).await;
}
