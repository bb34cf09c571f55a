//! One local address for tools of the host: bytes go through to an API server as they are, so that TLS is
//! between the tool and the server.

use std::io;
use std::time::Duration;

use kedge_base::{Tasks, https};
use tokio::net::{TcpListener, TcpStream};

use super::Servers;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Pass every connection of `listener` on to an API server, until `tasks` stop. The servers' certificates
/// must carry the listener's address (they carry 127.0.0.1 and localhost).
pub fn forward(servers: &Servers, listener: TcpListener, tasks: &Tasks) {
    let (servers, group) = (servers.clone(), tasks.clone());
    tasks.spawn_until_stopped("api server forwarder", async move {
        loop {
            let (stream, _) = https::accept(&listener).await;
            let servers = servers.clone();
            group.spawn_until_stopped("forwarded connection", async move {
                if let Err(error) = pass(stream, &servers).await {
                    tracing::debug!(%error, "forwarded connection ended");
                }
            });
        }
    });
}

async fn pass(mut from: TcpStream, servers: &Servers) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for server in servers.in_order() {
        let host = server.host().trim_matches(['[', ']']);
        let connecting = TcpStream::connect((host, server.port_u16().unwrap_or(443)));
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(mut to)) => {
                servers.works(&server);
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await?;
                return Ok(());
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
        servers.failed(&server);
    }
    Err(last)
}
