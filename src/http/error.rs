//! Why a call is refused, and the only place that turns this into an answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::answer;
use crate::journal::AppendError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Auth,
    UnknownSource,
    TooLarge,
    Timeout,
    JournalFull,
    /// The disk is slow, or the journal failed and the process is about to end.
    JournalSlow,
    Overloaded,
    Malformed,
    /// CONNECT: an answer 200 would promise a tunnel.
    Connect,
}

impl Refusal {
    pub(super) const ALL: [Self; 9] = [
        Self::Auth,
        Self::UnknownSource,
        Self::TooLarge,
        Self::Timeout,
        Self::JournalFull,
        Self::JournalSlow,
        Self::Overloaded,
        Self::Malformed,
        Self::Connect,
    ];

    /// The reason, as the metric and the answer have it, and a sentence of the answer and of the log.
    pub(super) fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Auth => ("auth", "The header with the secret is missing or wrong."),
            Self::UnknownSource => {
                ("unknown_source", "There is no such source; the path is /hooks/{source}.")
            }
            Self::TooLarge => ("too_large", "The body is larger than http.max_body_bytes."),
            Self::Timeout => (
                "timeout",
                "The body did not arrive within http.body_timeout, or came slower than 1 KiB/s.",
            ),
            Self::JournalFull => ("journal_full", "The journal is full."),
            Self::JournalSlow => ("journal_slow", "The disk is slow, or the journal has failed."),
            Self::Overloaded => (
                "overloaded",
                "The calls of this source, or of all, hold too much of http.max_memory_bytes.",
            ),
            Self::Malformed => (
                "malformed",
                "No whole HTTP call arrived: a header's name has a blank, http:// and https:// are mixed \
                 up, or the connection broke.",
            ),
            Self::Connect => {
                ("malformed", "CONNECT asks for a tunnel, and there is none; use POST.")
            }
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Auth => StatusCode::UNAUTHORIZED,
            Self::UnknownSource => StatusCode::NOT_FOUND,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::JournalFull | Self::JournalSlow | Self::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// Whether the connection cannot be used again.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::TooLarge | Self::Timeout | Self::Malformed | Self::Connect)
    }

    /// The answer, as problem+json (RFC 9457).
    pub(super) fn response(self) -> Response<Bytes> {
        let (status, (reason, detail)) = (self.status(), self.texts());
        let problem = serde_json::json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": detail,
            "reason": reason,
        });
        let problem = Bytes::from(problem.to_string());
        let mut response = answer(status, "application/problem+json", problem);
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self == Self::Connect {
            let allowed = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
            headers.insert(header::ALLOW, allowed);
        }
        response
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::JournalFull,
            AppendError::Slow | AppendError::Failed => Self::JournalSlow,
        }
    }
}
