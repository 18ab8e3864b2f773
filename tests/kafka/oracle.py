"""Says what is wrong with the records that an edge published for the calls it accepted.

Pure: takes what was sent and what was found, gives back sentences. None means that every callback
yielded what it must, once, in order, on the right topic and partition, and nothing else is there.
"""

import base64
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reading import Callback, NotJson, event_id, parse, part, resolve

KEYED_BY_MESSAGE = ("message_status", "inbound_message")
KINDS = {
    "message_status": "message_status",
    "inbound_message": "inbound_message",
    "call": "channel_event",
    "call_status": "channel_event",
    "payment_status": "channel_event",
    "echo": "channel_event",
    "history_message": "channel_event",
    "channel_event": "channel_event",
}
RANKS = {"sending": 5, "sent": 10, "failed": 15, "delivered": 20, "read": 30, "played": 40}
NORMALIZE_REASONS = {
    "invalid_json",
    "unrecognized",
    "not_an_object",
    "missing_id",
    "missing_status",
    "bad_encoding",
    "too_many_elements",
    "amplification",
}
DEPTH_MAX = 100
# As the corpus names a list, as a callback does, and what is given of an element.
EXPECTED_LISTS = [
    ("statuses", "statuses", ("id", "type", "status", "timestamp")),
    ("messages", "messages", ("id", "type")),
    ("echoes", "message_echoes", ("id",)),
    ("history_messages", "history", ("id",)),
    ("calls", "calls", ("id",)),
]


@dataclass
class Call:
    """An accepted call, in the order of acceptance."""

    receipt: str
    source: str
    method: str
    body: bytes
    name: str = ""


@dataclass
class Record:
    """A record as it was read: its topic by role (message_status, …, dead_letter)."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    headers: list
    value: bytes
    # Read out of the above:
    event: dict = field(default_factory=dict)
    raw: bytes = b""

    def __str__(self):
        return f"{self.topic}[{self.partition}]@{self.offset}"

    def header(self, name):
        return next((value.decode() for key, value in self.headers if key == name and value), None)

    @property
    def receipt(self):
        return self.header("receipt")

    @property
    def element(self):
        return self.event.get("element", self.header("element"))


class Oracle:
    """One judgement. `partition_of` gives the right partitions of keys: ([key], n) -> [partition]."""

    def __init__(self, calls, records, partitions, partition_of):
        self.problems = []
        self.calls = {call.receipt: call for call in calls}
        self.callbacks = {call.receipt: Callback(call.body, call.source) for call in calls}
        self.records = records
        if len(self.calls) < len(calls):
            self.wrong("a receipt was given to two calls")
        self.by_receipt = defaultdict(list)
        for record in records:
            self.check_record(record)
        self.check_once()
        self.check_accounts()
        self.check_order(list(self.calls))
        self.check_partitions(partitions, partition_of)

    def wrong(self, what, where=""):
        self.problems.append(f"{where}: {what}" if where else what)

    # One record

    def check_record(self, record):
        call = self.calls.get(record.receipt)
        if call is None:
            self.wrong(f"its receipt {record.receipt} is no accepted call's", record)
            return
        self.by_receipt[call.receipt].append(record)
        if not record.key:
            self.wrong("has no key", record)
        check = self.check_dead_letter if record.topic == "dead_letter" else self.check_event
        try:
            for problem in check(record, call):
                self.wrong(problem, record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.wrong(f"cannot be read: {error!r}", record)

    def check_event(self, record, call):
        try:
            tree = parse(record.value)
            record.event = json.loads(record.value.decode(), parse_constant=lambda name: 1 / 0)
        except (NotJson, ValueError, ArithmeticError, RecursionError) as error:
            yield f"its value is not strict JSON: {error}"
            return
        event = record.event
        if "raw" in event:
            record.raw = tree.get("raw").bytes
            if depth(record.raw) > DEPTH_MAX or has_lone_surrogate(record.raw):
                yield "raw holds what a strict parser refuses; raw_base64 belongs there"
        elif "raw_base64" in event:
            record.raw = base64.b64decode(event["raw_base64"], validate=True)
        else:
            yield "has neither raw nor raw_base64"
            return
        for name, given, due in self.event_facts(record, call):
            if given != due:
                yield f"{name} is {given!r}, not {due!r}"
        root = self.callbacks[call.receipt].root
        places = resolve(root, event.get("element", "?")) if root else []
        if "element" not in event or not places:
            yield f"element {event.get('element')!r} is not in the callback"
        elif event["event_kind"] != "channel_event" and record.raw not in [n.bytes for n in places]:
            yield f"raw is not what the callback has at {event['element']}"

    def event_facts(self, record, call):
        """(name, as it is, as it must be) for everything that holds for each event."""
        event, kind = record.event, record.event.get("event_kind")
        key = record.key.decode("utf-8", "replace")
        node = parse(record.raw)
        channel = part(event, "channel").get("phone_number_id") or call.source
        timestamp = node.text("timestamp")
        occurred = rfc3339(timestamp)
        yield "the topic", record.topic, KINDS.get(kind, "none")
        yield "the type of channel", type(event.get("channel", {})), dict
        yield "schema_version", event.get("schema_version"), 1
        yield "source", event.get("source"), call.source
        yield "receipt", event.get("receipt"), call.receipt
        yield "the key", key, self.key_due(kind, node, key, call)
        yield "event_id", event.get("event_id"), event_id(kind, channel, node)
        yield "received_at", millis(event.get("received_at")), record.timestamp
        if timestamp or kind in ("message_status", "inbound_message"):
            yield "occurred_at", event.get("occurred_at", "left out"), occurred
            yield "timestamp_raw", event.get("timestamp_raw"), None if occurred else timestamp or None
        headers = {
            "ce_specversion": "1.0",
            "ce_id": event.get("event_id"),
            "ce_type": f"ai.weni.{kind}.v1",
            "ce_source": f"/hooks/{call.source}",
            "ce_time": event.get("occurred_at") or event.get("received_at"),
            "ce_dataschema": f"urn:weni-edge:{record.topic.replace('_', '-')}.v1",
            "content-type": "application/json",
            "receipt": call.receipt,
        }
        given = {name: value.decode() for name, value in record.headers}
        yield "the number of headers", len(record.headers), len(headers)
        for name, due in headers.items():
            yield f"header {name}", given.get(name), due
        if kind == "message_status":
            yield from status_facts(event, node)
        if kind == "inbound_message":
            yield "message_id", event.get("message_id"), node.text("id")
            yield "type", event.get("type", ""), node.text("type")
            yield "from.id", part(event, "from").get("id", ""), node.text("from")

    def key_due(self, kind, node, key, call):
        own = node.text("id")
        if own or kind in ("message_status", "inbound_message"):
            return own
        scalars = {child.text(name) for child in node.walk() for name, _ in child.children if child.kind == "object"}
        return key if key in scalars else call.receipt

    def check_dead_letter(self, record, call):
        given = {name: value.decode("utf-8", "replace") for name, value in record.headers}
        record.raw = record.value
        due = {
            "source": call.source,
            "receipt": call.receipt,
            "method": call.method,
        }
        for name, value in due.items():
            if given.get(name) != value:
                yield f"header {name} is {given.get(name)!r}, not {value!r}"
        if record.key.decode() != call.receipt:
            yield f"the key is {record.key!r}, not the receipt"
        if given.get("reason") not in NORMALIZE_REASONS or given.get("stage") != "normalize":
            yield f"reason {given.get('reason')!r} at stage {given.get('stage')!r}"
        if millis(given.get("received_at")) != record.timestamp:
            yield f"received_at is {given.get('received_at')!r}"
        for name in given:
            if name.startswith("ce_"):
                yield f"has header {name}, which only events have"
        root = self.callbacks[call.receipt].root
        places = [call.body]
        if root and "element" in given:
            places = [node.bytes for node in resolve(root, given["element"])]
        if record.value not in places:
            yield f"its value is not what the callback has at {given.get('element', 'the whole')}"

    # All records

    def check_once(self):
        seen = Counter()
        for record in self.records:
            seen[record.topic, record.receipt, record.element, record.raw] += 1
        for (topic, receipt, element, _), count in seen.items():
            if count > 1:
                self.wrong(f"{element} of {receipt} is there {count} times", topic)

    def check_accounts(self):
        for receipt, callback in self.callbacks.items():
            call, left = self.calls[receipt], list(self.by_receipt[receipt])
            where = f"{call.name or receipt} ({call.method})"
            for element in callback.elements:
                self.account(element, left, where)
            if callback.whole:
                self.take_dead_letter(left, where, callback.whole, call.body)
            self.check_kept(callback, self.by_receipt[receipt], where)
            self.check_left(callback, left, where)

    def account(self, element, left, where):
        if element.kind == "dead_letter":
            self.take_dead_letter(left, where, element.reason, element.node.bytes)
            return

        def fits(record):
            event = record.event
            return (record.topic, event.get("event_kind")) == (KINDS[element.kind], element.kind) and (
                event.get("event_id"),
                record.raw,
            ) == (element.event_id, element.node.bytes)

        record = self.take(left, where, f"{element.kind} {element.node.text('id')} of {element.list}", fits)
        if record is not None:
            self.check_where(record, element.where)

    def check_where(self, record, where):
        for name, given, due in where.facts(record.event):
            if given != due:
                self.wrong(f"{name} is {given!r}, not {due!r}", record)

    def take_dead_letter(self, left, where, reason, value):
        def fits(record):
            return (record.topic, record.header("reason"), record.value) == ("dead_letter", reason, value)

        self.take(left, where, f"a dead letter {reason}", fits)

    def take(self, left, where, what, fits):
        """Takes the first record that fits out of `left`."""
        for at, record in enumerate(left):
            if fits(record):
                return left.pop(at)
        self.wrong(f"misses {what}", where)
        return None

    def check_kept(self, callback, carried, where):
        for node, _ in callback.kept:
            if not is_carried(node, carried):
                self.wrong(f"lost what nobody knows: {node.bytes[:60]!r}", where)
        for contact, _ in callback.contacts:
            own = {contact.text(name) for name in ("wa_id", "user_id")} - {""}
            attached = any(own & set(map(str, part(record.event, "contact").values())) for record in carried)
            if not attached and not any(contact.bytes in record.raw for record in carried):
                self.wrong(f"lost a contact {contact.bytes[:60]!r}", where)

    def check_left(self, callback, left, where):
        """What no element accounts for may only carry what nobody knows."""
        for record in left:
            carried = [
                (node, at)
                for node, at in callback.kept + callback.contacts
                if node.bytes in record.raw or record.raw in [part.bytes for part in node.walk()]
            ]
            kind = record.event.get("event_kind", "dead_letter")
            if not carried or KINDS.get(kind, kind) != record.topic or record.topic in KEYED_BY_MESSAGE:
                self.wrong(f"nothing in {where} accounts for it", record)
                continue
            if not any(self.is_within(node, record, callback) for node, _ in carried):
                self.wrong(f"element {record.element!r} is not where it comes from", record)
            if record.event and carried[0][1]:
                self.check_where(record, carried[0][1])

    def is_within(self, node, record, callback):
        places = resolve(callback.root, "?" if record.element is None else record.element)
        return any(
            place.start <= node.start and node.end <= place.end or node.start <= place.start and place.end <= node.end
            for place in places
        )

    def check_order(self, receipts):
        """Per key: in the order of acceptance, and in that of the array within a callback."""
        place = {receipt: at for at, receipt in enumerate(receipts)}
        last = {}
        for record in sorted(self.records, key=lambda record: (record.topic, record.partition, record.offset)):
            if record.receipt not in place:
                continue
            array, _, index = (record.element or "").rpartition("/")
            accepted, index = place[record.receipt], int(index) if index.isdigit() else 0
            before = last.get((record.topic, record.key), (accepted, array, index))
            last[record.topic, record.key] = accepted, array, index
            if before[0] > accepted or before[:2] == (accepted, array) and before[2] > index:
                self.wrong(f"key {record.key!r} is out of order", record)

    def check_partitions(self, partitions, partition_of):
        for topic, count in partitions.items():
            records = [record for record in self.records if record.topic == topic]
            right = partition_of([record.key for record in records], count)
            for record, due in zip(records, right, strict=True):
                if record.partition != due:
                    self.wrong(f"key {record.key!r} belongs on partition {due}", record)


def is_carried(node, records):
    """Whether the bytes of a node are in some record, as a whole or by its members."""
    if node.bytes == b"null" or any(node.bytes in record.raw for record in records):
        return True
    return bool(node.children) and all(is_carried(child, records) for _, child in node.children)


def status_facts(event, node):
    raw = node.text("status")
    status = raw.strip().lower()
    yield "message_id", event.get("message_id"), node.text("id")
    yield "status", event.get("status"), status
    yield "status_raw", event.get("status_raw"), None if raw == status else raw
    yield "status_rank", event.get("status_rank", "left out"), RANKS.get(status)
    if status in RANKS:
        yield "status_known", event.get("status_known"), True
    yield "recipient.id", part(event, "recipient").get("id", ""), node.text("recipient_id")
    # A code that is no number is in raw only.
    codes = [error.text("code").strip() for error in node.items("errors") if error.kind == "object"]
    codes = [code if code.lstrip("-").isdigit() else "" for code in codes]
    yield "error codes", [str(error.get("code", "")) for error in event.get("errors", [])], codes


def rfc3339(timestamp):
    """Decimal seconds as an RFC 3339 time; None for any other text."""
    if not re.fullmatch("[0-9]{1,11}", timestamp):
        return None
    return datetime.fromtimestamp(int(timestamp), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def millis(text):
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(text)):
        return f"not a time in milliseconds: {text}"
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def depth(raw):
    deepest, stack = 0, [(parse(raw), 1)]
    while stack:
        node, level = stack.pop()
        if node.kind in ("object", "array"):
            deepest = max(deepest, level)
            stack += [(child, level + 1) for _, child in node.children]
    return deepest


def has_lone_surrogate(raw):
    text = re.sub(r"\\\\", "", raw.decode("utf-8", "replace"))
    text = re.sub(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "", text)
    return bool(re.search(r"\\u[dD][89a-fA-F]", text))


def check_expected(calls, expected):
    """What the corpus says each body yields, against what was read out of it for the judgement."""
    for call in calls:
        due = expected.get(call.name.rsplit("/", 1)[-1])
        elements = [e for e in Callback(call.body, call.source).elements if e.node.kind == "object"]
        for name, list_name, members in EXPECTED_LISTS if due else ():
            read = [[e.node.text(member) for member in members] for e in elements if e.list == list_name]
            rows = [row if isinstance(row, list) else [row] for row in due[name]]
            rows = [["" if text is None else str(text) for text in row] for row in rows]
            if read != rows:
                yield f"{call.name}: {name} are {rows}, not {read}"
