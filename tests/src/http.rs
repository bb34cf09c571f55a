//! Plain HTTP for what kubectl cannot ask: `kubectl proxy` carries it to the API server, and pods and
//! NodePorts are asked directly. HTTP/1.0, so that an answer is never chunked and ends with its connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header lines as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Response {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The lines of a watch, each an event.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[track_caller]
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.body
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }
}

/// One request to `address` (host:port).
///
/// # Errors
/// When the connection fails or the answer is not HTTP.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut text = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("not HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}

/// A running `kubectl proxy` or `kubectl port-forward`; ended on drop.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    /// Starts `command` and reads the local address it prints ("... 127.0.0.1:PORT ...").
    ///
    /// # Panics
    /// When it ends without printing one.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let mut output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let mut line = String::new();
        let read = output.read_line(&mut line).unwrap_or(0);
        if read == 0 {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} ended at once");
        }
        // Whatever it prints later must not block it.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        let port: String = line
            .split("127.0.0.1:")
            .nth(1)
            .unwrap_or_else(|| panic!("no address in {line:?}"))
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Self { child, address: format!("127.0.0.1:{port}") }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends one request.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> Response {
        self.send_with(method, path, &[("Content-Type", content_type)], body)
    }

    /// The same with any headers.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn send_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        request(&self.address, method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// GETs a path.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    #[must_use]
    pub fn get(&self, path: &str) -> Response {
        self.send_with("GET", path, &[("Accept", "application/json")], "")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
