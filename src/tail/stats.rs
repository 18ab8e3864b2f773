//! How many events there are of each kind, and how many come in a second.

use std::collections::BTreeMap;

use super::{TailedRecord, errors, text};

/// Statuses are text of callers, and could be any number.
const ROWS_MAX: usize = 500;

/// Counts by what happened and source: of all, and of those since the last table.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    rows: BTreeMap<(String, String), (u64, u64)>,
}

impl Stats {
    pub(crate) fn count(&mut self, item: &TailedRecord) {
        let faults = item.event().into_iter().flat_map(errors);
        let faults = faults.filter_map(|error| Some(format!("- fault {}", text(error, "/fault")?)));
        for what in faults.chain([item.what()]) {
            let mut key = (what, item.source().to_owned());
            if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
                key = ("all others".to_owned(), String::new());
            }
            let (total, recent) = self.rows.entry(key).or_default();
            *total += 1;
            *recent += 1;
        }
    }

    /// A heading, and a line for each row. The last table was made so many seconds ago.
    pub(crate) fn table(&mut self, seconds: f64) -> Vec<String> {
        let heading =
            format!("{:<32} {:<16} {:>12} {:>10}", "what", "source", "events", "per second");
        let row = |((what, source), (total, recent)): (&(String, String), &mut (u64, u64))| {
            let rate = std::mem::take(recent) as f64 / seconds;
            format!("{what:<32} {source:<16} {total:>12} {rate:>10.1}")
        };
        [heading].into_iter().chain(self.rows.iter_mut().map(row)).collect()
    }
}
