//! Frames of SPDY and WebSocket connections, for fuzz/.

use futures::StreamExt as _;

use super::spdy::{Event, Reader};
use super::{server, translate};
use crate::fuzz::{connection, wait};

/// What a kubelet sends over SPDY.
pub fn spdy(data: &[u8]) {
    wait(async {
        let mut reader = Reader::new(data);
        let mut total = 0;
        while let Ok(Some(event)) = reader.next().await {
            if let Event::Data { bytes, .. } = event {
                total += bytes.len();
            }
        }
        assert!(total <= data.len());
    });
}

/// What a client sends over a WebSocket.
pub fn websocket(data: &[u8]) {
    wait(async {
        let mut source = server(connection(data)).await;
        let mut total = 0;
        while let Some(Ok(message)) = source.next().await {
            // The reason of a close may be the reader's own words.
            if message.is_text() || message.is_binary() {
                total += message.len();
            }
        }
        assert!(total <= data.len());
    });
}

/// A whole session: the first two bytes say how many of the rest are the client's; the others are the
/// kubelet's.
pub fn session(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (client, kubelet) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let wanted = translate::Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        let backend = connection(kubelet);
        translate::run(server(connection(client)).await, async { Ok(backend) }, wanted).await;
    });
}

/// A session in which a command writes a line and ends.
pub fn session_seeds() -> Vec<Vec<u8>> {
    // A masked message with a byte for the standard input, then a close frame.
    let client = [0x82, 0x82, 1, 2, 3, 4, 1, b'x' ^ 2, 0x88, 0x80, 1, 2, 3, 4];
    let mut kubelet = Vec::new();
    for stream in [1_u8, 3, 5, 7] {
        kubelet.extend([0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, stream, 0, 0]);
    }
    kubelet.extend([0, 0, 0, 5, 0, 0, 0, 3, b'a', b'b', b'\n']);
    kubelet.extend([0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
    for stream in [1_u8, 5, 7] {
        kubelet.extend([0, 0, 0, stream, 1, 0, 0, 0]);
    }
    let mut all = vec![client.len() as u8, 0];
    all.extend(client);
    all.extend(kubelet);
    vec![all]
}
