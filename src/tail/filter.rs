//! Which records are shown.

use clap::builder::PossibleValuesParser;
use memchr::memmem;
use serde_json::Value as Json;

use super::{TailedRecord, errors, mask, text};
use crate::event::Fault;

/// What each list selects: all records if it is empty, else those that fit one of its elements.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Filter {
    /// Only events of this message; may be repeated
    #[arg(short, long = "message", value_name = "ID")]
    pub(crate) messages: Vec<String>,

    /// Only events of this phone number, user id or user_key; may be repeated
    #[arg(short, long = "recipient", value_name = "USER")]
    pub(crate) recipients: Vec<String>,

    /// Only events with this status; may be repeated
    #[arg(long = "status", value_name = "STATUS")]
    pub(crate) statuses: Vec<String>,

    /// Only events of this source; may be repeated
    #[arg(long = "source", value_name = "SOURCE")]
    pub(crate) sources: Vec<String>,

    /// Only events with this error code of Meta; may be repeated
    #[arg(long = "code", value_name = "CODE")]
    pub(crate) codes: Vec<i64>,

    /// Only events with an error that is this one's fault; may be repeated
    #[arg(long = "fault", value_name = "FAULT",
          value_parser = PossibleValuesParser::new(Fault::ALL.map(Fault::as_str)))]
    pub(crate) faults: Vec<String>,
}

/// Where an event names the users that it is about.
#[rustfmt::skip]
const PEOPLE: [&str; 21] = [
    "/recipient/id", "/recipient/user_id", "/recipient/parent_user_id",
    "/recipient/participant_id", "/recipient/participant_user_id",
    "/recipient/participant_parent_user_id", "/from/id", "/from/user_id", "/from/parent_user_id",
    "/to/id", "/to/user_id", "/to/parent_user_id", "/contact/wa_id", "/contact/user_id",
    "/contact/parent_user_id", "/user_key",
    "/thread", "/call/from", "/call/to", "/system/new_id", "/system/new_user_id",
];

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the record is about these messages, people and sources.
    pub(crate) fn is_about(&self, item: &TailedRecord) -> bool {
        let Self { messages, recipients, sources, .. } = self;
        if !fits(sources, |asked| asked == item.source()) {
            return false;
        }
        let Some(event) = item.event() else {
            // Nothing is known of it but its bytes.
            let has = |asked: &str| memmem::find(&item.record.value, asked.as_bytes()).is_some();
            let has_person = |asked: &str| {
                has(asked)
                    || digits(asked).is_some_and(|digits| has(&digits))
                    || has(&number(asked))
            };
            return fits(messages, has) && fits(recipients, has_person);
        };
        let id = text(event, "/message_id").unwrap_or_default();
        let people = || PEOPLE.into_iter().filter_map(|at| text(event, at)).map(number);
        fits(messages, |asked| asked == id || asked == mask::message_id(id))
            && fits(recipients, |asked| people().any(|person| person == number(asked)))
    }

    /// Whether the record has one of these statuses, codes and faults.
    pub(crate) fn has_outcome(&self, item: &TailedRecord) -> bool {
        let Self { statuses, codes, faults, .. } = self;
        let event = item.event().unwrap_or(&Json::Null);
        let status = text(event, "/status").unwrap_or_default();
        let has_code =
            |error: &Json| error["code"].as_i64().is_some_and(|code| codes.contains(&code));
        let has_fault = |asked: &str| errors(event).any(|error| error["fault"] == asked);
        fits(statuses, |asked| !status.is_empty() && asked.eq_ignore_ascii_case(status))
            && (codes.is_empty() || errors(event).any(has_code))
            && fits(faults, has_fault)
    }
}

fn fits(list: &[String], fits: impl Fn(&str) -> bool) -> bool {
    list.is_empty() || list.iter().any(|asked| fits(asked))
}

/// A phone number without its punctuation; none for anything else.
fn digits(id: &str) -> Option<String> {
    let digits: String = id.chars().filter(|letter| !" ()-+".contains(*letter)).collect();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(digits)
}

/// [`digits`], of a Brazilian number without its ninth, which some numbers of WhatsApp lack. Anything
/// else stays as it is.
fn number(id: &str) -> String {
    let Some(mut digits) = digits(id) else { return id.to_owned() };
    if digits.len() == 13 && digits.starts_with("55") && digits[4..].starts_with('9') {
        digits.remove(4);
    }
    digits
}
