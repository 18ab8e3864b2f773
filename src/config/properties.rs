//! librdkafka's properties: passed on, unless one would break a promise of the edge.

use std::{collections::BTreeMap, path::Path};

use super::{
    HIDDEN, Secret, client,
    document::{Node, NodeValue, open_file, read_file},
    section::Section,
};

const IDENTITY: &str =
    "is made of kafka.identity_prefix and the journal's id: Kafka keeps our position under it";
const IDEMPOTENCE: &str =
    "belongs to transactions: with another value events get lost, doubled or out of order";
const TIMEOUT: &str =
    "is managed by the edge: events wait in the journal for as long as Kafka is away";
const POSITION: &str =
    "belongs to the position, which is committed in the transactions of the events";
const SIZE: &str = "follows http.max_body_bytes";
const CODE: &str = "would load code into the edge that is not part of it";
const ACKS: &str = "stays `all`: an event is in Kafka when every replica in sync has it";
const SERVERS: &str = "has its own key: kafka.bootstrap_servers";

/// Refused properties, and why.
const REFUSED: &[(&str, &str)] = &[
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("bootstrap.servers", SERVERS),
    ("metadata.broker.list", SERVERS),
    ("transactional.id", IDENTITY),
    ("group.id", IDENTITY),
    ("group.instance.id", IDENTITY),
    ("enable.idempotence", IDEMPOTENCE),
    ("enable.gapless.guarantee", IDEMPOTENCE),
    ("max.in.flight", IDEMPOTENCE),
    ("max.in.flight.requests.per.connection", IDEMPOTENCE),
    ("retries", IDEMPOTENCE),
    ("message.send.max.retries", IDEMPOTENCE),
    ("queuing.strategy", IDEMPOTENCE),
    ("transaction.timeout.ms", TIMEOUT),
    ("message.timeout.ms", TIMEOUT),
    ("delivery.timeout.ms", TIMEOUT),
    ("enable.auto.commit", POSITION),
    ("auto.commit.enable", POSITION),
    ("auto.commit.interval.ms", POSITION),
    ("enable.auto.offset.store", POSITION),
    ("auto.offset.reset", POSITION),
    ("isolation.level", "stays `read_committed`: an open transaction's position is not the truth"),
    ("partitioner", "stays `murmur2_random`: every client finds the partition of a message's id"),
    ("message.max.bytes", SIZE),
    (
        "delivery.report.only.error",
        "stays on: the edge is told what is refused, and counts the rest",
    ),
    ("batch.size", SIZE),
    ("api.version.request", "stays on: transactions need to know what the brokers can do"),
    ("plugin.library.paths", CODE),
    ("ssl.engine.id", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.providers", CODE),
    ("internal.termination.signal", "would take a signal away from the edge"),
    ("test.mock.num.brokers", "keeps events in memory only; `weni-edge dev` is for trying out"),
];

/// Other names of properties (from librdkafka's CONFIGURATION.md), and the name to use. If both are
/// given, the one that is set last counts, and the order is random.
const ALIASES: &[(&str, &str)] = &[
    ("compression.type", "compression.codec"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("sasl.mechanisms", "sasl.mechanism"),
];

/// Mechanisms that log in with a password.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
const NOT_BUILT_IN: &str = "is not built in: OIDC (OAUTHBEARER), MSK IAM (AWS_MSK_IAM) and Kerberos \
                            (GSSAPI) are not; use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, or a client \
                            certificate (ssl.certificate.location)";
/// The beginnings of properties of logins that are not built in.
const OF_NOT_BUILT_IN: [&str; 4] =
    ["sasl.oauthbearer.", "enable.sasl.oauthbearer.", "sasl.kerberos.", "https.ca."];

/// Properties of logins and TLS that are no secret. All others are taken for one, also those that a
/// later librdkafka adds. Certificates in PEM are not among them: a key may stand beside them.
const NO_SECRETS: [&str; 7] = [
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "ssl.cipher.suites",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.sigalgs.list",
];
/// Properties that name a file with a secret.
const SECRET_LOCATIONS: [&str; 2] = ["ssl.key.location", "ssl.keystore.location"];

/// A property as it was written.
struct WrittenProperty {
    key: String,
    /// librdkafka's name for it.
    name: String,
    /// The value is in a file, and this names it.
    from_file: bool,
    node: Node,
}

/// Reads `[kafka.properties]`: `"sasl.password" = "…"`, or `"sasl.password_file" = "…"` for a value
/// in a file. In the name of a variable, one underscore stands for a dot of the property.
pub(super) fn read(mut section: Section<'_>) -> BTreeMap<String, Secret> {
    let mut found = Vec::new();
    for (key, node) in section.drain() {
        find(key, node, &mut found);
    }
    // Variables come last, because they override the file.
    found.sort_by_key(|written| written.node.is_variable());
    let mut all: BTreeMap<String, WrittenProperty> = BTreeMap::new();
    let mut properties = BTreeMap::new();
    let mut wrong = false;
    for written in found {
        match value(&written, all.get(&written.name)) {
            Ok(value) => {
                note_secret(&section, &written, &value);
                properties.insert(written.name.clone(), value);
                all.insert(written.name.clone(), written);
            }
            Err(why) => {
                section.report(&written.node.origin, &written.key, &why);
                wrong = true;
            }
        }
    }
    let refusals = match conflicts(&properties) {
        // A refused property is missing here, and another may be refused because of that.
        _ if wrong => Vec::new(),
        conflicts if conflicts.is_empty() => client::refusals(&properties),
        conflicts => conflicts,
    };
    for (name, why) in refusals {
        match name.and_then(|name| all.get(&name)) {
            Some(written) => section.report(&written.node.origin, &written.key, &why),
            None => section.problem(&why),
        }
    }
    for WrittenProperty { name, from_file, node, .. } in all.into_values() {
        let shown = match node.value {
            NodeValue::Typed(value) if from_file || !is_secret(&name) => value,
            NodeValue::Variable(text) if from_file || !is_secret(&name) => text.into(),
            _ => HIDDEN.into(),
        };
        let key = name + if from_file { "_file" } else { "" };
        section.in_effect(&key, shown, node.origin);
    }
    properties
}

fn is_secret(name: &str) -> bool {
    let login_or_tls = name.starts_with("sasl.") || name.starts_with("ssl.");
    login_or_tls && !name.ends_with(".location") && !NO_SECRETS.contains(&name)
}

/// Notes which file holds a secret.
fn note_secret(section: &Section<'_>, written: &WrittenProperty, value: &Secret) {
    let WrittenProperty { name, from_file, node, .. } = written;
    let secret = is_secret(name);
    match &node.value {
        NodeValue::Variable(path) | NodeValue::Typed(toml::Value::String(path))
            if secret && *from_file =>
        {
            section.holds_secret(Path::new(path));
        }
        NodeValue::Typed(_) if secret => section.holds_secret_itself(),
        _ if SECRET_LOCATIONS.contains(&name.as_str()) => {
            section.holds_secret(Path::new(value.expose()));
        }
        _ => {}
    }
}

/// The value of a property. `before` is the same property, if it was found already.
fn value(written: &WrittenProperty, before: Option<&WrittenProperty>) -> Result<Secret, String> {
    let WrittenProperty { name, from_file, node, .. } = written;
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
        return Err(format!("is not for you to set: it {why}; leave it out"));
    }
    if OF_NOT_BUILT_IN.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("is of a login that {NOT_BUILT_IN}"));
    }
    if before.is_some_and(|before| before.node.is_variable() == node.is_variable()) {
        return Err(format!("gives {name} a second time; leave one of them out"));
    }
    let value = content(node, *from_file)?;
    if name.starts_with("sasl.mechanism") && !MECHANISMS.contains(&value.as_str()) {
        return Err(format!("names a login that {NOT_BUILT_IN}"));
    }
    if is_secret(name) && value == HIDDEN {
        return Err(format!("is \"{HIDDEN}\", which stands for a secret: put the secret back"));
    }
    let path = Path::new(&value);
    // librdkafka looks for authorities by itself, or takes those of a directory.
    let is_found = name == "ssl.ca.location" && (value == "probe" || path.is_dir());
    if name.starts_with("ssl.") && name.ends_with(".location") && !is_found {
        open_file(path).map_err(|error| format!("names a file that cannot be read: {error}"))?;
    }
    Ok(Secret::new(value))
}

/// Whether `security.protocol` uses SASL, and whether TLS.
fn logins(properties: &BTreeMap<String, Secret>) -> [bool; 2] {
    let protocol = properties.get("security.protocol").map_or("plaintext", Secret::expose);
    let protocol = protocol.to_ascii_lowercase();
    let is_one_of = |protocols: [&str; 2]| protocols.contains(&&*protocol);
    [is_one_of(["sasl_plaintext", "sasl_ssl"]), is_one_of(["ssl", "sasl_ssl"])]
}

/// Properties of a login or of TLS that `security.protocol` does not use.
pub(super) fn unused(properties: &BTreeMap<String, Secret>) -> Vec<&str> {
    let [uses_sasl, uses_tls] = logins(properties);
    let is_unused = |name: &&str| {
        (name.starts_with("sasl.") && !uses_sasl) || (name.starts_with("ssl.") && !uses_tls)
    };
    properties.keys().map(String::as_str).filter(is_unused).collect()
}

/// Contradictions between properties that librdkafka does not report.
fn conflicts(properties: &BTreeMap<String, Secret>) -> Vec<client::RefusedProperty> {
    let mut conflicts = Vec::new();
    for (alias, name) in ALIASES.iter().filter(|(alias, _)| properties.contains_key(*alias)) {
        let why = if properties.contains_key(*name) {
            format!("is another name of {name}, which is given as well: leave one of them out")
        } else if client::PRODUCER_DEFAULTS.iter().any(|(own, _)| own == name) {
            format!("is another name of {name}, which the edge sets: use that name")
        } else {
            continue;
        };
        conflicts.push((Some((*alias).to_owned()), why));
    }
    let [uses_sasl, _] = logins(properties);
    let has_mechanism = properties.keys().any(|name| name.starts_with("sasl.mechanism"));
    if uses_sasl && !has_mechanism {
        let why = "needs sasl.mechanism beside it: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";
        conflicts.push((Some("security.protocol".to_owned()), why.to_owned()));
    }
    conflicts
}

/// Finds the properties below `key`: TOML reads a dotted key without quotes as nested tables.
fn find(key: String, node: Node, found: &mut Vec<WrittenProperty>) {
    if let NodeValue::Table(entries) = node.value {
        for (below, node) in entries {
            find(format!("{key}.{below}"), node, found);
        }
        return;
    }
    let (name, from_file) = key.strip_suffix("_file").map_or((&*key, false), |name| (name, true));
    let name = if node.is_variable() { name.replace('_', ".") } else { name.into() };
    found.push(WrittenProperty { key, name, from_file, node });
}

fn content(node: &Node, from_file: bool) -> Result<String, String> {
    let value = match &node.value {
        NodeValue::Variable(text) | NodeValue::Typed(toml::Value::String(text)) => text.clone(),
        NodeValue::Typed(toml::Value::Integer(number)) => number.to_string(),
        NodeValue::Typed(toml::Value::Boolean(flag)) => flag.to_string(),
        _ => return Err("has to be text, a whole number or true or false".into()),
    };
    if !from_file {
        return Ok(value);
    }
    // The error does not name the file, because the value may be a password by mistake.
    let text = read_file(Path::new(&value))
        .map_err(|error| format!("names a file that cannot be read: {error}"))?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn kafka_properties_pass_from_file_variable_and_secret_file() {
        let place = Place::new();
        let file = place.file("password", "pass\nword\n");
        let text = format!(
            "[kafka.properties]\nsecurity.protocol = \"SASL_SSL\"\n\
             sasl.mechanism = \"PLAIN\"\n\"linger.ms\" = 20\n\
             \"socket.keepalive.enable\" = true\n\"sasl.password_file\" = '{file}'\n"
        );
        let variables = [
            ("WENI_EDGE__KAFKA__PROPERTIES__SASL_USERNAME", "edge"),
            ("WENI_EDGE__KAFKA__PROPERTIES__LINGER_MS", "30"),
            ("WENI_EDGE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD_FILE", &file),
        ];
        let config = place.load(&text, &variables).unwrap();
        let properties: Vec<_> = config
            .kafka
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(
            properties,
            [
                ("linger.ms", "30"),
                ("sasl.mechanism", "PLAIN"),
                ("sasl.password", "pass\nword"),
                ("sasl.username", "edge"),
                ("security.protocol", "SASL_SSL"),
                ("socket.keepalive.enable", "true"),
                ("ssl.key.password", "pass\nword"),
            ]
        );
        let twice = place.load(&format!("{text}\"sasl.password\" = \"other\""), &[]).unwrap_err();
        assert!(twice.contains("gives sasl.password a second time"), "{twice}");
    }

    #[test]
    fn kafka_properties_that_break_the_promise_are_refused_with_the_reason() {
        for (property, reason) in [
            ("acks", "every replica"),
            ("enable.idempotence", "doubled or out of order"),
            ("transactional.id", "kafka.identity_prefix"),
            ("bootstrap.servers", "kafka.bootstrap_servers"),
            ("message.max.bytes", "http.max_body_bytes"),
            ("message.timeout.ms_file", "wait in the journal"),
            ("partitioner", "murmur2_random"),
            ("plugin.library.paths", "would load code"),
            ("ssl.engine.location", "would load code"),
            ("ssl.providers", "would load code"),
            ("batch.size", "http.max_body_bytes"),
        ] {
            let error = refusal(&format!("[kafka.properties]\n\"{property}\" = \"1\""));
            assert!(error.starts_with("weni-edge.toml:2: kafka.properties."), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        let error = load_with(&[("WENI_EDGE__KAFKA__PROPERTIES__GROUP_ID", "mine")]).unwrap_err();
        assert!(error.starts_with("WENI_EDGE__KAFKA__PROPERTIES__GROUP_ID: "), "{error}");
    }
}
