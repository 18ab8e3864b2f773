//! librdkafka's configuration: what the edge sets, and whether clients can be made with it.
//!
//! Only librdkafka knows its properties, their values and which ones contradict. Making a client
//! needs no network, so clients are made while the configuration is read: otherwise a wrong
//! property would leave an edge that accepts and never publishes.
//!
//! **Invariant:** a message about a property has no value of a property.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, config::FromClientConfig, consumer::BaseConsumer, error::KafkaError,
    producer::BaseProducer,
};

use super::{Config, Secret};

/// How long a transaction may take. A callback that needs more alone gets more.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// What the user may change.
pub(super) const PRODUCER_DEFAULTS: [(&str, &str); 5] = [
    ("linger.ms", "10"),
    ("compression.codec", "lz4"),
    ("statistics.interval.ms", "5000"),
    ("queue.buffering.max.messages", "100000"),
    // A send waits while the queue is full. librdkafka's default is 1 GiB.
    ("queue.buffering.max.kbytes", "32768"),
];

/// While callers wait for Kafka a transaction has few records, and nothing is won by waiting for more.
const WAITED_FOR: (&str, &str) = ("linger.ms", "1");

/// Shorter values are not masked: librdkafka's own words have them, too.
const VALUE_CHARS_MIN: usize = 3;

type Properties = BTreeMap<String, Secret>;

/// The properties of every client.
pub(crate) fn base_config(config: &Config) -> ClientConfig {
    let mut base = ClientConfig::new();
    base.set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set("client.id", "weni-edge")
        // librdkafka's default of 10 s keeps an edge silent long after Kafka is back.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("retry.backoff.ms", "10")
        // A NAT drops a quiet connection after minutes without a word. The next request on it waits
        // 16 s.
        .set("connections.max.idle.ms", "60000");
    for (name, value) in &config.kafka.properties {
        base.set(name, value.expose());
    }
    base
}

pub(crate) fn consumer_config(base: &ClientConfig, identity: &str) -> ClientConfig {
    let mut consumer = base.clone();
    consumer
        .set("group.id", identity)
        // Nobody takes a consumer's statistics out of its queue.
        .set("statistics.interval.ms", "0")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false");
    consumer
}

/// The most bytes of an event. It repeats its body and adds to it, and base64 is a third longer.
pub(crate) fn largest_event(config: &Config) -> usize {
    2 * config.http.max_body_bytes + 64 * 1024
}

/// `max_message_bytes` is the lowest limit of a topic.
pub(crate) fn producer_config(
    base: &ClientConfig,
    identity: &str,
    config: &Config,
    max_message_bytes: Option<usize>,
    timeout: Duration,
    batch_bytes: usize,
) -> ClientConfig {
    let timeout_ms = timeout.as_millis().to_string();
    let message_bytes = largest_event(config);
    let batch_bytes = batch_bytes.min(max_message_bytes.unwrap_or(message_bytes));
    let mut producer = base.clone();
    let waited_for = (!config.http.wait_for_kafka.is_zero()).then_some(WAITED_FOR);
    for (name, value) in waited_for.into_iter().chain(PRODUCER_DEFAULTS) {
        // The base is not listed: rdkafka replaces secrets in such a listing.
        if producer.get(name).is_none() {
            producer.set(name, value);
        }
    }
    producer
        .set("transactional.id", identity)
        .set("transaction.timeout.ms", &timeout_ms)
        .set("message.timeout.ms", &timeout_ms)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // Acknowledged records are counted, not reported: reports took a tenth of the publisher's
        // time.
        .set("delivery.report.only.error", "true")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", message_bytes.to_string())
        .set("batch.size", batch_bytes.to_string());
    producer
}

/// A property that cannot be used, if it is known, and why.
pub(super) type RefusedProperty = (Option<String>, String);

/// Makes clients with `properties` as the edge does, and returns what librdkafka refuses.
pub(super) fn refusals(properties: &Properties) -> Vec<RefusedProperty> {
    // A running edge reads its configuration every two seconds.
    static LAST_GOOD: Mutex<Option<Properties>> = Mutex::new(None);
    if properties.is_empty() || LAST_GOOD.lock().as_ref() == Some(properties) {
        return Vec::new();
    }
    let alone = properties.iter().filter_map(|(name, value)| {
        let config = ClientConfig::from_iter([(name.clone(), value.expose().to_owned())]);
        let error = config.create_native_config().err()?;
        Some((Some(name.clone()), words(error, properties)))
    });
    let mut refusals: Vec<_> = alone.collect();
    if refusals.is_empty() {
        refusals.extend(together(properties).err());
    }
    if refusals.is_empty() {
        *LAST_GOOD.lock() = Some(properties.clone());
    }
    refusals
}

fn together(properties: &Properties) -> Result<(), RefusedProperty> {
    let mut config = Config::default();
    config.kafka.properties = properties.clone();
    let mut base = base_config(&config);
    base.remove("bootstrap.servers");
    let consumer = consumer_config(&base, "weni-edge");
    let producer =
        producer_config(&base, "weni-edge", &config, None, TRANSACTION_TIMEOUT, usize::MAX);
    made::<BaseProducer>(&producer, properties)?;
    made::<BaseConsumer>(&consumer, properties)
}

fn made<C: FromClientConfig>(
    config: &ClientConfig,
    properties: &Properties,
) -> Result<(), RefusedProperty> {
    let Err(error) = C::from_config(config) else { return Ok(()) };
    let mut words = words(error, properties);
    let names: Vec<_> = words.split(|letter| !in_name(letter)).map(String::from).collect();
    for name in names.iter().filter(|name| !properties.contains_key(*name)) {
        if let Some(value) = config.get(name) {
            words += &format!("; the edge sets `{name}` to {value}");
        }
    }
    Err((names.into_iter().find(|name| properties.contains_key(name)), words))
}

/// In librdkafka's words, in one line and without a value.
fn words(error: KafkaError, properties: &Properties) -> String {
    let said = match error {
        // Its Display has the value.
        KafkaError::ClientConfig(_, said, ..) | KafkaError::ClientCreation(said) => said,
        other => other.to_string(),
    };
    let mut values: Vec<_> = properties.values().map(Secret::expose).collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values.retain(|value| value.chars().count() >= VALUE_CHARS_MIN);
    let said = values.iter().fold(said, |said, value| without(&said, value));
    // librdkafka quotes names of properties, and parts of values.
    let quoted = said.split('"').map(|part| {
        let is_value = !part.is_empty() && values.iter().any(|value| value.contains(part));
        if is_value && !properties.contains_key(part) { "…" } else { part }
    });
    let said = quoted.collect::<Vec<_>>().join("\"");
    format!("cannot work: {}", said.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `said` without `value`, unless it is part of a longer word: `ssl` stands in `ssl.ca.location`.
fn without(said: &str, value: &str) -> String {
    let mut parts = said.split(value).peekable();
    let mut out = String::new();
    while let Some(before) = parts.next() {
        out += before;
        if let Some(after) = parts.peek() {
            let is_part = before.ends_with(in_name) || after.starts_with(in_name);
            out += if is_part { value } else { "…" };
        }
    }
    out
}

/// Whether names of properties may have this letter.
fn in_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "._-".contains(letter)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn connections_end_before_a_nat_forgets_them_unless_the_user_says_otherwise() {
        let mut config = Config::default();
        assert_eq!(base_config(&config).get("connections.max.idle.ms"), Some("60000"));
        let own = ("connections.max.idle.ms".into(), Secret::new("540000"));
        config.kafka.properties.extend([own]);
        assert_eq!(base_config(&config).get("connections.max.idle.ms"), Some("540000"));
    }

    const SASL: &str = "security.protocol = \"SASL_SSL\"\nsasl.mechanism = \"PLAIN\"";

    #[test]
    fn what_librdkafka_cannot_work_with_is_refused_with_line_key_and_its_words() {
        for (properties, expected) in [
            (
                "sasl.pasword = \"s3cr3t-w0rd\"",
                "2: kafka.properties.sasl.pasword cannot work: No such configuration property: \
                 \"sasl.pasword\"",
            ),
            (
                "security.protocol = \"SASL_TLS\"",
                "2: kafka.properties.security.protocol cannot work: Invalid value \"…\" for \
                 configuration property \"security.protocol\"",
            ),
            (
                "security.protocol = \"ssl\"\nssl.ca.location = \"/no/s3cr3t-w0rd\"",
                "3: kafka.properties.ssl.ca.location names a file that cannot be read: No such file \
                 or directory (os error 2)",
            ),
            (
                &format!("{SASL}\nsasl.username = \"s3cr3t-w0rd\""),
                "4: kafka.properties.sasl.username cannot work: sasl.username and sasl.password must \
                 be set",
            ),
            (SASL, "1: kafka.properties cannot work: sasl.username and sasl.password must be set"),
            (
                "security.protocol = \"sasl_ssl\"",
                "2: kafka.properties.security.protocol needs sasl.mechanism beside it: PLAIN, \
                 SCRAM-SHA-256 or SCRAM-SHA-512",
            ),
            (
                "socket.timeout.ms = 60000",
                "2: kafka.properties.socket.timeout.ms cannot work: `socket.timeout.ms` must be set \
                 <= `transaction.timeout.ms` + 100; the edge sets `transaction.timeout.ms` to 15000",
            ),
            (
                "linger.ms = 20000",
                "2: kafka.properties.linger.ms cannot work: `message.timeout.ms` must be greater \
                 than `linger.ms`; the edge sets `message.timeout.ms` to 15000",
            ),
            (
                "session.timeout.ms = 600000",
                "2: kafka.properties.session.timeout.ms cannot work: `max.poll.interval.ms`must be \
                 >= `session.timeout.ms`",
            ),
            (
                "delivery.timeout.ms = 600000",
                "2: kafka.properties.delivery.timeout.ms is not for you to set: it is managed by the \
                 edge: events wait in the journal for as long as Kafka is away; leave it out",
            ),
        ] {
            let error = refusal(&format!("[kafka.properties]\n{properties}\n"));
            assert_eq!(error, format!("weni-edge.toml:{expected}"));
        }
        let variable = ("WENI_EDGE__KAFKA__PROPERTIES__SASL_PASWORD", "s3cr3t-w0rd");
        assert_eq!(
            load_with(&[variable]).unwrap_err(),
            "WENI_EDGE__KAFKA__PROPERTIES__SASL_PASWORD: kafka.properties.sasl_pasword cannot work: \
             No such configuration property: \"sasl.pasword\""
        );
    }

    #[test]
    fn no_value_is_said_of_any_property() {
        let place = Place::new();
        let secret = place.file("secret", "s3cr3t-w0rd\n");
        for name in [
            "linger.ms",
            "socket.keepalive.enable",
            "compression.codec",
            "compression.level",
            "debug",
            "partition.assignment.strategy",
            "sasl.mechanism",
            "ssl.ca.pem",
            "ssl.certificate.pem",
            "ssl.key.pem",
            "ssl.key.location",
            "ssl.cipher.suites",
            "ssl.curves.list",
            "ssl.sigalgs.list",
            "s3cr3t",
        ] {
            for line in [
                format!("{name} = \"s3cr3t-w0rd\""),
                format!("{name} = \"broker, s3cr3t-w0rd\""),
                format!("{name}_file = '{secret}'"),
            ] {
                let text = format!("[kafka.properties]\n{line}\nsecurity.protocol = \"ssl\"\n");
                let error = refusal(&text);
                assert!(error.starts_with("weni-edge.toml:2: kafka.properties."), "{error}");
                assert!(!error.contains("w0rd"), "{error}");
            }
        }
        let error = refusal("[kafka.properties]\ntopic.blacklist = \"ok,[[s3cr3t-w0rd\"");
        assert!(error.contains("Failed to parse pattern") && !error.contains("w0rd"), "{error}");
    }

    #[test]
    fn records_linger_less_where_callers_wait_for_kafka_unless_the_user_says_otherwise() {
        let linger = |text: &str| {
            let config = load(text).unwrap();
            let base = base_config(&config);
            let (timeout, bytes) = (TRANSACTION_TIMEOUT, usize::MAX);
            let producer = producer_config(&base, "weni-edge", &config, None, timeout, bytes);
            producer.get("linger.ms").map(str::to_owned)
        };
        const WAITS: &str = "[http]\nwait_for_kafka = \"2s\"\n";
        assert_eq!(linger("").as_deref(), Some("10"));
        assert_eq!(linger(WAITS).as_deref(), Some("1"));
        let both = format!("{WAITS}[kafka.properties]\nlinger.ms = 20\n");
        assert_eq!(linger(&both).as_deref(), Some("20"));
    }

    #[test]
    fn what_works_is_not_refused() {
        for properties in [
            format!("{SASL}\nsasl.username = \"edge\"\nsasl.password = \"s3cr3t\""),
            "sasl.mechanisms = \"SCRAM-SHA-512\"".to_owned(),
            "max.partition.fetch.bytes = 100000\ncompression.codec = \"zstd\"".to_owned(),
            "security.protocol = \"ssl\"\nssl.ca.location = \"probe\"".to_owned(),
            "security.protocol = \"ssl\"\nssl.ca.location = \"/etc\"".to_owned(),
            "linger.ms = 100\nsocket.timeout.ms = 10000\nreconnect.backoff.ms = 100".to_owned(),
        ] {
            load(&format!("[kafka.properties]\n{properties}\n")).unwrap();
        }
    }

    #[test]
    fn a_login_that_is_not_built_in_is_refused_with_those_that_are() {
        const NOT_BUILT_IN: &str = "is not built in: OIDC (OAUTHBEARER), MSK IAM (AWS_MSK_IAM) and \
                                    Kerberos (GSSAPI) are not; use PLAIN, SCRAM-SHA-256 or \
                                    SCRAM-SHA-512, or a client certificate (ssl.certificate.location)";
        for (property, value) in [
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.mechanism", "AWS_MSK_IAM"),
            ("sasl.mechanisms", "GSSAPI"),
        ] {
            let text = format!("[kafka.properties]\n{property} = \"{value}\"");
            let expected =
                format!("weni-edge.toml:2: kafka.properties.{property} names a login that");
            assert_eq!(refusal(&text), format!("{expected} {NOT_BUILT_IN}"));
        }
        for property in ["sasl.oauthbearer.method", "sasl.kerberos.keytab", "https.ca.location"] {
            let text = format!("[kafka.properties]\n{property} = \"oidc\"");
            let expected =
                format!("weni-edge.toml:2: kafka.properties.{property} is of a login that");
            assert_eq!(refusal(&text), format!("{expected} {NOT_BUILT_IN}"));
        }
    }

    #[test]
    fn a_property_has_one_name() {
        for (alias, name) in
            [("compression.type", "compression.codec"), ("queue.buffering.max.ms", "linger.ms")]
        {
            let place =
                format!("weni-edge.toml:2: kafka.properties.{alias} is another name of {name}");
            let text = format!("[kafka.properties]\n{alias} = \"1\"\n");
            let expected = format!("{place}, which the edge sets: use that name");
            assert_eq!(refusal(&text), expected);
        }
        for (alias, name) in [
            ("compression.type", "compression.codec"),
            ("queue.buffering.max.ms", "linger.ms"),
            ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
            ("sasl.mechanisms", "sasl.mechanism"),
        ] {
            let text = format!("[kafka.properties]\n{alias} = \"PLAIN\"\n{name} = \"PLAIN\"\n");
            let expected = format!(
                "weni-edge.toml:2: kafka.properties.{alias} is another name of {name}, which is given \
                 as well: leave one of them out"
            );
            assert_eq!(refusal(&text), expected);
        }
    }
}
