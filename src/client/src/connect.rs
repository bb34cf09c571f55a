//! Connections to API servers: TCP and TLS with limits, HTTP/2 where the server speaks it.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use kedge_base::Tasks;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A ping on every HTTP/2 connection, and how long its answer may take: a server that lost its power ends no
/// connection by itself.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// The one client of this crate: bodies of requests are in memory as a whole.
pub(crate) type HttpClient = Client<Connector, Full<Bytes>>;

/// Connections are tasks of `tasks`.
pub(crate) fn http_client(connector: Connector, tasks: &Tasks) -> HttpClient {
    Client::builder(Executor(tasks.clone()))
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_LIMIT)
        .build(connector)
}

/// Opens connections for the HTTP client's pool.
#[derive(Clone)]
pub(crate) struct Connector {
    /// HTTP/2 is spoken when it offers that by ALPN.
    pub(crate) tls: TlsConnector,
    /// What certificates are for; `None`: the address that is connected to.
    pub(crate) name: Option<&'static str>,
    /// For TCP and for TLS.
    pub(crate) limits: [Duration; 2],
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let Self { tls, name, limits: [tcp_limit, tls_limit] } = self.clone();
        Box::pin(async move {
            let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
            let name = match name {
                Some(name) => ServerName::try_from(name).map_err(io::Error::other)?,
                None => {
                    let address: IpAddr = host.parse().map_err(|_| {
                        io::Error::new(io::ErrorKind::InvalidInput, format!("{host} is not an IP address"))
                    })?;
                    ServerName::IpAddress(address.into())
                }
            };
            let connecting = TcpStream::connect((host, server.port_u16().unwrap_or(443)));
            let stream = limited(tcp_limit, host, connecting).await?;
            stream.set_nodelay(true)?;
            let stream = limited(tls_limit, host, tls.connect(name, stream)).await?;
            Ok(Stream(TokioIo::new(stream)))
        })
    }
}

async fn limited<T>(
    limit: Duration,
    host: &str,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{host} does not answer"))))
}

/// A connection that says whether HTTP/2 was agreed on.
pub(crate) struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, bytes)
    }
}

/// Connections are tasks of the client's group.
#[derive(Clone)]
pub(crate) struct Executor(pub(crate) Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_until_stopped("connection to an API server", future);
    }
}
