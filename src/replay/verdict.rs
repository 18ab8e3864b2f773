//! What becomes of a dead letter today.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::letters::Letter;
use crate::{
    config::Config,
    event::{Item, KeptLetter, Reason, Topic},
    kafka::{Draft, Topics},
    normalize,
};

/// The header of a replayed record that names its letter.
const REPLAYED_FROM: &str = "replayed-from";

/// Records, none if nothing in the letter would be published; or why it still is a dead letter.
pub(super) type Verdict = Result<Vec<Draft>, &'static str>;

/// Judges a letter by today's program, topics and settings.
pub(super) fn judge(config: &Config, topics: &Topics, letter: &Letter) -> Verdict {
    let mut kept = KeptLetter::read(&letter.headers, &letter.value).map_err(|_| "no_letter")?;
    // A letter does not keep its source's setting; the configuration has it if it has the source.
    let source = config.sources.get(kept.callback.source);
    kept.callback.raw = source.is_none_or(|source| source.raw);
    // A callback that made the edge panic may do so again.
    catch_unwind(AssertUnwindSafe(|| normalized(config, topics, letter, &kept)))
        .unwrap_or(Err(Reason::Panic.as_str()))
}

fn normalized(config: &Config, topics: &Topics, letter: &Letter, kept: &KeptLetter<'_>) -> Verdict {
    let settings = config.event_settings(kept.callback.source);
    let origin = letter.origin.name(topics.name(Topic::DeadLetter));
    let body = normalize::decode_letter(kept, config.http.max_body_bytes);
    let document = normalize::parse(&body);
    let (mut records, mut dead, mut events) = (Vec::new(), None, 0);
    for item in normalize::items_of_letter(kept, settings, &document) {
        let mut draft = Draft::default();
        match draft.write(item, None, topics) {
            Item::Event(_) => events += 1,
            // A dead letter beside events becomes a letter again: the whole first letter is done.
            Item::DeadLetter(letter) => dead = dead.or(Some(letter.reason.as_str())),
        }
        draft.headers.push(REPLAYED_FROM, origin.as_bytes());
        records.push(draft);
    }
    match dead {
        Some(reason) if events == 0 => Err(reason),
        _ => Ok(records),
    }
}
