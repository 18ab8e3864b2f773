"""Reports what is wrong with the records that an edge published for the calls that it accepted.

It takes what was sent and what was found, and returns sentences. No sentence means that every callback
yielded the right records, once, in order, on the right topic and partition, and that nothing else is there.

Not judged: callbacks that become one dead letter because of too many elements or amplification.
"""

import base64
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from due import JUDGED, Due
from json_tree import NotJson, parse
from reading import Callback

# As the corpus names an array, as a callback does, and what is given of an element.
EXPECTED_LISTS = [
    ("statuses", "statuses", ("id", "type", "status", "timestamp")),
    ("messages", "messages", ("id", "type")),
    ("echoes", "message_echoes", ("id",)),
    ("history_messages", "history", ("id",)),
    ("calls", "calls", ("id",)),
]
LEFT_OUT = "left out"


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
        return next((value.decode("utf-8", "replace") for key, value in self.headers if key == name), None)

    @property
    def is_dead(self):
        return self.topic == "dead_letter"

    @property
    def receipt(self):
        return self.header("receipt")

    @property
    def element(self):
        return self.header("element") if self.is_dead else self.event.get("element")

    @property
    def received_at(self):
        return self.header("received_at") if self.is_dead else self.event.get("received_at")


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
            self.read(record)
        for receipt in self.calls:
            self.check_call(receipt)
        self.check_order(list(self.calls))
        self.check_partitions(partitions, partition_of)

    def wrong(self, what, where=""):
        self.problems.append(f"{where}: {what}" if where else what)

    def read(self, record):
        """Finds out whose record it is, and takes the element's bytes out of it."""
        if record.receipt not in self.calls:
            self.wrong(f"its receipt {record.receipt} is no accepted call's", record)
            return
        self.by_receipt[record.receipt].append(record)
        record.raw = record.value
        if record.is_dead:
            return
        try:
            tree = parse(record.value)
            event = json.loads(record.value.decode(), parse_constant=lambda name: 1 / 0)
            is_raw = "raw" in event
            record.raw = tree.get("raw").bytes if is_raw else base64.b64decode(event["raw_base64"], validate=True)
            is_strict = parse(record.raw).is_strict()
        except (NotJson, ValueError, ArithmeticError, RecursionError, LookupError, TypeError) as error:
            self.wrong(f"its value cannot be read: {error!r}", record)
            return
        record.event = event
        if is_raw != is_strict or is_raw == ("raw_base64" in event):
            self.wrong("raw belongs there if a strict parser reads it, else raw_base64", record)

    def check_call(self, receipt):
        call, left = self.calls[receipt], list(self.by_receipt[receipt])
        where = f"{call.name or receipt} ({call.method})"
        for due in self.callbacks[receipt].due:
            record = take(left, due)
            if record is None:
                self.wrong(f"misses {due}", where)
                continue
            try:
                for name, given, right in facts(record, due, call):
                    if given != right:
                        self.wrong(f"{name} is {given!r}, not {right!r}", record)
            except (AttributeError, TypeError, ValueError) as error:
                self.wrong(f"cannot be judged: {error!r}", record)
        for record in left:
            self.wrong(f"nothing in {where} accounts for it: {record.element!r} {record.raw[:60]!r}", record)

    def check_order(self, receipts):
        """Per key: in the order of acceptance, and in that of the array within a callback."""
        place = {receipt: at for at, receipt in enumerate(receipts)}
        last = {}
        for record in sorted(self.records, key=lambda record: (record.topic, record.partition, record.offset)):
            if record.receipt not in place:
                continue
            array, _, index = str(record.element or "").rpartition("/")
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


def take(left, due):
    """Takes the first record that is this one by topic, place and bytes out of `left`."""
    for at, record in enumerate(left):
        if (record.topic, record.element) == (due.topic, due.element) and due.fits(record.raw):
            return left.pop(at)
    return None


def facts(record, due: Due, call):
    """(name, as it is, as it must be)."""
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    right = due.headers(call.receipt, record.received_at)
    yield "the key", record.key.decode("utf-8", "replace"), due.key(call.receipt)
    yield "received_at", millis(record.received_at), record.timestamp
    yield "the number of headers", len(record.headers), len(headers)
    if record.is_dead:
        right |= {"method": call.method}
        yield "ce headers", [name for name in headers if name.startswith("ce_")], []
        for name in {*right, "element", "topic", "format", "field", "entry_time"}:
            yield f"header {name}", headers.get(name), right.get(name)
        for name, fields in (("channel", due.place.channel), ("contact", due.contact_fields)):
            yield f"header {name}", json.loads(headers.get(name, "{}")), fields
        return
    yield "the headers", headers, right
    event = due.event(call.receipt)
    for name in JUDGED:
        yield name, record.event.get(name, LEFT_OUT), event.get(name, LEFT_OUT)
    if due.is_status:
        given = [error.get("code") for error in record.event.get("errors", [])]
        yield "the codes of its errors", given, error_codes(due.node)


def error_codes(node):
    """Codes as whole numbers; None for what is none."""
    errors = node.get("errors")
    errors = [child for _, child in errors.children] if errors and errors.kind == "array" else [errors]
    codes = [error.text("code").strip() for error in errors if error and error.kind == "object"]
    return [int(code) if re.fullmatch("[+-]?[0-9]+", code) else None for code in codes]


def millis(text):
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(text)):
        return f"not a time in milliseconds: {text}"
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def check_expected(calls, expected):
    """What the corpus says each body yields, against what was read out of it for the judgement."""
    for call in calls:
        row = expected.get(call.name.rsplit("/", 1)[-1])
        # The corpus counts the objects of arrays. It does not count an object that stands for an array.
        found = [due for due in Callback(call.body, call.source).due if due.node and due.element[-1:].isdigit()]
        found = [due for due in found if due.node.kind == "object"]
        for name, array, members in EXPECTED_LISTS if row else ():
            read = [[due.node.text(member) for member in members] for due in found if due.array == array]
            rows = [one if isinstance(one, list) else [one] for one in row[name]]
            rows = [["" if text is None else str(text) for text in one] for one in rows]
            if read != rows:
                yield f"{call.name}: {name} are {rows}, not {read}"
        errors = sum(due.array == "errors" for due in found)
        if row and errors != row["value_errors"]:
            yield f"{call.name}: {row['value_errors']} errors of a value, not {errors}"
