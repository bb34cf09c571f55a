//! The HTTPS listener.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use kedge_base::Tasks;
use kedge_base::https::{self, Answering, Newcomer, Newcomers};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::Error;
use crate::api::Api;
use crate::auth::Delegated;

const MAX_CONNECTIONS: usize = 256;
/// So many of them may be of clients that have not sent a request yet.
const MAX_NEWCOMERS: usize = 64;

pub(crate) type Answer = Response<Full<Bytes>>;

/// Answers until the tasks stop.
///
/// # Errors
/// When somebody else listens there.
pub(crate) async fn listen(
    address: SocketAddr,
    auth: Arc<Delegated>,
    api: Arc<Api>,
    tasks: &Tasks,
) -> Result<(), Error> {
    let failed = |source| Error::Io { doing: format!("listen on {address}"), source };
    let listener = match TcpListener::bind(address).await {
        // A kernel without IPv6.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    let connections = tasks.child("server");
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let newcomers = Newcomers::new(MAX_NEWCOMERS);
    tasks.spawn_until_stopped("server", async move {
        loop {
            // Those beyond the limit wait in the kernel's queue.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (stream, _, newcomer) = newcomers.accept(&listener).await;
            let (api, acceptor) = (api.clone(), TlsAcceptor::from(auth.tls()));
            let tasks = connections.clone();
            connections.spawn_until_stopped("connection", async move {
                connection(api, stream, acceptor, newcomer, &tasks).await;
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn connection(
    api: Arc<Api>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    newcomer: Newcomer,
    tasks: &Tasks,
) {
    let Some(stream) = https::handshake(&acceptor, stream, &newcomer).await else { return };
    // rustls has checked that it is of the front proxy's authority.
    let certificates = stream.get_ref().1.peer_certificates();
    let peer: Arc<Option<String>> =
        Arc::new(certificates.and_then(|chain| chain.first()).and_then(|first| common_name(first)));
    let answering = Answering::new(move |request| {
        let (api, peer) = (api.clone(), peer.clone());
        async move {
            let answer = api.answer(&request, peer.as_deref()).await;
            answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
        }
    });
    let served = https::serve(https::protocols(tasks), stream, answering, newcomer).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}
