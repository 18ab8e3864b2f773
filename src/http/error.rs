//! Why a call is refused, and what it is answered then. No other place chooses a status.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::json;

use crate::journal::AppendError;

const LOG_EVERY: Duration = Duration::from_secs(10);

/// A call that is not accepted. Its text is the answer's `detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the source's secret is missing or wrong")]
    Auth,
    #[error("there is no such source; calls go to /hooks/{{source}}")]
    UnknownSource,
    #[error("the body is larger than this edge takes")]
    TooLarge,
    #[error("the request did not come to its end in time")]
    Timeout,
    #[error("the request cannot be read to its end")]
    Malformed,
    #[error("the bodies in memory are as many as may be")]
    Overloaded,
    #[error("the journal has no room")]
    JournalFull,
    /// Also when the journal is broken: the process ends then.
    #[error("the journal could not make the callback durable in time")]
    JournalSlow,
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::JournalFull,
            AppendError::Slow | AppendError::Failed => Self::JournalSlow,
        }
    }
}

impl Refusal {
    /// The label of `http_rejections_total`, and `reason` of the answer.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::UnknownSource => "unknown_source",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Overloaded => "overloaded",
            Self::JournalFull => "journal_full",
            Self::JournalSlow => "journal_slow",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Auth => StatusCode::UNAUTHORIZED,
            Self::UnknownSource => StatusCode::NOT_FOUND,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Overloaded | Self::JournalFull | Self::JournalSlow => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The answer, as problem+json (RFC 9457).
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let status = self.status();
        let problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.to_string(),
            "reason": self.reason(),
        });
        let mut response = Response::new(Full::from(problem.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

/// Logs refusals, at most one line for each source and kind in ten seconds.
#[derive(Default)]
pub(super) struct RefusalLog {
    /// When the last line was written, and how many were not told since.
    lines: Mutex<HashMap<(String, Refusal), (Instant, u64)>>,
}

impl RefusalLog {
    /// `source` is a configured one, or the label of unknown ones.
    pub(super) fn note(&self, source: &str, refusal: Refusal) {
        if let Some(count) = self.due(source, refusal, Instant::now()) {
            tracing::warn!(source, reason = refusal.reason(), count, "refused calls");
        }
    }

    /// How many are to be told now, if it is time.
    fn due(&self, source: &str, refusal: Refusal, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock();
        let Some((last, count)) = lines.get_mut(&(source.to_owned(), refusal)) else {
            lines.insert((source.to_owned(), refusal), (now, 0));
            return Some(1);
        };
        *count += 1;
        if now.duration_since(*last) < LOG_EVERY {
            return None;
        }
        *last = now;
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_once_in_ten_seconds_for_each_source_and_kind_with_their_number() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let due = |source, refusal, s| log.due(source, refusal, start + Duration::from_secs(s));
        assert_eq!(due("loja", Refusal::Auth, 0), Some(1));
        assert_eq!(due("loja", Refusal::Auth, 1), None);
        assert_eq!(due("loja", Refusal::Auth, 9), None);
        assert_eq!(due("loja", Refusal::TooLarge, 9), Some(1));
        assert_eq!(due("filial", Refusal::Auth, 9), Some(1));
        assert_eq!(due("loja", Refusal::Auth, 10), Some(3));
        assert_eq!(due("loja", Refusal::Auth, 11), None);
    }
}
