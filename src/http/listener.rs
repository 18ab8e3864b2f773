//! Accepts connections, speaks HTTP on them, and ends them at their limits.

use std::{error::Error, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Phase, State,
    accept::{APPEND_TIMEOUT, Acceptor},
    activity::{ANNOUNCED, Activity, ActivityStream, RequestGuard, TimeoutKind, Timeouts, UNUSED},
    error::Refusal,
    places::{Place, Places, affordable_connections},
    tls::{self, Certificates},
};

/// Before the next try when file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer that acknowledges nothing of what it is sent for so long has vanished. Else an open stream would
/// keep its place until TCP gives up, after a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// What is read of a connection before its TLS handshake is complete. rustls would collect 64 KiB of a message.
const HANDSHAKE_BYTES: u64 = 16 << 10;

/// Read buffer of one connection, and so the largest head of HTTP/1.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// Limits of one HTTP/2 connection.
const STREAMS: u32 = 100;
const HEADER_LIST_BYTES: u32 = 16 << 10;
const WINDOW_BYTES: u32 = 64 << 10;
/// Streams that a peer may reset before they are handled, and resets that its errors may cause. At more
/// the connection ends (CVE-2023-44487 and its relatives).
const PEER_RESETS: usize = 20;
const ERROR_RESETS: usize = 100;

/// Connections of the admin listener.
const ADMIN_CONNECTIONS: u32 = 64;
const ADMIN_TIMEOUTS: Timeouts =
    Timeouts { header: Duration::from_secs(10), idle: Duration::from_secs(30), closing: ANNOUNCED };

/// Answers the requests of a listener's connections.
pub(crate) trait Handler: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers one request. `guard` is dropped when nothing more of it is read. An error ends the
    /// stream, or the connection over HTTP/1.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> impl Future<Output = io::Result<Response<Self::Body>>> + Send;

    /// A connection ended because of what the peer sent, or did not send in time.
    fn refuse(&self, _refusal: Refusal) {}
}

/// What the connections of one listener share.
struct Server<H> {
    handler: Arc<H>,
    certificates: Option<Arc<Certificates>>,
    http: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    phase: watch::Receiver<Phase>,
}

/// Serves callers until the phase is [`Phase::Closing`] (or its sender is gone) and every
/// connection has ended.
pub async fn serve(listener: TcpListener, certificates: Option<Arc<Certificates>>, state: State) {
    let limits = state.config.load().http.clone();
    let connections = affordable_connections(limits.max_connections);
    state.metrics.http_connections_max.set(connections.into());
    let timeouts = Timeouts {
        header: limits.header_timeout,
        idle: limits.idle_timeout,
        closing: limits.body_timeout + APPEND_TIMEOUT,
    };
    let places = Places::new(connections, Arc::clone(&state.metrics));
    let phase = state.phase.clone();
    let handler = Arc::new(Acceptor::new(state, limits));
    let server = Server { handler, certificates, http: protocol(), timeouts, phase };
    run(listener, places, Arc::new(server)).await;
}

/// Serves the admin listener over HTTP/1 until the process ends: it does not follow the edge's phase,
/// because probes are answered until then.
pub(crate) async fn serve_admin(listener: TcpListener, handler: impl Handler) {
    let (_serving, phase) = watch::channel(Phase::Serving);
    let (handler, http) = (Arc::new(handler), protocol().http1_only());
    let server = Server { handler, certificates: None, http, timeouts: ADMIN_TIMEOUTS, phase };
    // Only the public listener's connections are counted.
    let places = Places::new(ADMIN_CONNECTIONS, Arc::default());
    run(listener, places, Arc::new(server)).await;
}

async fn run<H: Handler>(listener: TcpListener, places: Arc<Places>, server: Arc<Server<H>>) {
    let mut phase = server.phase.clone();
    let accept = async {
        loop {
            let stream = next(&listener).await;
            let place = places.take().await;
            tokio::spawn(Arc::clone(&server).connection(stream, place));
        }
    };
    tokio::select! {
        () = accept => {}
        _ = phase.wait_for(|now| *now == Phase::Closing) => {}
    }
    drop(listener);
    places.all_left().await;
}

async fn next(listener: &TcpListener) -> TcpStream {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    let mut reported = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Only the connection that was to be accepted has failed.
            Err(error)
                if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) => {}
            Err(error) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::error!(%error, "connections cannot be accepted; trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    Ok(set_tcp_user_timeout(stream, UNACKNOWLEDGED.as_millis() as u32)?)
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // `activity` has the timers for heads and idle connections. A caller may close its side after
    // the request: without half_close hyper would then drop the request, stored or not.
    http.http1().header_read_timeout(None).half_close(true).max_buf_size(READ_AHEAD_BYTES);
    http.http2()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_pending_accept_reset_streams(PEER_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS);
    http
}

impl<H: Handler> Server<H> {
    async fn connection(self: Arc<Self>, stream: TcpStream, mut place: Place) {
        // This fails only if the connection has ended already.
        set_options(&stream).ok();
        let Some(certificates) = &self.certificates else {
            return self.speak(stream, &mut place).await;
        };
        let (reader, writer) = stream.into_split();
        let stream = tokio::io::join(reader.take(HANDSHAKE_BYTES), writer);
        let handshake = TlsAcceptor::from(certificates.current.load_full()).accept(stream);
        let shaken = tokio::select! {
            shaken = timeout(self.timeouts.header, handshake) => shaken,
            () = place.activity.evicted() => return,
        };
        match shaken {
            Ok(Ok(mut stream)) => {
                stream.get_mut().0.reader_mut().set_limit(u64::MAX);
                if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) {
                    place.activity.set_http2();
                }
                self.speak(stream, &mut place).await;
            }
            // Errors of other kinds are connections that broke, or port scans.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                self.handler.refuse(Refusal::Malformed);
            }
            Ok(Err(_)) => {}
            Err(_) => self.handler.refuse(Refusal::Timeout),
        }
    }

    async fn speak<S>(&self, stream: S, place: &mut Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::clone(&place.activity);
        let mut phase = self.phase.clone();
        let service =
            service_fn(|request| Arc::clone(&self.handler).handle(request, activity.begin()));
        let stream = ActivityStream::new(stream, Arc::clone(&activity));
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut timer = pin!(sleep_until(activity.opened + UNUSED));
        let mut end = None;
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::Closing {
                end.get_or_insert_with(|| Instant::now() + self.timeouts.closing);
            }
            // Over HTTP/1 the answers announce the end, and an idle connection stays until closing.
            // GOAWAY before the first request would end an HTTP/2 connection without an answer.
            let announce = match now {
                Phase::Serving => false,
                Phase::Draining => activity.is_http2() && activity.is_used(),
                Phase::Closing => true,
            };
            if announce && activity.announce_end() {
                connection.as_mut().graceful_shutdown();
            }
            let used = activity.is_used();
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended && is_refusal(&*error, activity.is_http2()) {
                        self.handler.refuse(Refusal::Malformed);
                    }
                    return;
                }
                changed = phase.changed(), if now != Phase::Closing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = activity.until(Activity::is_used), if now == Phase::Draining && !used => {}
                () = place.widen() => {}
                overdue = activity.overdue(self.timeouts, timer.as_mut()) => {
                    if matches!(overdue, TimeoutKind::Head | TimeoutKind::Answer) {
                        self.handler.refuse(Refusal::Timeout);
                    }
                    return;
                }
                () = activity.evicted() => return,
                Some(()) = async {
                    sleep_until(end?).await;
                    Some(())
                } => return,
            }
        }
    }
}

/// Whether hyper ended the connection because of what it was sent, and not because it broke.
fn is_refusal(error: &(dyn Error + 'static), http2: bool) -> bool {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return false };
    let broke = error.source().is_none_or(|source| source.is::<io::Error>());
    error.is_parse() || (http2 && !broke)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use http_body_util::Empty;
    use rustix::net::sockopt::tcp_user_timeout;
    use tokio::{
        io::{AsyncWriteExt as _, duplex},
        sync::Notify,
    };

    use super::*;

    /// Answers nothing, and says that it was asked to.
    #[derive(Default)]
    struct Silent(Notify);

    impl Handler for Silent {
        type Body = Empty<Bytes>;

        async fn handle(
            self: Arc<Self>,
            _request: Request<Incoming>,
            _guard: RequestGuard,
        ) -> io::Result<Response<Self::Body>> {
            self.0.notify_one();
            pending().await
        }
    }

    #[tokio::test]
    async fn every_connection_of_a_closing_listener_ends_in_its_time_and_not_before() {
        let (sender, phase) = watch::channel(Phase::Serving);
        let handler = Arc::<Silent>::default();
        let closing = Duration::from_millis(50);
        let server = Server {
            handler: Arc::clone(&handler),
            certificates: None,
            http: protocol(),
            timeouts: Timeouts { closing, ..ADMIN_TIMEOUTS },
            phase,
        };
        let (mut caller, stream) = duplex(1024);
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut place = Places::new(1, Arc::default()).take().await;
        let close = async {
            handler.0.notified().await;
            sender.send_replace(Phase::Closing);
            Instant::now()
        };
        let served = async { tokio::join!(server.speak(stream, &mut place), close) };
        let ((), closed_at) = timeout(Duration::from_secs(60), served).await.unwrap();
        assert!(closed_at.elapsed() >= closing);
    }

    #[tokio::test]
    async fn a_peer_that_vanishes_is_given_up_after_half_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = next(&listener).await;
        set_options(&stream).unwrap();
        assert_eq!(tcp_user_timeout(&stream).unwrap(), 30_000);
        assert!(stream.nodelay().unwrap());
    }
}
