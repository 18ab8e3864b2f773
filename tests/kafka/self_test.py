"""The oracle is itself tested: it passes what is right and sees every way in which it is made wrong."""

import base64
import copy
import json
from datetime import UTC, datetime

from oracle import KINDS, RANKS, Call, Oracle, Record, check_expected, rfc3339
from reading import Callback, Element, parse

PARTITIONS = {"message_status": 4, "inbound_message": 4, "channel_event": 2, "dead_letter": 1}
ACCEPTED_MS = 1_790_000_000_000
STATUS = b'{"id":"wamid.%d","status":"%s","timestamp":"1763842385","recipient_id":"5582900000001"}'
VALUE = b'{"messaging_product":"whatsapp","metadata":{"phone_number_id":"77"},%s}'
ENVELOPE = b'{"object":"whatsapp_business_account","entry":[{"id":"88","changes":[{"field":"messages","value":%s}]}]}'


def envelope(members):
    return ENVELOPE % (VALUE % members)


MESSAGE = b'{"from":"1","id":"wamid.9","timestamp":"soon","type":"text","text":{"body":"\xc3\xa7 \\ud83d"}}'
BODIES = [
    envelope(b'"statuses":[' + STATUS % (1, b"sent") + b"," + STATUS % (2, b"sent") + b"]"),
    envelope(b'"statuses":[' + STATUS % (1, b"delivered") + b"]"),
    envelope(b'"statuses":[' + STATUS % (1, b" READ") + b',{"status":"sent"},7]'),
    envelope(b'"messages":[' + MESSAGE + b"]"),
    envelope(b'"calls":[{"id":"wacid.1","event":"connect","timestamp":"1763842390"}],"errors":[{"code":131000}]'),
    envelope(b'"statuses":[' + STATUS % (2, b"sent") + b"]"),  # an exact repetition
    b'{"statuses":[{"id":"gBEGkY","status":"read","timestamp":"1763842391","recipient_id":"5"}]}',
    b"no JSON",
    b"[1]x",
    b"{}",
]


def partition_of(keys, count):
    return [sum(key) % count for key in keys]


def event_value(element, call, pointer, raw):
    node, status = element.node, element.node.text("status")
    timestamp = node.text("timestamp")
    value = {
        "schema_version": 1,
        "event_id": element.event_id,
        "event_kind": element.kind,
        "source": call.source,
        "receipt": call.receipt,
        "received_at": "",
        "occurred_at": rfc3339(timestamp),
        "format": element.where.format,
        "element": pointer,
        "channel": {"waba_id": element.where.waba_id, "phone_number_id": element.where.phone_number_id},
    }
    if element.where.field is not None:
        value["field"] = element.where.field
    if timestamp and rfc3339(timestamp) is None:
        value["timestamp_raw"] = timestamp
    if element.kind in ("message_status", "inbound_message"):
        value["message_id"] = node.text("id")
    if element.kind == "message_status":
        value["status"] = status.strip().lower()
        value |= {"status_raw": status} if value["status"] != status else {}
        value |= {"status_known": True, "status_rank": RANKS[value["status"]]}
        value["recipient"] = {"id": node.text("recipient_id")}
    if element.kind == "inbound_message":
        value |= {"type": node.text("type"), "from": {"id": node.text("from")}}
    return value | raw


def make_record(topic, key, headers, value, at, records):
    partition = partition_of([key], PARTITIONS[topic])[0]
    offset = sum(record.topic == topic and record.partition == partition for record in records)
    headers = [(name, text.encode()) for name, text in headers.items()]
    records.append(Record(topic, partition, offset, ACCEPTED_MS + at, key, headers, value))


def time_of(at):
    time = datetime.fromtimestamp((ACCEPTED_MS + at) / 1000, UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{(ACCEPTED_MS + at) % 1000:03d}Z"


def add_event(element, call, pointer, at, records):
    raw_bytes = element.node.bytes
    strict = b"\\ud83d" not in raw_bytes
    raw = {"raw": "RAW"} if strict else {"raw_base64": base64.b64encode(raw_bytes).decode()}
    value = event_value(element, call, pointer, raw) | {"received_at": time_of(at)}
    key = element.node.text("id") or call.receipt
    topic = KINDS[element.kind]
    headers = {
        "ce_specversion": "1.0",
        "ce_id": value["event_id"],
        "ce_type": f"ai.weni.{element.kind}.v1",
        "ce_source": f"/hooks/{call.source}",
        "ce_time": value["occurred_at"] or value["received_at"],
        "ce_dataschema": f"urn:weni-edge:{topic.replace('_', '-')}.v1",
        "content-type": "application/json",
        "receipt": call.receipt,
    }
    text = json.dumps(value).encode().replace(b'"RAW"', raw_bytes)
    make_record(topic, key.encode(), headers, text, at, records)


def add_dead_letter(call, reason, value, pointer, at, records):
    headers = {
        "reason": reason,
        "stage": "normalize",
        "source": call.source,
        "receipt": call.receipt,
        "received_at": time_of(at),
        "method": call.method,
    }
    headers |= {"element": pointer} if pointer else {}
    make_record("dead_letter", call.receipt.encode(), headers, value, at, records)


def publish(calls):
    """What a faultless edge would have in Kafka."""
    records = []
    for at, call in enumerate(calls):
        callback = Callback(call.body, call.source)
        if callback.whole:
            add_dead_letter(call, callback.whole, call.body, "", at, records)
        for node, where in callback.kept:  # of these bodies: a value's errors
            kept = Element("", "channel_event", parse(b'{"errors":%s}' % node.bytes), where)
            add_event(kept, call, "/entry/0/changes/0/value", at, records)
        lists = {}
        for element in callback.elements:
            index = lists[element.list] = lists.get(element.list, -1) + 1
            pointer = f"/{element.list}/{index}"
            if element.where.format == "cloud":
                pointer = "/entry/0/changes/0/value" + pointer
            if element.kind == "dead_letter":
                add_dead_letter(call, element.reason, element.node.bytes, pointer, at, records)
            else:
                add_event(element, call, pointer, at, records)
    return records


def problems(calls, records):
    return Oracle(calls, records, PARTITIONS, partition_of).problems


def swap_offsets(one, other):
    assert (one.topic, one.key) == (other.topic, other.key) and one.offset != other.offset
    one.offset, other.offset = other.offset, one.offset


def set_header(record, name, value):
    assert any(key == name for key, _ in record.headers), name
    record.headers = [(key, value if key == name else old) for key, old in record.headers]


def alter_value(record, old, new):
    assert old in record.value, old
    record.value = record.value.replace(old, new, 1)


def faults(records):
    """(name, what breaks a copy of the records) for every way in which Kafka could be wrong."""
    first = {topic: next(i for i, r in enumerate(records) if r.topic == topic) for topic in PARTITIONS}
    for index, record in enumerate(records):
        yield f"record {index} of {record.topic} is lost", lambda rs, i=index: rs.pop(i)
        yield f"record {index} is doubled", lambda rs, i=index: rs.append(copy.deepcopy(rs[i]))
        yield f"record {index} is on another partition", lambda rs, i=index: setattr(rs[i], "partition", 99)
        yield f"record {index} has another key", lambda rs, i=index: setattr(rs[i], "key", b"other")
        yield f"record {index} has no key", lambda rs, i=index: setattr(rs[i], "key", b"")
        yield f"record {index} has another timestamp", lambda rs, i=index: setattr(rs[i], "timestamp", 5)
        for name, _ in record.headers:
            if record.topic == "dead_letter" and name == "element":
                continue  # checked below: an element's bytes may be at more than one place
            yield f"record {index} has another {name}", lambda rs, i=index, n=name: set_header(rs[i], n, b"other")
            yield (
                f"record {index} has no {name}",
                lambda rs, i=index, n=name: setattr(rs[i], "headers", [h for h in rs[i].headers if h[0] != n]),
            )
        if record.topic != "dead_letter":
            for name in json.loads(record.value):
                yield (
                    f"record {index} has another {name}",
                    lambda rs, i=index, n=name: alter_value(
                        rs[i], f'"{n}": '.encode(), f'"{n}": "x", "was": '.encode()
                    ),
                )
            yield f"record {index} has one header more", lambda rs, i=index: rs[i].headers.append(("x", b""))
    status = first["message_status"]
    yield "a status is on the topic of messages", lambda rs: setattr(rs[status], "topic", "inbound_message")
    yield "raw is altered", lambda rs: alter_value(rs[status], b"5582900000001", b"5582900000002")
    yield "raw is written differently", lambda rs: alter_value(rs[status], b'"status":"sent"', b'"status": "sent"')
    yield "a dead letter is altered", lambda rs: alter_value(rs[first["dead_letter"]], b"sent", b"SENT")
    yield "a key's records are swapped", lambda rs: swap_offsets(*[r for r in rs if r.key == b"wamid.1"][:2])
    yield "a callback that nobody sent", lambda rs: rs.append(stranger(rs[status]))


def stranger(record):
    other = copy.deepcopy(record)
    set_header(other, "receipt", b"nobody")
    return other


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
    due |= {name: [] for name in ("messages", "echoes", "history_messages", "calls")}
    results.append(("an expectation that is met", not list(check_expected(calls, {"body-0": due}))))
    results.append(("an expectation that is not met", bool(list(check_expected(calls, {"body-1": due})))))
    failed = [name for name, passed in results if not passed]
    for name in failed:
        print(f"NOT SEEN {name}")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
