//! The configured sources, with everything that a request needs of them looked up beforehand.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use http::Method;
use prometheus::{Gauge, Histogram, IntCounter};

use super::auth::Door;
use crate::{
    config::{self, Config},
    metrics::Metrics,
};

/// The methods that are told apart in metrics; whatever else comes is `other`.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"];

/// A request's method as a label.
#[derive(Clone, Copy)]
pub(super) struct MethodLabel(usize);

impl MethodLabel {
    pub(super) fn of(method: &Method) -> Self {
        let known = METHODS.iter().position(|known| *known == method.as_str());
        Self(known.unwrap_or(METHODS.len() - 1))
    }

    pub(super) fn as_str(self) -> &'static str {
        METHODS[self.0]
    }
}

/// One source.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) door: Door,
    pub(super) raw: bool,
    /// The journal counts here what becomes durable.
    pub(super) accepted: IntCounter,
    pub(super) request_seconds: Histogram,
    pub(super) last_callback: Gauge,
    answered_200: [IntCounter; METHODS.len()],
}

impl Source {
    fn new(name: &str, source: &config::Source, metrics: &Metrics) -> Self {
        Self {
            name: name.to_owned(),
            door: Door::of(source),
            raw: source.raw,
            accepted: metrics.callbacks_accepted_total.with_label_values(&[name]),
            request_seconds: metrics.http_request_duration_seconds.with_label_values(&[name]),
            last_callback: metrics.last_callback_timestamp_seconds.with_label_values(&[name]),
            answered_200: METHODS.map(|method| {
                metrics.http_requests_total.with_label_values(&[name, method, "200"])
            }),
        }
    }

    pub(super) fn answered_200(&self, method: MethodLabel) -> &IntCounter {
        &self.answered_200[method.0]
    }
}

/// All sources of the configuration as it is now.
pub(super) struct Sources {
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    resolved: ArcSwap<Resolved>,
}

struct Resolved {
    /// Kept, so that another configuration never has the same address.
    of: Arc<Config>,
    sources: HashMap<String, Arc<Source>>,
}

impl Sources {
    pub(super) fn new(config: Arc<ArcSwap<Config>>, metrics: Arc<Metrics>) -> Self {
        let resolved = Resolved::new(config.load_full(), &metrics);
        Self { config, metrics, resolved: ArcSwap::from_pointee(resolved) }
    }

    /// The source of this name, if it is configured.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Source>> {
        let config = self.config.load();
        let resolved = self.resolved.load();
        if Arc::ptr_eq(&resolved.of, &config) {
            return resolved.sources.get(name).cloned();
        }
        let fresh = Resolved::new(Arc::clone(&config), &self.metrics);
        let source = fresh.sources.get(name).cloned();
        self.resolved.store(Arc::new(fresh));
        source
    }
}

impl Resolved {
    fn new(of: Arc<Config>, metrics: &Metrics) -> Self {
        let source = |(name, source): (&String, &config::Source)| {
            (name.clone(), Arc::new(Source::new(name, source, metrics)))
        };
        let sources = of.sources.iter().map(source).collect();
        Self { of, sources }
    }
}
