//! The accept loop, and what bounds a connection.

use std::{convert::Infallible, error::Error, io, pin::pin, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Phase, State,
    accept::Acceptor,
    connection::{Counted, Overdue, Patience, Pulse, Watched},
    descriptors,
    error::Refusal,
    tls::{self, Certificates},
};

/// Between two tries when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one connection reads ahead, and so the largest head of HTTP/1.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// Bounds of one HTTP/2 connection.
const STREAMS: u32 = 100;
const HEADER_LIST_BYTES: u32 = 16 << 10;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Streams that a peer may reset before they were looked at, and resets that its errors may cause:
/// beyond, the connection ends (CVE-2023-44487 and its relatives).
const PEER_RESETS: usize = 20;
const ERROR_RESETS: usize = 100;

pub(super) struct Listener {
    listener: TcpListener,
    /// One permit a connection.
    permits: Arc<Semaphore>,
    connections: u32,
    phase: watch::Receiver<Phase>,
    server: Arc<Server>,
}

/// What connections share.
struct Server {
    acceptor: Arc<Acceptor>,
    certificates: Option<Arc<Certificates>>,
    http: auto::Builder<TokioExecutor>,
    patience: Patience,
}

impl Listener {
    pub(super) fn new(
        listener: TcpListener,
        certificates: Option<Arc<Certificates>>,
        state: State,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let limits = state.config.load().http.clone();
        let connections = descriptors::affordable_connections(limits.max_connections);
        let patience = Patience { header: limits.header_timeout, idle: limits.idle_timeout };
        let acceptor = Arc::new(Acceptor::new(state, &limits));
        let http = protocol();
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections as usize)),
            connections,
            phase,
            server: Arc::new(Server { acceptor, certificates, http, patience }),
        }
    }

    pub(super) async fn run(self) {
        let Self { listener, permits, connections, mut phase, server } = self;
        loop {
            tokio::select! {
                (stream, permit) = next(&listener, &permits) => {
                    tokio::spawn(Arc::clone(&server).connection(stream, permit, phase.clone()));
                }
                changed = phase.changed() => {
                    let now = *phase.borrow_and_update();
                    if now != Phase::Serving {
                        server.acceptor.drain();
                    }
                    if now == Phase::Closing || changed.is_err() {
                        break;
                    }
                }
            }
        }
        drop(listener);
        // All permits are back: the last connection has ended. The semaphore is never closed.
        permits.acquire_many(connections).await.map(drop).ok();
    }
}

/// The next connection, once there may be one more. A caller beyond waits in the kernel's queue.
async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    // INVARIANT: the semaphore is never closed.
    let permit = Arc::clone(permits).acquire_owned().await.expect("permits");
    let mut reported = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) if is_callers(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::error!(%error, "no connection can be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether only the connection that was to be accepted has failed.
fn is_callers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Head and idle timers are our own, see `connection`. A caller who has sent all and closed its
    // side has called: without half_close hyper would drop the request, stored or not.
    http.http1().header_read_timeout(None).half_close(true).max_buf_size(READ_AHEAD_BYTES);
    http.http2()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(PEER_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS);
    http
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        _permit: OwnedSemaphorePermit,
        phase: watch::Receiver<Phase>,
    ) {
        let _connection = Counted::new(&self.acceptor.metrics.http_connections);
        // Only a connection that has ended already refuses this.
        stream.set_nodelay(true).ok();
        match &self.certificates {
            None => self.speak(stream, false, phase).await,
            Some(certificates) => {
                let handshake = TlsAcceptor::from(certificates.current()).accept(stream);
                match timeout(self.patience.header, handshake).await {
                    Ok(Ok(stream)) => {
                        let http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
                        self.speak(stream, http2, phase).await;
                    }
                    // Other kinds are connections that broke, or were probes.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                        self.count(Refusal::Malformed);
                    }
                    Ok(Err(_)) => {}
                    Err(_) => self.count(Refusal::Timeout),
                }
            }
        }
    }

    /// Speaks HTTP until the connection ends.
    async fn speak<S>(&self, stream: S, http2: bool, mut phase: watch::Receiver<Phase>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pulse = Pulse::new(http2);
        let service = service_fn(|request: Request<Incoming>| {
            let busy = pulse.begin();
            let handled = Arc::clone(&self.acceptor).handle(request, busy);
            async move { Ok::<_, Infallible>(handled.await) }
        });
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(&pulse)));
        let mut connection = pin!(self.http.serve_connection(stream, service));
        let mut timer = pin!(sleep_until(pulse.opened() + self.patience.idle));
        let mut told = false;
        let mut abandoned = false;
        loop {
            let now = if abandoned { Phase::Closing } else { *phase.borrow_and_update() };
            // HTTP/1 is told by the answers; an idle connection is closed only at the end.
            let tell = match now {
                Phase::Serving => false,
                Phase::Draining => pulse.is_http2() && pulse.is_used(),
                Phase::Closing => true,
            };
            if tell && !told {
                connection.as_mut().graceful_shutdown();
                told = true;
            }
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended && is_refusal(&*error, pulse.is_http2()) {
                        self.count(Refusal::Malformed);
                    }
                    return;
                }
                changed = phase.changed(), if now != Phase::Closing => abandoned = changed.is_err(),
                // GOAWAY before the first request would end the connection without an answer.
                () = pulse.used(), if now == Phase::Draining && !pulse.is_used() => {}
                overdue = pulse.overdue(self.patience, timer.as_mut()) => {
                    if overdue == Overdue::Head {
                        self.count(Refusal::Timeout);
                    }
                    return;
                }
            }
        }
    }

    fn count(&self, refusal: Refusal) {
        self.acceptor.sources.count_refused(None, refusal);
    }
}

/// Whether hyper ended the connection because of what it was sent, and not because it broke.
fn is_refusal(error: &(dyn Error + 'static), http2: bool) -> bool {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return false };
    let broke = error.source().is_none_or(|source| source.is::<io::Error>());
    error.is_parse() || (http2 && !broke)
}
