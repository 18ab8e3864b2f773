use std::{fs, path::Path};

use rustix::time::ClockId;
use tempfile::TempDir;

use super::{section::show_duration, *};

pub(super) const SECRET: &str = "s3cr3t-s3cr3t-s3cr3t";
pub(super) const SOURCE: &str =
    "[sources.loja]\nheader = \"X-Token\"\nsecrets = [\"s3cr3t-s3cr3t-s3cr3t\"]\n";

fn load_from(
    path: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    Ok(Config::load_from(path, variables)?.0)
}

/// A configuration's file beside whatever else it names.
pub(super) struct Place(TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(super) fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    }

    pub(super) fn load(&self, text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        Ok(self.load_effective(text, variables)?.0)
    }

    pub(super) fn load_effective(
        &self,
        text: &str,
        variables: &[(&str, &str)],
    ) -> Result<(Config, Vec<EffectiveValue>), String> {
        let path = self.file("weni-edge.toml", text);
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let directory = format!("{}/", self.0.path().display());
        Config::load_from(Some(path.as_ref()), variables)
            .map_err(|error| error.to_string().replace(&directory, ""))
    }
}

pub(super) fn load(text: &str) -> Result<Config, String> {
    Place::new().load(text, &[])
}

pub(super) fn load_with(variables: &[(&str, &str)]) -> Result<Config, String> {
    Place::new().load("", variables)
}

/// The one sentence that `text` is refused with.
pub(super) fn refusal(text: &str) -> String {
    let error = load(text).unwrap_err();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// The default file with a secret.
pub(super) fn example() -> String {
    DEFAULT_FILE.replace("16 or more here", SECRET)
}

#[test]
fn the_example_names_every_default_and_waits_for_a_secret() {
    assert!(refusal(DEFAULT_FILE).contains("sources.loja.secrets has a secret of fewer than 16"));
    let place = Place::new();
    let config = place.load(&example(), &[]).unwrap();
    let expected = Config {
        sources: [(
            "loja".to_string(),
            Source {
                header: "X-Token".into(),
                secrets: vec![Secret::new(SECRET)],
                ..Source::default()
            },
        )]
        .into(),
        kafka: Kafka { bootstrap_servers: "localhost:9092".into(), ..Config::default().kafka },
        secret_files: [place.0.path().join("weni-edge.toml")].into(),
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.ready_to_serve(), Ok(()));
    assert_eq!(load("").unwrap(), Config::default());
}

#[test]
fn the_example_has_every_key_and_no_other() {
    let keys = |section: &str| {
        let line = refusal(&format!("[{section}]\nno-such-key-at-all = 1\n"));
        let known = line.split_once("] has ").map(|(_, known)| known.to_string());
        known.unwrap_or_else(|| panic!("{line}"))
    };
    let sections = ["http", "admin", "journal", "kafka", "topics", "log"];
    for key in sections
        .iter()
        .flat_map(|section| keys(section).split(", ").map(String::from).collect::<Vec<_>>())
    {
        let found = ["\n", "\n#", "\n[kafka.", "\n#[http."].map(|before| format!("{before}{key}"));
        assert!(found.iter().any(|key| DEFAULT_FILE.contains(key)), "{key}");
    }
    // What is commented out are keys as well: nothing but missing files is complained about.
    let uncommented: String = example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') && !key.is_empty() => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let problems = load(&uncommented).unwrap_err();
    assert_eq!(
        problems.lines().map(|line| line.split(' ').nth(1).unwrap()).collect::<Vec<_>>(),
        [
            "admin.token_file",
            "sources.loja.secrets_file",
            "sources.loja",
            "kafka.properties.sasl.password_file"
        ],
        "{problems}"
    );
}

#[test]
fn an_idle_timeout_that_loses_calls_is_refused_with_line_and_remedy() {
    assert_eq!(
        refusal("[http]\nlisten = \"0.0.0.0:1\"\n\nidle_timeout = \"15s\"\n"),
        "weni-edge.toml:4: http.idle_timeout is 15s: Weni's client keeps connections for 15 s, so \
         anything below 20s loses calls; use 20s to 1h, or leave it out for 75s"
    );
}

#[test]
fn an_unknown_key_is_refused_and_the_nearest_one_named() {
    for (text, expected) in [
        (
            "[http]\nlisten_on = \"0.0.0.0:1\"",
            "weni-edge.toml:2: http.listen_on is not a key; did you mean http.listen?",
        ),
        (
            "[htpp]\nlisten = \"0.0.0.0:1\"",
            "weni-edge.toml:1: htpp is not a key; did you mean http?",
        ),
        (
            "[log]\ncolour = true",
            "weni-edge.toml:2: log.colour is not a key; [log] has format, level",
        ),
        (
            "[metrics]",
            "weni-edge.toml:1: metrics is not a section; there are http, admin, sources, journal, \
             kafka, topics, log",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    assert_eq!(
        load_with(&[("WENI_EDGE__HTTP__LISTN", "0.0.0.0:1")]).unwrap_err(),
        "WENI_EDGE__HTTP__LISTN: http.listn is not a key; did you mean http.listen?"
    );
}

#[test]
fn a_key_of_an_earlier_version_is_refused_with_what_became_of_it() {
    for (text, expected) in [
        (
            "[journal]\ndurability = \"os\"",
            "weni-edge.toml:2: journal.durability was removed: a callback is always synced to disk \
             before it is answered 200; delete the line",
        ),
        (
            "[duplicates]\nwindow = \"10m\"\nentries = 0",
            "weni-edge.toml:1: duplicates was removed: every event that arrives is published, and \
             consumers upsert by event_id; delete the section",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    let variable = load_with(&[("WENI_EDGE__DUPLICATES__ENTRIES", "0")]).unwrap_err();
    assert!(
        variable.starts_with("WENI_EDGE__DUPLICATES__ENTRIES: duplicates was removed"),
        "{variable}"
    );
}

#[test]
fn the_public_url_is_a_scheme_and_a_host() {
    for (written, expected) in [
        ("https://edge.example.com", "https://edge.example.com"),
        ("https://edge.example.com/", "https://edge.example.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443"),
    ] {
        let config = load(&format!("[http]\npublic_url = \"{written}\"")).unwrap();
        assert_eq!(config.http.public_url.as_deref(), Some(expected));
    }
    for written in [
        "",
        "edge.example.com",
        "edge.example.com:443",
        "ftp://edge.example.com",
        "https://",
        "https://:443",
        "https://edge.example.com:70000",
        "https://edge.example.com/hooks/loja",
        "https://edge.example.com//",
        "https://edge.example.com?token=1",
        "https://edge.example.com#top",
        "https://edge example.com",
    ] {
        let error = refusal(&format!("[http]\npublic_url = \"{written}\""));
        let expected = format!("weni-edge.toml:2: http.public_url is \"{written}\": use scheme");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = refusal("[http]\npublic_url = \"https://edge:s3cr3t@example.com\"");
    assert!(error.contains("has a login") && !error.contains("s3cr3t"), "{error}");
}

#[test]
fn impossible_values_are_refused() {
    for text in [
        "http = 1",
        "[http]\nlisten = \"8080\"",
        "[http]\nlisten = 8080",
        "[http]\nmax_body_bytes = 0",
        "[http]\nmax_body_bytes = \"1000000\"",
        "[http]\nmax_body_bytes = 2_000_000\nmax_memory_bytes = 1_999_999",
        "[http]\nmax_connections = -1",
        "[http]\nheader_timeout = 10",
        "[http]\nbody_timeout = \"0s\"",
        "[http]\ntls = { certificate_file = \"a.crt\" }",
        "[http]\nlisten = \"127.0.0.1:9090\"\n[admin]\nlisten = \"127.0.0.1:9090\"",
        "[journal]\ndirectory = \"\"",
        "[journal]\nmax_bytes = 1_000_000",
        "[kafka]\nbootstrap_servers = \"\"",
        "[kafka]\nbootstrap_servers = \"localhost:kafka\"",
        "[kafka]\nbootstrap_servers = \"one:9092,,two:9092\"",
        "[kafka]\ncreate_topics = true",
        "[kafka]\ncreate_topics = { partitions = 12 }",
        "[kafka]\ncreate_topics = { partitions = 0, replication_factor = 3 }",
        "[kafka]\nidentity_prefix = \"weni edge\"",
        "[kafka]\ncommit_interval = \"1m\"",
        "[topics]\nposition = \"weni/position\"",
        "[topics]\nmessage_status = \"..\"",
        "[log]\nlevel = \"inof\"",
        "[log]\nlevel = \"   headeӖe=mtoo\"",
        "[log]\nformat = \"text\"",
    ] {
        let line = text.lines().count();
        let place = refusal(text).replace("weni-edge.toml:", "");
        let table = line > 1 && text.contains("key_file");
        assert!(table || place.starts_with(&format!("{line}: ")), "{text}: {place}");
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let error = load("[http]\nlisten = 1\ndrian = \"1s\"\n[log]\nlevel = \"loud\"").unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn text_that_is_not_toml_is_refused_by_its_line_without_quoting_it() {
    let error = refusal("[sources.loja]\nheader = \"X-Token\"\nsecrets = [s3cr3t-s3cr3t-s3cr3t]\n");
    assert!(error.starts_with("weni-edge.toml:3: "), "{error}");
    assert!(!error.contains("s3cr3t"), "{error}");
    let missing = Config::load(Some("no/such/file.toml".as_ref())).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read no/such/file.toml: "), "{missing}");
}

#[test]
fn only_regular_files_of_at_most_4_mib_are_read() {
    const NOT_REGULAR: &str = "it is not a regular file; name one of at most 4 MiB";
    const LARGE: &str = "it is larger than 4 MiB; is it the right file?";
    let place = Place::new();
    let pipe = place.0.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    let large = place.file("large", &"#".repeat((4 << 20) + 1));
    let pipe = pipe.to_str().unwrap().to_owned();
    let directory = place.0.path().to_str().unwrap().to_owned();
    for (path, why) in [
        (&pipe, NOT_REGULAR),
        (&"/dev/zero".to_owned(), NOT_REGULAR),
        (&directory, NOT_REGULAR),
        (&large, LARGE),
    ] {
        // Opening a FIFO may wait for ever: so that a fault fails this test instead of stopping it.
        let within = |work: Box<dyn FnOnce() -> String + Send>| {
            let (done, waited) = std::sync::mpsc::channel();
            std::thread::spawn(move || done.send(work()));
            waited.recv_timeout(Duration::from_secs(20)).expect("reading hangs")
        };
        let named = path.clone();
        let error = within(Box::new(move || {
            let read = load_from(Some(named.as_ref()), std::iter::empty());
            read.unwrap_err().to_string()
        }));
        assert_eq!(error, format!("cannot read {path}: {why}"));
        for text in [
            format!("[sources.loja]\nheader = \"X-Token\"\nsecrets_file = \"{path}\""),
            format!("[kafka.properties]\nsasl.password_file = \"{path}\""),
        ] {
            let error = within(Box::new(move || refusal(&text)));
            assert!(error.ends_with(&format!(": {why}")), "{error}");
        }
    }
    place.file("large", &"#".repeat(4 << 20));
    assert!(load_from(Some(large.as_ref()), std::iter::empty()).is_ok());
}

#[test]
fn reading_takes_time_in_proportion_to_the_file() {
    // What this thread has computed: other processes do not count.
    let computed =
        || -> Duration { rustix::time::clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap() };
    let took = |sources: usize| {
        let source = |number| SOURCE.replace("loja", &format!("loja-{number}"));
        let text: String = (0..sources).map(source).collect();
        let place = Place::new();
        let least = (0..3).map(|_| {
            let before = computed();
            assert_eq!(place.load(&text, &[]).unwrap().sources.len(), sources);
            computed() - before
        });
        least.min().unwrap()
    };
    // In proportion it is 20 times; it was more than 150 times.
    let (small, large) = (took(500), took(10_000));
    println!("500 sources {small:?}, 10,000 {large:?}");
    assert!(large < small * 80, "twenty times the sources took {large:?} instead of {small:?}");
}

#[test]
fn a_variable_counts_more_than_the_file_and_is_read_as_its_key_wants() {
    let place = Place::new();
    let text = format!("{SOURCE}[http]\nmax_body_bytes = 5000\n[kafka]\ncreate_topics = false\n");
    let config = place
        .load(
            &text,
            &[
                ("WENI_EDGE__HTTP__MAX_BODY_BYTES", "6_000"),
                ("WENI_EDGE__HTTP__DRAIN", "5s"),
                ("WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS", "one:9092,two:9092"),
                ("WENI_EDGE__KAFKA__CREATE_TOPICS", "{ partitions = 6, replication_factor = 1 }"),
                ("WENI_EDGE__KAFKA__CREATE_TOPICS__PARTITIONS", "7"),
                ("WENI_EDGE__KAFKA__CREATE_TOPICS__REPLICATION_FACTOR", "2"),
                ("WENI_EDGE__SOURCES__LOJA__SECRETS", "[\"another-secret-of-24-ch\"]"),
                ("WENI_EDGE__SOURCES__OPEN__ALLOW_UNAUTHENTICATED", "true"),
                ("WENI_EDGE_SERVICE_HOST", "10.0.0.1"),
            ],
        )
        .unwrap();
    assert_eq!(config.http.max_body_bytes, 6000);
    assert_eq!(config.http.drain, Duration::from_secs(5));
    assert_eq!(config.kafka.bootstrap_servers, "one:9092,two:9092");
    assert_eq!(
        config.kafka.create_topics,
        Some(CreateTopics { partitions: 7, replication_factor: 2 })
    );
    assert_eq!(config.sources["loja"].header, "X-Token");
    assert_eq!(config.sources["loja"].secrets, [Secret::new("another-secret-of-24-ch")]);
    assert!(config.sources["open"].allow_unauthenticated);

    let inline = load_with(&[("WENI_EDGE__KAFKA__CREATE_TOPICS", "false")]).unwrap();
    assert_eq!(inline.kafka.create_topics, None);
    let error = load_with(&[("WENI_EDGE__HTTP__IDLE_TIMEOUT", "5s")]).unwrap_err();
    assert!(error.starts_with("WENI_EDGE__HTTP__IDLE_TIMEOUT: http.idle_timeout is 5s"), "{error}");
}

#[test]
fn a_source_has_a_header_and_a_secret_or_says_that_it_has_none() {
    assert!(load("[sources.a]\nallow_unauthenticated = true").is_ok());
    for (body, expected) in [
        ("", "sources.a has no header"),
        ("header = \"X-Token\"", "sources.a has no secret"),
        ("header = \"X-Token\"\nsecrets = []", "sources.a has no secret"),
        ("secrets = [\"0123456789abcdef\"]", "sources.a has no header"),
        (
            "allow_unauthenticated = true\nheader = \"X-Token\"\nsecrets = [\"0123456789abcdef\"]",
            "sources.a says allow_unauthenticated = true and has a header or secrets",
        ),
        (
            "header = \"X Token\"\nsecrets = [\"0123456789abcdef\"]",
            "sources.a.header is not the name of a header",
        ),
        (
            "header = \"content-type\"\nsecrets = [\"0123456789abcdef\"]",
            "sources.a.header is content-type, which is not secret",
        ),
        (
            "header = \"X-Token\"\nsecrets = [\"0123456789abcdef\", \"0123456789abcde\"]",
            "sources.a.secrets has a secret of fewer than 16 characters at place 2",
        ),
        (
            "header = \"X-Token\"\nsecrets = [\"0123456789abcdef\\n\"]",
            "sources.a.secrets has a secret with blanks around it",
        ),
        (
            "header = \"X-Token\"\nsecrets = \"0123456789abcdef\"",
            "sources.a.secrets has to be a list",
        ),
    ] {
        let error = refusal(&format!("[sources.a]\n{body}\n"));
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("0123456789"), "{error}");
    }
}

#[test]
fn a_source_is_named_so_that_it_can_stand_in_a_url() {
    let long = "a".repeat(65);
    for name in ["", "Loja", "a/b", "a b", ".", "..", "-a", "é", "unknown", &long] {
        let error = refusal(&format!("[sources.\"{name}\"]\nallow_unauthenticated = true"));
        assert!(error.contains("cannot be a source"), "{error}");
    }
    for name in ["loja", "loja-2", "a.b_c", "9"] {
        let text = format!("[sources.\"{name}\"]\nallow_unauthenticated = true");
        assert!(load(&text).unwrap().sources.contains_key(name));
    }
}

#[test]
fn secrets_come_from_a_file_too_one_a_line() {
    let place = Place::new();
    let file = place.file("loja", "\nfirst-secret-of-22-cha\r\n\n  \nsecond-secret-of-23-ch\n");
    let config = place.load(&format!("{SOURCE}secrets_file = '{file}'"), &[]).unwrap();
    assert_eq!(
        config.sources["loja"].secrets,
        [SECRET, "first-secret-of-22-cha", "second-secret-of-23-ch"].map(Secret::new)
    );
    for (text, expected) in
        [("\n \n", "which is empty"), ("ok-ok-ok-ok-ok-ok-ok\n\nshort-one\n", "in line 3")]
    {
        let file = place.file("loja", text);
        let error = place.load(&format!("{SOURCE}secrets_file = '{file}'"), &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("short-one"), "{error}");
    }
    let error = place.load(&format!("{SOURCE}secrets_file = 'none'"), &[]).unwrap_err();
    assert!(
        error.contains("weni-edge.toml:4: sources.loja.secrets_file names none: No such file"),
        "{error}"
    );
}

#[test]
fn a_topic_is_for_one_kind_of_event_unless_it_is_the_dead_letters() {
    let same = refusal("[topics]\nmessage_status = \"all\"\ninbound_message = \"all\"");
    assert!(same.contains("topics name \"all\" twice"), "{same}");
    let position = refusal("[topics]\nposition = \"weni.dead-letter.v1\"");
    assert!(position.contains("stays empty"), "{position}");
    let routed = "weni.dead-letter.v1";
    let text = format!("[topics]\nmessage_status = \"{routed}\"\nchannel_event = \"{routed}\"");
    assert_eq!(load(&text).unwrap().topics.channel_event, routed);
}

#[test]
fn what_serving_lacks_is_said_with_the_least_that_works() {
    let error = load(SOURCE).unwrap().ready_to_serve().unwrap_err().to_string();
    assert!(error.contains("lacks kafka.bootstrap_servers. "), "{error}");
    let error = Config::default().ready_to_serve().unwrap_err().to_string();
    assert!(error.contains("lacks kafka.bootstrap_servers and a source. "), "{error}");
    let (_, snippet) = error.split_once("\n\n").unwrap();
    assert_eq!(load(snippet).unwrap().ready_to_serve(), Ok(()));
}

#[test]
fn nothing_secret_shows_in_debug() {
    let text = format!("{SOURCE}[kafka.properties]\n\"sasl.password\" = \"s3cr3t\"");
    let shown = format!("{:?}", load(&text).unwrap());
    assert!(shown.contains("sasl.password") && !shown.contains("s3cr3t"), "{shown}");
}

#[test]
fn a_duration_is_shown_as_it_is_written() {
    for text in ["0s", "1ms", "250ms", "10s", "75s", "5m", "90m", "24h"] {
        assert_eq!(show_duration(parse_duration(text).unwrap()), text);
    }
    assert_eq!(parse_duration("60s"), parse_duration("1m"));
}

#[test]
fn a_duration_without_exactly_one_number_and_one_unit_is_refused() {
    for text in ["", "10", "s", "1m30s", "-1s", "1.5s", "10 s", "10S", "99999999999999999999s"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
    assert!(parse_duration("18446744073709551615h").is_err());
}

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
     [admin]\nlisten = \"[::]:82\"\ntoken_file = '{secret}'\n\
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

#[test]
fn a_variable_with_a_table_stays_beside_a_variable_for_one_of_its_keys() {
    let http =
        [("WENI_EDGE__HTTP", "{ drain = \"5s\" }"), ("WENI_EDGE__HTTP__IDLE_TIMEOUT", "30s")];
    let config = load_with(&http).unwrap();
    let times = (config.http.drain.as_secs(), config.http.idle_timeout.as_secs());
    assert_eq!(times, (5, 30));
}

#[test]
fn probes_have_a_port_that_the_public_listener_does_not_take() {
    let listen = |http, admin| {
        load(&format!("[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\"\n"))
    };
    for (http, admin) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("10.0.0.1:8080", "0.0.0.0:8080"),
        ("[::]:8080", "0.0.0.0:8080"),
        ("[::]:8080", "[::1]:8080"),
    ] {
        let error = listen(http, admin).unwrap_err();
        assert!(error.contains("a port of their own"), "{http} {admin}: {error}");
    }
    for (http, admin) in [
        ("0.0.0.0:8080", "127.0.0.1:9090"),
        ("0.0.0.0:8080", "[::1]:8080"),
        ("10.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:0", "127.0.0.1:0"),
    ] {
        listen(http, admin).unwrap();
    }
}
