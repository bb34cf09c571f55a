//! One request to a cluster port: connect, TLS, one HTTP/1.1 exchange, close. Says precisely why a
//! connection failed, since that is what a user of `kedge join` meets first.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wire::{Call, PREFIX, REPLY_LIMIT};
use crate::{Error, HostPort, Refusal};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const TLS_LIMIT: Duration = Duration::from_secs(10);
/// Admission of a node waits for the store.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A TCP connection to the first address of the host that answers.
pub(crate) async fn connect(server: &HostPort) -> Result<TcpStream, Error> {
    let unreachable = |reason| Error::Unreachable { address: server.to_string(), reason };
    let addresses: Vec<SocketAddr> = match server.address() {
        Some(address) => vec![SocketAddr::new(address, server.port)],
        None => tokio::net::lookup_host((server.host.as_str(), server.port))
            .await
            .map_err(|error| unreachable(format!("the name is not known: {error}; use the node's address")))?
            .collect(),
    };
    let mut last = unreachable("the name has no address; use the node's address".into());
    for address in addresses {
        let failure = match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        last = Error::Unreachable {
            address: if server.address().is_some() {
                server.to_string()
            } else {
                format!("{server} ({address})")
            },
            reason: remedy(failure.as_ref(), address.port()),
        };
    }
    Err(last)
}

/// What a failed connection means. `None`: it timed out.
fn remedy(failure: Option<&io::Error>, port: u16) -> String {
    let firewall = format!(
        "allow TCP port {port} on that node (for instance: ufw allow {port}/tcp, or firewall-cmd --permanent \
         --add-port={port}/tcp && firewall-cmd --reload)"
    );
    match failure.map(io::Error::kind) {
        None | Some(io::ErrorKind::TimedOut) => {
            format!("it timed out; a firewall may drop the packets: {firewall}")
        }
        Some(io::ErrorKind::ConnectionRefused) => format!(
            "the connection was refused; check with kedge status that Kedge runs there and that port {port} is \
             its cluster port; or a firewall rejects it: {firewall}"
        ),
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "there is no route to it; check addresses and network of both nodes".into()
        }
        Some(_) => failure.map(ToString::to_string).unwrap_or_default(),
    }
}

/// TLS over a connection. The caller looks into the error's source for what went wrong.
pub(crate) async fn secure(
    stream: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let connecting = TlsConnector::from(config).connect(name, stream);
    tokio::time::timeout(TLS_LIMIT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The same configuration for HTTP/1.1 alone, which is what these calls speak.
pub(crate) fn http1(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// One request and its answer; then the connection is closed.
pub(crate) async fn exchange<C: Call>(
    stream: TlsStream<TcpStream>,
    address: &str,
    call: &C,
) -> Result<C::Reply, Error> {
    tokio::time::timeout(ANSWER_LIMIT, answer(stream, address, call)).await.unwrap_or_else(|_| {
        Err(Error::Exchange {
            address: address.to_owned(),
            reason: format!("no answer within {} s; repeat the command", ANSWER_LIMIT.as_secs()),
        })
    })
}

async fn answer<C: Call>(stream: TlsStream<TcpStream>, address: &str, call: &C) -> Result<C::Reply, Error> {
    let failed = |reason: String| Error::Exchange { address: address.to_owned(), reason };
    let body = serde_json::to_vec(call).map_err(|error| failed(error.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{PREFIX}{}", C::PATH))
        .header(header::HOST, "kedge.internal")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let received = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), REPLY_LIMIT).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
    };
    tokio::pin!(received, connection);
    // The connection does the work; it may end before the answer was taken out.
    let received = tokio::select! {
        received = &mut received => received,
        ended = &mut connection => match ended {
            Ok(()) => received.await,
            Err(error) => Err(error.into()),
        },
    };
    let (status, body) =
        received.map_err(|error| failed(format!("the connection broke ({error}); repeat the command")))?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| {
            failed(format!("the answer cannot be understood ({error}); do both nodes run the same version?"))
        });
    }
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => Err(refusal.into()),
        Err(_) => Err(failed(format!("it answered {status}; is this the cluster port of a Kedge node?"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_remedy() {
        for (failure, hints) in [
            (None, ["timed out", "ufw allow 25000/tcp"]),
            (Some(io::ErrorKind::ConnectionRefused), ["refused", "kedge status"]),
            (Some(io::ErrorKind::HostUnreachable), ["no route", "network"]),
        ] {
            let failure = failure.map(io::Error::from);
            let text = remedy(failure.as_ref(), 25000);
            assert!(hints.iter().all(|hint| text.contains(hint)), "{text}");
        }
    }
}
