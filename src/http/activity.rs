//! What one connection is doing, and how long it may.
//!
//! hyper's own `header_read_timeout` runs between requests too: it would cut the idle connections
//! that Weni keeps for 15 s, or have to be so long that slow heads pass. So the stream that hyper
//! reads from notes when bytes come while no request is in flight, each request notes its begin and
//! its end, and one timer a connection looks at the notes when it is due. On the way of a request
//! that comes in one piece no timer is touched.
//!
//! On HTTP/2 bytes come between requests too (pings, settings, windows), so that there only the
//! idle limit counts; what a slow head holds in memory is bounded by its own limit.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::body::{DRAIN_BYTES, DRAIN_TIME};

/// The notes of one connection. All of its requests share them.
pub(super) struct Activity {
    born: Instant,
    is_multiplexed: AtomicBool,
    in_flight: AtomicUsize,
    has_served: AtomicBool,
    /// Bytes came since the last request began or ended.
    has_bytes: AtomicBool,
    /// When the last request ended, in milliseconds after `born`.
    idle_since_ms: AtomicU64,
    has_unread_body: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing, since then.
    Idle(Instant),
    /// The head of a request has begun.
    Head,
    /// Requests are in flight; they have limits of their own.
    Requests,
}

impl Activity {
    pub(super) fn new(is_multiplexed: bool) -> Self {
        Self {
            born: Instant::now(),
            is_multiplexed: AtomicBool::new(is_multiplexed),
            in_flight: AtomicUsize::new(0),
            has_served: AtomicBool::new(false),
            has_bytes: AtomicBool::new(false),
            idle_since_ms: AtomicU64::new(0),
            has_unread_body: AtomicBool::new(false),
        }
    }

    /// A request's head is there.
    pub(super) fn begin(&self, is_multiplexed: bool) {
        if is_multiplexed {
            self.is_multiplexed.store(true, Relaxed);
        }
        self.in_flight.fetch_add(1, Relaxed);
        self.has_served.store(true, Relaxed);
        self.has_bytes.store(false, Relaxed);
    }

    /// A request is answered, or given up.
    pub(super) fn end(&self) {
        let after_born = self.born.elapsed().as_millis() as u64;
        self.idle_since_ms.store(after_born, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// An answer went ahead of the end of the body, so that the connection has to end. It does
    /// when the answer is heard: a socket closed over unread bytes resets the connection.
    pub(super) fn leave_body_unread(&self) {
        self.has_unread_body.store(true, Relaxed);
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed.load(Relaxed)
    }

    pub(super) fn has_served(&self) -> bool {
        self.has_served.load(Relaxed)
    }

    pub(super) fn doing(&self) -> Doing {
        if self.in_flight.load(Relaxed) > 0 {
            Doing::Requests
        } else if self.has_bytes.load(Relaxed) && !self.is_multiplexed() {
            Doing::Head
        } else {
            Doing::Idle(self.born + Duration::from_millis(self.idle_since_ms.load(Relaxed)))
        }
    }

    fn note_bytes(&self) {
        if self.in_flight.load(Relaxed) == 0 {
            self.has_bytes.store(true, Relaxed);
        }
    }
}

/// Which limit a connection has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Idle,
    Head,
}

/// The timer of a connection.
pub(super) struct Limits {
    head: Duration,
    idle: Duration,
    head_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Limits {
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        Self { head, idle, head_since: None, timer: Box::pin(sleep(idle)) }
    }

    /// From now on the connection may idle no longer than this.
    pub(super) fn shorten_idle(&mut self, idle: Duration) {
        self.idle = self.idle.min(idle);
    }

    /// Ready when the connection has passed a limit. To be polled after each poll of the connection.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, activity: &Activity) -> Poll<Overdue> {
        loop {
            let (deadline, overdue) = self.next(activity);
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(context));
            if let Some(overdue) = overdue
                && deadline <= Instant::now()
            {
                return Poll::Ready(overdue);
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// When to look again, and what it is then if nothing has changed.
    fn next(&mut self, activity: &Activity) -> (Instant, Option<Overdue>) {
        let doing = activity.doing();
        if doing != Doing::Head {
            self.head_since = None;
        }
        match doing {
            Doing::Idle(since) => (since + self.idle, Some(Overdue::Idle)),
            Doing::Head => {
                let since = *self.head_since.get_or_insert_with(Instant::now);
                (since + self.head, Some(Overdue::Head))
            }
            Doing::Requests => (Instant::now() + self.idle, None),
        }
    }
}

/// A stream that notes what is read, and ends without cutting off an answer.
pub(super) struct Noted<S> {
    stream: S,
    activity: Arc<Activity>,
    lingering: Option<Lingering>,
}

/// Reads what still comes after the last byte was sent, until the other side closes.
struct Lingering {
    bytes_left: usize,
    end: Pin<Box<Sleep>>,
}

impl<S> Noted<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, lingering: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.activity.note_bytes();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            let is_heard = !this.activity.has_unread_body.load(Relaxed)
                && this.activity.doing() != Doing::Head;
            if is_heard {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this.lingering.get_or_insert_with(|| Lingering {
            bytes_left: DRAIN_BYTES,
            end: Box::pin(sleep(DRAIN_TIME)),
        });
        lingering.poll(&mut this.stream, context).map(Ok)
    }
}

impl Lingering {
    fn poll<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let mut bytes = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(context, &mut buffer) else {
                return self.end.as_mut().poll(context);
            };
            let count = buffer.filled().len();
            if read.is_err() || count == 0 || count > self.bytes_left {
                return Poll::Ready(());
            }
            self.bytes_left -= count;
        }
    }
}
