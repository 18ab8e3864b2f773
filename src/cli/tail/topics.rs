//! The topics that `tail` reads: which are there, where they end, and what holds their readers.

use std::{
    collections::{BTreeMap, HashSet},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Args, session::say};
use crate::{
    config::Config,
    event::Topic,
    kafka::{
        Blocked, Cluster as _, Obstacle, View,
        follow::{Offsets, Point},
        librdkafka::Cluster,
    },
};

/// An edge's transaction takes milliseconds.
pub(super) const HELD: Duration = Duration::from_secs(3);

/// Those of the topics that exist.
pub(super) fn partitions(
    args: &Args,
    config: &Config,
    cluster: &Cluster,
    said: &mut HashSet<String>,
) -> Result<Vec<(String, i32)>, Obstacle> {
    let mut partitions = Vec::new();
    for topic in
        Topic::ALL.into_iter().filter(|topic| args.topics.iter().any(|which| which.has(*topic)))
    {
        let name = config.topics.name(topic);
        // Two contracts may share a topic.
        if !said.insert(format!("topic {name}")) {
            continue;
        }
        if cluster.exists(name)? {
            let numbers = cluster.partitions(name)?;
            partitions.extend(numbers.into_iter().map(|number| (name.to_owned(), number)));
        } else {
            say(&format!("topic {name} does not exist"));
        }
    }
    if partitions.is_empty() {
        let detail = "none of the topics exists. Their names are those of [topics] in the edge's \
                      configuration: give it with --config";
        return Err(Obstacle::new(Blocked::UnknownTopic, detail));
    }
    Ok(partitions)
}

/// The ends of the partitions. Waits a moment for transactions that are open, and says which remain.
pub(super) fn present_ends(
    cluster: &Cluster,
    partitions: &[(String, i32)],
) -> Result<Offsets, Obstacle> {
    let ends = cluster.offsets(View::Unstable, partitions, Point::End)?;
    let start = Instant::now();
    loop {
        let stable = cluster.offsets(View::Stable, partitions, Point::End)?;
        let mut held = stable.clone();
        held.retain(|place, at| ends.get(place) > Some(at));
        if held.is_empty() || start.elapsed() >= HELD {
            for text in held_texts(&held).into_values() {
                say(&format!("{text} is not shown"));
            }
            return Ok(stable);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// By topic. All of them have been held for [`HELD`] at least.
pub(super) fn held_texts(held: &Offsets) -> BTreeMap<&str, String> {
    let since = Timestamp::now().as_second() - HELD.as_secs() as i64;
    let since = Timestamp::from_second(since).unwrap_or_default();
    let mut places = BTreeMap::<&str, Vec<String>>::new();
    for ((topic, partition), offset) in held {
        places.entry(topic).or_default().push(format!("{partition}@{offset}"));
    }
    let mut texts = BTreeMap::new();
    for (topic, places) in places {
        let text = format!(
            "an open transaction has held all readers of topic {topic} since {since} or longer, at {} \
             (partition@offset): what comes after it",
            places.join(", ")
        );
        texts.insert(topic, text);
    }
    texts
}
