//! The node's own socket in the run folder: how the commands of this machine reach the running process.
//! HTTP/1.0 with JSON: an answer ends with the connection and is never chunked. Root only (mode 0600).

use std::fmt;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Tasks;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::failure;

/// A client that does not finish its request in this time is cut off.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request line and headers, and longest body.
const HEAD_LIMIT: u64 = 16 << 10;
const BODY_LIMIT: usize = 1 << 20;

/// The code of an answer that no insisting changes.
pub(crate) const UNSAFE: u16 = 412;
/// The code of an answer that comes too early: the node does not serve yet.
pub(crate) const STARTING: u16 = 503;
/// The header of a refusal with what helps.
const REMEDY: &str = "Remedy";
/// What the node is doing for a request that takes a while, in words; empty: nothing.
pub(crate) const PROGRESS: &str = "/progress";
/// How soon a command notices that its request was answered.
const LOOK: Duration = Duration::from_millis(100);

/// What a command asks.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

/// What the node says: a body of JSON, or an error's text with its remedy.
pub(crate) struct Reply {
    code: u16,
    body: Vec<u8>,
    remedy: Option<String>,
}

impl Reply {
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { code: 200, body, remedy: None },
            Err(error) => Self::failed(500, &error.to_string()),
        }
    }

    pub(crate) fn failed(code: u16, text: &str) -> Self {
        Self { code, body: text.as_bytes().to_vec(), remedy: None }
    }

    /// In the words of the error, and with its remedy where it has one.
    pub(crate) fn refused(code: u16, error: &anyhow::Error) -> Self {
        let remedy = failure::remedy(error).filter(|remedy| !remedy.contains(char::is_control));
        Self { remedy, ..Self::failed(code, &failure::text(error)) }
    }
}

/// Answers a request.
pub(crate) type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// Listen until the tasks stop.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn serve(socket: &Path, handler: Handler, tasks: &Tasks) -> anyhow::Result<()> {
    // A socket that an earlier process left behind; the pid file says that it is gone.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .context("restrict the node's socket")?;
    let connections = tasks.child("control");
    tasks.spawn_until_stopped("control socket", async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    // Who has left needs no answer.
                    connections.spawn_until_stopped("control request", async move {
                        let _ = answer(stream, handler).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "request on the node's socket not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, handler: Handler) -> io::Result<()> {
    let request = tokio::time::timeout(PATIENCE, read(&mut stream)).await??;
    let reply = handler(request).await;
    let remedy = reply.remedy.map(|remedy| format!("{REMEDY}: {remedy}\r\n")).unwrap_or_default();
    let head = format!(
        "HTTP/1.0 {} {}\r\nContent-Length: {}\r\n{remedy}\r\n",
        reply.code,
        if reply.code == 200 { "OK" } else { "Failed" },
        reply.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&reply.body).await?;
    stream.shutdown().await
}

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut reader = BufReader::new(stream.take(HEAD_LIMIT + BODY_LIMIT as u64));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    if length > BODY_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too big"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(Request { method, path, body })
}

/// What helps when nobody listens.
pub(crate) const START: &str = "start it with kedge start";

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody listens there.
    #[error("kedge does not run on this node; {}", START)]
    NotRunning,
    #[error("{0}")]
    Refused(Told),
    /// The cluster would suffer from it, whatever the operator insists on.
    #[error("{0}")]
    Unsafe(Told),
    /// It does not serve yet.
    #[error("{0}")]
    Starting(Told),
    /// The process may hang, or this is not root.
    #[error("the node does not answer (is this root? see kedge status)")]
    Io(#[from] io::Error),
}

/// The node's own words.
#[derive(Debug)]
pub(crate) struct Told {
    text: String,
    remedy: Option<String>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl CallError {
    /// What helps, where it is known.
    pub(crate) fn remedy(&self) -> Option<&str> {
        match self {
            Self::NotRunning => Some(START),
            Self::Refused(told) | Self::Unsafe(told) | Self::Starting(told) => told.remedy.as_deref(),
            Self::Io(_) => None,
        }
    }
}

/// Asks the node behind `socket` and waits up to `limit` for the answer.
///
/// # Errors
/// See [`CallError`].
pub(crate) fn call<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    body: &impl Serialize,
    limit: Duration,
) -> Result<T, CallError> {
    let mut stream = match std::os::unix::net::UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(CallError::NotRunning);
        }
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit.min(PATIENCE)))?;
    let body = serde_json::to_vec(body).map_err(io::Error::other)?;
    let head = format!("{method} {path} HTTP/1.0\r\nHost: kedge\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let (code, remedy, body) = split(&answer)?;
    let told = || Told { text: String::from_utf8_lossy(body).into_owned(), remedy };
    match code {
        200 => serde_json::from_slice(body).map_err(|error| CallError::Io(io::Error::other(error))),
        UNSAFE => Err(CallError::Unsafe(told())),
        STARTING => Err(CallError::Starting(told())),
        _ => Err(CallError::Refused(told())),
    }
}

/// The same for work that takes a while: hands on what the node says about it meanwhile.
///
/// # Errors
/// See [`CallError`].
pub(crate) fn call_and_tell<T: DeserializeOwned + Send>(
    socket: &Path,
    path: &str,
    body: &(impl Serialize + Sync),
    limit: Duration,
    mut tell: impl FnMut(&str),
) -> Result<T, CallError> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| call(socket, "POST", path, body, limit));
        let mut looks = 0_u32;
        while !work.is_finished() {
            std::thread::sleep(LOOK);
            looks += 1;
            if looks.is_multiple_of(10)
                && let Ok(text) = call::<String>(socket, "GET", PROGRESS, &(), PATIENCE)
                && !text.is_empty()
            {
                tell(&text);
            }
        }
        work.join().unwrap_or_else(|_| Err(CallError::Io(io::Error::other("the request's thread panicked"))))
    })
}

/// The status code, the remedy and the body of an answer.
fn split(answer: &[u8]) -> io::Result<(u16, Option<String>, &[u8])> {
    let not_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(not_http)?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or_else(not_http)?;
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let remedy = headers.filter(|(name, _)| *name == REMEDY).map(|(_, remedy)| remedy.to_owned()).next();
    Ok((code, remedy, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_asks_and_the_node_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kedge.sock");
        let limit = Duration::from_secs(60);
        let ask = |method: &str, path: &str, body: &str| call::<String>(&socket, method, path, &body, limit);
        assert!(matches!(ask("GET", "/a", ""), Err(CallError::NotRunning)));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let tasks = Tasks::new("test");
        // Slow work is over when it was asked about.
        let asked = Arc::new(tokio::sync::Notify::new());
        let handler: Handler = Arc::new(move |request| {
            let asked = asked.clone();
            Box::pin(async move {
                match request.path.as_str() {
                    "/echo" => Reply::json(&format!("{} {}", request.method, request.body.len())),
                    "/early" => Reply::failed(STARTING, "it is starting"),
                    "/worker" => {
                        let error = failure::Remedied::new("this is a worker", "ask another node");
                        Reply::refused(409, &error.into())
                    }
                    "/harm" => Reply::failed(UNSAFE, "it would hurt"),
                    "/slow" => {
                        asked.notified().await;
                        Reply::json(&"done")
                    }
                    PROGRESS => {
                        asked.notify_one();
                        Reply::json(&"two pods left")
                    }
                    _ => Reply::failed(404, "no such thing"),
                }
            })
        });
        {
            let _entered = runtime.enter();
            serve(&socket, handler, &tasks).unwrap();
        }
        assert_eq!(ask("POST", "/echo", &"x".repeat(100_000)).unwrap(), "POST 100002");
        assert_eq!(ask("GET", "/else", "").unwrap_err().to_string(), "no such thing");
        assert!(
            matches!(ask("GET", "/harm", ""), Err(CallError::Unsafe(why)) if why.text == "it would hurt")
        );
        assert!(
            matches!(ask("GET", "/early", ""), Err(CallError::Starting(why)) if why.text == "it is starting")
        );
        let worker = anyhow::Error::from(ask("GET", "/worker", "").unwrap_err()).context("list the tokens");
        assert_eq!(failure::text(&worker), "list the tokens: this is a worker; ask another node");
        assert_eq!(failure::remedy(&worker).as_deref(), Some("ask another node"));
        let mut told = Vec::new();
        let done = call_and_tell::<String>(&socket, "/slow", &"", limit, |text| told.push(text.to_owned()));
        assert_eq!(done.unwrap(), "done");
        assert_eq!(told.first().map(String::as_str), Some("two pods left"));
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        drop(tasks);
        drop(runtime);
        // The file stays when a process dies: nobody listens any more.
        assert!(matches!(ask("GET", "/a", ""), Err(CallError::NotRunning)));
    }

    #[test]
    fn other_answers_are_errors() {
        assert!(split(b"nonsense").is_err());
        assert!(split(b"HTTP/1.0 x\r\n\r\n").is_err());
        assert_eq!(split(b"HTTP/1.0 503 Failed\r\n\r\nwhy").unwrap(), (503, None, b"why".as_slice()));
    }
}
