//! The accept loop, and the life of one connection.
//!
//! At the limit of connections nobody is turned away: whoever comes waits in the kernel's queue
//! until another connection ends. Idle ones end by themselves.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    Phase, State,
    accept::{Call, Hooks},
    activity::{Activity, Doing, Limits, Noted, Overdue},
    error::Refusal,
    tls::Certificates,
};
use crate::metrics::UNKNOWN_SOURCE;

/// The largest head of a request, and the most that is read at once of a body over HTTP/1.1. hyper
/// answers 431 beyond it.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// How long an idle connection may take to end after it was asked to.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long nobody is accepted after the system could not.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const LOG_EVERY: Duration = Duration::from_secs(10);

struct Server {
    protocol: auto::Builder<TokioExecutor>,
    tls: Option<Arc<Certificates>>,
    hooks: Arc<Hooks>,
    header_timeout: Duration,
    idle_timeout: Duration,
}

pub(super) async fn run(
    listener: TcpListener,
    tls: Option<Arc<Certificates>>,
    state: State,
    mut phase: watch::Receiver<Phase>,
) {
    let config = state.config.load_full();
    let http = &config.http;
    let server = Arc::new(Server {
        protocol: protocol(),
        tls,
        hooks: Arc::new(Hooks::new(state, phase.clone())),
        header_timeout: http.header_timeout,
        idle_timeout: http.idle_timeout,
    });
    let slots_all = u32::try_from(http.max_connections).unwrap_or(u32::MAX);
    let slots = Arc::new(Semaphore::new(slots_all as usize));
    let connections = phase.clone();
    let accepting = async {
        let mut failures = Failures::default();
        loop {
            // INVARIANT: nobody closes the semaphore.
            let slot = Arc::clone(&slots).acquire_owned().await.expect("a slot");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let serving = Arc::clone(&server).connection(stream, connections.clone());
                    tokio::spawn(async move {
                        serving.await;
                        drop(slot);
                    });
                }
                Err(error) => failures.pause(&error).await,
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        // Also when there is nobody any more who could say it.
        _ = phase.wait_for(|phase| *phase == Phase::Closing) => {}
    }
    drop(listener);
    // All slots are free when the last connection has ended.
    // INVARIANT: nobody closes the semaphore.
    drop(slots.acquire_many(slots_all).await.expect("all slots"));
}

/// HTTP/1.1 and HTTP/2. Times are kept by [`Limits`]; hyper has no timer.
fn protocol() -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER_BYTES)
        // Who has sent everything may close that direction and still be answered. Nor is the socket
        // then read while a request is handled, which saves a call of the system each time.
        .half_close(true)
        // Answers are small: copied together they are one write.
        .writev(false);
    protocol
        .http2()
        .max_concurrent_streams(200)
        .max_header_list_size(16 << 10)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        // Against streams opened and reset at once (CVE-2023-44487, RUSTSEC-2024-0003).
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024);
    protocol
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, phase: watch::Receiver<Phase>) {
        let _open = Counted::new(self.hooks.metrics.http_connections.clone());
        // Without it an answer may wait for an acknowledgement; a socket that refuses is gone.
        stream.set_nodelay(true).ok();
        let Some(tls) = &self.tls else {
            return self.speak(stream, Activity::new(false), phase).await;
        };
        match timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.speak(stream, Activity::new(is_http2), phase).await;
            }
            // Connected and went away: a probe.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake");
                self.hooks.refuse(UNKNOWN_SOURCE, Refusal::Malformed);
            }
            Err(_) => self.hooks.refuse(UNKNOWN_SOURCE, Refusal::Timeout),
        }
    }

    async fn speak<S>(&self, stream: S, activity: Activity, mut phase: watch::Receiver<Phase>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let activity = Arc::new(activity);
        let stream = TokioIo::new(Noted::new(stream, Arc::clone(&activity)));
        let service = service_fn(|request| {
            Call::begin(Arc::clone(&self.hooks), Arc::clone(&activity), &request).answer(request)
        });
        let mut connection = pin!(self.protocol.serve_connection(stream, service));
        let mut limits = Limits::new(self.header_timeout, self.idle_timeout);
        let mut has_parted = false;
        let mut now = *phase.borrow_and_update();
        loop {
            if now == Phase::Closing {
                limits.shorten_idle(LAST_WORDS);
            }
            // In this order: whether the connection is overdue, or may be asked to end, shows only
            // after it has read what there is.
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    return ended.unwrap_or_else(|error| self.count_failure(&*error));
                }
                overdue = poll_fn(|context| limits.poll(context, &activity)) => {
                    if overdue == Overdue::Head {
                        self.hooks.refuse(UNKNOWN_SOURCE, Refusal::Timeout);
                    }
                    return;
                }
                () = parting(now, &activity), if !has_parted => {
                    has_parted = true;
                    connection.as_mut().graceful_shutdown();
                }
                changed = phase.changed(), if now != Phase::Closing => {
                    now = changed.map_or(Phase::Closing, |()| *phase.borrow_and_update());
                }
            }
        }
    }

    /// Counts what hyper found wrong with a request, and has answered if that was possible.
    fn count_failure(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let is_callers = error
            .downcast_ref::<hyper::Error>()
            .is_some_and(|error| error.is_parse() || error.is_incomplete_message());
        if is_callers {
            self.hooks.refuse(UNKNOWN_SOURCE, Refusal::Malformed);
        }
    }
}

/// Ready when the connection is to be told that it ends. Looked at whenever the connection has moved.
///
/// While draining, an answer over HTTP/1.1 says so itself, and before that the connection stays: its
/// next request must not meet a closed door. Over HTTP/2 GOAWAY says so, once there was a request: a
/// new connection was made for one that is on its way.
async fn parting(phase: Phase, activity: &Activity) {
    poll_fn(|_| {
        let is_time = match phase {
            Phase::Serving => false,
            Phase::Draining => activity.is_multiplexed() && activity.has_served(),
            // hyper would drop the half of a head that is there.
            Phase::Closing => activity.doing() != Doing::Head,
        };
        if is_time { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// An open connection in the gauge.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Connections that could not be accepted.
#[derive(Default)]
struct Failures {
    logged: Option<Instant>,
}

impl Failures {
    /// One connection's failure is its own; any other (no file descriptors, no memory) takes time.
    async fn pause(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
            return;
        }
        if self.logged.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            tracing::error!(%error, "cannot accept connections");
        }
        sleep(ACCEPT_PAUSE).await;
    }
}
