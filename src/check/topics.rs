//! The topics: whether they are there, and what in their settings loses or refuses events.

use super::{Aspect, Finding, kafka::obstructed};
use crate::{
    config::{Config, CreateTopics, client::largest_event},
    event::Topic,
    kafka::{Obstacle, Risk, TopicState},
};

const ASPECT: Aspect = Aspect::KafkaTopic;
/// A consumer may be down for a day.
const RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

/// The cluster's other topics and its brokers. Empty if they were not asked for.
#[derive(Default)]
pub(super) struct Inventory {
    /// Names of topics.
    pub(super) topics: Vec<String>,
    pub(super) brokers: usize,
}

/// Judges one topic of the configuration.
pub(super) fn judge(
    config: &Config,
    inventory: &Inventory,
    name: &str,
    state: Result<Option<TopicState>, Obstacle>,
) -> Vec<Finding> {
    let state = match state {
        Err(obstacle) => return vec![obstructed(ASPECT, name, &obstacle)],
        Ok(None) => return vec![missing(config, inventory, name)],
        Ok(Some(state)) => state,
    };
    if name == config.topics.position {
        let found =
            format!("{name} is there, and stays empty: the group's offsets are the position");
        return vec![ASPECT.ok(found)];
    }
    let mut findings = judge_copies(name, &state);
    match &state.settings {
        None => findings.push(ASPECT.warning(
            format!("{name}: its settings may not be read, so they were not looked at"),
            "give the user DescribeConfigs on the topic, or look at retention, max.message.bytes, \
             min.insync.replicas and cleanup.policy by hand",
        )),
        Some(_) => findings.extend(judge_settings(config, name, &state)),
    }
    if findings.is_empty() {
        findings.push(ASPECT.ok(format!("{name}: {}", summary(&state))));
    }
    findings
}

fn missing(config: &Config, inventory: &Inventory, name: &str) -> Finding {
    if name == config.topics.position {
        return ASPECT.ok(format!("{name} does not exist yet; serve makes it"));
    }
    let found = format!("{name} does not exist");
    let misspelled = misspelled(config, inventory, name);
    match config.kafka.create_topics {
        None => {
            let replicas = if inventory.brokers == 0 { 3 } else { inventory.brokers.min(3) };
            let remedy = format!(
                "create it (kafka-topics.sh --create --topic {name} --partitions 12 \
                 --replication-factor {replicas}), set kafka.create_topics, or route it under [topics]"
            );
            let asked = misspelled.map(|question| format!("{question} If not, {remedy}"));
            ASPECT.problem(found, asked.unwrap_or(remedy))
        }
        Some(CreateTopics { partitions, replication_factor }) => {
            let plural = if replication_factor == 1 { "" } else { "s" };
            let found = format!(
                "{found} yet; serve makes it with {partitions} partitions and {replication_factor} \
                 replica{plural}"
            );
            match misspelled {
                Some(question) => ASPECT.warning(found, question),
                None if replication_factor == 1 => ASPECT.warning(
                    format!("{found}: if that one disk is lost, so are its events"),
                    "where there are three brokers, set kafka.create_topics.replication_factor to 3",
                ),
                None => ASPECT.ok(found),
            }
        }
    }
}

/// Asks whether a topic that exists, and is not in use, is meant.
fn misspelled(config: &Config, inventory: &Inventory, name: &str) -> Option<String> {
    let in_use = |topic: &&String| Topic::ALL.iter().any(|one| config.topics.name(*one) == **topic);
    let others = inventory.topics.iter().filter(|topic| !in_use(topic));
    let (_, near) = others
        .map(|topic| (strsim::damerau_levenshtein(name, topic), topic))
        .filter(|(distance, _)| *distance <= name.len() / 8 + 1)
        .min()?;
    Some(format!("{near} exists: is {name} misspelled under [topics]?"))
}

fn setting<'a>(state: &'a TopicState, name: &str) -> Option<&'a str> {
    state.settings.as_ref()?.get(name).map(String::as_str)
}

fn number(state: &TopicState, name: &str) -> Option<i64> {
    setting(state, name)?.parse().ok()
}

/// Without the settings, `min.insync.replicas` is not known and not judged.
fn judge_copies(name: &str, state: &TopicState) -> Vec<Finding> {
    let TopicState { replicas, in_sync, .. } = *state;
    let has = |risk: Risk| risk.is_in(|name| setting(state, name));
    let min = number(state, "min.insync.replicas").map(|min| min.max(1) as usize);
    let risk = match min {
        _ if replicas < 2 => Some((
            "one replica: if its disk is lost, so are its events".to_owned(),
            "give it three (kafka-reassign-partitions.sh), and min.insync.replicas=2",
        )),
        _ if has(Risk::MinInsync) => Some((
            "min.insync.replicas=1: an event that one broker alone has counts as kept".to_owned(),
            "set min.insync.replicas=2 (kafka-configs.sh --alter), with three replicas",
        )),
        Some(min) if min >= replicas => Some((
            format!(
                "{replicas} replicas and min.insync.replicas={min}: publishing waits as soon as one broker \
                 is away"
            ),
            "use one replica more than min.insync.replicas",
        )),
        _ => None,
    };
    let risk = risk.map(|(what, remedy)| ASPECT.warning(format!("{name} has {what}"), remedy));
    let mut findings = Vec::from_iter(risk);
    if let Some(min) = min.filter(|min| in_sync < replicas.min(*min)) {
        let found =
            format!("{name} has {in_sync} replicas in sync and needs {min}: it takes no event");
        findings.push(ASPECT.problem(found, "start the brokers that are down"));
    }
    findings
}

fn judge_settings(config: &Config, name: &str, state: &TopicState) -> Vec<Finding> {
    let has = |risk: Risk| risk.is_in(|name| setting(state, name));
    let mut findings = Vec::new();
    if has(Risk::Unclean) {
        let found =
            format!("{name} has unclean.leader.election.enable=true: Kafka may lose events");
        findings.push(ASPECT.warning(found, "set it to false"));
    }
    if has(Risk::Compacted) {
        let found = format!(
            "{name} is compacted (cleanup.policy): Kafka deletes all but the last event of each key"
        );
        findings.push(ASPECT.problem(found, "set cleanup.policy=delete"));
    }
    let largest = config.http.max_body_bytes as i64;
    if let Some(max) = number(state, "max.message.bytes").filter(|max| *max < largest) {
        let found = format!(
            "{name} has max.message.bytes={max}, below http.max_body_bytes={largest}: larger events \
             become dead letters"
        );
        let remedy = format!("set max.message.bytes to {} or more", largest_event(config));
        findings.push(ASPECT.warning(found, remedy));
    }
    if let Some(bytes) = number(state, "retention.bytes").filter(|bytes| *bytes >= 0) {
        let found = format!(
            "{name} keeps {bytes} bytes of each partition (retention.bytes): a flood deletes what \
             consumers have not read"
        );
        findings.push(ASPECT.warning(found, "set retention.bytes=-1"));
    }
    let retention = number(state, "retention.ms");
    if let Some(ms) = retention.filter(|ms| (0..RETENTION_MS).contains(ms)) {
        let found = format!(
            "{name} keeps events for {} minutes (retention.ms={ms}): a consumer that is down for longer \
             loses them",
            ms / 60_000
        );
        findings.push(ASPECT.warning(found, "set retention.ms to a day or more"));
    }
    findings
}

/// What is worth a look where all is well.
fn summary(state: &TopicState) -> String {
    let TopicState { partitions, replicas, .. } = state;
    let min = setting(state, "min.insync.replicas").unwrap_or("?");
    let kept = match number(state, "retention.ms") {
        None => "?".to_owned(),
        Some(ms) if ms < 0 => "for ever".to_owned(),
        Some(ms) => format!("{} h", ms / 3_600_000),
    };
    let max = setting(state, "max.message.bytes").unwrap_or("?");
    format!(
        "{partitions} partitions, {replicas} replicas, {min} in sync at least, kept {kept}, events up to \
         {max} bytes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::Severity, kafka::Blocked};

    const GOOD: [(&str, &str); 5] = [
        ("min.insync.replicas", "2"),
        ("cleanup.policy", "delete"),
        ("max.message.bytes", "1048588"),
        ("retention.ms", "604800000"),
        ("unclean.leader.election.enable", "false"),
    ];

    fn state(replicas: usize, in_sync: usize, changes: &[(&str, &str)]) -> TopicState {
        let settings = GOOD.iter().chain(changes);
        let settings = settings.map(|(name, value)| ((*name).into(), (*value).into())).collect();
        TopicState { partitions: 12, replicas, in_sync, settings: Some(settings) }
    }

    #[test]
    fn each_setting_that_loses_or_refuses_events_is_named() {
        use Severity::{Ok as Well, Problem, Warning};
        let config = Config::default();
        let name = config.topics.message_status.as_str();
        for (state, severity, words) in [
            (state(3, 3, &[]), Well, "12 partitions, 3 replicas, 2 in sync at least, kept 168 h"),
            (state(3, 2, &[]), Well, "12 partitions"),
            (state(3, 1, &[]), Problem, "has 1 replicas in sync and needs 2"),
            (state(1, 1, &[("min.insync.replicas", "1")]), Warning, "has one replica"),
            (state(3, 3, &[("min.insync.replicas", "1")]), Warning, "min.insync.replicas=1"),
            (state(2, 2, &[]), Warning, "as soon as one broker is away"),
            (state(3, 3, &[("cleanup.policy", "compact,delete")]), Problem, "is compacted"),
            (state(3, 3, &[("max.message.bytes", "999999")]), Warning, "max.message.bytes=999999"),
            (state(3, 3, &[("retention.ms", "3600000")]), Warning, "for 60 minutes"),
            (state(3, 3, &[("retention.ms", "-1")]), Well, "kept for ever"),
            (state(3, 3, &[("retention.bytes", "-1")]), Well, "12 partitions"),
            (state(3, 3, &[("retention.bytes", "1000")]), Warning, "keeps 1000 bytes"),
            (
                state(3, 3, &[("unclean.leader.election.enable", "true")]),
                Warning,
                "unclean.leader.election",
            ),
            (TopicState { settings: None, ..state(1, 1, &[]) }, Warning, "has one replica"),
            (TopicState { settings: None, ..state(3, 3, &[]) }, Warning, "may not be read"),
        ] {
            let judged = judge(&config, &inventory(&[]), name, Ok(Some(state)));
            assert_eq!(judged[0].severity, severity, "{judged:?}");
            assert!(judged[0].found.contains(words), "{words}: {judged:?}");
        }
    }

    fn inventory(topics: &[&str]) -> Inventory {
        Inventory { topics: topics.iter().map(|name| (*name).to_owned()).collect(), brokers: 1 }
    }

    #[test]
    fn a_missing_topic_is_a_problem_unless_serve_makes_it() {
        let mut config = Config::default();
        let judged =
            |config: &Config, name: &str| judge(config, &inventory(&[]), name, Ok(None)).remove(0);
        let (status, position) =
            (config.topics.message_status.clone(), config.topics.position.clone());
        let missing = judged(&config, &status);
        assert_eq!(missing.severity, Severity::Problem);
        let remedy = missing.remedy.unwrap();
        assert!(remedy.contains("--replication-factor 1)"), "{remedy}: of this cluster");
        assert_eq!(judged(&config, &position).severity, Severity::Ok);
        config.kafka.create_topics = Some(CreateTopics { partitions: 12, replication_factor: 3 });
        assert_eq!(judged(&config, &status).severity, Severity::Ok);
        config.kafka.create_topics = Some(CreateTopics { partitions: 12, replication_factor: 1 });
        assert_eq!(judged(&config, &status).severity, Severity::Warning, "as when it is there");
        let refused = Obstacle::new(Blocked::NotAuthorized, "words");
        let refused = judge(&config, &inventory(&[]), &status, Err(refused));
        assert_eq!(refused[0].severity, Severity::Problem);
        assert!(refused[0].found.ends_with(": words"), "{refused:?}");
    }

    #[test]
    fn a_missing_topic_with_nearly_the_name_of_another_is_asked_about() {
        let mut config = Config::default();
        let meant =
            std::mem::replace(&mut config.topics.message_status, "weni.mesage-status.v1".into());
        let there = inventory(&["orders", &meant, &config.topics.dead_letter]);
        let judged = |config: &Config| {
            judge(config, &there, &config.topics.message_status, Ok(None)).remove(0)
        };
        let question =
            format!("{meant} exists: is weni.mesage-status.v1 misspelled under [topics]?");
        let Finding { severity, remedy, .. } = judged(&config);
        assert_eq!(severity, Severity::Problem);
        let remedy = remedy.unwrap();
        assert!(remedy.starts_with(&format!("{question} If not, create it (")), "{remedy}");
        config.kafka.create_topics = Some(CreateTopics { partitions: 12, replication_factor: 3 });
        let Finding { severity, remedy, .. } = judged(&config);
        assert_eq!((severity, remedy.as_deref()), (Severity::Warning, Some(&*question)));
        // One that is in use is nobody's slip.
        config.topics.message_status = config.topics.dead_letter.replace('d', "b");
        assert_eq!(judged(&config).severity, Severity::Ok);
    }
}
