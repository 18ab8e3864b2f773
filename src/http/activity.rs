//! What one connection is doing, how long it may do that, and the stream that records it.
//!
//! hyper's own timer for heads also runs while a connection is idle, and would end keep-alive early.
//! Here that time starts with the first byte of a request. The handler bounds the time of a request.
//!
//! HTTP/2 sends frames that belong to no request, so an incomplete head after the preface counts as
//! idle time.

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep},
};

/// The first bytes of every connection of HTTP/2 (RFC 9113, 3.4), and of no other.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Limit of a connection without a request. Go's client keeps a spare one for up to 15 s, and would
/// lose the call that it then sends on it.
pub(super) const UNUSED: Duration = Duration::from_secs(20);
/// Limit of an answer, from its first byte to its last. Answers are small.
const ANSWER: Duration = Duration::from_secs(10);
/// Limit of an idle connection after the peer was told that it ends.
pub(super) const ANNOUNCED: Duration = Duration::from_secs(1);

/// A connection yields after reading this much, so that the requests in it are handled first.
const TURN_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Activity {
    pub(super) opened: Instant,
    state: Mutex<ActivityState>,
    /// It speaks HTTP/2 and still lacks places.
    lacks_places: AtomicBool,
    evicted: Notify,
}

/// What the stream may be unable to do, as an index of two states: take bytes, and send what it took. TLS
/// has a buffer.
const WRITE: usize = 0;
const FLUSH: usize = 1;

#[derive(Debug, Default)]
struct ActivityState {
    /// First byte of an incomplete head.
    head: Option<Instant>,
    /// End of the last request or answer.
    idle: Option<Instant>,
    /// Since when [`WRITE`] and [`FLUSH`] wait for the peer.
    stalled: [Option<Instant>; 2],
    /// When the peer was told that the connection ends.
    announced: Option<Instant>,
    /// Requests being handled.
    requests: u32,
    /// When each answer began that the socket has not accepted completely, oldest first.
    answers: Vec<Instant>,
    /// How much of HTTP/2's preface has come. None: something else came.
    preface: Option<usize>,
    /// It may not be evicted while it is busy.
    trusted: bool,
    /// At least one request arrived.
    used: bool,
    /// It was asked to end for another connection.
    chosen: bool,
}

/// How long a connection may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// From the first to the last byte of a head.
    pub(super) header: Duration,
    /// Between two requests.
    pub(super) idle: Duration,
    /// From the start of closing to the end, whatever is in progress.
    pub(super) closing: Duration,
}

/// What a connection waited for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeoutKind {
    Head,
    Idle,
    Answer,
}

impl ActivityState {
    fn is_http2(&self) -> bool {
        self.preface == Some(HTTP2_PREFACE.len())
    }

    fn is_idle(&self) -> bool {
        self.requests == 0 && self.answers.is_empty()
    }

    /// Whether it may end for another one.
    fn is_evictable(&self) -> bool {
        self.is_idle() || !self.trusted
    }
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        let state = Mutex::new(ActivityState { preface: Some(0), ..ActivityState::default() });
        let (lacks_places, evicted) = Default::default();
        Arc::new(Self { opened: Instant::now(), state, lacks_places, evicted })
    }

    pub(super) fn is_http2(&self) -> bool {
        self.state.lock().is_http2()
    }

    /// Whether it speaks HTTP/2 and still lacks places. Nothing is read from it until it has them.
    pub(super) fn waits_for_places(&self) -> bool {
        self.lacks_places.load(Ordering::Relaxed)
    }

    pub(super) fn set_placed(&self) {
        self.lacks_places.store(false, Ordering::Relaxed);
    }

    /// The handshake of TLS has chosen HTTP/2. Before the connection has its places, nothing is read from it.
    pub(super) fn set_http2(&self) {
        self.state.lock().preface = Some(HTTP2_PREFACE.len());
        self.lacks_places.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_used(&self) -> bool {
        self.state.lock().used
    }

    /// Which connection is evicted first: false for an idle one, and since when it is idle; true for a busy
    /// one that showed no right secret, and when it was opened. None if it may not be evicted.
    pub(super) fn eviction_rank(&self) -> Option<(bool, Instant)> {
        let state = self.state.lock();
        (state.is_evictable() && !state.chosen).then(|| match state.is_idle() {
            true => (false, state.idle.unwrap_or(self.opened)),
            false => (true, self.opened),
        })
    }

    /// Asks a connection to end for another one. Returns false if it may not be, or is already asked.
    pub(super) fn evict(&self) -> bool {
        let mut state = self.state.lock();
        let evictable = state.is_evictable() && !state.chosen;
        if evictable {
            state.chosen = true;
            self.evicted.notify_one();
        }
        evictable
    }

    /// Resolves when the connection has to end for another one. A request that came first is
    /// served.
    pub(super) async fn evicted(&self) {
        loop {
            self.evicted.notified().await;
            let mut state = self.state.lock();
            if state.is_evictable() {
                return;
            }
            state.chosen = false;
        }
    }

    /// Resolves when `holds` returns true. Nothing wakes this future: poll it after the connection,
    /// in the same task.
    pub(super) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        poll_fn(|_| if holds(self) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Records that the peer is told that the connection ends. Returns false after the first time.
    pub(super) fn announce_end(&self) -> bool {
        self.state.lock().announced.replace(Instant::now()).is_none()
    }

    /// A head is complete. The request lasts until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> RequestGuard {
        let mut state = self.state.lock();
        state.requests += 1;
        state.used = true;
        state.head = None;
        RequestGuard(Arc::clone(self))
    }

    fn on_read(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if state.is_http2() || state.requests > 0 {
            return;
        }
        state.head.get_or_insert_with(Instant::now);
        // It may come in pieces.
        state.preface = state.preface.and_then(|came| {
            let expected = &HTTP2_PREFACE[came..];
            let compared = expected.len().min(bytes.len());
            (bytes[..compared] == expected[..compared]).then_some(came + compared)
        });
        if state.is_http2() {
            // Afterwards a client may wait for its first call.
            state.head = None;
            self.lacks_places.store(true, Ordering::Relaxed);
        }
    }

    /// The stream cannot do this ([`WRITE`], [`FLUSH`]), or can again.
    fn on_stalled(&self, what: usize, is_stalled: bool) {
        self.state.lock().stalled[what] = is_stalled.then(Instant::now);
    }

    /// When the present wait has lasted too long, and what it is for.
    fn due(&self, timeouts: Timeouts) -> Option<(Instant, TimeoutKind)> {
        let state = self.state.lock();
        let [unwritten, unflushed] = state.stalled;
        let unsent = [unwritten, unflushed, state.answers.first().copied()];
        let waits = [
            state.is_idle().then(|| self.idle_due(&state, timeouts)),
            unsent.into_iter().flatten().min().map(|since| (since + ANSWER, TimeoutKind::Answer)),
        ];
        waits.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Until when an idle connection may wait for a request or for the rest of its head.
    fn idle_due(&self, state: &ActivityState, timeouts: Timeouts) -> (Instant, TimeoutKind) {
        if let Some(head) = state.head {
            return (head + timeouts.header, TimeoutKind::Head);
        }
        let (since, limit) = match state.idle {
            Some(idle) => (idle, timeouts.idle),
            None => (self.opened, UNUSED.min(timeouts.idle)),
        };
        let announced = state.announced.map(|at| at.max(since) + ANNOUNCED);
        let due = since + limit;
        (announced.map_or(due, |announced| announced.min(due)), TimeoutKind::Idle)
    }

    /// Resolves when a wait has lasted too long. Poll it after the connection, in the same task: then it
    /// knows what the connection has just read. The timer is reset only when it fires too early or when a
    /// shorter wait begins.
    pub(super) async fn overdue(
        &self,
        timeouts: Timeouts,
        mut timer: Pin<&mut Sleep>,
    ) -> TimeoutKind {
        poll_fn(|context| {
            loop {
                let due = self.due(timeouts);
                if let Some((at, _)) = due.filter(|(at, _)| *at < timer.deadline()) {
                    timer.as_mut().reset(at);
                }
                ready!(timer.as_mut().poll(context));
                let now = Instant::now();
                if let Some((_, kind)) = due.filter(|(at, _)| *at <= now) {
                    return Poll::Ready(kind);
                }
                timer.as_mut().reset(due.map_or(now + timeouts.idle, |(at, _)| at));
            }
        })
        .await
    }
}

/// A request is being handled, or the rest of its body is being read.
#[derive(Debug)]
pub(crate) struct RequestGuard(Arc<Activity>);

impl RequestGuard {
    /// Its caller is known: the connection is not evicted while it is busy.
    pub(crate) fn trust(&self) {
        self.0.state.lock().trusted = true;
    }

    /// An answer is ready. It is in progress until the guard is dropped.
    pub(super) fn answer(&self) -> AnswerGuard {
        let began = Instant::now();
        self.0.state.lock().answers.push(began);
        AnswerGuard(Arc::clone(&self.0), began)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.idle = Some(Instant::now());
        state.requests -= 1;
    }
}

/// An answer is in progress.
#[derive(Debug)]
pub(super) struct AnswerGuard(Arc<Activity>, Instant);

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.idle = Some(Instant::now());
        let own = state.answers.iter().position(|began| *began == self.1);
        own.map(|own| state.answers.remove(own));
    }
}

/// A stream that records what is read and whether anything can be written.
#[derive(Debug)]
pub(super) struct ActivityStream<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Bytes read in this turn.
    read: usize,
    /// What `activity` was told last. Most calls tell it nothing new, and its lock costs them more than this.
    stalled: [bool; 2],
}

impl<S> ActivityStream<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, read: 0, stalled: [false; 2] }
    }

    fn note<T>(&mut self, what: usize, polled: Poll<T>) -> Poll<T> {
        let is_stalled = polled.is_pending();
        if mem::replace(&mut self.stalled[what], is_stalled) != is_stalled {
            self.activity.on_stalled(what, is_stalled);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ActivityStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.activity.waits_for_places() {
            // `Server::speak` polls the connection again when it has its places.
            return Poll::Pending;
        }
        if self.read >= TURN_BYTES {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        self.read += read.len();
        if !read.is_empty() {
            self.activity.on_read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActivityStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(WRITE, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(WRITE, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.note(FLUSH, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        closing: Duration::from_secs(30),
    };

    /// Whole seconds after the opening, for nothing here takes as long as one.
    fn limit(activity: &Activity) -> Option<(u64, TimeoutKind)> {
        activity.due(TIMEOUTS).map(|(at, what)| ((at - activity.opened).as_secs(), what))
    }

    #[test]
    fn what_was_never_used_has_less_time_and_a_head_less_than_that_over_http2_too() {
        let activity = Activity::new();
        assert_eq!(limit(&activity), Some((20, TimeoutKind::Idle)));
        activity.on_read(b"P");
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Head)));
        let activity = Activity::new();
        activity.on_read(b"PRI ");
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Head)));
        // After the preface a client may wait for its first call.
        activity.on_read(b"* HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(limit(&activity), Some((20, TimeoutKind::Idle)));
    }

    #[test]
    fn a_connection_waits_for_places_from_when_it_speaks_http2_until_it_has_them() {
        let in_pieces = Activity::new();
        for byte in &HTTP2_PREFACE[..23] {
            in_pieces.on_read(&[*byte]);
            assert!(!in_pieces.waits_for_places());
        }
        in_pieces.on_read(&HTTP2_PREFACE[23..]);
        let with_more = Activity::new();
        with_more.on_read(&[HTTP2_PREFACE, b"more"].concat());
        let by_tls = Activity::new();
        by_tls.set_http2();
        for activity in [in_pieces, with_more, by_tls] {
            assert!(activity.waits_for_places(), "before its first request");
            activity.set_placed();
            activity.on_read(HTTP2_PREFACE);
            let _call = activity.begin();
            assert!(!activity.waits_for_places() && activity.is_http2());
        }
        let http1 = Activity::new();
        http1.on_read(b"PRI /hooks/loja HTTP/1.1");
        http1.on_read(HTTP2_PREFACE);
        assert!(!http1.waits_for_places() && !http1.is_http2());
    }

    #[test]
    fn between_calls_there_is_time_and_none_for_half_a_head() {
        let activity = Activity::new();
        activity.on_read(b"GET / HTTP/1.1\r\n\r\n");
        let busy = activity.begin();
        assert_eq!(limit(&activity), None);
        drop(busy);
        assert_eq!(limit(&activity), Some((75, TimeoutKind::Idle)));
        activity.on_read(b"GE");
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Head)));
    }

    #[test]
    fn an_answer_is_in_progress_until_it_is_written_whatever_else_is() {
        let activity = Activity::new();
        let busy = activity.begin();
        busy.trust();
        let sending = busy.answer();
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Answer)));
        drop(busy);
        assert!(!activity.evict(), "it is not idle");
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Answer)));
        drop(sending);
        assert_eq!(limit(&activity), Some((75, TimeoutKind::Idle)));
        for what in [WRITE, FLUSH] {
            activity.on_stalled(what, true);
            assert_eq!(limit(&activity), Some((10, TimeoutKind::Answer)));
            activity.on_stalled(what, false);
            assert_eq!(limit(&activity), Some((75, TimeoutKind::Idle)));
        }
        activity.on_stalled(FLUSH, true);
        activity.on_stalled(WRITE, false);
        assert_eq!(limit(&activity), Some((10, TimeoutKind::Answer)), "it is only in a buffer");
        activity.on_stalled(FLUSH, false);
        assert!(activity.evict() && !activity.evict(), "it is asked once");
    }

    #[test]
    fn a_connection_that_was_told_to_go_goes() {
        let activity = Activity::new();
        drop(activity.begin());
        assert!(activity.announce_end() && !activity.announce_end());
        assert_eq!(limit(&activity), Some((1, TimeoutKind::Idle)));
        let _busy = activity.begin();
        assert_eq!(limit(&activity), None);
    }
}
