//! Logs go to standard error: as text on a terminal, as JSON otherwise.
//!
//! **Invariant:** no caller waits for the reader of standard error, which may be stuck. One thread
//! writes; lines that do not fit into its queue are dropped and counted.

use std::{
    backtrace::Backtrace,
    fmt,
    io::{self, IsTerminal, Write, stderr},
    mem, panic,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tracing::{Subscriber, field::Field};
use tracing_subscriber::{
    Layer, Registry,
    field::MakeExt,
    filter::{LevelFilter, Targets},
    fmt::format,
    prelude::*,
};

use super::terminal::visible;
use crate::config::{self, LogFormat};

/// Some thousand lines: more than an edge logs at once when it starts or in an incident.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// How long the process waits at its end for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Installs the process's log, which also reports panics.
///
/// # Errors
/// When the level is invalid, a log is installed already, or the OS refuses a thread.
pub(super) fn init(config: &config::Log, dropped: IntCounter) -> anyhow::Result<()> {
    let filter = filter(&config.level)?;
    let is_terminal = stderr().is_terminal();
    let is_json = match config.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let queue = start(dropped).context("cannot start the log's thread")?;
    let layer = layer(queue, is_json, is_terminal);
    subscriber(filter, layer).try_init().context("cannot install the log")?;
    panic::set_hook(Box::new(|panic| {
        let (panic, backtrace) = (panic.to_string(), Backtrace::capture().to_string());
        tracing::error!(thread = thread::current().name(), panic, backtrace, "a thread panicked");
    }));
    Ok(())
}

/// Writes a line without a log's format. No log need be installed.
pub(super) fn say(line: &str) {
    match QUEUE.get().map_or_else(|| start(uncounted()), Ok) {
        Ok(queue) => queue.push(format!("{line}\n").as_bytes()),
        // The OS refuses threads.
        Err(_) => eprintln!("{line}"),
    }
}

/// Waits until everything is written, but no longer than a second.
pub(super) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}

fn start(dropped: IntCounter) -> io::Result<&'static Arc<Queue>> {
    let queue = Queue::new(dropped);
    let written = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || written.write(stderr()))?;
    Ok(QUEUE.get_or_init(|| queue))
}

/// A counter for commands without metrics.
fn uncounted() -> IntCounter {
    // INVARIANT: Prometheus accepts this name and help.
    IntCounter::new("dropped", "Lines.").expect("a counter")
}

/// Libraries are silent unless `level` names their module: they log per request what our metrics
/// count.
fn filter(level: &str) -> anyhow::Result<Targets> {
    let asked: Targets = level.parse().context("log.level is invalid")?;
    let ours = asked.default_level().unwrap_or(LevelFilter::OFF);
    Ok(Targets::new().with_target("weni_edge", ours).with_targets(asked))
}

/// The filter is not the layer's own: where a library asks the crate `log` whether a line would be
/// written, and such a filter answers no, the thread's next line is lost (tracing-subscriber 0.3.23).
fn subscriber(
    filter: Targets,
    layer: Box<dyn Layer<Registry> + Send + Sync>,
) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(layer).with(filter)
}

fn layer(
    queue: &Arc<Queue>,
    is_json: bool,
    is_terminal: bool,
) -> Box<dyn Layer<Registry> + Send + Sync> {
    let queue = Arc::clone(queue);
    let writer = move || Writer { queue: Arc::clone(&queue), is_json };
    let log = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(is_terminal);
    if is_json {
        log.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        log.fmt_fields(format::debug_fn(shown).delimited(" ")).boxed()
    }
}

/// Writes a field for people. The layer's own format leaves control characters in `Display` values.
fn shown(to: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = visible(&format!("{value:?}"));
    match field.name() {
        "message" => write!(to, "{value}"),
        // Fields that the bridge from the crate `log` adds for itself.
        name if name.starts_with("log.") => Ok(()),
        name => write!(to, "{name}={value}"),
    }
}

/// Takes one whole line a call, because the layer writes like that.
struct Writer {
    queue: Arc<Queue>,
    is_json: bool,
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_json {
            // serde_json does not escape DEL and C1.
            let text = String::from_utf8_lossy(line);
            self.queue.push(format!("{}\n", visible(text.trim_end_matches('\n'))).as_bytes());
        } else {
            self.queue.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines to be written to standard error.
struct Queue {
    dropped: IntCounter,
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    queued: Vec<u8>,
    is_writing: bool,
}

impl Queue {
    fn new(dropped: IntCounter) -> Arc<Self> {
        Arc::new(Self { dropped, lines: Mutex::default(), changed: Condvar::new() })
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.lines.lock();
        if lines.queued.len() + line.len() > QUEUED_BYTES_MAX {
            self.dropped.inc();
            return;
        }
        lines.queued.extend_from_slice(line);
        self.changed.notify_all();
    }

    /// Never returns.
    fn write(&self, mut to: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut lines = self.lines.lock();
            lines.is_writing = false;
            self.changed.notify_all();
            self.changed.wait_while(&mut lines, |lines| lines.queued.is_empty());
            lines.is_writing = true;
            mem::swap(&mut batch, &mut lines.queued);
            drop(lines);
            // One write a line, so that another process cannot write into the middle of it.
            for line in batch.split_inclusive(|byte| *byte == b'\n') {
                if to.write_all(line).is_err() {
                    self.dropped.inc();
                }
            }
            batch.clear();
        }
    }

    fn flush(&self, time: Duration) {
        let mut lines = self.lines.lock();
        let is_busy = |lines: &mut Lines| lines.is_writing || !lines.queued.is_empty();
        self.changed.wait_while_until(&mut lines, is_busy, Instant::now() + time);
    }
}

#[cfg(test)]
mod tests {
    use log::Log as _;
    use tracing::Level;

    use super::*;

    fn queued(queue: &Queue) -> String {
        String::from_utf8(queue.lines.lock().queued.clone()).unwrap()
    }

    #[test]
    fn libraries_are_silent_unless_they_are_asked_for() {
        let usual = filter("info").unwrap();
        assert!(usual.would_enable("weni_edge::http::tls", &Level::INFO));
        assert!(!usual.would_enable("weni_edge::http::tls", &Level::DEBUG));
        for library in ["h2::proto::streams::recv", "rustls::conn", "hyper", "log"] {
            assert!(!usual.would_enable(library, &Level::ERROR), "{library}");
        }
        let asked = filter("warn,h2=debug,weni_edge::publish=trace").unwrap();
        assert!(asked.would_enable("h2::codec", &Level::DEBUG));
        assert!(!asked.would_enable("rustls::conn", &Level::ERROR));
        assert!(asked.would_enable("weni_edge::publish::session", &Level::TRACE));
        assert!(!asked.would_enable("weni_edge::journal", &Level::INFO));
        assert!(!filter("h2=debug").unwrap().would_enable("weni_edge", &Level::ERROR));
        let ours = filter("warn,weni_edge=debug").unwrap();
        assert!(ours.would_enable("weni_edge::journal", &Level::DEBUG));
    }

    #[test]
    fn a_library_that_asks_whether_it_is_heard_silences_nobody() {
        let queue = Queue::new(uncounted());
        let log = subscriber(filter("info").unwrap(), layer(&queue, true, false));
        // rdkafka asks so whenever it makes a client's configuration.
        let question =
            log::Metadata::builder().level(log::Level::Error).target("librdkafka").build();
        tracing::subscriber::with_default(log, || {
            for _ in 0..2 {
                tracing_log::LogTracer::new().enabled(&question);
                tracing::info!(target: "weni_edge", "ours");
            }
        });
        assert_eq!(queued(&queue).matches("ours").count(), 2);
    }

    #[test]
    fn control_characters_are_escaped_in_every_format() {
        let hostile = "a\u{1b}[2J\u{7}\u{8}\u{7f}\u{9b}31mb";
        for is_json in [false, true] {
            let queue = Queue::new(uncounted());
            let log = tracing_subscriber::registry().with(layer(&queue, is_json, false));
            tracing::subscriber::with_default(log, || {
                let error = anyhow::anyhow!("{hostile}");
                tracing::error!(text = hostile, shown = %hostile, debug = ?hostile, %error, "{hostile}");
            });
            let line = queued(&queue);
            assert_eq!(line.matches("[2J").count(), 5, "{line:?}");
            assert!(!line.trim_end().contains(char::is_control), "{line:?}");
            if is_json {
                let line: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(line["shown"], hostile);
            }
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_counted_and_delay_no_caller() {
        let queue = Queue::new(uncounted());
        let line = [b'x'; 1024];
        (0..2000).for_each(|_| queue.push(&line));
        assert_eq!(queue.dropped.get(), 2000 - 1024);
        assert_eq!(queued(&queue).len(), QUEUED_BYTES_MAX);
        queue.flush(Duration::from_millis(1));
        let (reader, writer) = io::pipe().unwrap();
        let writing = Arc::clone(&queue);
        thread::spawn(move || writing.write(writer));
        io::copy(&mut io::Read::take(reader, QUEUED_BYTES_MAX as u64), &mut io::sink()).unwrap();
        queue.flush(Duration::from_secs(60));
        assert_eq!(queued(&queue), "");
        // The reader is gone.
        queue.push(b"unread\n");
        queue.flush(Duration::from_secs(60));
        assert_eq!(queue.dropped.get(), 2000 - 1024 + 1);
    }
}
