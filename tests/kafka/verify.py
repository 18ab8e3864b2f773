#!/usr/bin/env python3
"""Reads the edge's topics from a real Kafka and judges them, with a client and a reader that are not the edge's.

    verify.py --bootstrap HOST:PORT --calls SOURCE METHOD RECEIPTS [--calls …] [--expected EXPECTED.jsonl]
    verify.py --self-test

`weni-edge send --receipts` writes RECEIPTS on one connection: a receipt and a file's path a line, in the
order of acceptance. The runs are given in the order in which they were made. Their sources have no labels,
`raw = "all"` and messages as keys, which are the defaults. The last line counts: `N passed, N failed`.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from oracle import Call, Oracle, Record, check_expected

HERE = Path(__file__).resolve().parent
ROLES = {
    "message_status": "weni.message-status.v1",
    "inbound_message": "weni.inbound-message.v1",
    "channel_event": "weni.channel-event.v1",
    "dead_letter": "weni.dead-letter.v1",
}
PROBLEMS_SHOWN = 40


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", metavar="HOST:PORT")
    parser.add_argument("--calls", nargs=3, action="append", default=[], metavar=("SOURCE", "METHOD", "RECEIPTS"))
    parser.add_argument("--expected", type=Path, help="what each file yields, by its name")
    parser.add_argument("--admin", help="the edge's admin address: wait until nothing is pending, hold its accounts")
    parser.add_argument("--topic", nargs=2, action="append", default=[], metavar=("ROLE", "NAME"))
    parser.add_argument("--records", type=Path, help="write the values of each topic of events into this directory")
    parser.add_argument("--self-test", action="store_true", help="show that the oracle sees what is wrong")
    return parser.parse_args()


def read_calls(runs):
    bodies = {}
    for source, method, receipts in runs:
        for line in Path(receipts).read_text().splitlines():
            receipt, name = line.split("\t")
            if name not in bodies:
                bodies[name] = Path(name).read_bytes()
            yield Call(receipt, source, method, bodies[name], name)


def read_topics(bootstrap, topics):
    """All committed records, and each topic's number of partitions."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "verify",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            "auto.offset.reset": "earliest",
        }
    )
    roles = {name: role for role, name in topics.items()}
    metadata = consumer.list_topics(timeout=20).topics
    partitions = {role: len(metadata[name].partitions) for role, name in topics.items()}
    unread = {(name, at) for role, name in topics.items() for at in range(partitions[role])}
    consumer.assign([TopicPartition(name, at, 0) for name, at in unread])
    records, deadline = [], time.monotonic() + 120
    while unread:
        if time.monotonic() > deadline:
            sys.exit(f"not read to the end within two minutes: {sorted(unread)}")
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                sys.exit(f"reading failed: {message.error()}")
            unread.discard((message.topic(), message.partition()))
            continue
        records.append(
            Record(
                topic=roles[message.topic()],
                partition=message.partition(),
                offset=message.offset(),
                timestamp=message.timestamp()[1],
                key=message.key() or b"",
                headers=message.headers() or [],
                value=message.value() or b"",
            )
        )
    consumer.close()
    return records, partitions


def partition_of(keys, count):
    """Asks Kafka's own partitioner."""
    if not keys:
        return []
    if any(b"\n" in key or b"\r" in key for key in keys):
        sys.exit("a key with a line break cannot be asked about")
    answer = subprocess.run(
        [HERE / "kafka", "partition", str(count)], input=b"\n".join(keys) + b"\n", stdout=subprocess.PIPE, check=True
    )
    return [int(line) for line in answer.stdout.split()]


def metrics(admin):
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name.removeprefix("weni_edge_"): float(value) for name, value in samples}


def total(samples, name, *labels):
    """The sum of a metric's samples that have these labels."""
    return int(
        sum(
            value
            for sample, value in samples.items()
            if sample.split("{")[0] == name and all(label in sample for label in labels)
        )
    )


def settled(admin):
    deadline = time.monotonic() + 60
    while True:
        samples = metrics(admin)
        if total(samples, "journal_pending_callbacks") == 0:
            return samples
        if time.monotonic() > deadline:
            sys.exit("callbacks are still pending after a minute")
        time.sleep(0.2)


def check_metrics(samples, calls, records, oracle):
    """The edge's own accounts against what is in Kafka."""
    dead = sum(record.topic == "dead_letter" for record in records)
    outcome = {
        name: total(samples, "items_total", f'outcome="{name}"')
        for name in ("published", "dead_lettered", "empty", "quarantined", "already_committed")
    }
    empty = sum(not callback.due for callback in oracle.callbacks.values())
    remainders = sum(record.event.get("event_kind") == "remainder" for record in records)
    for name, given, due in (
        ("callbacks_accepted_total", total(samples, "callbacks_accepted_total"), len(calls)),
        ("callbacks_settled_total", total(samples, "callbacks_settled_total"), len(calls)),
        ("items published", outcome["published"], len(records) - dead),
        ("items dead_lettered", outcome["dead_lettered"], dead),
        ("items empty", outcome["empty"], empty),
        ("items quarantined", outcome["quarantined"], 0),
        ("publish_records_total", total(samples, "publish_records_total"), len(records)),
        ("dead_letters_total", total(samples, "dead_letters_total"), dead),
        ("callback_remainders_total", total(samples, "callback_remainders_total"), remainders),
    ):
        if given != due:
            yield f"the edge counts {given} {name}, and there are {due}"


def write_values(records, directory):
    """One JSON array a topic, for a judge of schemas."""
    directory.mkdir(exist_ok=True)
    for role in ROLES:
        values = [record.value for record in records if record.topic == role and role != "dead_letter"]
        (directory / f"{role.replace('_', '-')}.v1.json").write_bytes(b"[" + b",\n".join(values) + b"]")


def main():
    options = arguments()
    if options.self_test:
        import self_test

        sys.exit(self_test.run())
    calls = list(read_calls(options.calls))
    if not calls:
        sys.exit("no calls: give --calls")
    samples = settled(options.admin) if options.admin else None
    records, partitions = read_topics(options.bootstrap, ROLES | dict(options.topic))
    if options.records:
        write_values(records, options.records)
    oracle = Oracle(calls, records, partitions, partition_of)
    problems = list(oracle.problems)
    if options.expected:
        lines = options.expected.read_text().splitlines()
        problems += check_expected(calls, {row["file"]: row for row in map(json.loads, lines)})
    if samples is not None:
        problems += check_metrics(samples, calls, records, oracle)
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"WRONG {problem}")
    if len(problems) > PROBLEMS_SHOWN:
        print(f"… and {len(problems) - PROBLEMS_SHOWN} more")
    by_topic = ", ".join(f"{sum(r.topic == role for r in records)} {role}" for role in ROLES)
    print(f"{len(calls)} calls, {len(records)} records ({by_topic})")
    checks = len(calls) + len(records)
    print(f"{max(checks - len(problems), 0)} passed, {len(problems)} failed")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
