//! Times of the sender.

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};

/// Seconds or milliseconds since 1970 as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Seconds.
    Seconds(i64),
    /// Milliseconds.
    Millis(i64),
}

impl Time {
    /// Up to 11 digits are seconds, 12 and 13 are milliseconds.
    pub fn read(text: &str) -> Option<Self> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        match text.len() {
            1..=11 => text.parse().ok().map(Self::Seconds),
            12 | 13 => text.parse().ok().map(Self::Millis),
            _ => None,
        }
    }

    /// Seconds since 1970.
    pub fn as_seconds(self) -> f64 {
        match self {
            Self::Seconds(seconds) => seconds as f64,
            Self::Millis(millis) => millis as f64 / 1000.0,
        }
    }

    /// RFC 3339; none after the year 9999.
    pub fn rfc3339(self) -> Option<String> {
        const SECONDS: DateTimePrinter = DateTimePrinter::new();
        const MILLIS: DateTimePrinter = SECONDS.precision(Some(3));
        let (printer, time) = match self {
            Self::Seconds(seconds) => (SECONDS, Timestamp::from_second(seconds)),
            Self::Millis(millis) => (MILLIS, Timestamp::from_millisecond(millis)),
        };
        Some(printer.timestamp_to_string(&time.ok()?))
    }
}

/// `2026-11-22T20:13:05.482Z`, from milliseconds since 1970.
pub(super) fn rfc3339_millis(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(|millis| Time::Millis(millis).rfc3339());
    time.unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}
