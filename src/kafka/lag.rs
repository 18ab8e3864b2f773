//! How long `read_committed` consumers are held: an open transaction stops them, also at the
//! records of other edges, until the broker ends it.
//!
//! They are held while a partition's last stable offset is below its high watermark and stands
//! still.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{Cluster as _, Obstacle, View, librdkafka::Cluster};
use crate::{config::Config, event::Topic, metrics::Metrics};

const EVERY: Duration = Duration::from_secs(10);

/// Where readers of one partition have been held, and since when.
type Held = HashMap<(String, i32), (i64, Instant)>;

/// Measures whenever `wait` returns true, and ends when it returns false. A measurement that fails
/// is left out: the publisher reports the obstacle.
pub(crate) fn watch(
    config: &ArcSwap<Config>,
    metrics: &Arc<Metrics>,
    mut wait: impl FnMut(Duration) -> bool,
) {
    let mut held = Held::new();
    let mut counts = HashMap::new();
    let mut cluster = None;
    let mut shown = Vec::new();
    while wait(EVERY) {
        let config = config.load_full();
        if cluster.is_none() {
            // The group is only a name that clients need: nothing is read or committed.
            let group = "weni-edge.lag".to_owned();
            cluster = Cluster::new(Arc::clone(&config), group, Arc::clone(metrics)).ok();
        }
        let Some(cluster) = &cluster else { continue };
        let names = Topic::ALL.map(|topic| config.topics.name(topic).to_owned());
        let gauge = &metrics.kafka_stable_lag_seconds;
        let hide = |topic: &String| drop(gauge.remove_label_values(&[topic]));
        // A topic that was routed away is not shown, nor an unknown lag.
        shown.iter().filter(|topic| !names.contains(topic)).for_each(hide);
        for topic in &names {
            match lag(cluster, topic, &mut held, &mut counts) {
                Ok(seconds) => gauge.with_label_values(&[topic]).set(seconds),
                Err(_) => hide(topic),
            }
        }
        shown = names.to_vec();
        cluster.stable.poll(Duration::ZERO);
        cluster.unstable.poll(Duration::ZERO);
    }
}

/// Seconds that the longest held partition of a topic has stood still.
fn lag(
    cluster: &Cluster,
    topic: &str,
    held: &mut Held,
    counts: &mut HashMap<String, usize>,
) -> Result<f64, Obstacle> {
    let mut longest: f64 = 0.0;
    let partitions = cluster.partitions(topic)?;
    let before = counts.insert(topic.to_owned(), partitions.len()).unwrap_or_default();
    if (1..partitions.len()).contains(&before) {
        let now = partitions.len();
        tracing::warn!(
            topic,
            before,
            now,
            "a topic has more partitions: keys move, and updates of a message may be in two of them"
        );
    }
    for partition in partitions {
        let stable = cluster.watermarks(View::Stable, topic, partition)?.end;
        let end = cluster.watermarks(View::Unstable, topic, partition)?.end;
        let key = (topic.to_owned(), partition);
        longest = longest.max(held_for(held, key, stable, end, Instant::now()));
    }
    Ok(longest)
}

fn held_for(held: &mut Held, key: (String, i32), stable: i64, end: i64, now: Instant) -> f64 {
    if stable >= end {
        held.remove(&key);
        return 0.0;
    }
    let (at, since) = held.entry(key).or_insert((stable, now));
    if *at != stable {
        (*at, *since) = (stable, now);
    }
    now.duration_since(*since).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_held_while_the_stable_end_stands_still_below_the_end() {
        let mut held = Held::new();
        let key = || ("topic".to_owned(), 0);
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        assert_eq!(held_for(&mut held, key(), 5, 9, start), 0.0);
        assert_eq!(held_for(&mut held, key(), 5, 20, later), 60.0);
        assert_eq!(held_for(&mut held, key(), 7, 20, later), 0.0, "it moved");
        assert_eq!(held_for(&mut held, key(), 20, 20, later), 0.0, "nobody is held");
        assert!(held.is_empty());
    }
}
