//! SPDY/3.1 as far as a client of the kubelet's streams needs it (SPDY draft 3.1, sections 2.2 to
//! 2.6). Like every implementation that speaks it between Kubernetes components it has no windows:
//! TCP holds a sender back. Pure framing: it reads and writes what it is given.
//!
//! The header blocks that we send are the only ones that matter: ours are stored zlib blocks that
//! name the protocol's dictionary without using it, and the servers' replies carry no headers that
//! anybody reads, so they are skipped and need no decompressor.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// At most so much of a data frame is handed on at once, in bytes.
const PIECE: usize = 32 << 10;
const VERSION: u16 = 0x8000 | 3;
const FIN: u8 = 1;
/// zlib's header: a window of 32 KiB, least effort, with a preset dictionary; then the Adler-32 of
/// SPDY/3's dictionary.
const ZLIB_HEADER: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
/// The empty stored block that ends a flush; readers give out what they have when they meet it.
const ZLIB_FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// What the other side has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A stream was accepted; `last` when nothing will come on it.
    Reply { stream: u32, last: bool },
    /// A piece of a data frame; `last` with the stream's last one.
    Data { stream: u32, bytes: Vec<u8>, last: bool },
    /// A stream was refused or torn down.
    Reset { stream: u32, status: u32 },
    /// To be answered when its number is even: those are the server's.
    Ping(u32),
    /// No more streams will be accepted.
    GoAway,
}

/// Writes frames. Every method flushes.
pub(super) struct Writer<W> {
    io: W,
    has_begun: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(io: W) -> Self {
        Self { io, has_begun: false }
    }

    /// Open a stream. Names of headers must be lower case.
    pub(super) async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut frame = Vec::new();
        frame.extend(stream.to_be_bytes());
        // No associated stream, the highest priority, no credential slot.
        frame.extend([0; 6]);
        if !self.has_begun {
            frame.extend(ZLIB_HEADER);
            self.has_begun = true;
        }
        let block = header_block(headers);
        // A stored block's length has 16 bits.
        for part in block.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            frame.push(0);
            frame.extend(length.to_le_bytes());
            frame.extend((!length).to_le_bytes());
            frame.extend(part);
        }
        frame.extend(ZLIB_FLUSH);
        self.control(SYN_STREAM, &frame).await
    }

    /// Send bytes on a stream.
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            self.io.write_all(&data_header(stream, 0, piece.len())).await?;
            self.io.write_all(piece).await?;
        }
        self.io.flush().await
    }

    /// Nothing more will be sent on a stream.
    pub(super) async fn finish(&mut self, stream: u32) -> io::Result<()> {
        self.io.write_all(&data_header(stream, FIN, 0)).await?;
        self.io.flush().await
    }

    pub(super) async fn ping(&mut self, id: u32) -> io::Result<()> {
        self.control(PING, &id.to_be_bytes()).await
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(8 + payload.len());
        frame.extend(VERSION.to_be_bytes());
        frame.extend(kind.to_be_bytes());
        frame.extend(flags_and_length(0, payload.len()));
        frame.extend(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }
}

fn data_header(stream: u32, flags: u8, length: usize) -> [u8; 8] {
    let mut header = [0; 8];
    header[..4].copy_from_slice(&stream.to_be_bytes());
    header[4..].copy_from_slice(&flags_and_length(flags, length));
    header
}

/// Eight bits of flags and 24 of length. What is sent here is far shorter than 16 MiB.
fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, high, middle, low]
}

fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
    let mut block = Vec::from(number(headers.len()));
    for (name, value) in headers {
        for text in [name, value] {
            block.extend(number(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Reads frames and never holds more than a piece of one.
pub(super) struct Reader<R> {
    io: R,
    /// The data frame that is being read: its stream, its flags and how much of it is to come.
    open: Option<(u32, u8, usize)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, open: None }
    }

    /// The next event; `None` when the connection ends between two frames. It must not be dropped
    /// before it is ready unless the connection is given up.
    pub(super) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some((stream, flags, left)) = self.open.take() {
                return self.piece(stream, flags, left).await.map(Some);
            }
            let mut header = [0; 8];
            if self.io.read(&mut header[..1]).await? == 0 {
                return Ok(None);
            }
            self.io.read_exact(&mut header[1..]).await?;
            let [a, b, c, d, flags, high, middle, low] = header;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            let word = u32::from_be_bytes([a, b, c, d]);
            if a & 0x80 == 0 {
                self.open = Some((word, flags, length));
                continue;
            }
            if word >> 16 != u32::from(VERSION) {
                return Err(invalid("a frame of another version of SPDY"));
            }
            let known = self.control(u16::from_be_bytes([c, d]), flags, length).await?;
            if let Some(event) = known {
                return Ok(Some(event));
            }
        }
    }

    async fn piece(&mut self, stream: u32, flags: u8, left: usize) -> io::Result<Event> {
        let mut bytes = vec![0; left.min(PIECE)];
        self.io.read_exact(&mut bytes).await?;
        let left = left - bytes.len();
        if left > 0 {
            self.open = Some((stream, flags, left));
        }
        Ok(Event::Data { stream, bytes, last: left == 0 && flags & FIN != 0 })
    }

    /// A control frame, if it is one that matters here; the rest of it is skipped.
    async fn control(&mut self, kind: u16, flags: u8, length: usize) -> io::Result<Option<Event>> {
        let mut words = [0_u32; 2];
        let wanted = match kind {
            SYN_REPLY | PING => 1,
            RST_STREAM => 2,
            _ => 0,
        };
        if length < wanted * 4 {
            return Err(invalid("a frame that is too short"));
        }
        for word in words.iter_mut().take(wanted) {
            *word = self.io.read_u32().await?;
        }
        let rest = (length - wanted * 4) as u64;
        let skipped = tokio::io::copy(&mut (&mut self.io).take(rest), &mut tokio::io::sink()).await?;
        if skipped < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(match kind {
            SYN_REPLY => Some(Event::Reply { stream: words[0], last: flags & FIN != 0 }),
            RST_STREAM => Some(Event::Reset { stream: words[0], status: words[1] }),
            PING => Some(Event::Ping(words[0])),
            GOAWAY => Some(Event::GoAway),
            // Settings, headers and window updates ask nothing of us.
            _ => None,
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn written(open: &[(u32, &[(&str, &str)])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (stream, headers) in open {
            writer.open(*stream, headers).await.expect("written");
        }
        writer.io
    }

    /// What a zlib reader makes of the header blocks of SYN_STREAM frames, one after another.
    fn blocks(mut frames: &[u8]) -> Vec<Vec<u8>> {
        let mut inflate = flate2::Decompress::new(false);
        let mut blocks = Vec::new();
        while !frames.is_empty() {
            assert_eq!(frames[..4], [0x80, 3, 0, 1], "SYN_STREAM");
            let length = u32::from_be_bytes([0, frames[5], frames[6], frames[7]]) as usize;
            let mut block = &frames[18..8 + length];
            if blocks.is_empty() {
                let header = u16::from_be_bytes([block[0], block[1]]);
                assert_eq!((header % 31, block[0] & 15, block[1] & 0x20), (0, 8, 0x20), "zlib's header");
                block = &block[6..];
            }
            let mut out = Vec::with_capacity(1 << 20);
            inflate.decompress_vec(block, &mut out, flate2::FlushDecompress::Sync).expect("deflate");
            blocks.push(out);
            frames = &frames[8 + length..];
        }
        blocks
    }

    #[tokio::test]
    async fn streams_are_opened_with_headers_that_zlib_reads() {
        let long = "x".repeat(70_000);
        let frames = written(&[(1, &[("streamtype", "error")]), (3, &[("a", "bc"), ("d", &long)])]).await;
        let blocks = blocks(&frames);
        assert_eq!(blocks[0], b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error");
        let mut second = b"\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc\0\0\0\x01d\0\x01\x11\x70".to_vec();
        second.extend(long.as_bytes());
        assert_eq!(blocks[1], second);
    }

    #[tokio::test]
    async fn data_is_cut_into_pieces_and_ends() {
        let mut writer = Writer::new(Vec::new());
        writer.data(5, &vec![7; PIECE + 1]).await.expect("written");
        writer.finish(5).await.expect("written");
        let io = writer.io;
        assert_eq!(io[..8], [0, 0, 0, 5, 0, 0, 0x80, 0]);
        assert_eq!(io[8 + PIECE..], [0, 0, 0, 5, 0, 0, 0, 1, 7, 0, 0, 0, 5, 1, 0, 0, 0]);
    }

    #[tokio::test]
    async fn frames_are_read() {
        let cases: [(&str, &[u8], Event); 7] = [
            (
                "reply",
                &[0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 9, 1, 2],
                Event::Reply { stream: 9, last: false },
            ),
            ("last reply", &[0x80, 3, 0, 2, 1, 0, 0, 4, 0, 0, 0, 9], Event::Reply { stream: 9, last: true }),
            (
                "reset",
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5],
                Event::Reset { stream: 3, status: 5 },
            ),
            ("ping", &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2], Event::Ping(2)),
            ("go away", &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0], Event::GoAway),
            (
                "a window update and settings are skipped",
                &[
                    0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 9, 0x80, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1,
                    0, 0, 0, 2, 8, 9,
                ],
                Event::Data { stream: 1, bytes: vec![8, 9], last: false },
            ),
            ("last data", &[0, 0, 0, 1, 1, 0, 0, 0], Event::Data { stream: 1, bytes: vec![], last: true }),
        ];
        for (name, bytes, expected) in cases {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.next().await.expect(name), Some(expected), "{name}");
            assert_eq!(reader.next().await.expect(name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn a_large_frame_comes_in_pieces() {
        let mut bytes = vec![0, 0, 0, 1, 1, 1, 0, 0];
        bytes.extend(vec![3; 1 << 16]);
        let mut reader = Reader::new(&bytes[..]);
        let (mut total, mut ends) = (0, Vec::new());
        while let Some(Event::Data { bytes, last, .. }) = reader.next().await.expect("frame") {
            total += bytes.len();
            ends.push(last);
        }
        assert_eq!((total, ends), (1 << 16, vec![false, true]));
    }

    #[tokio::test]
    async fn what_is_cut_off_or_foreign_is_an_error() {
        for (name, bytes) in [
            ("half a header", &[0x80, 3, 0][..]),
            ("half a payload", &[0, 0, 0, 1, 0, 0, 0, 2, 1][..]),
            ("half a control frame", &[0x80, 3, 0, 8, 0, 0, 0, 9, 1][..]),
            ("too short a reset", &[0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1][..]),
            ("SPDY/2", &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..]),
        ] {
            assert!(Reader::new(bytes).next().await.is_err(), "{name}");
        }
    }
}
