//! The configuration in effect, as TOML that says where each value was written.

use serde::Serialize;
use serde_json::json;
use toml::Value;

/// The origin of a value that nobody wrote.
pub(super) const DEFAULT: &str = "default";
/// Of the origins, as of the comments in the default file.
const COLUMN: usize = 41;

/// A key, its value in effect, and where that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EffectiveValue {
    /// The tables around the key: `["sources", "loja"]`.
    pub section: Vec<String>,
    /// Its name in the innermost table.
    pub key: String,
    /// A secret is replaced.
    pub value: Value,
    /// `weni-edge.toml:12`, the name of a variable, or `default`.
    pub origin: String,
}

/// Writes a configuration that can be loaded again as soon as its secrets are put back.
pub fn to_toml(values: &[EffectiveValue]) -> String {
    let mut text = String::new();
    for section in values.chunk_by(|one, next| one.section == next.section) {
        let path: Vec<_> = section[0].section.iter().map(|name| quoted(name)).collect();
        text += &format!("{}[{}]\n", if text.is_empty() { "" } else { "\n" }, path.join("."));
        for EffectiveValue { key, value, origin, .. } in section {
            let line = format!("{} = {}", quoted(key), written(value));
            // A name of a file may have a line's end.
            let origin = origin.replace(char::is_control, "?");
            text += &format!("{line:<COLUMN$} # {origin}\n");
        }
    }
    text
}

fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !key.is_empty() && key.bytes().all(is_bare) { key.into() } else { written(&key.into()) }
}

/// Texts, numbers, flags and lists are written as in JSON, in one line.
fn written(value: &Value) -> String {
    // TOML knows no surrogates, as which a terminal's escapes would write these.
    let escape = |letter| match letter {
        '\u{7f}' | '\u{10000}'.. => format!("\\U{:08x}", u32::from(letter)),
        _ => letter.to_string(),
    };
    json!(value).to_string().chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Config, DEFAULT_FILE, HIDDEN, tests::*},
        *,
    };

    /// What is in effect, as TOML, and what it was read as.
    fn effective(place: &Place, text: &str, variables: &[(&str, &str)]) -> (String, Config) {
        let (config, values) = place.load_effective(text, variables).unwrap();
        (to_toml(&values), config)
    }

    /// Every key, and none with its default.
    fn everything(place: &Place) -> String {
        let secret = place.file("secret", &format!("{SECRET}\n"));
        format!(
            "[http]\nlisten = \"127.0.0.1:81\"\nmax_body_bytes = 2_000_000\nmax_memory_bytes = 2_000_001\n\
         max_connections = 7\nheader_timeout = \"100ms\"\nbody_timeout = \"1s\"\nidle_timeout = \"1h\"\n\
         wait_for_kafka = \"5s\"\ndrain = \"0s\"\npublic_url = \"https://edge.example.com\"\n\
         [http.tls]\ncertificate_file = \"a b\"\nkey_file = \"it's \\\"one\\\"\"\n\
         [admin]\nlisten = \"[::]:81\"\ntoken_file = '{secret}'\n\
         [sources.\"a.b-c\"]\nheader = \"X-Token\"\nsecrets = [\"{SECRET}\", \"{SECRET}\"]\n\
         secrets_file = '{secret}'\nraw = \"untyped\"\n\
         [sources.\"a.b-c\".labels]\n\"a \\\"b\\\" # = ]\" = \"two\\nlines\\u0007\u{e0001} # '\"\n\
         [sources.open]\nallow_unauthenticated = true\n\
         [journal]\ndirectory = \"j\"\nmax_bytes = 1_000_000_000\nmin_free_bytes = 0\n\
         allow_volatile = true\n\
         [kafka]\nbootstrap_servers = \"one,[::1]:2\"\nidentity_prefix = \"x\"\ncommit_interval = \"0s\"\n\
         create_topics = {{ partitions = 3, replication_factor = 1 }}\n\
         [kafka.properties]\nlinger.ms = 20\nsocket.keepalive.enable = true\n\
         security.protocol = \"SASL_SSL\"\nsasl.mechanism = \"PLAIN\"\n\"sasl.username\" = \"edge\"\n\
         sasl.password = \"{SECRET}\"\nssl.key.password_file = '{secret}'\n\
         [topics]\nmessage_status = \"a\"\ninbound_message = \"b\"\nchannel_event = \"c\"\n\
         dead_letter = \"d\"\nposition = \"e\"\ninbound_key = \"conversation\"\n\
         [log]\nformat = \"json\"\nlevel = \"warn,h2=debug\"\n"
        )
    }

    #[test]
    fn what_is_in_effect_can_be_loaded_again_once_its_secrets_are_put_back() {
        let place = Place::new();
        for text in [&everything(&place), &example(), SOURCE, ""] {
            let (printed, config) = effective(&place, text, &[]);
            assert!(!printed.contains("s3cr3t"), "{printed}");
            assert!(printed.chars().all(|letter| letter <= '\u{ffff}'), "{printed}");
            let again = place.load(&printed.replace(HIDDEN, SECRET), &[]);
            assert_eq!(again.as_ref(), Ok(&config), "{printed}");
            // A file whose secrets are still hidden is not taken for one that has them.
            assert_eq!(place.load(&printed, &[]).is_ok(), !printed.contains(HIDDEN), "{printed}");
        }
    }

    #[test]
    fn without_a_configuration_the_values_of_the_default_file_are_in_effect() {
        let (printed, _) = effective(&Place::new(), "", &[]);
        let mut file: toml::Table = DEFAULT_FILE.parse().unwrap();
        file.remove("sources").unwrap();
        let kafka = file["kafka"].as_table_mut().unwrap();
        // They have no default.
        kafka.remove("bootstrap_servers").unwrap();
        kafka.remove("properties").unwrap();
        assert_eq!(printed.parse::<toml::Table>().unwrap(), file);
    }

    #[test]
    fn everything_in_effect_is_said_with_its_origin() {
        let place = Place::new();
        let text =
            "[http]\ndrain = \"1s\"\nbody_timeout = \"7s\"\n[kafka.properties]\nlinger.ms = 20\n";
        let (printed, _) = effective(
            &place,
            text,
            &[
                ("WENI_EDGE__HTTP__DRAIN", "5s"),
                ("WENI_EDGE__HTTP__MAX_CONNECTIONS", "1_000"),
                ("WENI_EDGE__KAFKA__PROPERTIES__LINGER_MS", "30"),
                ("WENI_EDGE__SOURCES__LOJA__HEADER", "X-Token"),
                ("WENI_EDGE__SOURCES__LOJA__SECRETS", "[\"s3cr3t-s3cr3t-s3cr3t\"]"),
            ],
        );
        let said = |line: &str| {
            let found = printed.lines().find(|printed| printed.starts_with(line));
            found.unwrap_or_else(|| panic!("{line}: {printed}")).rsplit_once("# ").unwrap().1
        };
        assert_eq!(said("listen = \"0.0.0.0:8080\" "), "default");
        assert_eq!(said("drain = \"5s\" "), "WENI_EDGE__HTTP__DRAIN");
        assert_eq!(said("max_connections = 1000 "), "WENI_EDGE__HTTP__MAX_CONNECTIONS");
        assert!(said("body_timeout = \"7s\" ").ends_with("/weni-edge.toml:3"));
        assert_eq!(said("\"linger.ms\" = \"30\" "), "WENI_EDGE__KAFKA__PROPERTIES__LINGER_MS");
        assert_eq!(said("secrets = [\"(secret)\"] "), "WENI_EDGE__SOURCES__LOJA__SECRETS");
        assert_eq!(said("create_topics = false "), "default");
    }

    #[test]
    fn a_property_that_may_be_a_secret_is_hidden() {
        let place = Place::new();
        let file = place.file("secret", SECRET);
        let (certificate, key) = {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let text = format!(
            "[kafka.properties]\nsecurity.protocol = \"SASL_SSL\"\nsasl.mechanism = \"PLAIN\"\n\
         sasl.username = \"edge\"\nssl.certificate.pem = '''{certificate}'''\n\
         ssl.ca.pem = '''{key}{certificate}'''\nssl.key.pem = '''{key}'''\nssl.keystore.password = 123456\nsasl.password_file = '{file}'\n"
        );
        let variable = ("WENI_EDGE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", SECRET);
        let (printed, config) = effective(&place, &text, &[variable]);
        for shown in ["PLAIN", "edge", &file] {
            assert!(printed.contains(shown), "{shown}: {printed}");
        }
        let hidden = [
            "ssl.ca.pem",
            "ssl.certificate.pem",
            "ssl.key.pem",
            "ssl.keystore.password",
            "ssl.key.password",
        ];
        for name in hidden {
            assert!(printed.contains(&format!("\"{name}\" = \"{HIDDEN}\" ")), "{name}: {printed}");
            assert!(!printed.contains(config.kafka.properties[name].expose()), "{name}: {printed}");
        }
        assert!(!printed.contains("PRIVATE"), "{printed}");
        let error = place.load(&printed, &[]).unwrap_err();
        assert_eq!(
            error.matches("which stands for a secret: put the secret back").count(),
            hidden.len(),
            "{error}"
        );
    }
}
