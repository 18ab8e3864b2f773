//! How many events there are of each kind, and how many come in a second.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::Item;

/// Over how many seconds a rate is taken.
const SECONDS: usize = 10;

/// Statuses are text of callers, and could be any number.
const ROWS_MAX: usize = 500;

/// Counts by what happened and source.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    rows: BTreeMap<(String, String), Row>,
    seconds: usize,
}

#[derive(Debug, Default)]
struct Row {
    total: u64,
    recent: [u64; SECONDS],
}

impl Row {
    fn per_second(&self, seconds: usize) -> f64 {
        self.recent.iter().sum::<u64>() as f64 / seconds.clamp(1, SECONDS) as f64
    }
}

impl Stats {
    pub(crate) fn count(&mut self, item: &Item) {
        self.add(item.what(), item);
        for error in
            item.event().and_then(|event| event.envelope.errors.as_ref()).into_iter().flatten()
        {
            self.add(format!("- fault {}", error.fault.as_str()), item);
        }
    }

    fn add(&mut self, what: String, item: &Item) {
        let now = self.seconds % SECONDS;
        let mut key = (what, item.source().to_owned());
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            key = ("all others".to_owned(), String::new());
        }
        let row = self.rows.entry(key).or_default();
        row.total += 1;
        row.recent[now] += 1;
    }

    /// Another second has begun.
    pub(crate) fn tick(&mut self) {
        self.seconds += 1;
        let now = self.seconds % SECONDS;
        self.rows.values_mut().for_each(|row| row.recent[now] = 0);
    }

    /// One line for each row.
    pub(crate) fn table(&self) -> Vec<String> {
        let heading =
            format!("{:<32} {:<16} {:>12} {:>10}", "what", "source", "events", "per second");
        let row = |((what, source), row): (&(String, String), &Row)| {
            let rate = row.per_second(self.seconds);
            format!("{what:<32} {source:<16} {:>12} {rate:>10.1}", row.total)
        };
        [heading].into_iter().chain(self.rows.iter().map(row)).collect()
    }

    pub(crate) fn json(&self) -> Json {
        let row = |((what, source), row): (&(String, String), &Row)| {
            json!({
                "what": what, "source": source, "events": row.total,
                "per_second": row.per_second(self.seconds),
            })
        };
        json!({ "seconds": self.seconds, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}
