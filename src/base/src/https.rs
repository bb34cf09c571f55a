//! Connections of HTTPS servers: how all of them are accepted, how long a client may be silent, and how requests are
//! answered. All servers share one kind of service, body and executor: HTTP/1 and HTTP/2 are compiled anew for every
//! combination of them.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Tasks;

/// Whatever went wrong in a body.
pub type BoxError = Box<dyn Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// After a connection that could not be accepted: out of file descriptors, most likely, and going on at once would
/// only burn CPU.
const PAUSE: Duration = Duration::from_millis(100);
/// A client has this long for its handshake and its first request (upstream's servers: 32 s for the headers).
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// When there are too many such clients, this long.
const IN_A_CROWD: Duration = Duration::from_secs(5);
/// An HTTP/1 connection that was used stays open so long without a request, as upstream's do.
const IDLE: Duration = Duration::from_secs(90);
/// An HTTP/2 client is asked so often whether it is still there, and has so long to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(60);

/// The next connection, with or without TLS, and where it comes from.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The clients of a server that have not sent a request yet. Nothing is known of who they are, so they are few, and
/// those that have been silent the longest make room for new ones.
#[derive(Clone, Debug)]
pub struct Newcomers {
    room: Arc<Semaphore>,
    crowded: Arc<Notify>,
}

/// One of them, until its first request.
#[derive(Debug)]
pub struct Newcomer {
    all: Newcomers,
    since: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Default for Newcomers {
    /// As many as connect at once when a large cluster starts.
    fn default() -> Self {
        Self::new(512)
    }
}

impl Newcomers {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(limit)), crowded: Arc::default() }
    }

    /// The next connection and where it comes from, when there is a place for one more.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, Newcomer) {
        let mut newcomer = self.enter().await;
        let (stream, source) = accept(listener).await;
        // Its time begins when it comes, not when it could have.
        newcomer.since = Instant::now();
        (stream, source, newcomer)
    }

    async fn enter(&self) -> Newcomer {
        let place = match self.room.clone().try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_) => {
                // The first who waits there, which is the oldest, goes.
                self.crowded.notify_one();
                self.room.clone().acquire_owned().await
            }
        };
        Newcomer { all: self.clone(), since: Instant::now(), _place: place.ok() }
    }
}

impl Newcomer {
    /// Done when it has been silent for too long.
    async fn turned_out(&self) {
        let limit = self.since + FIRST_REQUEST;
        tokio::time::sleep_until(self.since + IN_A_CROWD).await;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(limit) => return,
                () = self.all.crowded.notified() => {}
            }
            // Room may have been made by others since that was said.
            if self.all.room.available_permits() == 0 {
                return;
            }
        }
    }
}

/// TLS on a connection that was accepted. `None`: the client does not speak it, shows a certificate that is no good,
/// or takes too long.
pub async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    newcomer: &Newcomer,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let source = stream.peer_addr().ok();
    tokio::select! {
        accepted = acceptor.accept(stream) => match accepted {
            Ok(stream) => return Some(stream),
            Err(error) => tracing::debug!(?source, %error, "TLS handshake failed"),
        },
        () = newcomer.turned_out() => tracing::debug!(?source, "TLS handshake took too long"),
    }
    None
}

/// What answers the requests of one connection.
#[derive(Clone)]
pub struct Answering(Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>);

impl Answering {
    /// By this function.
    pub fn new<F>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(answer(request))))
    }
}

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answer = (self.0)(request);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// The protocols' settings. HTTP/2 streams are tasks of `tasks`.
pub fn protocols(tasks: &Tasks) -> auto::Builder<Executor> {
    let mut builder = auto::Builder::new(Executor(tasks.clone()));
    // hyper counts from the end of the last request: the time without one is in it.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_LIMIT);
    builder
}

/// Serves one connection to its end; a request may take it over.
///
/// # Errors
/// The connection broke, or the client does not speak HTTP, or says nothing.
pub async fn serve(
    protocols: auto::Builder<Executor>,
    stream: TlsStream<TcpStream>,
    answering: Answering,
    newcomer: Newcomer,
) -> Result<(), BoxError> {
    serve_stream(protocols, stream, answering, newcomer).await
}

async fn serve_stream<S>(
    protocols: auto::Builder<Executor>,
    stream: S,
    answering: Answering,
    newcomer: Newcomer,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // hyper itself waits for the first bytes for ever: it learns from them which protocol it is.
    let asked = Arc::new(Notify::new());
    let noticed = asked.clone();
    let answering = Answering(Arc::new(move |request| {
        noticed.notify_one();
        (answering.0)(request)
    }));
    let mut connection =
        std::pin::pin!(protocols.serve_connection_with_upgrades(TokioIo::new(stream), answering));
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = asked.notified() => {}
        () = newcomer.turned_out() => return Err("no request came".into()),
    }
    drop(newcomer);
    connection.await
}

/// Runs HTTP/2 streams.
#[derive(Clone)]
pub struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_until_stopped("stream", future);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty, Full};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// A connection whose requests are answered after `delay`.
    fn connect(newcomer: Newcomer, delay: Duration) -> (DuplexStream, JoinHandle<Result<(), BoxError>>) {
        let (client, server) = duplex(1 << 16);
        let answering = Answering::new(move |_| async move {
            tokio::time::sleep(delay).await;
            let body = Full::new(Bytes::from_static(b"here"));
            Response::new(body.map_err(|never| match never {}).boxed_unsync())
        });
        let protocols = protocols(&Tasks::new("test"));
        (client, tokio::spawn(serve_stream(protocols, server, answering, newcomer)))
    }

    /// Until the connection is closed; `None` if it is not within an hour.
    async fn ended(served: JoinHandle<Result<(), BoxError>>) -> Option<Duration> {
        let since = Instant::now();
        let _ = tokio::time::timeout(Duration::from_secs(3600), served).await.ok()?;
        Some(since.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_request_is_cut_off() {
        for words in ["", "GET /", "GET / HTTP/1.1\r\nHost: ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI *"] {
            let newcomer = Newcomers::default().enter().await;
            let (mut client, served) = connect(newcomer, Duration::ZERO);
            client.write_all(words.as_bytes()).await.unwrap();
            let after = ended(served).await;
            assert!(after.is_some_and(|after| after <= FIRST_REQUEST), "{words:?}: {after:?}");
        }
    }

    #[tokio::test]
    async fn who_comes_late_has_as_much_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, newcomers) = (listener.local_addr().unwrap(), Newcomers::default());
        let accepted = newcomers.accept(&listener);
        let connected = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            (Instant::now(), TcpStream::connect(address).await.unwrap())
        };
        let ((_, _, newcomer), (came, _stream)) = tokio::join!(accepted, connected);
        assert!(newcomer.since >= came);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sent_one_may_wait_and_come_again() {
        let newcomer = Newcomers::default().enter().await;
        let (mut client, served) = connect(newcomer, Duration::from_secs(600));
        let mut answer = [0; 1024];
        for pause in [0, 60, 80] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let length = client.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"), "after {pause} s");
        }
        assert_eq!(ended(served).await, Some(IDLE));
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_that_answers_pings_stays() {
        let newcomer = Newcomers::default().enter().await;
        let (client, served) = connect(newcomer, Duration::from_secs(600));
        let executor = Executor(Tasks::new("client"));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(client)).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..2 {
            let request = Request::new(Empty::<Bytes>::new());
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
            tokio::time::sleep(Duration::from_secs(1200)).await;
        }
        assert!(!served.is_finished());
        // And one that answers them no more does not.
        connection.abort();
        assert!(ended(served).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_crowd_the_oldest_make_room() {
        let newcomers = Newcomers::new(2);
        let (_oldest, first) = connect(newcomers.enter().await, Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_other, second) = connect(newcomers.enter().await, Duration::ZERO);
        let before = Instant::now();
        let third = newcomers.enter().await;
        assert!(before.elapsed() < IN_A_CROWD);
        assert!(first.is_finished() && !second.is_finished());
        // Who has sent a request is none of them.
        let (mut client, asked) = connect(third, Duration::ZERO);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let before = Instant::now();
        let _fourth = newcomers.enter().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(!asked.is_finished() && !second.is_finished());
    }
}
