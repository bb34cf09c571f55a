//! A watch of which the events are only counted and their order checked: what a client does for nothing else
//! is left out, so that a driver on the server's own machine takes as little of it as it can. It speaks TLS
//! and HTTP/1.1 itself: what the kernel gives is decrypted once and looked at where it lies.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::events::Events;

/// What is read from the socket at once, and the rest of a TLS record before it.
const BUFFER: usize = (128 << 10) + RECORD;
const RECORD: usize = (16 << 10) + 512;

/// A running watch.
pub(crate) struct Stream {
    socket: TcpStream,
    tls: UnbufferedClientConnection,
    /// Received and not decrypted yet: the first `filled` bytes.
    incoming: Vec<u8>,
    filled: usize,
    /// The answer's head, until it is whole.
    head: Option<Vec<u8>>,
    chunks: Chunks,
    events: Events,
}

impl Stream {
    /// Connects, asks and reads the answer's head.
    pub(crate) async fn open(config: Arc<ClientConfig>, port: u16, path: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
        socket.set_nodelay(true).context("set TCP_NODELAY")?;
        let name = ServerName::try_from("127.0.0.1").context("the server's name")?;
        let tls = UnbufferedClientConnection::new(config, name).context("set up TLS")?;
        let mut stream = Self {
            socket,
            tls,
            incoming: vec![0; BUFFER],
            filled: 0,
            head: Some(Vec::new()),
            chunks: Chunks::default(),
            events: Events::default(),
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json\r\n\r\n");
        stream.send(request.as_bytes()).await?;
        while stream.head.is_some() {
            stream.receive().await?;
            let count = stream.decrypted()?;
            ensure!(count == 0, "{count} events before anything was changed");
        }
        Ok(stream)
    }

    /// Waits for more and counts the events in it; one older than the one before is an error.
    pub(crate) async fn count(&mut self) -> anyhow::Result<usize> {
        self.receive().await?;
        self.decrypted()
    }

    /// The handshake, and then the request.
    async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        let mut out = Vec::new();
        loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut self.incoming[..self.filled]);
            let (mut send, mut wants, mut done) = (false, false, false);
            match state.context("TLS")? {
                ConnectionState::EncodeTlsData(mut data) => {
                    let start = out.len();
                    out.resize(start + RECORD, 0);
                    let length = data.encode(&mut out[start..]).context("TLS")?;
                    out.truncate(start + length);
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    send = true;
                }
                ConnectionState::BlockedHandshake => wants = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    let start = out.len();
                    out.resize(start + request.len() + RECORD, 0);
                    let length = traffic.encrypt(request, &mut out[start..]).context("TLS")?;
                    out.truncate(start + length);
                    (send, done) = (true, true);
                }
                other => bail!("TLS: {other:?} in a handshake"),
            }
            self.discard(discard);
            if send {
                write_all(&self.socket, &out).await?;
                out.clear();
            }
            if wants {
                self.receive().await?;
            }
            if done {
                return Ok(());
            }
        }
    }

    async fn receive(&mut self) -> anyhow::Result<()> {
        loop {
            self.socket.readable().await.context("read the watch")?;
            match self.socket.try_read(&mut self.incoming[self.filled..]) {
                Ok(0) => bail!("the watch ended"),
                Ok(read) => {
                    self.filled += read;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read the watch"),
            }
        }
    }

    /// Decrypts all whole records that came: how many events end in them.
    fn decrypted(&mut self) -> anyhow::Result<usize> {
        let (mut start, mut count) = (0, 0);
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut self.incoming[start..self.filled]);
            let mut more = true;
            match state.context("TLS")? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.context("TLS")?;
                        discard += record.discard;
                        let body = match &mut self.head {
                            None => record.payload,
                            Some(head) => {
                                head.extend_from_slice(record.payload);
                                let Some(length) = head_length(head)? else { continue };
                                let rest = head.len() - length;
                                self.head = None;
                                &record.payload[record.payload.len() - rest..]
                            }
                        };
                        self.chunks.feed(body, |piece| {
                            count += self.events.take(piece)?;
                            Ok(())
                        })?;
                    }
                }
                ConnectionState::WriteTraffic(_) => more = false,
                other => bail!("TLS: {other:?} in a watch"),
            }
            start += discard;
            if !more {
                self.discard(start);
                return Ok(count);
            }
        }
    }

    fn discard(&mut self, bytes: usize) {
        self.incoming.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }
}

async fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await.context("send")?;
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("send"),
        }
    }
    Ok(())
}

/// The length of an answer's head, when it is whole: success in pieces, or it is an error.
fn head_length(text: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = memchr::memmem::find(text, b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "a watch was answered with {head}");
    ensure!(head.contains("\r\ntransfer-encoding: chunked"), "a watch is not sent in pieces: {head}");
    Ok(Some(end + 4))
}

/// Takes HTTP's framing of pieces off.
#[derive(Debug, Default)]
enum Chunks {
    /// In a line with a length.
    #[default]
    Start,
    Length(usize),
    Data(usize),
    /// What ends a piece or a length: so many bytes.
    End(Option<usize>, u8),
}

impl Chunks {
    /// Hands the data in the next bytes of the stream to `take`.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let Some(&first) = bytes.first() {
            let mut used = 1;
            *self = match *self {
                Self::Start if first.is_ascii_hexdigit() => Self::Length(digit(first)?),
                Self::Length(length) if first == b'\r' => {
                    ensure!(length > 0, "the watch ended");
                    Self::End(Some(length), b'\n')
                }
                Self::Length(length) => {
                    let length =
                        length.checked_mul(16).and_then(|length| length.checked_add(digit(first).ok()?));
                    Self::Length(length.context("a piece of impossible length")?)
                }
                Self::Data(left) => {
                    used = left.min(bytes.len());
                    take(&bytes[..used])?;
                    if used == left { Self::End(None, b'\r') } else { Self::Data(left - used) }
                }
                Self::End(None, b'\r') if first == b'\r' => Self::End(None, b'\n'),
                Self::End(length, b'\n') if first == b'\n' => length.map_or(Self::Start, Self::Data),
                _ => bail!("byte {first} in the framing of a watch"),
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }
}

fn digit(letter: u8) -> anyhow::Result<usize> {
    let value = char::from(letter).to_digit(16).with_context(|| format!("byte {letter} in a length"))?;
    Ok(value as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(stream: &[u8], size: usize) -> anyhow::Result<Vec<u8>> {
        let (mut chunks, mut out) = (Chunks::default(), Vec::new());
        for piece in stream.chunks(size) {
            chunks.feed(piece, |data| {
                out.extend_from_slice(data);
                Ok(())
            })?;
        }
        Ok(out)
    }

    #[test]
    fn framing_comes_off_wherever_the_stream_is_cut() {
        let stream = b"5\r\nhello\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n1\r\n\n\r\n";
        for size in 1..=stream.len() {
            let got = body(stream, size).expect("well framed");
            assert_eq!(got, b"helloabcdefghijklmnopqrstuvwxyz\n", "pieces of {size}");
        }
    }

    #[test]
    fn bad_framing_and_the_end_are_errors() {
        for stream in ["x\r\n", "5\r\nhello!\n", "5\n", "0\r\n\r\n", "fffffffffffffffff\r\n", "\r\n"] {
            assert!(body(stream.as_bytes(), 3).is_err(), "{stream:?}");
        }
    }

    #[test]
    fn only_success_in_pieces_is_a_watch() {
        let good = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nrest";
        assert_eq!(head_length(good).expect("good"), Some(good.len() - 4));
        assert_eq!(head_length(&good[..30]).expect("a part"), None);
        for bad in ["HTTP/1.1 410 Gone\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"] {
            assert!(head_length(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
