//! The network between the edge and a broker: a TCP proxy that can be slow, deliver nothing, or be gone.
//!
//! **Invariant:** unless the link is closed, all bytes that it has taken arrive in order, however late, also
//! if their sender has closed the connection meanwhile.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// What each way of a link is like, for all its connections together.
#[derive(Clone, Copy)]
pub(super) struct Quality {
    pub(super) latency: Duration,
    pub(super) bytes_per_second: u32,
}

impl Quality {
    pub(super) const LOOPBACK: Self = Self { latency: Duration::ZERO, bytes_per_second: u32::MAX };
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    ToBroker,
    ToEdge,
}

impl Way {
    pub(super) const BOTH: &[Self] = &[Self::ToBroker, Self::ToEdge];
}

/// It listens until it is closed.
pub(super) struct Link {
    address: SocketAddr,
    ends: Arc<Ends>,
    accepting: Option<JoinHandle<()>>,
}

struct Ends {
    broker: SocketAddr,
    to_broker: Lane,
    to_edge: Lane,
    /// Both ends of each connection, also of one that has ended.
    connections: Mutex<Vec<[TcpStream; 2]>>,
    closed: AtomicBool,
}

/// One way.
struct Lane {
    quality: Quality,
    /// When the wire has taken all that came before.
    free_at: Mutex<Instant>,
    held: Mutex<bool>,
    released: Condvar,
    bytes_passed: AtomicUsize,
    /// What has been kept waiting since the link first stood still.
    bytes_held: AtomicUsize,
}

impl Link {
    pub(super) fn open(address: SocketAddr, broker: SocketAddr, quality: Quality) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let ends = Arc::new(Ends {
            broker,
            to_broker: Lane::new(quality),
            to_edge: Lane::new(quality),
            connections: Mutex::default(),
            closed: AtomicBool::default(),
        });
        let accepting = Some(thread::spawn({
            let ends = Arc::clone(&ends);
            move || ends.accept(&listener)
        }));
        Self { address, ends, accepting }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that reached the broker or the edge.
    pub(super) fn bytes_passed(&self, way: Way) -> usize {
        self.ends.lane(way).bytes_passed.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_held(&self, way: Way) -> usize {
        self.ends.lane(way).bytes_held.load(Ordering::Relaxed)
    }

    /// From now on nothing arrives, and nobody is told.
    pub(super) fn hold(&self, ways: &[Way]) {
        ways.iter().for_each(|way| self.ends.lane(*way).hold());
    }

    /// What was held arrives, and everything behind it.
    pub(super) fn release(&self) {
        Way::BOTH.iter().for_each(|way| self.ends.lane(*way).release());
    }

    /// Ends all connections, and refuses others.
    pub(super) fn close(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.ends.closed.store(true, Ordering::SeqCst);
        // It waits for a connection.
        drop(TcpStream::connect(self.address));
        accepting.join().unwrap();
        for connection in self.ends.connections.lock().drain(..) {
            // Many have ended long since.
            connection.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        self.release();
    }

    pub(super) fn refuses(&self) -> bool {
        TcpStream::connect(self.address).is_err()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ends {
    fn lane(&self, way: Way) -> &Lane {
        match way {
            Way::ToBroker => &self.to_broker,
            Way::ToEdge => &self.to_edge,
        }
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for edge in listener.incoming() {
            if self.closed.load(Ordering::SeqCst) {
                break;
            }
            // Without a broker its client is sent away.
            let Ok(broker) = TcpStream::connect(self.broker) else { continue };
            let edge = edge.unwrap();
            self.connections.lock().push([twin(&edge), twin(&broker)]);
            self.carry(Way::ToBroker, twin(&edge), twin(&broker));
            self.carry(Way::ToEdge, broker, edge);
        }
    }

    /// Takes at once what the wire has room for, and delivers it when it is due.
    fn carry(self: &Arc<Self>, way: Way, mut from: TcpStream, mut to: TcpStream) {
        to.set_nodelay(true).unwrap();
        let (taken, due) = mpsc::channel();
        let [taking, delivering] = [Arc::clone(self), Arc::clone(self)];
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let arrives_at = taking.lane(way).take(count);
                taken.send((arrives_at, buffer[..count].to_vec())).unwrap();
            }
        });
        thread::spawn(move || {
            let lane = delivering.lane(way);
            for (arrives_at, bytes) in due {
                sleep_until(arrives_at);
                lane.await_release(bytes.len());
                // Who has gone does not end it: both halves take what is sent to nobody.
                if to.write_all(&bytes).is_ok() {
                    lane.bytes_passed.fetch_add(bytes.len(), Ordering::Relaxed);
                }
            }
            drop(to.shutdown(Shutdown::Write));
        });
    }
}

impl Lane {
    fn new(quality: Quality) -> Self {
        Self {
            quality,
            free_at: Mutex::new(Instant::now()),
            held: Mutex::default(),
            released: Condvar::new(),
            bytes_passed: AtomicUsize::default(),
            bytes_held: AtomicUsize::default(),
        }
    }

    /// Waits until the wire has taken so many bytes; returns when they arrive.
    fn take(&self, count: usize) -> Instant {
        let takes =
            Duration::from_secs_f64(count as f64 / f64::from(self.quality.bytes_per_second));
        let taken_at = {
            let mut free_at = self.free_at.lock();
            *free_at = (*free_at).max(Instant::now()) + takes;
            *free_at
        };
        sleep_until(taken_at);
        taken_at + self.quality.latency
    }

    fn hold(&self) {
        *self.held.lock() = true;
    }

    fn release(&self) {
        *self.held.lock() = false;
        self.released.notify_all();
    }

    fn await_release(&self, count: usize) {
        let mut held = self.held.lock();
        if *held {
            self.bytes_held.fetch_add(count, Ordering::Relaxed);
            self.released.wait_while(&mut held, |held| *held);
        }
    }
}

fn twin(stream: &TcpStream) -> TcpStream {
    stream.try_clone().unwrap()
}

fn sleep_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}
