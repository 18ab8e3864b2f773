//! How long `read_committed` consumers are held: an open transaction stops them, also at the
//! records of other edges, until the broker ends it.
//!
//! They are held while a partition's last stable offset is below its high watermark and stands
//! still.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{Blocked, Cluster as _, Obstacle, follow::Offsets, librdkafka::Cluster};
use crate::{config::Config, event::Topic, metrics::Metrics};

const EVERY: Duration = Duration::from_secs(10);

/// Measures whenever `wait` returns true, and ends when it returns false. A measurement that fails
/// is left out: the publisher reports the obstacle.
pub(crate) fn watch(
    config: &ArcSwap<Config>,
    metrics: &Arc<Metrics>,
    mut wait: impl FnMut(Duration) -> bool,
) {
    let mut watched = Watched::default();
    while wait(EVERY) {
        watched.measure(&config.load_full(), metrics);
    }
}

#[derive(Default)]
struct Watched {
    cluster: Option<Cluster>,
    topics: HashMap<String, WatchedTopic>,
}

impl Watched {
    fn measure(&mut self, config: &Arc<Config>, metrics: &Arc<Metrics>) {
        // The group is only a name that clients need: nothing is read or committed.
        let open = || Cluster::new(Arc::clone(config), "weni-edge.lag".to_owned(), metrics.clone());
        let Some(cluster) = self.cluster.take().or_else(|| open().ok()) else { return };
        let names = Topic::ALL.map(|topic| config.topics.name(topic));
        let gauge = &metrics.kafka_stable_lag_seconds;
        let hide = |topic: &str| drop(gauge.remove_label_values(&[topic]));
        // A topic that was routed away is not shown, nor an unknown lag.
        for (topic, _) in self.topics.extract_if(|topic, _| !names.contains(&&**topic)) {
            hide(&topic);
        }
        let (mut is_reached, mut is_away) = (false, false);
        for name in names {
            let topic = self.topics.entry(name.to_owned()).or_default();
            // Where no broker answers, each further topic would only wait.
            let lag = if is_away { None } else { Some(topic.lag(&cluster, name)) };
            is_away |= matches!(&lag, Some(Err(obstacle)) if obstacle.blocked == Blocked::NoBroker);
            let Some(Ok(seconds)) = lag else {
                hide(name);
                continue;
            };
            is_reached = true;
            gauge.with_label_values(&[name]).set(seconds);
        }
        cluster.stable.poll(Duration::ZERO);
        cluster.unstable.poll(Duration::ZERO);
        // While Kafka is away each connection that fails is an event in a client's queue. A poll takes one of
        // them, so the queue would fill the memory. It goes with its client.
        self.cluster = Some(cluster).filter(|_| is_reached);
    }
}

/// A topic at the last measurement.
#[derive(Default)]
struct WatchedTopic {
    partitions: usize,
    /// Where readers of a partition are held, and since when.
    held: BTreeMap<(String, i32), (i64, Instant)>,
}

impl WatchedTopic {
    /// Seconds that the longest held partition has stood still.
    fn lag(&mut self, cluster: &Cluster, topic: &str) -> Result<f64, Obstacle> {
        let partitions = cluster.partitions(topic)?;
        let now = partitions.len();
        let before = mem::replace(&mut self.partitions, now);
        if (1..now).contains(&before) {
            tracing::warn!(
                topic,
                before,
                now,
                "a topic has more partitions: keys move, and updates of a message may be in two of them"
            );
        }
        let places = partitions.into_iter().map(|partition| (topic.to_owned(), partition));
        let held = cluster.held(&places.collect::<Vec<_>>())?;
        Ok(self.longest(held, Instant::now()).as_secs_f64())
    }

    fn longest(&mut self, held: Offsets, now: Instant) -> Duration {
        self.held.retain(|place, (at, _)| held.get(place) == Some(at));
        let held = held.into_iter();
        let since = held.map(|(place, at)| self.held.entry(place).or_insert((at, now)).1);
        since.map(|since| now - since).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_is_kept_while_no_broker_can_be_reached() {
        let mut config = Config::default();
        config.kafka.bootstrap_servers = "127.0.0.1:1".to_owned();
        let mut watched = Watched::default();
        watched.measure(&Arc::new(config), &Arc::default());
        assert_eq!(watched.topics.len(), 4, "it was tried");
        assert!(watched.cluster.is_none());
    }

    #[test]
    fn readers_are_held_while_the_stable_end_stands_still_below_the_end() {
        let mut topic = WatchedTopic::default();
        let held = |at| Offsets::from([(("topic".to_owned(), 0), at)]);
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        assert_eq!(topic.longest(held(5), start), Duration::ZERO);
        assert_eq!(topic.longest(held(5), later), Duration::from_secs(60));
        assert_eq!(topic.longest(held(7), later), Duration::ZERO, "it moved");
        assert_eq!(topic.longest(Offsets::new(), later), Duration::ZERO, "nobody is held");
        assert!(topic.held.is_empty());
    }
}
