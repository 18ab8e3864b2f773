//! What Meta's error codes mean for whoever wants to send again, and who can do something about them
//! (Meta's lists of error codes of the Cloud API and of the on-premise API; the judgement is ours).

use crate::event::{ErrorCode, Fault, Retry};

/// Code, whether the same message may be sent again, and whose fault it is.
const KNOWN: &[(u32, Retry, Fault)] = {
    use Fault::{Account, Meta, Rate, Recipient, Sender, Template};
    use Retry::{AfterFix, Backoff, ChangeRequest, Later, Never};
    &[
        (0, AfterFix, Account),
        (1, Backoff, Meta),
        (2, Backoff, Meta),
        (3, AfterFix, Account),
        (4, Backoff, Rate),
        (10, AfterFix, Account),
        (33, Never, Account),
        (100, ChangeRequest, Sender),
        (190, AfterFix, Account),
        (368, AfterFix, Account),
        (470, ChangeRequest, Sender),
        (480, AfterFix, Recipient),
        (501, Never, Recipient),
        (1011, Backoff, Meta),
        (2026, Never, Meta),
        (2046, ChangeRequest, Account),
        (2047, ChangeRequest, Account),
        (80007, Backoff, Rate),
        (130429, Backoff, Rate),
        (130470, ChangeRequest, Sender),
        (130472, Never, Meta),
        (130497, Never, Account),
        (130501, Never, Recipient),
        (131000, Backoff, Meta),
        (131005, AfterFix, Account),
        (131008, ChangeRequest, Sender),
        (131009, ChangeRequest, Sender),
        (131016, Backoff, Meta),
        (131020, AfterFix, Account),
        (131021, ChangeRequest, Sender),
        (131026, Never, Recipient),
        (131027, Backoff, Meta),
        (131030, AfterFix, Sender),
        (131031, AfterFix, Account),
        (131035, Never, Meta),
        (131036, Backoff, Meta),
        (131037, AfterFix, Account),
        (131041, ChangeRequest, Sender),
        (131042, AfterFix, Account),
        (131044, AfterFix, Account),
        (131045, AfterFix, Account),
        (131047, ChangeRequest, Sender),
        (131048, Later, Rate),
        (131049, Later, Meta),
        (131050, Never, Recipient),
        (131051, Never, Recipient),
        (131052, ChangeRequest, Recipient),
        (131053, AfterFix, Sender),
        (131055, ChangeRequest, Sender),
        (131056, Backoff, Rate),
        (131057, Backoff, Account),
        (131060, Never, Recipient),
        (131062, ChangeRequest, Sender),
        (131063, AfterFix, Sender),
        (131064, Later, Rate),
        (131201, ChangeRequest, Sender),
        (131202, ChangeRequest, Sender),
        (131203, Never, Recipient),
        (131204, ChangeRequest, Sender),
        (131207, AfterFix, Account),
        (131208, Backoff, Rate),
        (131209, ChangeRequest, Sender),
        (131210, ChangeRequest, Sender),
        (131211, ChangeRequest, Sender),
        (131212, ChangeRequest, Sender),
        (131213, ChangeRequest, Sender),
        (131214, Later, Account),
        (131215, AfterFix, Account),
        (132000, ChangeRequest, Template),
        (132001, ChangeRequest, Template),
        (132005, ChangeRequest, Template),
        (132007, ChangeRequest, Template),
        (132008, ChangeRequest, Template),
        (132012, ChangeRequest, Template),
        (132015, AfterFix, Template),
        (132016, ChangeRequest, Template),
        (132018, ChangeRequest, Template),
        (132068, AfterFix, Template),
        (132069, Later, Rate),
        (133010, AfterFix, Account),
        (134011, AfterFix, Account),
        (134100, ChangeRequest, Sender),
        (134101, Later, Template),
        (134102, AfterFix, Account),
        (134103, ChangeRequest, Template),
        (135000, ChangeRequest, Sender),
        (137000, AfterFix, Recipient),
        (138000, AfterFix, Account),
        (138001, Never, Recipient),
        (138002, Backoff, Meta),
        (138003, Later, Recipient),
        (138004, Backoff, Meta),
        (138005, Backoff, Meta),
        (138006, AfterFix, Recipient),
        (138007, Backoff, Meta),
        (138009, Later, Rate),
        (138012, Later, Rate),
        (138014, AfterFix, Account),
        (138015, AfterFix, Account),
        (138017, Never, Sender),
        (138018, AfterFix, Account),
        (138019, Backoff, Meta),
        (138020, Backoff, Meta),
        (138021, Backoff, Meta),
        (138022, Backoff, Meta),
        (138023, Backoff, Meta),
        (2593109, Never, Account),
    ]
};

/// What is known of a code.
pub(super) struct Known {
    pub(super) retry: Retry,
    pub(super) label: ErrorCode,
}

pub(super) fn read(code: Option<i64>) -> Known {
    let unknown = (None, Retry::Unknown, Fault::Unknown);
    let (code, retry, fault) = match code.and_then(|code| u32::try_from(code).ok()) {
        // Permissions of the API: one label for all.
        Some(200..=299) => (Some(200), Retry::AfterFix, Fault::Account),
        Some(code) => KNOWN
            .binary_search_by_key(&code, |(known, ..)| *known)
            .map_or(unknown, |at| (Some(KNOWN[at].0), KNOWN[at].1, KNOWN[at].2)),
        None => unknown,
    };
    Known { retry, label: ErrorCode { code, fault } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(KNOWN.is_sorted_by(|(a, ..), (b, ..)| a < b));
    }

    #[test]
    fn what_is_not_known_is_said_to_be_unknown() {
        let of = |code| (read(code).retry, read(code).label.fault, read(code).label.code);
        assert_eq!(of(Some(131026)), (Retry::Never, Fault::Recipient, Some(131026)));
        assert_eq!(of(Some(250)), (Retry::AfterFix, Fault::Account, Some(200)));
        for code in [None, Some(-1), Some(99), Some(i64::MAX)] {
            assert_eq!(of(code), (Retry::Unknown, Fault::Unknown, None), "{code:?}");
        }
    }
}
