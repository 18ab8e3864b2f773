//! What an operator sees of a configuration that cannot work, and of files that every user may read.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weni_edge::config::{Config, DEFAULT_FILE};

use crate::harness::{self, said};

const SECRET: &str = "s3cr3t-s3cr3t-s3cr3t";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A configuration that is right, of an edge that ends at once: its journal cannot be made.
    fn config(&self, more: &str, mode: u32) -> PathBuf {
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [journal]\ndirectory = \"/dev/null/journal\"\n[log]\nformat = \"human\"\n\
             [kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n{more}\n"
        );
        self.file("weni-edge.toml", &text, mode)
    }
}

/// Runs a command to its end, which has to come.
fn run(command: &[&str], config: &Path) -> Output {
    let arguments = command.iter().map(OsStr::new);
    harness::run(arguments.chain([OsStr::new("--config"), config.as_os_str()]))
}

#[test]
fn every_command_refuses_what_cannot_work_and_shows_no_value() {
    let place = Place::new();
    let config = place.config(
        &format!(
            "[sources.loja]\nheader = \"X-Token\"\nsecrets = [\"{SECRET}\"]\n\
             [kafka.properties]\n\"sasl.pasword\" = \"hunter2-hunter2\""
        ),
        0o600,
    );
    let expected = format!(
        "{}:15: kafka.properties.sasl.pasword cannot work: No such configuration property: \
         \"sasl.pasword\"\n",
        config.display()
    );
    let commands: [&[&str]; 8] = [
        &["config"],
        &["serve"],
        &["replay", "--dry-run"],
        &["journal", "show"],
        &["healthcheck"],
        &["tail"],
        &["check"],
        &["schema", "asyncapi"],
    ];
    for command in commands {
        let output = run(command, &config);
        assert_ne!(output.status.code(), Some(0), "{command:?}");
        assert!(said(&output).ends_with(&expected), "{command:?}: {}", said(&output));
    }
}

#[test]
fn config_prints_what_is_in_effect_and_ends_as_serve_would() {
    let place = Place::new();
    let source = format!("[sources.loja]\nheader = \"X-Token\"\nsecrets = [\"{SECRET}\"]");
    let good = place.config(&source, 0o600);
    let output = run(&["config"], &good);
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let written =
        format!("{:<41} # {}:10\n", "bootstrap_servers = \"127.0.0.1:1\"", good.display());
    assert!(printed.contains(&written), "{printed}");
    assert!(!printed.contains(SECRET), "{printed}");

    let listed = run(&["config", "--output", "json"], &good);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let origin = format!("{}:13", good.display());
    let secrets = json!({
        "section": ["sources", "loja"], "key": "secrets", "value": ["(secret)"], "origin": origin
    });
    assert!(listed.contains(&secrets), "{listed:?}");

    // Complete, but for what `serve` cannot do without.
    let output = run(&["config"], &place.config("", 0o600));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).starts_with("error: the configuration lacks a source. "));
    assert!(String::from_utf8(output.stdout).unwrap().contains("[topics]"));

    for wrong in ["[http]\nlisten = 1", "[sources.loja]\nsecrets = [s3cr3t-s3cr3t-s3cr3t]"] {
        let wrong = place.file("weni-edge.toml", wrong, 0o600);
        let [shown, served] = ["config", "serve"].map(|command| run(&[command], &wrong));
        assert_eq!(shown.status.code(), Some(2));
        assert_eq!(shown, served);
        assert!(!said(&shown).is_empty() && shown.stdout.is_empty());
    }
}

#[test]
fn the_default_file_is_the_one_of_the_repository() {
    let output = harness::run(["config", "--default"]);
    assert!(output.status.success());
    let file = fs::read("deploy/weni-edge.toml").unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), String::from_utf8(file).unwrap());
    let place = Place::new();
    let with_secret = DEFAULT_FILE.replace("16 or more here", SECRET);
    let with_secret = place.file("weni-edge.toml", &with_secret, 0o600);
    assert!(run(&["config"], &with_secret).status.success());
}

#[test]
fn a_pipe_as_configuration_is_refused_instead_of_awaited() {
    let place = Place::new();
    let pipe = place.0.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    let output = run(&["serve"], &pipe);
    assert!(said(&output).contains("it is not a regular file"), "{}", said(&output));
}

#[test]
fn one_line_warns_of_files_with_secrets_that_every_user_may_use() {
    let place = Place::new();
    let [secrets, key, password] =
        ["secrets", "key", "password"].map(|name| place.file(name, SECRET, 0o600));
    let more = |inline: &str| {
        format!(
            "[sources.loja]\nheader = \"X-Token\"\n{inline}\nsecrets_file = '{}'\n\
             [kafka.properties]\n\"sasl.password_file\" = '{}'\n\
             [http.tls]\ncertificate_file = '/none'\nkey_file = '{}'",
            secrets.display(),
            password.display(),
            key.display()
        )
    };
    let warnings = |config: &Path| -> Vec<String> {
        let said = said(&run(&["serve"], config));
        said.lines().filter(|line| line.contains("WARN")).map(String::from).collect()
    };
    // The file itself holds no secret.
    let config = place.config(&more(""), 0o644);
    assert_eq!(warnings(&config), [""; 0]);
    let inline = format!("secrets = [\"{SECRET}\"]");
    let config = place.config(&more(&inline), 0o640);
    assert_eq!(warnings(&config), [""; 0]);

    let config = place.config(&more(&inline), 0o644);
    fs::set_permissions(&secrets, Permissions::from_mode(0o604)).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o602)).unwrap();
    fs::set_permissions(&password, Permissions::from_mode(0o644)).unwrap();
    let warnings = warnings(&config);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.contains("run chmod o-rwx"), "{warning}");
    for file in [&config, &secrets, &key, &password] {
        assert!(warning.contains(file.to_str().unwrap()), "{warning}");
    }
}

/// The keys that the program takes in a section: what it names when it refuses another one.
fn known_keys(section: &str) -> BTreeSet<String> {
    let place = Place::new();
    let text = format!("[{section}]\nallow_unauthenticated = true\nno-such-key-at-all = 1\n");
    let error = Config::load(Some(&place.file("weni-edge.toml", &text, 0o600))).unwrap_err();
    let error = error.to_string();
    let line = error.lines().find(|line| line.contains("no-such-key-at-all")).unwrap();
    let (_, known) = line.split_once("] has ").unwrap_or_else(|| panic!("{line}"));
    known.split(", ").map(String::from).collect()
}

/// The example with what is commented out.
fn example() -> toml::Table {
    let uncommented = DEFAULT_FILE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') && !key.is_empty() => key,
        _ => line,
    });
    uncommented.collect::<Vec<_>>().join("\n").parse().unwrap()
}

/// What the chart's schema says of a value that is in the example.
fn schema_type(key: &str, value: &toml::Value) -> Value {
    match value {
        _ if key == "secrets" || key == "secrets_file" || key == "directory" => json!(false),
        _ if key == "create_topics" || key == "format" || value.is_table() => Value::Null,
        toml::Value::Integer(_) => json!("integer"),
        toml::Value::Boolean(_) => json!("boolean"),
        toml::Value::String(text)
            if text.starts_with(|first: char| first.is_ascii_digit()) && text.ends_with('s') =>
        {
            json!("#/definitions/duration")
        }
        toml::Value::String(_) => json!("string"),
        other => panic!("{key} = {other}"),
    }
}

#[test]
fn program_example_and_chart_know_the_same_keys() {
    let example = example();
    let schema: Value = serde_json::from_str(
        &fs::read_to_string("deploy/helm/weni-edge/values.schema.json").unwrap(),
    )
    .unwrap();
    let chart = &schema["properties"]["config"];
    let names = |object: &Value| -> BTreeSet<String> {
        object.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let sections: BTreeSet<_> = example.keys().cloned().collect();
    assert_eq!(names(&chart["properties"]), sections);
    for section in sections {
        let (path, written, schema) = match section.as_str() {
            "sources" => (
                "sources.loja",
                &example["sources"]["loja"],
                &chart["properties"]["sources"]["additionalProperties"],
            ),
            other => (other, &example[other], &chart["properties"][other]),
        };
        let known = known_keys(path);
        let written = written.as_table().unwrap();
        assert_eq!(written.keys().cloned().collect::<BTreeSet<_>>(), known, "the example's {path}");
        assert_eq!(names(&schema["properties"]), known, "the chart's {path}");
        assert_eq!(schema["additionalProperties"], false, "{path}");
        for (key, value) in written {
            let said = &schema["properties"][key];
            let expected = schema_type(key, value);
            let found = [said, &said["type"], &said["$ref"]];
            assert!(expected.is_null() || found.contains(&&expected), "{path}.{key}: {said}");
        }
    }
}
