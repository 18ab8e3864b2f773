//! One received call, and its layout in a journal record.
//!
//! A [`Callback`] borrows: `http` encodes one from the request straight into the journal's buffer,
//! and `publish` decodes one from the reader's buffer. Neither copies the body.
//!
//! **Invariant:** a callback holds no secret. It keeps only the headers that reading the body or
//! tracing needs.

use uuid::Uuid;

/// The first byte of every record. A new layout gets the next number, and old ones stay readable.
const VERSION: u8 = 1;
const FLAG_RAW: u8 = 1;

/// The longest text in a record: its length plus one fits 16 bits.
const TEXT_BYTES_MAX: usize = 0xfffe;

/// One accepted call of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Callback<'a> {
    /// Names the accepted callback everywhere: HTTP answer, logs, journal, events. UUIDv7.
    pub receipt: Uuid,
    /// Milliseconds since 1970 at which the whole body had arrived.
    pub received_at_ms: u64,
    /// The configured source that received it.
    pub source: &'a str,
    /// Whether events carry the original element: the source's `raw` when the call was accepted.
    pub raw: bool,
    /// The first 16 letters of the method, which users choose in Weni.
    pub method: &'a str,
    /// Header `Content-Type`, unchanged.
    pub content_type: Option<&'a str>,
    /// Header `Content-Encoding`, unchanged.
    pub content_encoding: Option<&'a str>,
    /// Header `traceparent`, if it has the form of W3C Trace Context.
    pub traceparent: Option<&'a str>,
    /// The body, unchanged.
    pub body: &'a [u8],
}

/// Why a record cannot be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record was written by a newer program.
    #[error("record layout {0} is newer than this program reads (1): use a newer program")]
    Version(u8),
    /// The record ends within a field, or text is not UTF-8.
    #[error("the record is cut short, or a text in it is not UTF-8")]
    Malformed,
}

/// Whether it has the form of W3C Trace Context: version, trace-id, parent-id and flags in
/// lower-case hexadecimal digits. A longer form of a future version is refused.
pub fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.split('-');
    let mut next = |len| parts.next().filter(|part| part.len() == len && is_hex(part));
    let (Some(version), Some(trace), Some(parent), Some(_flags)) =
        (next(2), next(32), next(16), next(2))
    else {
        return false;
    };
    parts.next().is_none() && version != "ff" && !is_zero(trace) && !is_zero(parent)
}

impl<'a> Callback<'a> {
    /// Exact length in bytes of what [`encode`](Self::encode) appends.
    pub fn encoded_len(&self) -> usize {
        let texts: usize = self.texts().iter().map(|text| 2 + text.unwrap_or("").len()).sum();
        // Version, flags, receipt, received_at.
        1 + 1 + 16 + 8 + texts + self.body.len()
    }

    /// Appends the record: `version u8 | flags u8 | receipt 16 | received_at_ms u64 LE`, then
    /// source, method, content type, content encoding and traceparent, each as its length plus
    /// one (u16 LE; 0 for a missing one) and its bytes, then the body to the end.
    ///
    /// A text is cut at 65,534 bytes. Only a header without a use can be that long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.push(if self.raw { FLAG_RAW } else { 0 });
        out.extend_from_slice(self.receipt.as_bytes());
        out.extend_from_slice(&self.received_at_ms.to_le_bytes());
        for text in self.texts() {
            let len = text.map_or(0, |text| text.len() as u16 + 1);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(text.unwrap_or("").as_bytes());
        }
        out.extend_from_slice(self.body);
    }

    /// Reads a record that [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// If the record has a newer layout, is shorter than its lengths say, or has text that is not UTF-8.
    pub fn decode(record: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = record;
        let [version, flags] = take(&mut rest)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let receipt = Uuid::from_bytes(take(&mut rest)?);
        let received_at_ms = u64::from_le_bytes(take(&mut rest)?);
        let source = take_text(&mut rest)?.ok_or(DecodeError::Malformed)?;
        let method = take_text(&mut rest)?.ok_or(DecodeError::Malformed)?;
        Ok(Self {
            receipt,
            received_at_ms,
            source,
            raw: flags & FLAG_RAW != 0,
            method,
            content_type: take_text(&mut rest)?,
            content_encoding: take_text(&mut rest)?,
            traceparent: take_text(&mut rest)?,
            body: rest,
        })
    }

    fn texts(&self) -> [Option<&'a str>; 5] {
        let Self { source, method, content_type, content_encoding, traceparent, .. } = *self;
        [Some(source), Some(method), content_type, content_encoding, traceparent]
            .map(|text| text.map(|text| &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(DecodeError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a str>, DecodeError> {
    let Some(len) = u16::from_le_bytes(take(rest)?).checked_sub(1) else { return Ok(None) };
    let (text, tail) = rest.split_at_checked(usize::from(len)).ok_or(DecodeError::Malformed)?;
    *rest = tail;
    std::str::from_utf8(text).map(Some).map_err(|_| DecodeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callback() -> Callback<'static> {
        Callback {
            receipt: Uuid::from_u128(7),
            received_at_ms: 1_763_842_387_482,
            source: "loja",
            raw: true,
            method: "PUT",
            content_type: None,
            content_encoding: Some(""),
            traceparent: Some("00-a-b-01"),
            body: b"\xff{}",
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let mut record = Vec::new();
        callback().encode(&mut record);
        assert_eq!(record.len(), callback().encoded_len());
        assert_eq!(Callback::decode(&record), Ok(callback()));
    }

    #[test]
    fn a_traceparent_is_what_the_w3c_says() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let of =
            |version: &str, trace: &str, parent: &str| format!("{version}-{trace}-{parent}-01");
        assert!(
            is_traceparent(&of("00", trace, parent)) && is_traceparent(&of("cc", trace, parent))
        );
        for wrong in [
            String::new(),
            of("ff", trace, parent),
            of("00", &"0".repeat(32), parent),
            of("00", trace, &"0".repeat(16)),
            of("00", &trace.to_uppercase(), parent),
            of("00", &trace[1..], parent),
            of("00", trace, parent) + "-",
            of("00", trace, parent) + "0",
        ] {
            assert!(!is_traceparent(&wrong), "{wrong}");
        }
    }

    #[test]
    fn a_record_cut_before_its_body_is_malformed_and_a_newer_one_is_named() {
        let mut record = Vec::new();
        callback().encode(&mut record);
        let head = record.len() - callback().body.len();
        for cut in 0..head {
            assert_eq!(Callback::decode(&record[..cut]), Err(DecodeError::Malformed), "{cut}");
        }
        record[0] = 9;
        assert_eq!(Callback::decode(&record), Err(DecodeError::Version(9)));
    }
}
