//! HTTPS straight to one API server with the client certificate of its kubeconfig: unlike kubectl this says
//! exactly when a call began, when its answer was there, and whether it ever left.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::Cluster;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);

/// An API server and who asks it.
#[derive(Clone, Debug)]
pub struct Server {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Server {
    /// The API server of this node, with its kubeconfig's client certificate.
    ///
    /// # Panics
    /// When the kubeconfig has none.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let text = std::fs::read_to_string(cluster.kubeconfig()).expect("read the kubeconfig");
        let pem = |field: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(": "));
            let value = line.unwrap_or_else(|| panic!("no {field} in the kubeconfig"));
            STANDARD.decode(value.trim_matches('"')).expect("base64")
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&pem("certificate-authority-data")) {
            roots.add(certificate).expect("a CA's certificate");
        }
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")).expect("a private key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pem("client-certificate-data")), key)
            .expect("a client certificate");
        let address = cluster.server().strip_prefix("https://").expect("https").to_owned();
        let host = address.rsplit_once(':').expect("host:port").0.to_owned();
        let name = ServerName::try_from(host).expect("a host");
        Self { address, name, config: Arc::new(config) }
    }

    /// The same caller at another address.
    ///
    /// # Panics
    /// When `host` is neither an address nor a name.
    #[must_use]
    pub fn at(&self, host: &str, port: u16) -> Self {
        let name = ServerName::try_from(host.to_owned()).expect("a host");
        Self { address: format!("{host}:{port}"), name, config: self.config.clone() }
    }

    /// One call on a connection of its own: status and body.
    ///
    /// # Errors
    /// When there is no answer within `timeout` after the connection.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: &str,
        timeout: Duration,
    ) -> io::Result<(u16, Vec<u8>)> {
        let mut connection = Connection::open(self, timeout)?;
        connection.send(method, path, body)?;
        let head = connection.head()?;
        let body = connection.body(&head)?;
        Ok((head.status, body))
    }
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().expect("certificates")
}

/// A connection with one call at a time.
pub(crate) struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    host: String,
}

/// An answer's head.
pub(crate) struct Head {
    pub(crate) status: u16,
    length: usize,
    chunked: bool,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Connection {
    /// Connects and shakes hands: when this fails, no call has left. Later reads wait for `timeout`.
    pub(crate) fn open(server: &Server, timeout: Duration) -> io::Result<Self> {
        let address = server.address.parse().map_err(|_| invalid("the server's address"))?;
        let mut socket = TcpStream::connect_timeout(&address, CONNECT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let mut tls = ClientConnection::new(server.config.clone(), server.name.clone())
            .map_err(|error| invalid(&error.to_string()))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        let stream = BufReader::new(StreamOwned::new(tls, socket));
        Ok(Self { stream, host: server.address.clone() })
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let (length, host) = (body.len(), &self.host);
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nContent-Type: \
             application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(text.as_bytes())?;
        self.stream.get_mut().flush()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    pub(crate) fn head(&mut self) -> io::Result<Head> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| invalid(&first))?;
        let mut head = Head { status, length: 0, chunked: false };
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok(head);
            }
            let Some((name, value)) = line.split_once(':') else { return Err(invalid(&line)) };
            match name {
                "content-length" => head.length = value.trim().parse().map_err(|_| invalid(value))?,
                "transfer-encoding" => head.chunked = value.contains("chunked"),
                _ => {}
            }
        }
    }

    pub(crate) fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if head.chunked {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else {
            body.resize(head.length, 0);
            self.stream.read_exact(&mut body)?;
        }
        Ok(body)
    }

    /// The next piece of a chunked answer; nothing at its end.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size =
            usize::from_str_radix(line.split(';').next().unwrap_or(""), 16).map_err(|_| invalid(&line))?;
        let mut bytes = vec![0; size];
        self.stream.read_exact(&mut bytes)?;
        self.line()?;
        Ok((size > 0).then_some(bytes))
    }
}
