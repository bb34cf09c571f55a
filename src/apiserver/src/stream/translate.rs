//! Exec and attach between a client's WebSocket (`v5.channel.k8s.io`: a message is a channel's
//! number and its bytes, channel 255 closes another) and a kubelet's SPDY connection
//! (`v4.channel.k8s.io`: a stream for each channel), as apiserver `pkg/util/proxy/streamtranslator.go`
//! does. Each direction waits for its receiver, so nothing piles up here.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::StreamExt as _;
use futures::{Sink, SinkExt as _, Stream};
use kedge_api::status::Status;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::spdy::{Event, Reader, Writer};
use crate::request::Query;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How long the kubelet may take to accept the streams.
const OPENING: Duration = Duration::from_secs(30);
/// As often a silent connection is checked.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A session in which nothing was said for so long, or for up to twice as long, is over. Upstream's
/// kubelets and container runtimes do so too, but our pings keep them from it.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a client may take to read what is left when the command has ended.
const FINISH: Duration = Duration::from_secs(15 * 60);
/// A `Status` longer than this is not one, in bytes.
const LONGEST_STATUS: usize = 1 << 20;

/// The streams that a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Wanted {
    pub(crate) fn of(query: &Query) -> Self {
        Self {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
            tty: query.flag("tty"),
        }
    }

    fn streams(self) -> Vec<Open> {
        let all = [
            (ERROR, "error", true),
            (STDIN, "stdin", self.stdin),
            (STDOUT, "stdout", self.stdout),
            // A terminal has one stream for both.
            (STDERR, "stderr", self.stderr && !self.tty),
            (RESIZE, "resize", self.tty),
        ];
        let wanted = all.into_iter().filter(|(_, _, wanted)| *wanted);
        // A client's streams have odd numbers.
        wanted
            .zip((1..).step_by(2))
            .map(|((channel, name, _), id)| Open { id, channel, name, is_accepted: false, has_ended: false })
            .collect()
    }
}

/// One stream of the SPDY connection.
#[derive(Clone, Debug)]
struct Open {
    id: u32,
    channel: u8,
    name: &'static str,
    is_accepted: bool,
    has_ended: bool,
}

fn id_of(streams: &[Open], channel: u8) -> Option<u32> {
    streams.iter().find(|stream| stream.channel == channel).map(|stream| stream.id)
}

/// Serve one session to its end.
pub(super) async fn run<C, B>(
    client: WebSocketStream<C>,
    connect: impl Future<Output = Result<B, Value>>,
    wanted: Wanted,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite,
{
    let (mut sink, mut source) = client.split();
    // Clients take an empty message as the sign that they are connected.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    if sink.send(message(first, &[])).await.is_err() {
        return;
    }
    let status = match connect.await {
        Ok(backend) => session(&mut sink, &mut source, backend, wanted.streams()).await,
        Err(status) => Some(status),
    };
    let Some(status) = status else { return };
    // The client closes the connection when it has read everything: to do it first would throw away
    // what is still on its way when the client sends something at the same time.
    let finish = async {
        if sink.send(message(ERROR, status.to_string().as_bytes())).await.is_ok() {
            super::close(&mut sink).await;
            super::until_closed(&mut source).await;
        }
    };
    let _ = timeout(FINISH, finish).await;
}

/// The outcome as `metav1.Status`; nothing when the client has left. The connection to the kubelet
/// is closed in either case.
async fn session<B: AsyncRead + AsyncWrite>(
    sink: &mut (impl Sink<Message> + Unpin),
    source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    backend: B,
    streams: Vec<Open>,
) -> Option<Value> {
    let (read, write) = tokio::io::split(backend);
    let mut writer = Writer::new(write);
    for stream in &streams {
        if let Err(error) = writer.open(stream.id, &[("streamtype", stream.name)]).await {
            return Some(failed(format!("error creating the {} stream: {error}", stream.name)));
        }
    }
    let input = Input { stdin: id_of(&streams, STDIN), resize: id_of(&streams, RESIZE), writer };
    let (accepted, is_accepted) = oneshot::channel();
    // Answers to the kubelet's pings; a few at most are under way.
    let (pings, answers) = mpsc::channel(4);
    let said = AtomicU64::new(0);
    tokio::select! {
        status = output(Reader::new(BufReader::new(read)), sink, streams, accepted, pings, &said) => status,
        () = input.run(source, is_accepted, answers, &said) => None,
        () = idle(&said, IDLE) => None,
    }
}

/// Until nothing was said for this time.
async fn idle(said: &AtomicU64, period: Duration) {
    let mut before = said.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(period).await;
        let now = said.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// From the kubelet to the client, until the command's end is known and all output was read.
async fn output(
    mut reader: Reader<impl AsyncRead + Unpin>,
    sink: &mut (impl Sink<Message> + Unpin),
    mut streams: Vec<Open>,
    accepted: oneshot::Sender<()>,
    pings: mpsc::Sender<u32>,
    said: &AtomicU64,
) -> Option<Value> {
    let deadline = Instant::now() + OPENING;
    let mut accepted = Some(accepted);
    let mut status = Vec::new();
    loop {
        let next = reader.next();
        let event = if accepted.is_some() {
            let Ok(event) = timeout_at(deadline, next).await else {
                return Some(failed("timed out waiting for the kubelet to accept the streams"));
            };
            event
        } else {
            next.await
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return Some(cut_off(&streams, &status, &io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return Some(cut_off(&streams, &status, &error)),
        };
        let find = |id: u32, streams: &mut [Open]| streams.iter().position(|stream| stream.id == id);
        match event {
            Event::Reply { stream, last } => {
                if let Some(at) = find(stream, &mut streams) {
                    streams[at].is_accepted = true;
                    streams[at].has_ended |= last;
                }
            }
            Event::Data { stream, bytes, last } => {
                let Some(at) = find(stream, &mut streams) else { continue };
                match streams[at].channel {
                    ERROR if status.len() < LONGEST_STATUS => status.extend(bytes),
                    channel @ (STDOUT | STDERR) if !bytes.is_empty() => {
                        said.fetch_add(1, Ordering::Relaxed);
                        // The client is gone, and nobody is left to be told.
                        sink.send(message(channel, &bytes)).await.ok()?;
                    }
                    _ => {}
                }
                streams[at].has_ended |= last;
            }
            Event::Reset { stream, status: code } => {
                let Some(at) = find(stream, &mut streams) else { continue };
                if !streams[at].is_accepted {
                    let name = streams[at].name;
                    return Some(failed(format!(
                        "the kubelet refused the {name} stream (SPDY status {code})"
                    )));
                }
                streams[at].has_ended = true;
            }
            Event::Ping(id) => {
                if id % 2 == 0 {
                    // A kubelet that asks faster than it reads can do without some answers.
                    let _ = pings.try_send(id);
                }
            }
            Event::GoAway => {}
        }
        if streams.iter().all(|stream| stream.is_accepted)
            && let Some(accepted) = accepted.take()
        {
            let _ = accepted.send(());
        }
        let counts = |stream: &&Open| matches!(stream.channel, ERROR | STDOUT | STDERR);
        if streams.iter().filter(counts).all(|stream| stream.has_ended) {
            return Some(outcome(&status));
        }
    }
}

/// The outcome when the connection has ended: known if the kubelet told it before.
fn cut_off(streams: &[Open], status: &[u8], error: &io::Error) -> Value {
    let told = streams.iter().any(|stream| stream.channel == ERROR && stream.has_ended);
    if told || serde_json::from_slice::<Value>(status).is_ok() {
        return outcome(status);
    }
    match error.kind() {
        // TLS has more words for it than anybody wants to read.
        io::ErrorKind::UnexpectedEof => failed("error reading from error stream: unexpected EOF"),
        _ => failed(format!("error reading from error stream: {error}")),
    }
}

/// What the error stream says; an empty one tells of success.
fn outcome(status: &[u8]) -> Value {
    if status.is_empty() {
        return json!({ "metadata": {}, "status": "Success" });
    }
    match serde_json::from_slice::<Value>(status) {
        Ok(status) if status.is_object() => status,
        _ => {
            let text = String::from_utf8_lossy(status);
            failed(format!("error stream protocol error: not a Status: {text:?}"))
        }
    }
}

/// An error that is not the command's own.
pub(super) fn failed(text: impl std::fmt::Display) -> Value {
    Status::internal(text).to_value()
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut payload = Vec::with_capacity(1 + bytes.len());
    payload.push(channel);
    payload.extend(bytes);
    Message::Binary(payload.into())
}

/// From the client to the kubelet.
struct Input<W> {
    stdin: Option<u32>,
    resize: Option<u32>,
    writer: Writer<W>,
}

impl<W: AsyncWrite + Unpin> Input<W> {
    /// Until the client leaves. A kubelet that takes nothing any more is not the end: what it still
    /// has to say comes on the other way.
    async fn run(
        mut self,
        source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
        is_accepted: oneshot::Receiver<()>,
        mut answers: mpsc::Receiver<u32>,
        said: &AtomicU64,
    ) {
        // Servers drop what comes on a stream before they have accepted it.
        if is_accepted.await.is_err() {
            return std::future::pending().await;
        }
        let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ids = (1_u32..=u32::MAX >> 1).step_by(2).cycle();
        let mut is_broken = false;
        loop {
            let written = tokio::select! {
                message = source.next() => match message {
                    Some(Ok(Message::Binary(bytes))) if !is_broken => {
                        said.fetch_add(1, Ordering::Relaxed);
                        self.pass(&bytes).await
                    }
                    Some(Ok(Message::Text(text))) if !is_broken => self.pass(text.as_bytes()).await,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => Ok(()),
                },
                Some(id) = answers.recv(), if !is_broken => self.writer.ping(id).await,
                _ = keep_alive.tick(), if !is_broken => {
                    self.writer.ping(ids.next().unwrap_or(1)).await
                }
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return,
                Err(error) => {
                    tracing::debug!(%error, "the kubelet takes no more of a stream");
                    is_broken = true;
                }
            }
        }
    }

    /// One message; `InvalidData` when it is not of the protocol.
    async fn pass(&mut self, payload: &[u8]) -> io::Result<()> {
        match payload {
            [CLOSE, STDIN] => match self.stdin.take() {
                Some(stdin) => self.writer.finish(stdin).await,
                None => Ok(()),
            },
            [CLOSE, STDOUT..=RESIZE] => Ok(()),
            [CLOSE, ..] => Err(io::ErrorKind::InvalidData.into()),
            [channel, bytes @ ..] => {
                let stream = match *channel {
                    STDIN => self.stdin,
                    RESIZE => self.resize,
                    _ => None,
                };
                match stream {
                    Some(stream) if !bytes.is_empty() => self.writer.data(stream, bytes).await,
                    _ => Ok(()),
                }
            }
            [] => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
