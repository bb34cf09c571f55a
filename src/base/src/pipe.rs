//! Two byte streams joined into one: what carries exec, attach, port-forward and upgraded connections.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// How long a side that has stopped reading may take to say why.
const GOODBYE: Duration = Duration::from_secs(30);

/// Both ways until both have ended. Either side may hang up at any time; that is how streams end. A
/// server that takes no more may have said why, so what it says is passed on to its end.
pub async fn pass_bytes<C, S>(client: C, server: S)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async {
        let copied = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
        if copied.is_err() {
            // A connection that is closed with unread input is reset, and takes its output with it.
            let _ = tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await;
        }
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
        copied
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(down.await),
        copied = &mut down => match copied {
            Ok(_) => up.await,
            Err(_) => drop(tokio::time::timeout(GOODBYE, up).await),
        },
    }
}
