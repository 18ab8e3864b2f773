//! Durations as people write them: a whole number and a unit.

use std::time::Duration;

/// Units in milliseconds, the longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `250ms`, `10s`, `5m` or `1h`.
///
/// # Errors
/// A sentence that says how to write a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, millis)| millis);
    millis
        .zip(number.parse::<u64>().ok())
        .and_then(|(millis, number)| number.checked_mul(*millis))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            "a duration is one whole number and its unit: \"250ms\", \"10s\", \"5m\", \"1h\"".into()
        })
}

/// Writes a duration the way that [`parse_duration`] reads it, to the millisecond.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // Timeouts up to two minutes are given in seconds.
    let unit = |&&(name, unit): &&(&str, u64)| {
        millis.is_multiple_of(unit) && (millis > 120_000 || name == "s" || name == "ms")
    };
    // INVARIANT: every number is a multiple of one millisecond.
    let (name, unit) = UNITS.iter().find(unit).expect("a unit that fits");
    format!("{}{name}", millis / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_as_it_is_written() {
        for text in ["0s", "1ms", "250ms", "10s", "75s", "5m", "90m", "24h"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("60s"), parse_duration("1m"));
    }

    #[test]
    fn a_duration_without_exactly_one_number_and_one_unit_is_refused() {
        for text in ["", "10", "s", "1m30s", "-1s", "1.5s", "10 s", "10S", "99999999999999999999s"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("18446744073709551615h").is_err());
    }
}
