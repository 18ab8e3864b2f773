//! SIGTERM and SIGINT: an early handler for the start, and the one of a running edge.
//!
//! The first process of a container ignores a signal for which it has no handler. Without the early
//! handler, a stop during a long recovery would wait for SIGKILL.

use std::{
    io, process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// The exit code that shells report for a process that SIGTERM ended.
const TERMINATED: i32 = 128 + 15;

/// Dropped when the early handler has to end.
static EARLY: Mutex<Option<oneshot::Sender<()>>> = Mutex::new(None);

/// Ends the process on SIGTERM until `Signals` take over. If threads or descriptors are missing
/// there is no handler, and what the process starts next reports that.
pub fn end_on_terminate() {
    let (early, mut taken_over) = oneshot::channel();
    let (ready, is_ready) = mpsc::channel::<()>();
    *EARLY.lock() = Some(early);
    // The handler stays for ever once it is installed, so it comes after the thread that listens.
    let listen = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            drop(ready);
            tokio::select! {
                // First, because the edge's handler does not see a signal from before it existed.
                biased;
                _ = terminate.recv() => process::exit(TERMINATED),
                _ = &mut taken_over => io::Result::Ok(()),
            }
        })
    };
    if thread::Builder::new().name("signals".to_owned()).spawn(listen).is_ok() {
        // The thread drops the sender when the handler is installed, or cannot be.
        is_ready.recv().ok();
    }
}

/// How long a command that was told to stop may take to its end.
const LAST_STEP: Duration = Duration::from_secs(3);

/// A flag that SIGTERM or SIGINT sets, for a command that looks at it. A command that does not come
/// to look is ended: it may wait for a broker, or for the reader of its output.
pub(crate) fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = runtime.block_on(async { Signals::take_over() })?;
    thread::Builder::new().name("stop".to_owned()).spawn(move || {
        runtime.block_on(signals.next());
        set.store(true, Ordering::Relaxed);
        thread::sleep(LAST_STEP);
        process::exit(TERMINATED);
    })?;
    Ok(stop)
}

/// SIGTERM and SIGINT of a running edge.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over from the early handler.
    pub(super) fn take_over() -> io::Result<Self> {
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        *EARLY.lock() = None;
        Ok(Self { terminate, interrupt })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
