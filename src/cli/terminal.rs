//! Prints for people and programs, and asks people.

use std::io::{self, IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// Escapes characters that could control a terminal, or that are invisible or reorder the others. A
/// string of JSON keeps its meaning.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || is_hidden(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Lines of text that are safe to show.
pub(super) fn lines(text: &str) -> String {
    text.lines().map(|line| visible(line) + "\n").collect()
}

/// Whether a letter has no width or controls the direction of others.
fn is_hidden(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            // Tags.
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Prints what a command has found, in whole lines. A reader of standard output that has gone is no error: the
/// command goes on, and its exit code says how it went.
pub(super) fn print(text: &str) -> io::Result<()> {
    match print_line(text.trim_end_matches('\n')) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Prints one whole line of many to standard output. A reader that has gone is an error, which ends a stream.
pub(super) fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// A progress bar on standard error. It is invisible where that is no terminal.
pub(super) fn progress_bar(len: u64, template: &str) -> ProgressBar {
    // INVARIANT: every caller's template is valid; a run on a terminal shows it.
    let style = ProgressStyle::with_template(template).expect("a template");
    ProgressBar::new(len).with_style(style).with_finish(ProgressFinish::AndClear)
}

/// Text in the colour of an ANSI code, if standard output is a terminal and NO_COLOR is not set.
pub(super) fn coloured(text: &str, colour: &str) -> String {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match stdout().is_terminal() && !no_colour {
        true => format!("\x1b[{colour}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Asks the person at the terminal whether to go on. It is an error if there is no terminal.
pub(super) fn confirmed() -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("standard input is no terminal, so there is no one to ask: add --yes to go on");
    }
    write!(stdout(), "Go on? [y/N] ")?;
    stdout().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left_and_json_means_the_same() {
        let all: String = (0..=0xf_ffff).filter_map(char::from_u32).collect();
        let shown = visible(&all);
        assert!(!shown.contains(char::is_control));
        for hidden in "\u{ad}\u{61c}\u{200b}\u{200f}\u{202e}\u{2066}\u{feff}\u{fffb}".chars() {
            assert!(!shown.contains(hidden));
            assert_eq!(visible(&hidden.to_string()), format!("\\u{:04x}", u32::from(hidden)));
        }
        assert_eq!(visible("\u{180e}\u{e0041}"), "\\u180e\\udb40\\udc41");
        assert!(shown.contains("\\u001b") && shown.contains("\\u009b") && shown.contains('é'));
        let json = visible(&serde_json::json!(all).to_string());
        assert!(!json.contains(char::is_control));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), all);
    }
}
