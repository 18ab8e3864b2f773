"""Tests the oracle: it must accept right records, and reject each way of making them wrong."""

import base64
import copy
import json
from pathlib import Path

from due import JUDGED, contract, rfc3339_millis
from json_tree import parse
from oracle import Call, Oracle, Record, check_expected, error_codes
from reading import Callback

CASES = Path(__file__).resolve().parents[1] / "fixtures/contract"
PARTITIONS = {"message_status": 4, "inbound_message": 4, "channel_event": 2, "dead_letter": 1}
ACCEPTED_MS = 1_790_000_000_000
STATUS = b'{"id":"wamid.%d","status":"%s","timestamp":"1763842385","recipient_id":"5582900000001"}'
VALUE = b'{"messaging_product":"whatsapp","metadata":{"phone_number_id":"77"},%s}'
ENVELOPE = (
    b'{"object":"whatsapp_business_account",%s"entry":[{"id":"88","time":1763842300,'
    b'"changes":[{"field":"messages","value":%s}]}]}'
)


def envelope(members, more=b""):
    return ENVELOPE % (more, VALUE % members)


MESSAGE = b'{"from":"1","id":"wamid.9","timestamp":"soon","type":"text","text":{"body":"\xc3\xa7 \\ud83d"}}'
CONTACTS = b'"contacts":[{"wa_id":"1","profile":{"name":"Rui"},"odd":2},{"wa_id":"9"}]'
BODIES = [
    envelope(b'"statuses":[' + STATUS % (1, b"sent") + b"," + STATUS % (2, b"sent") + b"]"),
    envelope(b'"statuses":[' + STATUS % (1, b"delivered") + b"]"),
    envelope(b'"statuses":[' + STATUS % (1, b" READ") + b',{"status":"sent"},7]'),
    envelope(b'"messages":[' + MESSAGE + b"]," + CONTACTS, b'"x/y":1,"x/y":2,'),
    envelope(b'"calls":[{"id":"wacid.1","event":"connect","from":"3"}],"errors":[{"code":131000}]'),
    envelope(b'"statuses":[' + STATUS % (2, b"sent") + b"]"),  # an exact repetition
    b'{"statuses":[{"id":"gBEGkY","status":"failed","timestamp":"1763842391","errors":[{"code":4},{"code":"?"}]}]}',
    b"no JSON",
    b"[1]x",
    b"{}",
    envelope(b'"groups":[{"group_id":"g"},{"user_id":"BR.1"},{}]'),
    envelope(b'"standby":{"messages":[{"id":"wamid.5","from":"6"}],"statuses":[' + STATUS % (5, b"odd") + b"]}"),
    envelope(b'"history":[{"errors":[{"code":1}],"threads":[{"id":"4","messages":[{"id":"wamid.4"}]},5]}]'),
    envelope(b'"contacts":[{"wa_id":"6"}],"messages":[{"from":"6"}]'),
    envelope(b'"control_passed":{"to":"2"},"sender":{"phone_number":"6"}'),
]


def partition_of(keys, count):
    return [sum(key) % count for key in keys]


def make_record(due, key, headers, value, at, records):
    partition = partition_of([key], PARTITIONS[due.topic])[0]
    offset = sum(record.topic == due.topic and record.partition == partition for record in records)
    headers = [(name, text.encode()) for name, text in headers.items()]
    records.append(Record(due.topic, partition, offset, ACCEPTED_MS + at, key, headers, value))


def raw_of(due):
    if due.kind != "remainder":
        return due.raw
    return b"{%s}" % b",".join(json.dumps(at).encode() + b":" + node.bytes for at, node in due.rest)


def value_of(due, receipt, received_at):
    raw = raw_of(due)
    event = due.event(receipt) | {"received_at": received_at}
    if due.is_status and error_codes(due.node):
        event["errors"] = [{"code": code} for code in error_codes(due.node)]
    if parse(raw).is_strict():
        return json.dumps(event | {"raw": "RAW"}).encode().replace(b'"RAW"', raw)
    return json.dumps(event | {"raw_base64": base64.b64encode(raw).decode()}).encode()


def publish(calls):
    """What a faultless edge would have in Kafka."""
    records = []
    for at, call in enumerate(calls):
        received_at = rfc3339_millis(ACCEPTED_MS + at)
        for due in Callback(call.body, call.source).due:
            headers, value = due.headers(call.receipt, received_at), due.raw
            if due.reason:
                headers |= {"method": call.method}
                if due.element is not None:
                    headers["channel"] = json.dumps(due.place.channel)
                if due.contact_fields:
                    headers["contact"] = json.dumps(due.contact_fields)
            else:
                value = value_of(due, call.receipt, received_at)
            make_record(due, due.key(call.receipt).encode(), headers, value, at, records)
    return records


def problems(calls, records):
    return Oracle(calls, records, PARTITIONS, partition_of).problems


def swap_offsets(one, other):
    assert (one.topic, one.key) == (other.topic, other.key) and one.offset != other.offset
    one.offset, other.offset = other.offset, one.offset


def set_key(record, key):
    """The partition is right for it: only the key is wrong."""
    record.key, record.partition = key, partition_of([key], PARTITIONS[record.topic])[0]


def set_header(record, name, value):
    assert any(key == name for key, _ in record.headers), name
    record.headers = [(key, value if key == name else old) for key, old in record.headers]


def alter_value(record, old, new):
    assert old in record.value, old
    record.value = record.value.replace(old, new, 1)


def faults(records):
    """(name, what breaks a copy of the records) for every way in which Kafka could be wrong."""
    for index, record in enumerate(records):
        yield f"record {index} of {record.topic} is lost", lambda rs, i=index: rs.pop(i)
        yield f"record {index} is doubled", lambda rs, i=index: rs.append(copy.deepcopy(rs[i]))
        yield f"record {index} is on another partition", lambda rs, i=index: setattr(rs[i], "partition", 99)
        yield f"record {index} has another key", lambda rs, i=index: set_key(rs[i], b"other")
        yield f"record {index} has no key", lambda rs, i=index: set_key(rs[i], b"")
        yield f"record {index} has another timestamp", lambda rs, i=index: setattr(rs[i], "timestamp", 5)
        for topic in PARTITIONS:
            if topic != record.topic:
                yield f"record {index} is on {topic}", lambda rs, i=index, t=topic: setattr(rs[i], "topic", t)
        for name, _ in record.headers:
            other = b'{"waba_id":"other"}' if name == "channel" else b"other"
            yield f"record {index} has another {name}", lambda rs, i=index, n=name, o=other: set_header(rs[i], n, o)
            yield (
                f"record {index} has no {name}",
                lambda rs, i=index, n=name: setattr(rs[i], "headers", [h for h in rs[i].headers if h[0] != n]),
            )
        more = "ce_subject" if record.topic == "dead_letter" else "content_hash"
        yield f"record {index} has header {more}", lambda rs, i=index, m=more: rs[i].headers.append((m, b"x"))
        if record.topic != "dead_letter":
            yield from faults_of_event(index, json.loads(record.value))
    yield from faults_of(records)


def faults_of_event(index, event):
    for name in event:
        old = f'"{name}": '.encode()
        yield (
            f"record {index} has another {name}",
            lambda rs, i=index, o=old: alter_value(rs[i], o, o + b'"x", "was": '),
        )
        yield f"record {index} has no {name}", lambda rs, i=index, o=old: alter_value(rs[i], o, b'"was": ')
    for name in JUDGED:
        if name not in event:
            new = f'{{"{name}": "x", '.encode()
            yield f"record {index} has {name}", lambda rs, i=index, n=new: alter_value(rs[i], b"{", n)


def faults_of(records):
    def index(**wanted):
        """Of the first record whose event has these fields."""
        events = [json.loads(record.value) if record.topic != "dead_letter" else {} for record in records]
        return next(at for at, event in enumerate(events) if wanted.items() <= event.items())

    status, remainder = index(status="sent"), index(event_kind="remainder")
    dead = next(at for at, record in enumerate(records) if record.value == b'{"status":"sent"}')
    yield "raw is altered", lambda rs: alter_value(rs[status], b'"5582900000001"}}', b'"5582900000002"}}')
    yield "raw is written differently", lambda rs: alter_value(rs[status], b'"status":"sent"', b'"status": "sent"')
    yield "a dead letter is altered", lambda rs: alter_value(rs[dead], b"sent", b"SENT")
    yield "a member of a remainder is lost", lambda rs: alter_value(rs[remainder], b'"/x~1y":2', b'"/x~1y":1')
    yield "a member of a remainder stands once", lambda rs: alter_value(rs[remainder], b'"/x~1y":1,', b"")
    yield "a member of a remainder is elsewhere", lambda rs: alter_value(rs[remainder], b'"/x~1y":1', b'"/x/y":1')
    yield "a second remainder", lambda rs: rs.append(copy.deepcopy(rs[remainder]))
    yield "a rank is another", lambda rs: alter_value(rs[status], b'"status_rank": 10', b'"status_rank": 30')
    yield "a key's records are swapped", lambda rs: swap_offsets(*[r for r in rs if r.key == b"wamid.1"][:2])
    yield "a callback that nobody sent", lambda rs: rs.append(stranger(rs[status]))


def stranger(record):
    other = copy.deepcopy(record)
    set_header(other, "receipt", b"nobody")
    return other


class Case:
    """A pair of files: a body, or an array of bodies, and what it must yield (tests/it/normalize.rs)."""

    def __init__(self, path):
        self.expected = [one for one in json.loads(path.read_text()) if "topic" in one]
        body = path.with_name(path.name.removesuffix(".expect.json") + ".json").read_bytes()
        is_sequence = any("call" in one for one in self.expected)
        bodies = [json.dumps(one).encode() for one in json.loads(body)] if is_sequence else [body]
        self.found = [self.seen(*one) for one in enumerate(bodies, 1)]

    def seen(self, number, body):
        """What a consumer sees of each record, as far as the oracle reads it."""
        return [self.record(number, due) for due in Callback(body, "loja").due]

    def record(self, number, due):
        receipt = f"00000000-0000-0000-0000-{number:012x}"
        headers = due.headers(receipt, rfc3339_millis(1_795_600_007_482))
        event = {} if due.reason else due.event(receipt)
        if not due.reason and parse(raw_of(due)).is_strict():
            event["raw"] = json.loads(raw_of(due))
        topic = f"weni.{contract(due.topic)}"
        return {"call": number, "topic": topic, "key": due.key(receipt), "headers": headers, "event": event}

    def differences(self):
        """Sentences, if the oracle reads something else."""
        left = [record for records in self.found for record in records]
        for one in self.expected:
            found = next((record for record in left if self.is_met(record, one)), None)
            if found is None:
                yield f"{one} is not among {left}"
            else:
                left.remove(found)
        yield from (f"beyond those: {record}" for record in left)

    @staticmethod
    def is_met(record, one):
        judged = [*JUDGED, "raw"]
        event = record["event"]
        for name in ("call", "topic", "key"):
            if name in one and one[name] != record[name]:
                return False
        for name, value in one.get("headers", {}).items():
            if name not in ("channel", "contact", "detail", "method") and record["headers"].get(name) != value:
                return False
        for path, value in one.get("fields", {}).items():
            if path.split(".")[0] in judged and at_path(event, path) != value:
                return False
        absent = [path for path in one.get("absent", []) if path.split(".")[0] in judged]
        return all(at_path(event, path) is LookupError for path in absent)


def at_path(value, path):
    """The value at a dotted path, in which a JSON pointer is one key. LookupError if there is none."""
    first, dot, rest = (path, "", "") if path.startswith("/") else path.partition(".")
    try:
        value = value[int(first)] if isinstance(value, list) else value[first]
    except (LookupError, TypeError, ValueError):
        return LookupError
    return at_path(value, rest) if dot else value


def run():
    calls = [Call(f"receipt-{at}", "loja", "PUT", body, f"body-{at}") for at, body in enumerate(BODIES)]
    records = publish(calls)
    results = [("what is right passes", not problems(calls, copy.deepcopy(records)))]
    for name, breaks in faults(records):
        broken = copy.deepcopy(records)
        breaks(broken)
        results.append((name, bool(problems(calls, broken))))
    silent = calls[:1] + calls[2:]
    results.append(("a call that was not listed", bool(problems(silent, copy.deepcopy(records)))))
    unpublished = [*calls, Call("r", "loja", "PUT", BODIES[7])]
    results.append(("a call that yielded nothing", bool(problems(unpublished, copy.deepcopy(records)))))
    repetition = [record for record in records if record.receipt == "receipt-5"]
    others = [record for record in records if record.receipt != "receipt-5"]
    results.append(("a repetition that is dropped", len(repetition) == 1 and bool(problems(calls, others))))
    due = {"statuses": [["wamid.1", None, "sent", "1763842385"], ["wamid.2", None, "sent", "1763842385"]]}
    due |= {name: [] for name in ("messages", "echoes", "history_messages", "calls")} | {"value_errors": 0}
    results.append(("an expectation that is met", not list(check_expected(calls, {"body-0": due}))))
    results.append(("an expectation that is not met", bool(list(check_expected(calls, {"body-1": due})))))
    # The oracle knows the default settings; tests/it/normalize.rs judges the others.
    for path in sorted(path for path in CASES.glob("*.expect.json") if '"settings"' not in path.read_text()):
        differences = list(Case(path).differences())
        results.append((f"{path.name}: {differences}", not differences))
    failed = [name for name, passed in results if not passed]
    for name in failed:
        print(f"NOT SEEN {name}")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
