//! Whom an element is about: its user, and the contact that its callback lists for it.

use std::collections::BTreeMap;

use super::{Placed, json::Value, value::Found};
use crate::event::{Channel, Contact, ElementContext, EventKind, Text};

/// The user whom an element is about.
pub(super) struct Person<'a> {
    pub(super) user_id: Option<Text<'a>>,
    pub(super) phone: Option<Text<'a>>,
}

impl<'a> Person<'a> {
    /// Reads whom an element is about, by one rule for all kinds.
    pub(super) fn of(element: Value<'a>, kind: EventKind, context: &ElementContext<'a>) -> Self {
        let inside = |name: &str, inner: &str| element.get(name).filled(inner);
        let (id_name, phone_name) = match is_outgoing(element, kind, &context.channel) {
            true => ("to_user_id", "to"),
            false => ("from_user_id", "from"),
        };
        let is_group = element.filled("recipient_type").as_deref() == Some("group");
        let recipient = || {
            let direct = element.filled("recipient_id");
            direct.or_else(|| inside("message", "recipient_id")).filter(|_| !is_group)
        };
        let first = |names: &[&str]| names.iter().find_map(|name| element.filled(name));
        let user_id =
            first(&[id_name, "recipient_participant_user_id", "recipient_user_id", "user_id"]);
        let phones = [phone_name, "recipient_participant_id", "participant_recipient_id"];
        let phone = (context.thread.clone().or_else(|| first(&phones)).or_else(recipient))
            .or_else(|| element.filled("wa_id"))
            .or_else(|| inside("sender", "phone_number"))
            .or_else(|| inside("contact", "phone_number"));
        Self { user_id: user_id.or_else(|| inside("sender", "user_id")), phone }
    }

    /// The value to join on: the user id, else the phone number; where the element has neither, those
    /// of the contact.
    pub(super) fn key(self, contact: Option<&Contact<'a>>) -> Option<Text<'a>> {
        let user_id = self.user_id.or_else(|| contact?.user_id.clone()).or(self.phone);
        user_id.or_else(|| contact?.wa_id.clone())
    }
}

/// Whether the channel's own number sent it.
fn is_outgoing(element: Value<'_>, kind: EventKind, channel: &Channel<'_>) -> bool {
    let is_business = |direction: Text<'_>| direction == "BUSINESS_INITIATED";
    match kind {
        EventKind::Echo | EventKind::StandbyEcho => true,
        EventKind::Call if element.filled("direction").is_some_and(is_business) => true,
        _ => element.filled("from").is_some_and(|from| {
            let own = channel.display_phone_number.as_deref().unwrap_or_default();
            digits(own).next().is_some() && digits(own).eq(digits(&from))
        }),
    }
}

fn digits(number: &str) -> impl Iterator<Item = u8> {
    number.bytes().filter(u8::is_ascii_digit)
}

/// A contact that a value lists.
struct Listed<'a> {
    contact: Contact<'a>,
    whole: Placed<'a>,
    /// What of it is not known.
    unknown: Vec<Placed<'a>>,
    /// The event of an element holds it.
    is_held: bool,
}

/// The contacts of one value.
#[derive(Default)]
pub(super) struct Contacts<'a> {
    listed: Vec<Listed<'a>>,
    by_user_id: BTreeMap<Text<'a>, usize>,
    by_wa_id: BTreeMap<Text<'a>, usize>,
    /// The only contact belongs to the only user, however it is spelt.
    only: bool,
}

impl<'a> Contacts<'a> {
    pub(super) fn list(&mut self, whole: Placed<'a>, unknown: Vec<Placed<'a>>) {
        let raw = whole.1;
        let profile = raw.get("profile");
        let contact = Contact {
            wa_id: raw.filled("wa_id"),
            user_id: raw.filled("user_id"),
            parent_user_id: raw.filled("parent_user_id"),
            username: raw.filled("username").or_else(|| profile.filled("username")),
            name: profile.filled("name"),
            identity_key_hash: raw.filled("identity_key_hash"),
        };
        let at = self.listed.len();
        if let Some(user_id) = &contact.user_id {
            self.by_user_id.entry(user_id.clone()).or_insert(at);
        }
        if let Some(wa_id) = &contact.wa_id {
            self.by_wa_id.entry(wa_id.clone()).or_insert(at);
        }
        self.listed.push(Listed { contact, whole, unknown, is_held: false });
    }

    /// Gives each element the contact of its user, by user id, else by phone number.
    pub(super) fn join(&mut self, found: &mut [Found<'a>]) {
        let user_ids = || found.iter().filter_map(|one| one.person.user_id.as_ref());
        let phones = || found.iter().filter_map(|one| one.person.phone.as_ref());
        let (user_id, phone) = (user_ids().next(), phones().next());
        let is_one_user = (user_id.is_some() || phone.is_some())
            && user_ids().all(|one| Some(one) == user_id)
            && phones().all(|one| Some(one) == phone);
        let differs = |contact: &Contact<'a>| {
            contact.user_id.as_ref().zip(user_id).is_some_and(|(own, user_id)| own != user_id)
        };
        self.only = is_one_user && matches!(&self.listed[..], [only] if !differs(&only.contact));
        for one in found {
            let Person { user_id, phone } = &one.person;
            let is_known = user_id.is_some() || phone.is_some();
            let place = self.places(user_id, phone).next().filter(|_| is_known);
            if let Some(at) = place {
                self.listed[at].is_held = true;
                one.context.contact = Some(self.listed[at].contact.clone());
            }
        }
    }

    /// Adds what no event holds: what is not known of the contacts that events hold, then the other
    /// contacts. A repetition says nothing more than the first of its name.
    pub(super) fn unknown(&self, unknown: &mut Vec<Placed<'a>>) {
        let mut alone = Vec::new();
        for listed in &self.listed {
            let Contact { user_id, wa_id, .. } = &listed.contact;
            let is_said = self.places(user_id, wa_id).any(|at| {
                let first = &self.listed[at];
                first.is_held && first.contact == listed.contact
            });
            match is_said {
                true => unknown.extend_from_slice(&listed.unknown),
                false => alone.push(listed.whole.clone()),
            }
        }
        unknown.append(&mut alone);
    }

    /// Where the contacts with that user id and with that phone number are.
    fn places(
        &self,
        user_id: &Option<Text<'a>>,
        phone: &Option<Text<'a>>,
    ) -> impl Iterator<Item = usize> {
        let by_id = user_id.as_ref().and_then(|id| self.by_user_id.get(id));
        let by_phone = phone.as_ref().and_then(|phone| self.by_wa_id.get(phone));
        [by_id, by_phone, self.only.then_some(&0)].into_iter().flatten().copied()
    }
}
