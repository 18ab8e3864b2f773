//! What Meta's error codes mean for whoever wants to send again (Meta's list of Cloud API error
//! codes, and those of the on-premise API).

use crate::event::Retry;

/// Code, its text, and whether the same message may be sent again.
const KNOWN: &[(u32, &str, Retry)] = {
    use Retry::*;
    &[
        (0, "0", AfterFix),
        (1, "1", Backoff),
        (2, "2", Backoff),
        (3, "3", AfterFix),
        (4, "4", Backoff),
        (10, "10", AfterFix),
        (33, "33", Never),
        (100, "100", ChangeRequest),
        (190, "190", AfterFix),
        (368, "368", AfterFix),
        (470, "470", ChangeRequest),
        (480, "480", AfterFix),
        (501, "501", Never),
        (1011, "1011", Backoff),
        (2026, "2026", Never),
        (2046, "2046", ChangeRequest),
        (2047, "2047", ChangeRequest),
        (80007, "80007", Backoff),
        (130429, "130429", Backoff),
        (130472, "130472", Never),
        (130497, "130497", Never),
        (131000, "131000", Backoff),
        (131005, "131005", AfterFix),
        (131008, "131008", ChangeRequest),
        (131009, "131009", ChangeRequest),
        (131016, "131016", Backoff),
        (131021, "131021", ChangeRequest),
        (131026, "131026", Never),
        (131030, "131030", AfterFix),
        (131031, "131031", AfterFix),
        (131037, "131037", AfterFix),
        (131042, "131042", AfterFix),
        (131045, "131045", AfterFix),
        (131047, "131047", ChangeRequest),
        (131048, "131048", Later),
        (131049, "131049", Later),
        (131050, "131050", Never),
        (131051, "131051", ChangeRequest),
        (131052, "131052", ChangeRequest),
        (131053, "131053", AfterFix),
        (131055, "131055", ChangeRequest),
        (131056, "131056", Backoff),
        (131057, "131057", Backoff),
        (131060, "131060", Never),
        (131062, "131062", ChangeRequest),
        (131063, "131063", AfterFix),
        (131064, "131064", Later),
        (132000, "132000", ChangeRequest),
        (132001, "132001", ChangeRequest),
        (132005, "132005", ChangeRequest),
        (132007, "132007", ChangeRequest),
        (132012, "132012", ChangeRequest),
        (132015, "132015", AfterFix),
        (132016, "132016", Never),
        (132068, "132068", AfterFix),
        (132069, "132069", Later),
        (133010, "133010", AfterFix),
        (134011, "134011", AfterFix),
        (134100, "134100", ChangeRequest),
        (134101, "134101", Later),
        (134102, "134102", ChangeRequest),
        (135000, "135000", ChangeRequest),
        (137000, "137000", AfterFix),
    ]
};

/// Whether the same message may be sent again after this error.
pub(super) fn retry(code: Option<i64>) -> Retry {
    match code {
        // Permissions of the API: 200 to 299.
        Some(200..=299) => Retry::AfterFix,
        code => known(code).map_or(Retry::Unknown, |(_, _, retry)| *retry),
    }
}

/// The code as a metric's label: a closed set.
pub(super) fn label(code: Option<i64>) -> &'static str {
    match code {
        Some(200..=299) => "200-299",
        code => known(code).map_or("other", |(_, label, _)| label),
    }
}

fn known(code: Option<i64>) -> Option<&'static (u32, &'static str, Retry)> {
    let code = u32::try_from(code?).ok()?;
    KNOWN.binary_search_by_key(&code, |(known, _, _)| *known).ok().map(|at| &KNOWN[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_label_is_its_code() {
        assert!(KNOWN.is_sorted_by(|(a, ..), (b, ..)| a < b));
        for (code, label, _) in KNOWN {
            assert_eq!(code.to_string(), *label);
        }
    }

    #[test]
    fn what_is_not_known_is_said_to_be_unknown() {
        assert_eq!(retry(Some(131026)), Retry::Never);
        assert_eq!(retry(Some(250)), Retry::AfterFix);
        for code in [None, Some(-1), Some(99), Some(i64::MAX)] {
            assert_eq!((retry(code), label(code)), (Retry::Unknown, "other"), "{code:?}");
        }
    }
}
