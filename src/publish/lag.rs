//! How long readers of committed records are held: a transaction that its edge left open keeps
//! them before it, for all edges, until the broker ends it.
//!
//! Two clients ask for the end of every partition: one sees up to the last stable offset, one up to
//! the high watermark. While the first is below the second and stands still, readers are held.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
};

use super::{Shared, opening::base_config, transaction::Context};

const EVERY: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(5);

/// Where readers of one partition have been held, and since when.
type Held = HashMap<(String, i32), (i64, Instant)>;

/// Looks until the publisher is asked to stop. A look that fails is left out: what keeps Kafka away
/// is the publisher's to say.
pub(super) fn watch(shared: &Shared) {
    let mut held = Held::new();
    let mut next = Instant::now() + EVERY;
    let mut clients = None;
    while shared.stop.lock().is_none() {
        std::thread::sleep(super::TICK);
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + EVERY;
        if clients.is_none() {
            clients = Clients::new(shared).ok();
        }
        let Some(clients) = &clients else { continue };
        let topics = shared.config.load().topics.clone();
        for topic in [
            topics.message_status,
            topics.inbound_message,
            topics.channel_event,
            topics.dead_letter,
        ] {
            let gauge = &shared.metrics.kafka_stable_lag_seconds;
            match clients.lag(&topic, &mut held) {
                Ok(seconds) => gauge.with_label_values(&[&topic]).set(seconds),
                // Not known is another thing than what it was: nothing then, if there was anything.
                Err(_) => drop(gauge.remove_label_values(&[&topic])),
            }
        }
        clients.stable.poll(Duration::ZERO);
        clients.all.poll(Duration::ZERO);
    }
}

struct Clients {
    stable: BaseConsumer<Context>,
    all: BaseConsumer<Context>,
}

impl Clients {
    fn new(shared: &Shared) -> KafkaResult<Self> {
        let base = base_config(&shared.config.load());
        let client = |isolation: &str| {
            let mut config: ClientConfig = base.clone();
            // Nothing is read and nothing committed: the group is only a name that clients need.
            config.set("group.id", "weni-edge.lag").set("isolation.level", isolation);
            BaseConsumer::from_config_and_context(
                &config,
                Context::new(Arc::clone(&shared.metrics)),
            )
        };
        Ok(Self { stable: client("read_committed")?, all: client("read_uncommitted")? })
    }

    /// Seconds that the most held partition of a topic has stood still.
    fn lag(&self, topic: &str, held: &mut Held) -> KafkaResult<f64> {
        let metadata = self.all.fetch_metadata(Some(topic), CALL)?;
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        let mut longest: f64 = 0.0;
        for partition in partitions {
            let key = (topic.to_owned(), partition.id());
            let (_, stable) = self.stable.fetch_watermarks(topic, partition.id(), CALL)?;
            let (_, end) = self.all.fetch_watermarks(topic, partition.id(), CALL)?;
            longest = longest.max(held_for(held, key, stable, end, Instant::now()));
        }
        Ok(longest)
    }
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
