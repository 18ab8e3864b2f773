//! One connection: what it waits for, for how long, and how it ends.
//!
//! hyper's own header timer also runs while a connection is idle, and would cut keep-alive short.
//! Here the timer starts with the first byte of a request ([`Watched`] sees it), idleness has a
//! limit of its own, and a request being handled is bounded by its handler. One timer a connection
//! is enough: it is set anew only when it fires too early or a head arrives in pieces.
//!
//! On HTTP/2 frames come without requests, so there a head in pieces counts as idleness.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How every connection starts that means HTTP/2 without having said so in TLS.
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// What a connection waits for.
#[derive(Debug)]
pub(super) struct Pulse {
    opened: Instant,
    /// Microseconds from opening to when the present wait began, times two; odd when it is the
    /// wait for the rest of a head.
    since: AtomicU64,
    /// Requests being handled; while there are any, nobody waits.
    busy: AtomicU32,
    http2: AtomicBool,
    /// At least one request has come.
    used: AtomicBool,
}

/// How long a connection may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) header: Duration,
    pub(super) idle: Duration,
}

/// What a connection waited for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Head,
    Request,
}

impl Pulse {
    pub(super) fn new(http2: bool) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            since: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            http2: AtomicBool::new(http2),
            used: AtomicBool::new(false),
        })
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Whether a request has come, so that the protocol is settled.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Resolves when a request has come. As [`overdue`](Self::overdue) to be polled behind the
    /// connection, in its task: nothing else wakes it.
    pub(super) async fn used(&self) {
        poll_fn(|_| if self.is_used() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.used.store(true, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn wait_from_now(&self, head: bool) {
        let micros = self.opened.elapsed().as_micros() as u64;
        self.since.store(micros << 1 | u64::from(head), Ordering::Release);
    }

    fn on_bytes(&self, bytes: &[u8]) {
        let waits_for_head = self.since.load(Ordering::Relaxed) & 1 == 1;
        if waits_for_head || self.busy.load(Ordering::Acquire) > 0 || self.is_http2() {
            return;
        }
        if !self.is_used() && bytes.starts_with(HTTP2_PREFACE) {
            self.http2.store(true, Ordering::Relaxed);
        } else {
            self.wait_from_now(true);
        }
    }

    /// When the present wait has lasted too long, and what it is for.
    fn due(&self, patience: Patience) -> Option<(Instant, Overdue)> {
        if self.busy.load(Ordering::Acquire) > 0 {
            return None;
        }
        let since = self.since.load(Ordering::Acquire);
        let from = self.opened + Duration::from_micros(since >> 1);
        Some(match since & 1 {
            1 => (from + patience.header, Overdue::Head),
            _ => (from + patience.idle, Overdue::Request),
        })
    }

    /// Resolves when a wait has lasted too long. To be polled after the connection itself, in the
    /// same task: what the connection has just read is then taken into account.
    pub(super) async fn overdue(&self, patience: Patience, mut timer: Pin<&mut Sleep>) -> Overdue {
        poll_fn(|context| {
            loop {
                let due = self.due(patience);
                if let Some((at, _)) = due
                    && at < timer.deadline()
                {
                    timer.as_mut().reset(at);
                }
                ready!(timer.as_mut().poll(context));
                let now = Instant::now();
                match due {
                    Some((at, what)) if at <= now => return Poll::Ready(what),
                    Some((at, _)) => timer.as_mut().reset(at),
                    None => timer.as_mut().reset(now + patience.idle),
                }
            }
        })
        .await
    }
}

/// A request is being handled, or what is left of its body read.
#[derive(Debug)]
pub(super) struct Busy(Arc<Pulse>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.wait_from_now(false);
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One in a gauge, until it is dropped: also by a panic, or a caller who goes away.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a IntGauge);

impl<'a> Counted<'a> {
    pub(super) fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A stream whose first bytes after a silence are noticed.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            self.pulse.on_bytes(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
