//! The topics that `tail` reads: which are there, where they end, and what holds their readers.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

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
        let numbers = cluster.partitions(name)?;
        if numbers.is_empty() {
            say(&format!("topic {name} does not exist"));
        }
        partitions.extend(numbers.into_iter().map(|number| (name.to_owned(), number)));
    }
    if partitions.is_empty() {
        let detail = "none of the topics exists. Their names are those of [topics] in the edge's \
                      configuration: give that with --config, correct it, or create them";
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
            for ((topic, partition), offset) in &held {
                say(&format!("{} is not shown", held_text(topic, *partition, *offset)));
            }
            return Ok(stable);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Where the last stable offset is below the end.
pub(super) fn held(cluster: &Cluster, partitions: &[(String, i32)]) -> Result<Offsets, Obstacle> {
    let ends = cluster.offsets(View::Unstable, partitions, Point::End)?;
    let mut stable = cluster.offsets(View::Stable, partitions, Point::End)?;
    stable.retain(|place, at| ends.get(place) > Some(at));
    Ok(stable)
}

pub(super) fn held_text(topic: &str, partition: i32, offset: i64) -> String {
    format!(
        "an open transaction holds all readers of topic {topic} at {partition}@{offset} \
         (partition@offset): what comes after it"
    )
}
