//! What a replay does, or would do.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::{Verdict, letters::Letter};
use crate::kafka::Topics;

/// What became, or would become, of dead letters.
#[derive(Debug, Default)]
pub struct ReplaySummary {
    /// By reason and source.
    pub letters: BTreeMap<(String, String), Outcome>,
    /// Letters that the filter leaves out.
    pub left_out: u64,
    /// Letters after the first that is not done, which an earlier replay has done.
    pub done_before: u64,
    /// Kafka keeps no progress of an earlier replay.
    pub no_progress: bool,
    /// The progress of an earlier replay lies beyond the end of the topic, and counts for nothing.
    pub started_over: bool,
}

/// What became of some of them.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// All of them.
    pub letters: u64,
    /// Letters that are done: their records are written.
    pub replayed: u64,
    /// Records by topic.
    pub records: BTreeMap<String, u64>,
    /// Letters that still are dead, by the reason why.
    pub still_dead: BTreeMap<&'static str, u64>,
}

impl ReplaySummary {
    pub(super) fn count(&mut self, letter: &Letter, verdict: &Verdict, topics: &Topics) {
        let key = (letter.header("reason").to_owned(), letter.header("source").to_owned());
        let outcome = self.letters.entry(key).or_default();
        outcome.letters += 1;
        match verdict {
            Err(why) => *outcome.still_dead.entry(why).or_default() += 1,
            Ok(records) => {
                outcome.replayed += 1;
                for draft in records {
                    let topic = topics.name(draft.topic).to_owned();
                    *outcome.records.entry(topic).or_default() += 1;
                }
            }
        }
    }

    /// All letters.
    pub fn total(&self) -> u64 {
        self.letters.values().map(|outcome| outcome.letters).sum()
    }

    /// Letters that are done.
    pub fn replayed(&self) -> u64 {
        self.letters.values().map(|outcome| outcome.replayed).sum()
    }

    /// What became of which letters; empty without any.
    pub fn table(&self) -> String {
        if self.letters.is_empty() {
            return String::new();
        }
        let mut table = format!("{:<17} {:<15} {:>9}  become\n", "reason", "source", "letters");
        for ((reason, source), outcome) in &self.letters {
            let records = outcome.records.iter().map(|(topic, count)| format!("{count} {topic}"));
            let dead = outcome.still_dead.iter();
            let dead = dead.map(|(why, count)| format!("{count} still dead ({why})"));
            let mut becomes = records.chain(dead).collect::<Vec<_>>().join(", ");
            if becomes.is_empty() {
                becomes += "nothing: they are empty";
            }
            table += &format!("{reason:<17} {source:<15} {:>9}  {becomes}\n", outcome.letters);
        }
        table
    }

    /// All of it in a line.
    pub fn line(&self, done: &str) -> String {
        let dead = self.total() - self.replayed();
        let mut line = format!("{} letters {done}", self.replayed());
        for (count, what) in [
            (dead, "still dead"),
            (self.left_out, "left out by the filter"),
            (self.done_before, "done before"),
        ] {
            if count > 0 {
                line += &format!(", {count} {what}");
            }
        }
        line
    }

    /// The form for programs.
    pub fn json(&self) -> serde_json::Value {
        let kinds = self.letters.iter().map(|((reason, source), outcome)| {
            let mut kind = json!(outcome);
            kind["reason"] = json!(reason);
            kind["source"] = json!(source);
            kind
        });
        json!({
            "letters": self.total(),
            "replayed": self.replayed(),
            "still_dead": self.total() - self.replayed(),
            "left_out": self.left_out,
            "done_before": self.done_before,
            "no_progress": self.no_progress,
            "started_over": self.started_over,
            "kinds": kinds.collect::<Vec<_>>(),
        })
    }
}
