//! What Meta's error codes mean for whoever wants to send again, and who can do something about them
//! (Meta's lists of error codes of the Cloud API and of the on-premise API; the judgement is ours).

use crate::event::{ErrorCode, Fault, Retry};

/// Whether the same message may be sent again after an error of this code, and whose fault it is.
fn known(code: u32) -> Option<(Retry, Fault)> {
    use Fault::{Account, Meta, Rate, Recipient, Sender, Template};
    use Retry::{AfterFix, Backoff, ChangeRequest, Later, Never};
    Some(match code {
        131057 => (Backoff, Account),
        4 | 80007 | 130429 | 131056 | 131208 => (Backoff, Rate),
        1 | 2 | 1011 | 131000 | 131016 | 131027 | 131036 | 138002 | 138004 | 138005 | 138007
        | 138019 | 138020 | 138021 | 138022 | 138023 => (Backoff, Meta),
        138003 => (Later, Recipient),
        134101 => (Later, Template),
        131214 => (Later, Account),
        131048 | 131064 | 132069 | 138009 | 138012 => (Later, Rate),
        131049 => (Later, Meta),
        480 | 137000 | 138006 => (AfterFix, Recipient),
        131030 | 131053 | 131063 => (AfterFix, Sender),
        132015 | 132068 => (AfterFix, Template),
        0 | 3 | 10 | 190 | 200 | 368 | 131005 | 131020 | 131031 | 131037 | 131042 | 131044
        | 131045 | 131207 | 131215 | 133010 | 134011 | 134102 | 138000 | 138014 | 138015
        | 138018 => (AfterFix, Account),
        131052 => (ChangeRequest, Recipient),
        100 | 470 | 130470 | 131008 | 131009 | 131021 | 131041 | 131047 | 131055 | 131062
        | 131201 | 131202 | 131204 | 131209 | 131210 | 131211 | 131212 | 131213 | 134100
        | 135000 => (ChangeRequest, Sender),
        132000 | 132001 | 132005 | 132007 | 132008 | 132012 | 132016 | 132018 | 134103 => {
            (ChangeRequest, Template)
        }
        2046 | 2047 => (ChangeRequest, Account),
        501 | 130501 | 131026 | 131050 | 131051 | 131060 | 131203 | 138001 => (Never, Recipient),
        138017 => (Never, Sender),
        33 | 130497 | 2593109 => (Never, Account),
        2026 | 130472 | 131035 => (Never, Meta),
        _ => return None,
    })
}

/// What is known of a code.
pub(super) fn read(code: Option<i64>) -> (Retry, ErrorCode) {
    let code = match code.and_then(|code| u32::try_from(code).ok()) {
        // Permissions of the API: one label for all.
        Some(200..=299) => Some(200),
        code => code,
    };
    match code.and_then(known) {
        Some((retry, fault)) => (retry, ErrorCode { code, fault }),
        None => (Retry::Unknown, ErrorCode { code: None, fault: Fault::Unknown }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said_to_be_unknown() {
        let of = |code| {
            let (retry, ErrorCode { code, fault }) = read(code);
            (retry, fault, code)
        };
        assert_eq!(of(Some(131026)), (Retry::Never, Fault::Recipient, Some(131026)));
        assert_eq!(of(Some(250)), (Retry::AfterFix, Fault::Account, Some(200)));
        for code in [None, Some(-1), Some(99), Some(i64::MAX)] {
            assert_eq!(of(code), (Retry::Unknown, Fault::Unknown, None), "{code:?}");
        }
    }
}
