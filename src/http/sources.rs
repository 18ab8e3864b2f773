//! The configured sources as the handler needs them: secrets digested, metrics looked up.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Method, request};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use prometheus::{Gauge, Histogram, IntCounter};

use super::{
    auth::Check,
    budget::{Budget, Share},
    error::Refusal,
};
use crate::{
    calls::{CallRing, RecentCalls, RefusedCall, explain},
    clock,
    config::Config,
    metrics::{Metrics, UNKNOWN_SOURCE},
};

/// At most one line of the log per source and reason in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The values of label `method`. The last one stands for all others, and for no whole call.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"];

pub(super) struct Source {
    pub(super) name: String,
    pub(super) check: Check,
    /// Its callers keep their places while they are busy: they show a secret, or nobody has one to show.
    pub(super) keeps_places: bool,
    pub(super) raw: bool,
    /// What its calls hold of the budget. It outlives a reload.
    pub(super) share: Arc<Share>,
    /// Its last calls. They outlive a reload.
    pub(super) calls: Arc<CallRing>,
    pub(super) accepted: IntCounter,
    pub(super) last_callback: Gauge,
    pub(super) duration: Histogram,
    /// Calls answered 200, by [`method_index`].
    pub(super) answered: [IntCounter; METHODS.len()],
}

#[derive(Default)]
struct Sources {
    config: Arc<Config>,
    by_name: HashMap<String, Arc<Source>>,
}

/// The sources of the current configuration.
pub(super) struct Registry {
    config: Arc<ArcSwap<Config>>,
    resolved: ArcSwap<Sources>,
    resolving: Mutex<()>,
    metrics: Arc<Metrics>,
    calls: Arc<RecentCalls>,
    budget: Arc<Budget>,
    unlogged: Mutex<HashMap<(String, &'static str), Unlogged>>,
}

/// Of a source and a reason: the time of the last line in the log, and the refused calls after it.
type Unlogged = (Option<Instant>, u64);

/// Creates the series of a source, so that a rate over its first call is right.
pub(crate) fn add_source(metrics: &Metrics, name: &str) {
    add_refusals(metrics, name);
    for method in METHODS {
        metrics.http_requests_total.with_label_values(&[name, method, "200"]);
    }
    metrics.callbacks_accepted_total.with_label_values(&[name]);
    let last = metrics.last_callback_timestamp_seconds.with_label_values(&[name]);
    if last.get() == 0.0 {
        last.set(Metrics::now_seconds());
    }
}

fn add_refusals(metrics: &Metrics, source: &str) {
    for refusal in Refusal::ALL {
        metrics.http_rejections_total.with_label_values(&[source, refusal.texts().0]);
    }
}

impl Registry {
    pub(super) fn new(
        config: Arc<ArcSwap<Config>>,
        metrics: Arc<Metrics>,
        calls: Arc<RecentCalls>,
        budget: Arc<Budget>,
    ) -> Self {
        add_refusals(&metrics, UNKNOWN_SOURCE);
        let (resolved, resolving, unlogged) = Default::default();
        let registry = Self { config, resolved, resolving, metrics, calls, budget, unlogged };
        registry.resolve();
        registry
    }

    /// Takes up the sources of the present configuration.
    fn resolve(&self) {
        let Self { resolved, metrics, calls, budget, .. } = self;
        // One at a time, so that no older configuration takes the place of a newer one.
        let _alone = self.resolving.lock();
        let (config, before) = (self.config.load_full(), resolved.load());
        if Arc::ptr_eq(&config, &before.config) {
            return;
        }
        calls.retain(|name| name == UNKNOWN_SOURCE || config.sources.contains_key(name));
        let all_are_open = config.sources.values().all(|source| source.allow_unauthenticated);
        let by_name = config.sources.iter().map(|(name, source)| {
            add_source(metrics, name);
            let before = before.by_name.get(name);
            let share =
                before.map_or_else(|| Share::new(budget), |source| Arc::clone(&source.share));
            share.alone.store(config.sources.len() == 1, Ordering::Relaxed);
            let source = Source {
                name: name.clone(),
                check: Check::of(source),
                keeps_places: all_are_open || !source.allow_unauthenticated,
                raw: source.raw,
                share,
                calls: calls.ring(name),
                accepted: metrics.callbacks_accepted_total.with_label_values(&[name]),
                last_callback: metrics.last_callback_timestamp_seconds.with_label_values(&[name]),
                duration: metrics.http_request_duration_seconds.with_label_values(&[name]),
                answered: METHODS.map(|method| {
                    metrics.http_requests_total.with_label_values(&[name, method, "200"])
                }),
            };
            (name.clone(), Arc::new(source))
        });
        resolved.store(Arc::new(Sources { by_name: by_name.collect(), config }));
    }

    /// The source of `/hooks/{source}`, also if the path was typed carelessly in another system's
    /// settings. The sender never repeats a call, so a 404 would lose it.
    pub(super) fn find(&self, path: &str) -> Option<Arc<Source>> {
        let mut resolved = self.resolved.load();
        if !Arc::ptr_eq(&self.config.load(), &resolved.config) {
            self.resolve();
            resolved = self.resolved.load();
        }
        let by_name = &resolved.by_name;
        let exact = path.strip_prefix("/hooks/").and_then(|name| by_name.get(name));
        exact.or_else(|| by_name.get(&name_in(path)?)).cloned()
    }

    /// Counts a refused call, keeps what the caller did wrong, and logs it at most every 10 s. Without a
    /// head no whole call arrived.
    pub(super) fn record_refused(
        &self,
        source: Option<&Source>,
        head: Option<&request::Parts>,
        refusal: Refusal,
    ) {
        let name = source.map_or(UNKNOWN_SOURCE, |source| &source.name);
        let unknown = || self.calls.ring(UNKNOWN_SOURCE);
        let calls = source.map_or_else(unknown, |source| Arc::clone(&source.calls));
        let (reason, detail) = refusal.texts();
        self.metrics.http_rejections_total.with_label_values(&[name, reason]).inc();
        let (status, at_ms) = (refusal.status().as_u16(), clock::wall_ms());
        let explains = || calls.explains(at_ms);
        let explained = head.and_then(|head| match refusal {
            Refusal::Auth if explains() => source.map(|source| source.check.explain(&head.headers)),
            Refusal::UnknownSource if explains() => {
                let config = self.config.load();
                let names = config.sources.keys().map(String::as_str);
                Some(explain::wrong_path(head.uri.path(), names))
            }
            Refusal::TooLarge if explains() => {
                Some(explain::too_large(self.config.load().http.max_body_bytes))
            }
            _ => None,
        });
        let method = head.map_or("other", |head| method_label(&head.method));
        calls.refuse(at_ms, method, RefusedCall { status, reason, why: explained.map(Box::new) });
        let mut unlogged = self.unlogged.lock();
        let (logged, count) = unlogged.entry((name.to_owned(), reason)).or_default();
        *count += 1;
        if logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            tracing::warn!(
                source = name,
                reason,
                count = *count,
                "calls refused: {detail} The inspector shows each."
            );
            (*logged, *count) = (Some(Instant::now()), 0);
        }
    }
}

/// The place of a method in [`METHODS`].
pub(super) fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

/// The method, or `other`.
pub(super) fn method_label(method: &Method) -> &'static str {
    METHODS[method_index(method)]
}

/// The name in a path with blanks, capitals, needless slashes or percent-encoding. Names of sources
/// are in lower case and begin with a letter or digit, so neither `..` nor an encoded slash is one.
fn name_in(path: &str) -> Option<String> {
    let tidy = |segment: &str| {
        let segment = percent_decode_str(segment).decode_utf8().ok()?;
        Some(segment.trim().to_ascii_lowercase())
    };
    let mut segments = path.split('/').map(tidy).filter(|segment| segment.as_deref() != Some(""));
    match (segments.next(), segments.next(), segments.next()) {
        (Some(Some(hooks)), Some(name), None) if hooks == "hooks" => name,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> Arc<Config> {
        let sources = names.iter().map(|name| ((*name).to_owned(), Default::default())).collect();
        Arc::new(Config { sources, ..Config::default() })
    }

    #[test]
    fn what_the_calls_of_a_source_hold_is_known_after_a_reload_too() {
        let current = Arc::new(ArcSwap::new(config(&["loja"])));
        let budget = Budget::new(100_000, 1024);
        let registry = Registry::new(Arc::clone(&current), Arc::default(), Arc::default(), budget);
        let share = |path| Arc::clone(&registry.find(path).unwrap().share);
        let before = share("/hooks/loja");
        current.store(config(&["filial", "loja"]));
        assert!(Arc::ptr_eq(&before, &share("/hooks/loja")));
        assert!(!Arc::ptr_eq(&before, &share("/hooks/filial")));
    }

    #[test]
    fn closed_sets_are_there_from_the_start() {
        let metrics = Arc::new(Metrics::default());
        let config = Arc::new(ArcSwap::new(config(&["loja"])));
        Registry::new(config, Arc::clone(&metrics), Arc::default(), Budget::new(100_000, 1024));
        let text = metrics.encode();
        for line in [
            "weni_edge_http_rejections_total{reason=\"unknown_source\",source=\"unknown\"} 0",
            "weni_edge_http_requests_total{code=\"200\",method=\"PUT\",source=\"loja\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
