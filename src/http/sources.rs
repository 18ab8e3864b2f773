//! The configured sources as the handler needs them: secrets digested, metrics looked up.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::Method;
use prometheus::{Gauge, Histogram, IntCounter};

use super::{auth::Check, error::Refusal};
use crate::{
    config::{self, Config},
    metrics::{Metrics, UNKNOWN_SOURCE},
};

/// One line a source and reason within this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The values of label `method`; what is none of them is the last one.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"];

/// One source.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) check: Check,
    pub(super) raw: bool,
    pub(super) accepted: IntCounter,
    pub(super) last_callback: Gauge,
    pub(super) duration: Histogram,
    answered: Vec<IntCounter>,
}

/// All sources of one configuration.
pub(super) struct Sources {
    config: Arc<Config>,
    by_name: HashMap<String, Source>,
}

/// The sources of the configuration as it is now.
pub(super) struct Registry {
    config: Arc<ArcSwap<Config>>,
    resolved: ArcSwap<Sources>,
    metrics: Arc<Metrics>,
    noticed: parking_lot::Mutex<HashMap<(String, &'static str), Noticed>>,
}

/// Refusals that are not logged yet.
struct Noticed {
    logged: Option<Instant>,
    count: u64,
}

impl Source {
    fn new(name: &str, source: &config::Source, metrics: &Metrics) -> Self {
        metrics.add_source(name);
        let answered = METHODS
            .map(|method| metrics.http_requests_total.with_label_values(&[name, method, "200"]));
        Self {
            name: name.to_owned(),
            check: Check::of(source),
            raw: source.raw,
            accepted: metrics.callbacks_accepted_total.with_label_values(&[name]),
            last_callback: metrics.last_callback_timestamp_seconds.with_label_values(&[name]),
            duration: metrics.http_request_duration_seconds.with_label_values(&[name]),
            answered: answered.into(),
        }
    }

    /// Counts an answer 200.
    pub(super) fn count_answered(&self, method: &Method) {
        self.answered[method_index(method)].inc();
    }
}

impl Sources {
    fn new(config: Arc<Config>, metrics: &Metrics) -> Self {
        let sources = config.sources.iter();
        let by_name = sources
            .map(|(name, source)| (name.clone(), Source::new(name, source, metrics)))
            .collect();
        Self { config, by_name }
    }

    /// The source that a path names: `/hooks/{source}`, with or without one trailing slash.
    pub(super) fn find(&self, path: &str) -> Option<&Source> {
        let name = path.strip_prefix("/hooks/")?;
        self.by_name.get(name.strip_suffix('/').unwrap_or(name))
    }
}

impl Registry {
    pub(super) fn new(config: Arc<ArcSwap<Config>>, metrics: Arc<Metrics>) -> Self {
        let resolved = ArcSwap::from_pointee(Sources::new(config.load_full(), &metrics));
        Self { config, resolved, metrics, noticed: parking_lot::Mutex::default() }
    }

    /// The sources of the present configuration, resolved anew when it is another one.
    pub(super) fn load(&self) -> Arc<Sources> {
        let config = self.config.load();
        let sources = self.resolved.load_full();
        if Arc::ptr_eq(&config, &sources.config) {
            return sources;
        }
        let sources = Arc::new(Sources::new(Arc::clone(&config), &self.metrics));
        self.resolved.store(Arc::clone(&sources));
        sources
    }

    /// Counts a call that is refused, and says so in the log now and then.
    pub(super) fn count_refused(&self, source: Option<&Source>, refusal: Refusal) {
        let source = source.map_or(UNKNOWN_SOURCE, |source| &source.name);
        let reason = refusal.reason();
        self.metrics.http_rejections_total.with_label_values(&[source, reason]).inc();
        let mut noticed = self.noticed.lock();
        let kind = (source.to_owned(), reason);
        let noticed = noticed.entry(kind).or_insert(Noticed { logged: None, count: 0 });
        noticed.count += 1;
        if noticed.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            tracing::warn!(source, reason, count = noticed.count, "calls refused");
            *noticed = Noticed { logged: Some(Instant::now()), count: 0 };
        }
    }

    /// Counts an answer that is not 200.
    pub(super) fn count_answered(&self, source: Option<&Source>, method: &Method, code: &str) {
        let source = source.map_or(UNKNOWN_SOURCE, |source| &source.name);
        let method = METHODS[method_index(method)];
        self.metrics.http_requests_total.with_label_values(&[source, method, code]).inc();
    }
}

fn method_index(method: &Method) -> usize {
    let known = METHODS.iter().position(|known| *known == method.as_str());
    known.unwrap_or(METHODS.len() - 1)
}
