//! The small web server of the hello image: answers with its version, its pod and its node, so that a
//! rolling update and a Service can be seen at work on a machine that reaches no registry.
//!
//! Threads of the standard library only. Environment: `PORT` (8080), `HELLO_VERSION`, `POD_NAME`
//! (the host name otherwise), `NODE_NAME`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::output;

/// Requests larger than this are refused.
const REQUEST_LIMIT: u64 = 16 * 1024;
/// Connections served at a time; more wait in the listen queue's place: they are closed.
const CONNECTION_LIMIT: usize = 256;
/// How long a client may keep a connection idle.
const IDLE: Duration = Duration::from_secs(30);
/// How long open connections may last after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// What the answers say.
#[derive(Debug)]
struct Identity {
    version: String,
    pod: String,
    node: String,
}

/// Serve until SIGTERM or SIGINT.
pub(crate) fn run(version: Option<String>) -> ExitCode {
    crate::memory::small_pages();
    let identity = Arc::new(Identity::from_environment(version));
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Threads started later inherit the mask: the signals reach only the sigwait below.
    if let Err(error) = signals.thread_block() {
        output::complain(&format!("error: block signals: {error}"));
        return ExitCode::from(1);
    }
    let listener = match listen(port) {
        Ok(listener) => listener,
        Err(error) => {
            output::complain(&format!("error: listen on port {port}: {error}"));
            return ExitCode::from(1);
        }
    };
    output::say(&format!("hello {} listens on port {port}", identity.version));
    let open = Arc::new(AtomicUsize::new(0));
    let accepting = open.clone();
    std::thread::spawn(move || accept(&listener, &identity, &accepting));
    loop {
        match signals.wait() {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return ExitCode::from(1),
        }
    }
    let deadline = Instant::now() + DRAIN;
    while open.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}

impl Identity {
    fn from_environment(version: Option<String>) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            version: version.or_else(|| variable("HELLO_VERSION")).unwrap_or_else(|| "1.0".into()),
            pod: variable("POD_NAME").or_else(host).unwrap_or_else(|| "unknown".into()),
            node: variable("NODE_NAME").unwrap_or_else(|| "unknown".into()),
        }
    }

    fn page(&self, client: &str) -> String {
        format!("hello {}\npod: {}\nnode: {}\nclient: {client}\n", self.version, self.pod, self.node)
    }
}

/// Both address families; IPv4 alone where there is no IPv6.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn accept(listener: &TcpListener, identity: &Arc<Identity>, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of file descriptors: let some connections end.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.load(Ordering::Acquire) >= CONNECTION_LIMIT {
            continue;
        }
        open.fetch_add(1, Ordering::AcqRel);
        let (identity, counter) = (identity.clone(), open.clone());
        let started = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            // A client that goes away is its own business.
            let _ = serve(&stream, &identity);
            counter.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// HTTP/1.1 with keep-alive; bodies of requests are read and ignored.
fn serve(stream: &TcpStream, identity: &Identity) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let client = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let page = identity.page(&client);
        let body = if request.method == "HEAD" { "" } else { &page };
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            page.len()
        );
        let mut writer = stream;
        writer.write_all(answer.as_bytes())?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    keep_alive: bool,
}

/// `None` when the client closed the connection between requests or sent what is not HTTP.
fn read_request(reader: &mut impl std::io::BufRead) -> std::io::Result<Option<Request>> {
    let mut head = reader.by_ref().take(REQUEST_LIMIT);
    let mut first = String::new();
    if head.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let (Some(method), Some(_), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request { method: method.into(), keep_alive: version == "HTTP/1.1" };
    let mut length = 0_u64;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "connection" => request.keep_alive = !value.eq_ignore_ascii_case("close"),
            "content-length" => length = value.parse().unwrap_or(0),
            // A body of unknown length cannot be skipped.
            "transfer-encoding" => request.keep_alive = false,
            _ => {}
        }
    }
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_with_their_bodies() {
        let mut bytes: &[u8] =
            b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let post = read_request(&mut bytes).unwrap().unwrap();
        assert_eq!(post, Request { method: "POST".into(), keep_alive: true });
        let get = read_request(&mut bytes).unwrap().unwrap();
        assert_eq!(get, Request { method: "GET".into(), keep_alive: false });
        assert_eq!(read_request(&mut bytes).unwrap(), None);
    }

    #[test]
    fn what_is_not_http_ends_the_connection() {
        for text in ["\r\n", "hello\r\n", "GET / HTTP/1.1\r\nHost: cut"] {
            assert_eq!(read_request(&mut text.as_bytes()).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn answers_over_a_socket_and_keeps_the_connection() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Arc::new(Identity { version: "2.0".into(), pod: "p".into(), node: "n".into() });
        std::thread::spawn(move || accept(&listener, &identity, &Arc::default()));
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("hello 2.0\npod: p\nnode: n\nclient: 127.0.0.1:").count(), 2, "{answer}");
    }
}
