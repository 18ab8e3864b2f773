//! Which records are shown.

use memchr::memmem;

use super::{Content, Item, mask};
use crate::event::{Fault, form::AnyEvent};

/// An empty list selects all. Of a list, one has to fit.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Ids of messages, whole or as they are shown.
    pub(crate) messages: Vec<String>,
    /// Phone numbers, ids of users, or user keys.
    pub(crate) recipients: Vec<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) statuses: Vec<String>,
    pub(crate) codes: Vec<i64>,
    pub(crate) faults: Vec<Fault>,
}

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { messages, recipients, sources, statuses, codes, faults } = self;
        [messages, recipients, sources, statuses].iter().all(|list| list.is_empty())
            && codes.is_empty()
            && faults.is_empty()
    }

    /// Whether the record is about these messages, people and sources.
    pub(crate) fn is_about(&self, item: &Item) -> bool {
        let fits = |list: &[String], fits: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|asked| fits(asked))
        };
        if !fits(&self.sources, &|asked| asked == item.source()) {
            return false;
        }
        match &item.content {
            Content::Event(event) => {
                let id = event.envelope.message_id.as_deref().unwrap_or_default();
                let people: Vec<_> = people(event).map(number).collect();
                fits(&self.messages, &|asked| asked == id || asked == mask::message_id(id))
                    && fits(&self.recipients, &|asked| people.contains(&number(asked)))
            }
            // Nothing is known of it but its bytes.
            _ => {
                let has =
                    |asked: &str| memmem::find(&item.record.value, asked.as_bytes()).is_some();
                fits(&self.messages, &has) && fits(&self.recipients, &has)
            }
        }
    }

    /// Whether the record has one of these statuses, codes and faults.
    pub(crate) fn has_outcome(&self, item: &Item) -> bool {
        let Self { statuses, codes, faults, .. } = self;
        let Some(event) = item.event() else {
            return statuses.is_empty() && codes.is_empty() && faults.is_empty();
        };
        let errors = || event.envelope.errors.iter().flatten();
        let status = event.details.status.status.as_ref();
        (statuses.is_empty() || status.is_some_and(|status| statuses.contains(status)))
            && (codes.is_empty()
                || errors().filter_map(|error| error.code).any(|code| codes.contains(&code)))
            && (faults.is_empty() || errors().any(|error| faults.contains(&error.fault)))
    }
}

/// All names of the users that an event is about.
fn people(event: &AnyEvent) -> impl Iterator<Item = &str> {
    let recipient = event.details.status.recipient.iter().flat_map(|of| {
        [&of.id, &of.user_id, &of.parent_user_id, &of.participant_id]
            .into_iter()
            .chain([&of.participant_user_id, &of.participant_parent_user_id])
    });
    let parties = [&event.details.message.from, &event.details.message.to].into_iter().flatten();
    let parties = parties.flat_map(|of| [&of.id, &of.user_id, &of.parent_user_id]);
    let contact = event.envelope.contact.iter();
    let contact = contact.flat_map(|of| [&of.wa_id, &of.user_id, &of.parent_user_id]);
    let all = recipient.chain(parties).chain(contact).chain([&event.envelope.user_key]);
    all.filter_map(|id| id.as_deref())
}

/// A phone number without its punctuation, and a Brazilian one without its ninth digit, which some
/// numbers of WhatsApp lack. Anything else stays as it is.
fn number(id: &str) -> String {
    let mut digits: String = id.chars().filter(|letter| !" ()-+".contains(*letter)).collect();
    if digits.is_empty() || digits.contains(|letter: char| !letter.is_ascii_digit()) {
        return id.to_owned();
    }
    if digits.len() == 13 && digits.starts_with("55") && digits[4..].starts_with('9') {
        digits.remove(4);
    }
    digits
}
