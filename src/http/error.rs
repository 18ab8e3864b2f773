//! What is refused, and the only place that turns it into an answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use crate::journal::AppendError;

/// Why a call is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Auth,
    UnknownSource,
    TooLarge,
    Timeout,
    JournalFull,
    JournalSlow,
    JournalFailed,
    Overloaded,
    Malformed,
}

impl Refusal {
    /// The values of label `reason`; [`index`](Self::index) points into it.
    pub(super) const REASONS: [&str; 8] = [
        "auth",
        "unknown_source",
        "too_large",
        "timeout",
        "journal_full",
        "journal_slow",
        "overloaded",
        "malformed",
    ];

    /// Which of [`REASONS`](Self::REASONS) it is.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Auth => 0,
            Self::UnknownSource => 1,
            Self::TooLarge => 2,
            Self::Timeout => 3,
            Self::JournalFull => 4,
            // A journal that is broken ends the process: for the caller it is as a slow one.
            Self::JournalSlow | Self::JournalFailed => 5,
            Self::Overloaded => 6,
            Self::Malformed => 7,
        }
    }

    pub(super) fn reason(self) -> &'static str {
        Self::REASONS[self.index()]
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Auth => StatusCode::UNAUTHORIZED,
            Self::UnknownSource => StatusCode::NOT_FOUND,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::JournalFull | Self::JournalSlow | Self::JournalFailed | Self::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::Auth => "The header with the secret is missing or wrong.",
            Self::UnknownSource => "There is no such source; the path is /hooks/{source}.",
            Self::TooLarge => "The body is larger than http.max_body_bytes.",
            Self::Timeout => "The body did not arrive within http.body_timeout.",
            Self::JournalFull => "The journal is full.",
            Self::JournalSlow => "The disk is slow.",
            Self::JournalFailed => "The journal takes nothing any more.",
            Self::Overloaded => "The bodies of all calls together exceed http.max_memory_bytes.",
            Self::Malformed => "The body ended or broke off before its end.",
        }
    }

    /// Whether the connection cannot be used again.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::TooLarge | Self::Timeout | Self::Malformed)
    }

    /// The answer, as problem+json (RFC 9457).
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let status = self.status();
        let problem = serde_json::json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.detail(),
            "reason": self.reason(),
        });
        let mut response = Response::new(Full::from(problem.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::JournalFull,
            AppendError::Slow => Self::JournalSlow,
            AppendError::Failed => Self::JournalFailed,
        }
    }
}
