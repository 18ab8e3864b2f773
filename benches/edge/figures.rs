//! Figures: medians with their spread, and the table.

use std::fmt::Display;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) target: &'static str,
    pub(crate) measured: String,
    /// Whether the target is met. `None` if there is no target, or nothing was measured.
    pub(crate) met: Option<bool>,
    /// How the figure was measured, and its limits.
    pub(crate) note: String,
}

impl Row {
    /// Of what needs a real Kafka.
    pub(crate) fn without_kafka(figure: String, target: &'static str) -> Self {
        let note = "WENI_EDGE_TEST_KAFKA names no Kafka".to_owned();
        Self { figure, target, measured: "not measured".to_owned(), met: None, note }
    }
}

/// Median, least and most of the rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// # Panics
    /// Without a round.
    pub(crate) fn of(rounds: impl IntoIterator<Item = f64>) -> Self {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        let (middle, last) = (rounds.len() / 2, rounds.len() - 1);
        let median = if rounds.len() % 2 == 1 {
            rounds[middle]
        } else {
            f64::midpoint(rounds[middle - 1], rounds[middle])
        };
        Self { median, least: rounds[0], most: rounds[last] }
    }

    /// `0.51 (0.49–0.52)`, with each number as `number` writes it.
    pub(crate) fn show<D: Display>(&self, number: impl Fn(f64) -> D) -> String {
        let Self { median, least, most } = *self;
        format!("{} ({}–{})", number(median), number(least), number(most))
    }
}

/// With so many decimals.
pub(crate) fn decimals(places: usize) -> impl Fn(f64) -> String {
    move |value| format!("{value:.places$}")
}

/// 60,000
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as MiB, or as GiB where that is a whole number.
pub(crate) fn mib(bytes: f64) -> String {
    let mib = (bytes / f64::from(1 << 20)).round();
    if mib > 0.0 && mib % 1024.0 == 0.0 {
        format!("{} GiB", mib / 1024.0)
    } else {
        format!("{mib} MiB")
    }
}

/// Reports progress on standard error.
pub(crate) fn progress(text: impl Display) {
    eprintln!("{text}");
}

/// Prints the table as Markdown.
pub(crate) fn print(rows: &[Row]) {
    println!("| figure | measured | target | | what it is |\n|---|---|---|---|---|");
    for Row { figure, target, measured, met, note } in rows {
        let met = match met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        println!("| {figure} | {measured} | {target} | {met} | {note} |");
    }
}
