//! Completions as bash uses them.

use std::{collections::BTreeSet, process::Command};

use crate::harness::{run, said};

/// The script of a shell.
fn script(shell: &str) -> String {
    let output = run(["completions", shell]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers for the last of `words`.
fn offered(script: &str, words: &[&str]) -> BTreeSet<String> {
    const ASK: &str = "eval \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                       $(complete -p weni-edge | sed 's/.* -F \\([^ ]*\\) .*/\\1/') \
                       weni-edge \"${!#}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; \
                       printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bash = Command::new("bash").args(["-euc", ASK, "bash", script]).args(words).output();
    let output = bash.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn bash_finds_every_command_and_option() {
    let script = script("bash");
    let help = String::from_utf8(run(["--help"]).stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        // An explanation may go on in a further line.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|command| !command.is_empty())
        .collect();
    assert!(commands.contains(&"serve") && commands.contains(&"completions"), "{commands:?}");
    let found = offered(&script, &["weni-edge", ""]);
    for command in commands {
        assert!(found.contains(command), "{command}: {found:?}");
    }
    let begun = offered(&script, &["weni-edge", "se"]);
    assert_eq!(begun.iter().map(String::as_str).collect::<Vec<_>>(), ["send", "serve"]);
    let cases: [(&[&str], &str); 3] = [
        (&["weni-edge", "journal", "f"], "fork"),
        (&["weni-edge", "dev", "--d"], "--demo"),
        (&["weni-edge", "tail", "--output", "j"], "json"),
    ];
    for (words, expected) in cases {
        assert_eq!(offered(&script, words), BTreeSet::from([expected.to_owned()]), "{words:?}");
    }
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["elvish", "fish", "powershell", "zsh"] {
        assert!(script(shell).contains("healthcheck"), "{shell}");
    }
}
