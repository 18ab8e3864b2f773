//! Logs go to standard error: as text on a terminal, as JSON otherwise.
//!
//! **Invariant:** no caller waits for the reader of standard error, which may be stuck. One thread
//! writes; lines that do not fit into its queue are dropped and counted.

use std::{
    backtrace::Backtrace,
    fmt,
    io::{self, IsTerminal, Write, stderr},
    panic, process,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
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

static QUEUE: OnceLock<&LineQueue> = OnceLock::new();

/// Installs the process's log, which also reports panics. A panic of this thread ends the process,
/// even within `catch_unwind`.
pub(super) fn init(config: &config::Log, dropped: IntCounter) -> anyhow::Result<()> {
    let filter = filter(&config.level)?;
    let is_terminal = stderr().is_terminal();
    let is_json = match config.format {
        LogFormat::Auto => !is_terminal,
        format => format == LogFormat::Json,
    };
    let queue = start(dropped).context("cannot start the log's thread")?;
    let log = subscriber(filter, queue, is_json, is_terminal);
    log.try_init().context("cannot install the log")?;
    let main = thread::current().id();
    panic::set_hook(Box::new(move |panic| {
        let (panic, backtrace) = (panic.to_string(), Backtrace::capture().to_string());
        let thread = thread::current();
        tracing::error!(thread = thread.name(), panic, backtrace, "a thread panicked");
        // If the OS refuses new threads, tokio panics while it builds its runtime. Unwinding would
        // then wait for ever for the threads that it did start.
        if thread.id() == main {
            flush();
            process::exit(101);
        }
    }));
    Ok(())
}

/// Writes a line without a log's format. No log need be installed.
pub(super) fn say(line: &str) {
    match QUEUE.get().copied().map_or_else(|| start(uncounted()), Ok) {
        Ok(queue) => queue.push(format!("{line}\n").into()),
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

fn start(dropped: IntCounter) -> io::Result<&'static LineQueue> {
    let (queue, queued) = LineQueue::leaked(dropped);
    thread::Builder::new().name("log".to_owned()).spawn(move || queue.write(queued, stderr()))?;
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

/// The filter is the whole subscriber's, because a filter of the layer loses lines: after a library has
/// asked the crate `log` whether a line would be written, and the filter has said no, the thread's next
/// line is lost (tracing-subscriber 0.3.23).
fn subscriber(
    filter: Targets,
    queue: &'static LineQueue,
    is_json: bool,
    is_terminal: bool,
) -> impl Subscriber + Send + Sync {
    let writer = move || LogWriter { queue, is_json };
    let log = tracing_subscriber::fmt::layer::<Registry>();
    let log = log.with_writer(writer).with_ansi(is_terminal);
    let log = if is_json {
        log.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        log.fmt_fields(format::debug_fn(shown).delimited(" ")).boxed()
    };
    tracing_subscriber::registry().with(log).with(filter)
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

/// Takes a whole line at a time: the layer writes like that.
struct LogWriter {
    queue: &'static LineQueue,
    is_json: bool,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_json {
            // serde_json does not escape DEL and C1.
            let text = String::from_utf8_lossy(line);
            self.queue.push(format!("{}\n", visible(text.trim_end_matches('\n'))).into());
        } else {
            self.queue.push(line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines to be written to standard error.
struct LineQueue {
    lines: Sender<Vec<u8>>,
    /// Of lines that are not written yet.
    bytes: AtomicUsize,
    dropped: IntCounter,
}

impl LineQueue {
    /// A queue that lasts as long as the process, and the lines for the thread that writes them.
    fn leaked(dropped: IntCounter) -> (&'static Self, Receiver<Vec<u8>>) {
        let (lines, queued) = mpsc::channel();
        (Box::leak(Box::new(Self { lines, bytes: AtomicUsize::new(0), dropped })), queued)
    }

    fn push(&self, line: Vec<u8>) {
        let add = |bytes: usize| {
            let bytes = bytes + line.len();
            (bytes <= QUEUED_BYTES_MAX).then_some(bytes)
        };
        let fits = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        if !fits || self.lines.send(line).is_err() {
            self.dropped.inc();
        }
    }

    /// Never returns. One write a line, so that another process cannot write into the middle of it.
    fn write(&self, queued: Receiver<Vec<u8>>, mut to: impl Write) {
        for line in queued {
            if to.write_all(&line).is_err() {
                self.dropped.inc();
            }
            self.bytes.fetch_sub(line.len(), Ordering::Release);
        }
    }

    fn flush(&self, time: Duration) {
        let start = Instant::now();
        while self.bytes.load(Ordering::Acquire) > 0 && start.elapsed() < time {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use log::Log as _;
    use tracing::Level;

    use super::*;

    fn text(queued: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(queued.try_iter().flatten().collect()).unwrap()
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
        let (queue, queued) = LineQueue::leaked(uncounted());
        let log = subscriber(filter("info").unwrap(), queue, true, false);
        // rdkafka asks so whenever it makes a client's configuration.
        let question =
            log::Metadata::builder().level(log::Level::Error).target("librdkafka").build();
        tracing::subscriber::with_default(log, || {
            for _ in 0..2 {
                tracing_log::LogTracer::new().enabled(&question);
                tracing::info!(target: "weni_edge", "ours");
            }
        });
        assert_eq!(text(&queued).matches("ours").count(), 2);
    }

    #[test]
    fn control_characters_are_escaped_in_every_format() {
        let hostile = "a\u{1b}[2J\u{7}\u{8}\u{7f}\u{9b}31mb";
        for is_json in [false, true] {
            let (queue, queued) = LineQueue::leaked(uncounted());
            let log = subscriber(filter("info").unwrap(), queue, is_json, false);
            tracing::subscriber::with_default(log, || {
                let error = anyhow::anyhow!("{hostile}");
                tracing::error!(text = hostile, shown = %hostile, debug = ?hostile, %error, "{hostile}");
            });
            let line = text(&queued);
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
        let (queue, queued) = LineQueue::leaked(uncounted());
        (0..2000).for_each(|_| queue.push(vec![b'x'; 1024]));
        assert_eq!(queue.dropped.get(), 2000 - 1024);
        assert_eq!(queue.bytes.load(Ordering::Relaxed), QUEUED_BYTES_MAX);
        queue.flush(Duration::from_millis(1));
        let (reader, writer) = io::pipe().unwrap();
        thread::spawn(move || queue.write(queued, writer));
        io::copy(&mut io::Read::take(reader, QUEUED_BYTES_MAX as u64), &mut io::sink()).unwrap();
        queue.flush(Duration::from_secs(60));
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
        // The reader is gone.
        queue.push(b"unread\n".to_vec());
        queue.flush(Duration::from_secs(60));
        assert_eq!(queue.dropped.get(), 2000 - 1024 + 1);
    }
}
