//! Which room may import which.

use std::{collections::BTreeMap, fs, path::Path};

/// Every room and the rooms that it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("callback", &[]),
    ("caller", &[]),
    ("calls", &["journal"]),
    ("clock", &[]),
    ("mutant", &[]),
    ("config", &["event", "metrics"]),
    ("metrics", &[]),
    ("event", &["callback"]),
    ("normalize", &["callback", "event"]),
    ("journal", &["clock", "metrics", "mutant"]),
    ("quarantine", &["event", "journal", "mutant"]),
    ("kafka", &["config", "event", "metrics"]),
    ("http", &["callback", "calls", "clock", "config", "journal", "metrics"]),
    (
        "admin",
        &[
            "callback",
            "caller",
            "calls",
            "clock",
            "config",
            "event",
            "http",
            "journal",
            "metrics",
            "normalize",
            "tail",
        ],
    ),
    (
        "publish",
        &[
            "callback",
            "clock",
            "config",
            "event",
            "journal",
            "kafka",
            "metrics",
            "mutant",
            "normalize",
            "quarantine",
        ],
    ),
    (
        "replay",
        &[
            "clock",
            "config",
            "event",
            "journal",
            "kafka",
            "metrics",
            "mutant",
            "normalize",
            "quarantine",
        ],
    ),
    ("serve", &["admin", "callback", "calls", "config", "http", "journal", "metrics", "publish"]),
    ("check", &["caller", "clock", "config", "event", "http", "journal", "kafka", "serve"]),
    ("tail", &["event", "kafka"]),
    (
        "cli",
        &[
            "caller", "calls", "check", "config", "event", "journal", "kafka", "metrics", "replay",
            "serve", "tail",
        ],
    ),
    ("main", &["cli", "serve"]),
];

/// Rooms and the crates that they must not know.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    ("journal", &["axum", "hyper", "rdkafka", "serde_json"]),
    ("normalize", &["rdkafka", "tokio", "axum", "std::fs", "std::time::SystemTime"]),
    ("event", &["rdkafka", "tokio", "axum"]),
    ("http", &["rdkafka"]),
    ("admin", &["rdkafka"]),
    ("serve", &["rdkafka"]),
    ("caller", &["rdkafka"]),
    ("publish", &["rdkafka", "Instant::now", "SystemTime"]),
    ("replay", &["rdkafka", "Instant::now", "SystemTime"]),
    ("check", &["rdkafka"]),
    ("tail", &["rdkafka", "tokio", "std::fs", "Instant::now", "SystemTime"]),
];

/// Room of each source file and its code, tests left out.
fn sources() -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<(String, String)>, root: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                walk(&path, found, root);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs")
            {
                let inside = path.strip_prefix(root).unwrap();
                let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                let code = lines.collect::<Vec<_>>().join("\n");
                let code =
                    if room == "main" { code.replace("weni_edge::", "crate::") } else { code };
                found.push((room.to_owned(), code));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found, &root);
    found.retain(|(room, _)| room != "lib");
    found
}

/// The rooms named in `crate::room` and in `use crate::{room::…, …}`; `main` is another crate.
fn imports(code: &str) -> Vec<String> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rooms = Vec::new();
    for part in flat.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => rooms.push(first_word(part)),
            Some(group) => {
                let mut depth = 0;
                let mut word_starts = true;
                for (at, letter) in group.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => word_starts = true,
                        _ if word_starts && letter.is_alphabetic() => {
                            rooms.push(first_word(&group[at..]));
                            word_starts = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn imports_go_one_way() {
    let may: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let mut seen = 0;
    for (room, code) in sources() {
        let allowed = may.get(room.as_str()).unwrap_or_else(|| panic!("a new room: {room}"));
        for import in imports(&code).into_iter().filter(|import| may.contains_key(import.as_str()))
        {
            seen += 1;
            assert!(
                import == room || allowed.contains(&import.as_str()),
                "{room} imports {import}"
            );
        }
    }
    assert!(seen > 20, "the test does not see the imports any more: {seen}");
}

#[test]
fn rooms_know_nothing_of_what_is_not_theirs() {
    for (room, code) in sources() {
        for (_, crates) in MUST_NOT_KNOW.iter().filter(|(closed, _)| *closed == room) {
            for name in *crates {
                // `librdkafka` is a module of ours.
                let code = code.replace("librdkafka::", "");
                assert!(!code.contains(&format!("{name}::")), "{room} knows {name}");
            }
        }
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    const LINES_MAX: usize = 450;
    fn walk(directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                walk(&path);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                assert!(code.lines().count() <= LINES_MAX, "{}", path.display());
            }
        }
    }
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}

/// Names that several files give to a type, because they mean the same thing: a seam and what implements it, a
/// section of the configuration and what it configures, a member of an event and its schema, the arguments
/// of each command, what the threads of a room share.
const SAME_THING: &[&str] = &[
    "Args", "Body", "Cluster", "Command", "Headers", "Journal", "Pricing", "Producer", "Reader",
    "Shared", "Source", "Topics",
];

#[test]
fn one_name_means_one_thing() {
    let mut files = BTreeMap::<String, usize>::new();
    for (_, code) in sources() {
        let kinds = ["struct ", "enum ", "trait ", "type "];
        // `named! { … }` makes an enum of each name.
        let named = code.split("\nnamed! {\n").skip(1).filter_map(|body| {
            body.lines().find_map(|line| line.strip_prefix("    ")?.strip_suffix(" {"))
        });
        let named = named.map(first_word);
        let names = code.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| {
            let line = line.strip_prefix("pub").unwrap_or(line);
            let line = match line.starts_with('(') {
                true => line.split_once(") ").map_or(line, |(_, rest)| rest),
                false => line.trim_start(),
            };
            kinds.iter().find_map(|kind| line.strip_prefix(kind)).map(first_word)
        });
        names.chain(named).for_each(|name| *files.entry(name).or_default() += 1);
    }
    assert!(files.len() > 200, "the test does not see the types any more: {}", files.len());
    for (name, count) in files {
        let is_known = SAME_THING.contains(&name.as_str());
        assert_eq!(count > 1, is_known, "{count} types are called {name}");
    }
}
