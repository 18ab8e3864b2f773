//! Tries from the outside in what an edge needs: what callers reach, the certificate, the ports, the
//! journal, Kafka, and the machine. Also beside a running edge.
//!
//! Each probe looks at one thing and returns findings. All probes run at once, each on a thread, and
//! a probe that hangs is given up. What is found is judged by pure functions.
//!
//! **Invariant:** no file, no committed record and no committed offset is left behind. Aborted records stay
//! until retention deletes them, and the transactional id of the trial for
//! `transactional.id.expiration.ms`. No client has the transactional id or the group of an edge, because that
//! would fence the edge.

mod calls;
mod certificate;
mod journal;
mod kafka;
mod machine;
mod ports;
mod public_url;
mod topics;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue};
use rustls::RootCertStore;

use crate::{
    caller::trusted_roots,
    config::Config,
    event::named,
    journal::{Directory, Holder, disk, holder},
};

/// No check takes longer, because a person waits for it.
const LIMIT: Duration = Duration::from_secs(28);

named! {
    /// What was looked at.
    Aspect {
        Configuration = "configuration",
        /// The address that Weni calls.
        PublicUrl = "public_url",
        /// The certificate that callers see.
        Certificate = "certificate",
        HttpListen = "http_listen",
        AdminListen = "admin_listen",
        /// The journal's directory.
        Journal = "journal",
        JournalSpace = "journal_space",
        /// How long its disk takes to sync.
        JournalSync = "journal_sync",
        Kafka = "kafka",
        KafkaVersion = "kafka_version",
        KafkaTopic = "kafka_topic",
        /// A transaction of the kind that the edge publishes with, aborted.
        KafkaTransaction = "kafka_transaction",
        Clock = "clock",
        Descriptors = "descriptors",
        Memory = "memory",
        /// A call to a running edge.
        Call = "call",
    }
}

named! {
    /// How a finding is judged.
    Severity {
        Ok = "ok",
        /// It works, and may fail or surprise.
        Warning = "warning",
        /// Calls are lost, or nothing is published.
        Problem = "problem",
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Aspect,
    /// How it is judged.
    pub severity: Severity,
    /// What was found: one line.
    pub found: String,
    /// What to do. Present unless all is well.
    pub remedy: Option<String>,
}

impl Aspect {
    fn ok(self, found: impl Into<String>) -> Finding {
        Finding { check: self, severity: Severity::Ok, found: found.into(), remedy: None }
    }

    fn warning(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { severity: Severity::Warning, remedy: Some(remedy.into()), ..self.ok(found) }
    }

    fn problem(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { severity: Severity::Problem, ..self.warning(found, remedy) }
    }
}

/// A webhook of a running edge that is to be called, and the header that lets a call in.
#[derive(Clone)]
pub struct Webhook {
    /// Such as `https://edge.example.com/hooks/loja`.
    pub url: String,
    /// None: the source takes calls from anyone.
    pub secret: Option<(HeaderName, HeaderValue)>,
}

/// What is looked at.
pub struct Subject {
    config: Arc<Config>,
    webhook: Option<Webhook>,
    roots: RootCertStore,
    running: OnceLock<io::Result<Option<Holder>>>,
}

impl Subject {
    /// A configuration, and a webhook to call. The certificates of `ca_file` are trusted instead of
    /// Mozilla's.
    ///
    /// # Errors
    /// Says what is wrong with the file, or with the webhook's URL or header.
    pub fn new(
        config: Config,
        webhook: Option<Webhook>,
        ca_file: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let roots = trusted_roots(ca_file.as_deref())?;
        if let Some(webhook) = &webhook {
            webhook.target(calls::Way::Post, &roots)?;
        }
        Ok(Self { config: Arc::new(config), webhook, roots, running: <_>::default() })
    }

    /// The process that has the journal open. It is asked once, because the question takes a shared lock
    /// for a moment. The journal's own finding has the error.
    fn running(&self) -> Result<Option<Holder>, &io::Error> {
        let path = &self.config.journal.directory;
        let asked = self.running.get_or_init(|| holder(Directory { disk: &disk::Real, path }));
        asked.as_ref().copied()
    }
}

/// Looks at one thing.
struct Probe {
    /// For people who wait.
    name: &'static str,
    run: fn(&Subject, &Report),
    /// The aspect of the finding that the probe hangs.
    aspect: Aspect,
}

/// From the outside in.
const PROBES: [Probe; 7] = [
    Probe { name: "configuration", run: look_at_configuration, aspect: Aspect::Configuration },
    Probe { name: "public URL", run: public_url::probe, aspect: Aspect::PublicUrl },
    Probe { name: "certificate", run: certificate::probe, aspect: Aspect::Certificate },
    Probe { name: "ports", run: ports::probe, aspect: Aspect::HttpListen },
    Probe { name: "journal", run: journal::probe, aspect: Aspect::Journal },
    Probe { name: "Kafka", run: kafka::probe, aspect: Aspect::Kafka },
    Probe { name: "machine", run: machine::probe, aspect: Aspect::Descriptors },
];

/// The edge that is called may be on another machine, so this one is not looked at.
const CALLS: [Probe; 1] = [Probe { name: "calls", run: calls::probe, aspect: Aspect::Call }];

/// Takes what a probe finds. None ends the probe.
struct Report {
    probe: usize,
    /// What comes later is lost.
    deadline: Instant,
    sender: mpsc::Sender<(usize, Option<Finding>)>,
}

impl Report {
    fn add(&self, finding: Finding) {
        // Findings that come too late are not waited for.
        self.sender.send((self.probe, Some(finding))).ok();
    }

    fn all(&self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// The time until the deadline, less a second for the last finding to arrive.
    fn time_left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.saturating_sub(Duration::from_secs(1))
    }
}

/// Runs a future of the network. Does not wait for a thread that a name server blocks.
fn block_on<T>(
    aspect: Aspect,
    future: impl Future<Output = Result<T, Finding>>,
) -> Result<T, Finding> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        let found = format!("the system refuses a client: {error}");
        aspect.problem(found, "look at limits of files and memory")
    })?;
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    output
}

/// Who may call, and who may read the secrets.
fn look_at_configuration(subject: &Subject, report: &Report) {
    let config = &subject.config;
    let mut findings = Vec::new();
    if let Some(files) = config.exposed_files() {
        let found = format!("every user of this machine may read or change the secrets in {files}");
        findings.push(Aspect::Configuration.warning(found, format!("run chmod o-rwx {files}")));
    }
    for (name, _) in config.sources.iter().filter(|(_, source)| source.allow_unauthenticated) {
        let found = format!("source {name} takes calls from anyone who knows its URL");
        let remedy =
            "give it a header and a secret, unless something in front of it checks callers";
        findings.push(Aspect::Configuration.warning(found, remedy));
    }
    let unused = config.unused_properties();
    if !unused.is_empty() {
        let found = format!("kafka.properties has {}, which nothing uses", unused.join(", "));
        let remedy = "set security.protocol to SASL_SSL, SASL_PLAINTEXT or SSL, as the brokers' listener \
                      has it, or leave these properties out";
        findings.push(Aspect::Configuration.warning(found, remedy));
    }
    if findings.is_empty() {
        let sources: Vec<_> = config.sources.keys().map(String::as_str).collect();
        findings.push(
            Aspect::Configuration.ok(format!("it can be used; sources: {}", sources.join(", "))),
        );
    }
    report.all(findings);
}

/// Calls the webhook, if there is one, or else looks at all that an edge of this machine needs. Returns what
/// was found, from the outside in. Takes at most half a minute. `waiting` is told what is still looked at,
/// whenever that changes.
pub fn run(subject: Subject, waiting: impl FnMut(&[&str])) -> Vec<Finding> {
    let probes = if subject.webhook.is_some() { &CALLS[..] } else { &PROBES };
    run_within(LIMIT, probes, Arc::new(subject), waiting)
}

fn run_within(
    limit: Duration,
    probes: &'static [Probe],
    subject: Arc<Subject>,
    mut waiting: impl FnMut(&[&str]),
) -> Vec<Finding> {
    let deadline = Instant::now() + limit;
    let (sender, reports) = mpsc::channel();
    for (index, probe) in probes.iter().enumerate() {
        let report = Report { probe: index, deadline, sender: sender.clone() };
        let subject = Arc::clone(&subject);
        let run = move || {
            (probe.run)(&subject, &report);
            report.sender.send((index, None)).ok();
        };
        // Without a thread it counts as one that hangs.
        thread::Builder::new().name(format!("check {}", probe.name)).spawn(run).ok();
    }
    drop(sender);
    let mut found = vec![Vec::new(); probes.len()];
    let mut running: Vec<_> = (0..probes.len()).collect();
    while !running.is_empty() {
        waiting(&running.iter().map(|probe| probes[*probe].name).collect::<Vec<_>>());
        match reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((probe, Some(finding))) => found[probe].push(finding),
            Ok((probe, None)) => running.retain(|one| *one != probe),
            Err(_) => break,
        }
    }
    for probe in running {
        let Probe { name, aspect, .. } = probes[probe];
        let text = format!("looking at it ({name}) has not ended within {} s", limit.as_secs_f64());
        let remedy = "a disk or a server does not answer: look at the machine (dmesg, load), then check \
                      again";
        found[probe].push(aspect.problem(text, remedy));
    }
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_hangs_or_panics_is_given_up_and_what_was_found_is_kept() {
        const STUCK: [Probe; 3] = [
            Probe {
                name: "one that hangs",
                run: |_, report| {
                    report.add(Aspect::Journal.ok("found before"));
                    thread::park();
                },
                aspect: Aspect::Journal,
            },
            Probe {
                name: "one that panics",
                run: |_, _| panic!("of a test"),
                aspect: Aspect::Kafka,
            },
            Probe {
                name: "one that ends",
                run: |_, report| report.add(Aspect::Clock.ok("found")),
                aspect: Aspect::Clock,
            },
        ];
        let subject = Arc::new(Subject::new(Config::default(), None, None).unwrap());
        let mut first_names = None;
        // The one that panics may print a backtrace first, which takes a slow machine seconds.
        let findings = run_within(Duration::from_secs(5), &STUCK, subject, |names| {
            first_names.get_or_insert_with(|| names.join(", "));
        });
        let found: Vec<_> =
            findings.iter().map(|finding| (finding.check, finding.severity)).collect();
        let expected = [
            (Aspect::Journal, Severity::Ok),
            (Aspect::Journal, Severity::Problem),
            (Aspect::Kafka, Severity::Problem),
            (Aspect::Clock, Severity::Ok),
        ];
        assert_eq!(found, expected, "{findings:?}");
        assert_eq!(first_names.unwrap(), "one that hangs, one that panics, one that ends");
    }
}
