"""Reads a callback's body as the contract says, without any code of the edge.

The result is a list of all events and dead letters that the callback must become.
"""

from dataclasses import dataclass, field, replace

from due import Due, Place
from json_tree import NotJson, parse

# Arrays of which each object is an event.
SPLIT = {
    "statuses",
    "messages",
    "message_echoes",
    "calls",
    "errors",
    "user_preferences",
    "user_id_update",
    "groups",
    "automatic_events",
    "user_actions",
    "state_sync",
}
# The members by which an object is known to have the shape of `value`.
VALUE = SPLIT | {"messaging_product", "metadata", "contacts", "standby", "history"}
CHANNEL = ("phone_number_id", "display_phone_number")
CONTACT = ("wa_id", "user_id", "parent_user_id", "username", "identity_key_hash")
PROFILE = ("name", "username")


def join(at, key):
    """The JSON pointer of a member."""
    return f"{at}/" + str(key).replace("~", "~0").replace("/", "~1")


def members(node, at):
    """(key, member, JSON pointer) of an object."""
    return [(key, child, join(at, key)) for key, child in node.children if node.kind == "object"]


def items(node, at):
    """(element, JSON pointer) of an array. Anything else but null counts as an array of one."""
    if node.kind == "array":
        return [(child, join(at, index)) for index, child in node.children]
    return [] if node.is_null else [(node, at)]


def is_text(node):
    return node.is_null or node.scalar is not None


def is_change(node):
    return {"field", "value"} <= {key for key, _ in node.children}


def is_callback(node):
    keys = {key for key, _ in node.children}
    return node.kind == "object" and (not keys or bool(keys & (VALUE | {"entry"})) or is_change(node))


class Callback:
    """A body, read."""

    def __init__(self, body, source):
        self.due = []  # in the order of the document
        self.rest = []  # (JSON pointer, node): what is known to nobody
        self.place = Place(source)
        if body.strip(b" \t\r\n"):
            try:
                self._read(parse(body))
            except NotJson:
                self._whole("invalid_json", body)

    def _whole(self, reason, body):
        self.due = [Due(self.place, None, None, reason=reason, raw=body)]

    def _read(self, root):
        roots = items(root, "") if root.kind == "array" else [(root, "")]
        if roots and not any(is_callback(node) for node, _ in roots):
            self._whole("unrecognized", root.body)
            return
        places = []
        for node, at in roots:
            if is_callback(node):
                places.append(self._callback(node, at))
            else:
                self._dead(node, at, self.place, "unrecognized")
        if self.rest:
            self.due.append(Due(places[0], None, "", kind="remainder", rest=self.rest))

    def _dead(self, node, at, place, reason="not_an_object"):
        reason = reason if node.kind == "object" else "not_an_object"
        self.due.append(Due(place, node, at, reason=reason, raw=node.bytes))

    def _callback(self, node, at):
        """Reads an envelope, a change or a bare value. Returns what it says of its place."""
        keys = {key for key, _ in node.children}
        is_cloud = keys & {"entry", "metadata"} or is_change(node)
        place = replace(self.place, format="cloud" if is_cloud else "on_premise")
        if "entry" in keys:
            for key, member, here in members(node, at):
                if key == "entry":
                    self._each(member, here, place, self._entry)
                elif key != "object" or not is_text(member):
                    self.rest.append((here, member))
        elif is_change(node):
            self._change(node, at, place)
        else:
            self._value(node, at, place)
        return place

    def _each(self, array, at, place, read):
        for node, here in items(array, at):
            if node.kind == "object":
                read(node, here, place)
            else:
                self._dead(node, here, place)

    def _entry(self, entry, at, place):
        place = replace(place, waba_id=entry.text("id"), entry_time=entry.text("time"))
        for key, member, here in members(entry, at):
            if key == "changes":
                self._each(member, here, place, self._change)
            elif key not in ("id", "time") or not is_text(member):
                self.rest.append((here, member))

    def _change(self, change, at, place):
        name = change.get("field")
        place = replace(place, field=name.scalar if name else None)
        for key, member, here in members(change, at):
            if key == "value" and member.kind == "object":
                self._value(member, here, place)
            elif key == "value" and not member.is_null:
                self._dead(member, here, place)
            elif key not in ("field", "value") or not is_text(member):
                self.rest.append((here, member))

    def _value(self, node, at, place):
        metadata = node.get("metadata")
        if metadata:
            place = replace(place, **{name: metadata.text(name) for name in CHANNEL})
        value = Value(place)
        value.read(node, at)
        if value.others and not value.is_split:
            value.due = [Due(place, node, at)]
            value.join_contacts()
        else:
            joined = value.join_contacts()
            self.rest += value.others + value.rest
            for contact, here in value.contacts:
                self.rest += unknown_of_contact(contact, here) if contact in joined else [(here, contact)]
        self.due += value.due


@dataclass
class Value:
    """What is in one `value`."""

    place: Place
    due: list = field(default_factory=list)
    contacts: list = field(default_factory=list)  # (node, JSON pointer)
    others: list = field(default_factory=list)  # (JSON pointer, node): members that no array holds
    rest: list = field(default_factory=list)  # likewise: what is not known in members that are known
    is_split: bool = False

    def read(self, node, at, in_standby=False):
        for key, member, here in members(node, at):
            is_field = key == self.place.field != "history" and member.kind == "array"
            if key == "contacts":
                self._contacts(member, here)
            elif key == "metadata" and not in_standby:
                self.rest += unknown(member, here, CHANNEL)
            elif key == "messaging_product" and not in_standby and is_text(member):
                pass
            elif key == "standby" and not in_standby and member.kind == "object":
                self.read(member, here, in_standby=True)
            elif key == "history" and not in_standby and member.kind in ("object", "array"):
                self.is_split = True
                for chunk, where in items(member, here):
                    self._history(chunk, where)
            elif is_field or (key in SPLIT and not member.is_null):
                self.is_split = True
                self._split(key, member, here, in_standby)
            elif not (member.is_null and key in VALUE):
                self.others.append((here, member))

    def _split(self, array, node, at, in_standby=False, thread=""):
        for item, here in items(node, at):
            self.due.append(Due(self.place, item, here, array=array, in_standby=in_standby, thread=thread))

    def _contacts(self, contacts, at):
        for node, here in items(contacts, at):
            if node.kind == "object":
                self.contacts.append((node, here))
            else:
                self.rest.append((here, node))

    def _history(self, chunk, at):
        if chunk.kind != "object":
            self._split("", chunk, at)
        for key, member, here in members(chunk, at):
            if key == "errors":
                self._split("history.errors", member, here)
            elif key == "threads":
                for thread, where in items(member, here):
                    self._thread(thread, where)
            else:
                self.rest.append((here, member))

    def _thread(self, thread, at):
        if thread.kind != "object":
            self._split("", thread, at)
        rest = []
        for key, member, here in members(thread, at):
            if key == "messages":
                self._split("history", member, here, thread=thread.text("id"))
            else:
                rest.append((key, here, member))
        if any(key != "id" or not is_text(member) for key, _, member in rest):
            self.rest += [(here, member) for _, here, member in rest]

    def join_contacts(self):
        """Gives each element its contact. Returns the contacts that belong to an element."""
        contacts = [contact for contact, _ in self.contacts]
        people = [due.person for due in self.due]
        user_ids, phones = ({person[at] for person in people} - {""} for at in (0, 1))
        is_one_user = len(user_ids) < 2 and len(phones) < 2 and user_ids | phones
        only = contacts[0] if len(contacts) == 1 and is_one_user else None
        if only and only.text("user_id") and user_ids and only.text("user_id") not in user_ids:
            only = None
        for due in self.due:
            user_id, phone = due.person
            found = [contact for contact in contacts if user_id and contact.text("user_id") == user_id]
            found += [contact for contact in contacts if phone and contact.text("wa_id") == phone]
            if only and (user_id or phone):
                found.append(only)
            due.contact = found[0] if found else None
        return [
            contact
            for contact in contacts
            if contact is only or contact.text("user_id") in user_ids or contact.text("wa_id") in phones
        ]


def unknown(node, at, known):
    """What is not known of an object; all of what is no object."""
    if node.kind != "object":
        return [] if node.is_null else [(at, node)]
    return [(here, member) for key, member, here in members(node, at) if key not in known or not is_text(member)]


def unknown_of_contact(contact, at):
    found = []
    for key, member, here in members(contact, at):
        if key == "profile":
            found += unknown(member, here, PROFILE)
        elif key not in CONTACT or not is_text(member):
            found.append((here, member))
    return found
