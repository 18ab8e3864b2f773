"""One record that a callback must become, with the content that the contract requires."""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from json_tree import NotJson, parse

# event_kind of an array's elements, in `value` and in `standby`. All others are channel events.
KINDS = {
    "messages": ("inbound_message", "standby_message"),
    "message_echoes": ("echo", "standby_echo"),
    "smb_message_echoes": ("echo", "standby_echo"),
    "calls": ("call", "call"),
    "history": ("history_message", "history_message"),
}
# The same of statuses, by their type.
STATUS_KINDS = {
    "": ("message_status", "standby_status"),
    "message": ("message_status", "standby_status"),
    "payment": ("payment_status", "payment_status"),
    "call": ("call_status", "call_status"),
}
RANKS = {"sending": 5, "sent": 10, "failed": 15, "delivered": 20, "read": 30, "played": 40}
KNOWN = {*RANKS, "deleted", "warning"}
# The names of an event's `recipient`, and what a status calls them.
RECIPIENT = {
    "type": ["recipient_type"],
    "user_id": ["recipient_user_id"],
    "parent_user_id": ["recipient_parent_user_id", "parent_recipient_user_id", "parent_user_id"],
    "participant_id": ["recipient_participant_id", "participant_recipient_id"],
    "participant_user_id": ["recipient_participant_user_id"],
    "participant_parent_user_id": ["recipient_participant_parent_user_id"],
}
# All fields that are judged. What a due event does not have must be left out.
JUDGED = (
    "schema_version event_id event_kind message_id source receipt occurred_at timestamp_raw format field element "
    "user_key channel contact status status_raw status_known status_rank recipient type group_id"
).split()


@dataclass(frozen=True)
class Place:
    """What the elements of one value share."""

    source: str
    format: str = ""
    field: str | None = None
    waba_id: str = ""
    entry_time: str = ""
    phone_number_id: str = ""
    display_phone_number: str = ""

    @property
    def channel(self):
        return filled(self, "waba_id", "phone_number_id", "display_phone_number")


def filled(place, *names):
    return {name: getattr(place, name) for name in names if getattr(place, name)}


def topic_of(kind):
    return kind if kind in ("message_status", "inbound_message") else "channel_event"


@dataclass
class Due:
    """An event, or a dead letter if it has a reason."""

    place: Place
    node: object  # the element; None for a whole body and a remainder
    element: str | None  # JSON pointer; None for a whole body
    array: str = ""
    in_standby: bool = False
    thread: str = ""  # the id of a history message's thread
    contact: object = None
    kind: str = ""
    reason: str = ""
    raw: bytes = b""
    rest: list = field(default_factory=list)  # of a remainder: (JSON pointer, node)

    def __post_init__(self):
        if self.node is None:
            return
        if not self.kind:
            kinds = STATUS_KINDS.get(self.node.text("type")) if self.array == "statuses" else KINDS.get(self.array)
            self.kind = (kinds or ("channel_event", "channel_event"))[self.in_standby]
        self.raw = self.node.bytes
        self.reason = self.reason or self._reason()

    def _reason(self):
        if self.node.kind != "object":
            return "not_an_object"
        if topic_of(self.kind) != "channel_event" and not self.node.text("id"):
            return "missing_id"
        if self.kind == "message_status" and not self.node.text("status").strip():
            return "missing_status"
        return ""

    def __str__(self):
        return f"{self.reason or self.kind} at {self.element!r}"

    @property
    def topic(self):
        return "dead_letter" if self.reason else topic_of(self.kind)

    @property
    def is_status(self):
        return self.array == "statuses"

    @cached_property
    def person(self):
        """User id and phone number of the user whom the element is about."""
        node, own = self.node, digits(self.place.display_phone_number)
        is_outgoing = (
            self.kind in ("echo", "standby_echo")
            or (self.kind == "call" and node.text("direction") == "BUSINESS_INITIATED")
            or (own and digits(node.text("from")) == own)
        )
        sender = "to" if is_outgoing else "from"
        user_id = node.first(
            f"{sender}_user_id", "recipient_participant_user_id", "recipient_user_id", "user_id"
        ) or node.inner("sender", "user_id")
        phone = (
            self.thread
            or node.first(sender, "recipient_participant_id", "participant_recipient_id")
            or (node.text("recipient_type") != "group" and self.recipient_id)
            or node.text("wa_id")
            or node.inner("sender", "phone_number")
            or node.inner("contact", "phone_number")
        )
        return user_id, phone

    @property
    def recipient_id(self):
        return self.node.text("recipient_id") or self.node.inner("message", "recipient_id")

    @property
    def user_key(self):
        user_id, phone = self.person
        contact = self.contact_fields
        return user_id or contact.get("user_id") or phone or contact.get("wa_id", "")

    @property
    def contact_fields(self):
        contact = self.contact
        if contact is None:
            return {}
        names = ("wa_id", "user_id", "parent_user_id", "identity_key_hash")
        fields = {name: contact.text(name) for name in names}
        fields["username"] = contact.text("username") or contact.inner("profile", "username")
        fields["name"] = contact.inner("profile", "name")
        return {name: text for name, text in fields.items() if text}

    def key(self, receipt):
        if self.reason or self.kind == "remainder":
            return receipt
        return self.node.first("id", "group_id") or self.user_key or receipt

    def fits(self, raw):
        """Whether these are the bytes that the record must have."""
        if self.kind != "remainder":
            return raw == self.raw
        try:
            members = [(key, node.bytes) for key, node in parse(raw).children]
        except NotJson:
            return False
        return raw[:1] == b"{" and sorted(members) == sorted((at, node.bytes) for at, node in self.rest)

    def event(self, receipt):
        """The fields of the event that are judged."""
        fields = {
            "schema_version": 1,
            "event_id": self.event_id(receipt),
            "event_kind": self.kind,
            "source": self.place.source,
            "receipt": receipt,
            "occurred_at": None,
            "format": self.place.format,
            "element": self.element,
        }
        if self.kind == "remainder":
            return fields
        node = self.node
        time = node.text("timestamp") or node.inner("metadata", "timestamp") or self.place.entry_time
        fields["occurred_at"] = rfc3339(time)
        maybe = {
            "message_id": node.text("id"),
            "timestamp_raw": "" if rfc3339(time) else time,
            "user_key": self.user_key,
            "channel": self.place.channel,
            "contact": self.contact_fields,
        }
        fields |= {name: value for name, value in maybe.items() if value}
        if self.place.field is not None:
            fields["field"] = self.place.field
        if self.is_status:
            fields |= self._status_fields()
        elif self.array in ("messages", "message_echoes", "smb_message_echoes", "history"):
            kind, group_id = node.get("type"), node.text("group_id")
            fields |= {"type": kind.scalar} if kind and kind.scalar is not None else {}
            fields |= {"group_id": group_id} if group_id else {}
        return fields

    def _status_fields(self):
        recipient = {name: self.node.first(*names) for name, names in RECIPIENT.items()}
        recipient |= {"id": self.recipient_id, "type": recipient["type"] or "individual"}
        fields = {"recipient": {name: text for name, text in recipient.items() if text}}
        status = self.node.get("status")
        if status is None or status.scalar is None:
            return fields
        normal = status.scalar.strip().lower()
        fields["status"] = normal
        if self.kind not in ("payment_status", "call_status"):
            fields |= {"status_raw": status.scalar} if normal != status.scalar else {}
            fields |= {"status_known": normal in KNOWN, "status_rank": RANKS.get(normal)}
        return fields

    def headers(self, receipt, received_at):
        if self.reason:
            return self._dead_letter_headers(receipt, received_at)
        event = self.event(receipt)
        headers = {
            "ce_specversion": "1.0",
            "ce_id": event["event_id"],
            "ce_type": f"ai.weni.{self.kind}.v1",
            "ce_source": f"/hooks/{self.place.source}",
            "ce_time": event["occurred_at"] or received_at,
            "ce_dataschema": f"urn:weni-edge:{contract(self.topic)}",
            "content-type": "application/json",
            "receipt": receipt,
        }
        if "status" in event:
            headers["status"] = event["status"]
        if self.kind != "remainder" and self.place.phone_number_id:
            headers["phone_number_id"] = self.place.phone_number_id
        return headers

    def _dead_letter_headers(self, receipt, received_at):
        headers = {
            "reason": self.reason,
            "stage": "normalize",
            "source": self.place.source,
            "receipt": receipt,
            "received_at": received_at,
        }
        if self.element is not None:
            headers |= {"element": self.element, "topic": contract(topic_of(self.kind))}
            headers |= {} if self.place.field is None else {"field": self.place.field}
            headers |= filled(self.place, "format", "entry_time")
        return headers

    def event_id(self, receipt):
        """The first half of a hash over the nine parts of the contract."""
        node, is_remainder = self.node, self.kind == "remainder"
        message_id = receipt if is_remainder else node.text("id")
        timestamp = "" if is_remainder else node.text("timestamp")
        seconds = str(int(timestamp)) if re.fullmatch("[0-9]{1,11}", timestamp) else timestamp
        state = participant = content = b""
        if not is_remainder:
            state = as_received(node.get("type" if self.kind == "inbound_message" else "status"))
            names = ("recipient_participant_user_id", "recipient_participant_id", "participant_recipient_id")
            participant = node.first(*names).encode()
            is_bound = topic_of(self.kind) != "channel_event" and message_id and timestamp
            content = b"" if is_bound else hashlib.sha256(self.raw).digest()
        parts = [
            b"wcb1",
            self.kind.encode(),
            ((not is_remainder and self.place.phone_number_id) or self.place.source).encode(),
            message_id.encode(),
            state,
            seconds.encode(),
            participant,
            content,
            b"",
        ]
        framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hashlib.sha256(framed).digest()[:16].hex()


def as_received(node):
    """The text of a scalar; of anything else its JSON."""
    if node is None or node.is_null:
        return b""
    return node.bytes if node.scalar is None else node.scalar.encode()


def contract(topic):
    return topic.replace("_", "-") + ".v1"


def digits(text):
    return re.sub("[^0-9]", "", text)


def rfc3339(text):
    """Up to 11 digits are seconds; 12 and 13 are milliseconds. None for any other text."""
    if not re.fullmatch("[0-9]{1,13}", text):
        return None
    if len(text) < 12:
        return datetime.fromtimestamp(int(text), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return rfc3339_millis(int(text))


def rfc3339_millis(millis):
    time = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=millis)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{millis % 1000:03d}Z"
