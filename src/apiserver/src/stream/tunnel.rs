//! A SPDY connection inside the binary messages of a WebSocket, as port-forward clients open it
//! (apiserver `pkg/util/proxy/streamtunnel.go`). The bytes are not looked into.

use bytes::Bytes;
use futures::stream::StreamExt as _;
use futures::{Sink, SinkExt as _, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

/// At most so many bytes are put into one message.
const PIECE: usize = 32 << 10;

/// Pass bytes both ways until either side ends.
pub(super) async fn run<C, B>(client: WebSocketStream<C>, backend: B)
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite,
{
    let (mut sink, mut source) = client.split();
    let (read, mut write) = tokio::io::split(backend);
    tokio::select! {
        () = to_client(read, &mut sink) => {
            super::close(&mut sink).await;
            let _ = tokio::time::timeout(super::GOODBYE, super::until_closed(&mut source)).await;
        }
        () = to_backend(&mut source, &mut write) => {}
    }
    let _ = tokio::time::timeout(super::GOODBYE, write.shutdown()).await;
}

async fn to_client(mut backend: impl AsyncRead + Unpin, sink: &mut (impl Sink<Message> + Unpin)) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length) = backend.read(&mut buffer).await
        && length > 0
    {
        let message = Message::Binary(Bytes::copy_from_slice(&buffer[..length]));
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

async fn to_backend(
    source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    backend: &mut (impl AsyncWrite + Unpin),
) {
    let mut is_taken = true;
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(bytes) = message else { continue };
        // A backend that takes no more may still have something to say.
        is_taken = is_taken && backend.write_all(&bytes).await.is_ok() && backend.flush().await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::{client_of, server_of};

    #[tokio::test]
    async fn bytes_pass_both_ways_until_the_backend_ends() {
        let (ours, theirs) = tokio::io::duplex(1 << 12);
        let (backend, mut kubelet) = tokio::io::duplex(1 << 12);
        let tunnel = async { run(server_of(ours).await, backend).await };
        let rest = async move {
            let mut client = client_of(theirs).await;
            let sent: Vec<u8> = (0..100_000_u32).map(|value| value.to_le_bytes()[0]).collect();
            let (mut sink, mut source) = (&mut client).split();
            let send = async {
                for part in sent.chunks(30_000) {
                    sink.send(Message::binary(part.to_vec())).await.expect("sent");
                }
            };
            let receive = async {
                let mut buffer = vec![0; sent.len()];
                kubelet.read_exact(&mut buffer).await.expect("received");
                assert_eq!(buffer, sent);
            };
            tokio::join!(send, receive);
            let send = async {
                kubelet.write_all(&sent).await.expect("sent");
                kubelet.shutdown().await.expect("closed");
            };
            let receive = async {
                let mut got = Vec::new();
                while let Some(Ok(message)) = source.next().await {
                    match message {
                        Message::Binary(bytes) => got.extend_from_slice(&bytes),
                        Message::Close(frame) => {
                            assert_eq!(u16::from(frame.expect("a code").code), 1000);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(got, sent);
            };
            tokio::join!(send, receive);
        };
        tokio::join!(tunnel, rest);
    }

    #[tokio::test]
    async fn the_backend_ends_with_the_client() {
        let (ours, theirs) = tokio::io::duplex(1 << 12);
        let (backend, mut kubelet) = tokio::io::duplex(1 << 12);
        let tunnel = async { run(server_of(ours).await, backend).await };
        let rest = async move {
            drop(client_of(theirs).await);
            assert_eq!(kubelet.read(&mut [0; 8]).await.expect("end"), 0);
        };
        tokio::join!(tunnel, rest);
    }
}
