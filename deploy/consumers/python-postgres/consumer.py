#!/usr/bin/env python3
"""Keeps the tables of schema.sql right. Environment: KAFKA=host:9092 DATABASE=postgresql://…

Updates, states and offsets are one database transaction. So a batch is stored whole or read again.
"""

import functools
import json
import logging
import os
import signal
from datetime import datetime

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException
from psycopg.types.json import Jsonb

TOPICS = ["weni.message-status.v1", "weni.dead-letter.v1"]
COLUMNS = ["event_id", "message_id", "participant", "status", "status_rank", "happened_at", "received_at",
           "recipient_type", "phone_number_id", "user_key", "phone", "pricing_type", "pricing_category", "errors"]
# A repetition adds detail and never takes any away.
UPDATE = f"""
INSERT INTO message_update AS u ({", ".join(COLUMNS)}) VALUES ({", ".join(f"%({c})s" for c in COLUMNS)})
ON CONFLICT (event_id) DO UPDATE SET received_at = greatest(u.received_at, excluded.received_at),
  {", ".join(f"{c} = coalesce(excluded.{c}, u.{c})" for c in COLUMNS[7:])}
"""
STATE = """
INSERT INTO message_state AS s (message_id, participant, status, status_rank, happened_at, event_id)
VALUES (%(message_id)s, %(participant)s, %(status)s, %(status_rank)s, %(happened_at)s, %(event_id)s)
ON CONFLICT (message_id, participant) DO UPDATE SET status = excluded.status,
  status_rank = excluded.status_rank, happened_at = excluded.happened_at, event_id = excluded.event_id
WHERE (excluded.status_rank, excluded.happened_at) > (s.status_rank, s.happened_at)
"""
# A member that lost its partition may still store its last batch. It must not move the new owner's offset back.
OFFSET = """
INSERT INTO consumer_offset AS o (topic, partition, next_offset, received_at) VALUES (%s, %s, %s, %s)
ON CONFLICT (topic, partition) DO UPDATE SET next_offset = greatest(o.next_offset, excluded.next_offset),
  received_at = greatest(o.received_at, excluded.received_at)
"""

log = logging.getLogger("consumer")


@functools.lru_cache(1000)
def warn_once(text):
    log.warning(text)


def place(message):
    return f"{message.topic()}[{message.partition()}]@{message.offset()}"


def row(message):
    """The columns of a status update, or None for any other record."""
    headers = dict(message.headers() or [])
    if "ce_type" not in headers:
        log.warning("%s is a dead letter: %s", place(message), headers.get("reason", b"no reason").decode())
        return None
    try:
        event = json.loads(message.value())
        if event["event_kind"] != "message_status":
            return None
        return columns(event)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.error("%s cannot be read, and is left out: %r", place(message), error)
        return None


def columns(event):
    if event["schema_version"] > 1:
        warn_once(f"schema_version {event['schema_version']} is newer than this consumer")
    if not event["status_known"]:
        warn_once(f"status {event['status']!r} is unknown: stored, but no state")
    recipient, pricing = event.get("recipient", {}), event.get("pricing", {})
    errors = [{name: error.get(name) for name in ("code", "retry", "fault")} for error in event.get("errors", [])]
    values = [event["event_id"], event["message_id"],
              recipient.get("participant_user_id") or recipient.get("participant_id") or "",
              event["status"], event["status_rank"],
              datetime.fromisoformat(event["occurred_at"] or event["received_at"]),
              datetime.fromisoformat(event["received_at"]), recipient.get("type"),
              event.get("channel", {}).get("phone_number_id"), event.get("user_key"),
              recipient.get("participant_id" if recipient.get("type") == "group" else "id"),
              pricing.get("type"), pricing.get("category"), Jsonb(errors) if errors else None]
    # A JSON string can contain a NUL. PostgreSQL's text cannot.
    return dict(zip(COLUMNS, [v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in values]))


def store(database, messages):
    rows, offsets, newest = [], {}, {}
    for message in messages:
        partition = message.topic(), message.partition()
        offsets[partition] = message.offset() + 1
        if columns := row(message):
            rows.append(columns)
            newest[partition] = max(columns["received_at"], newest.get(partition, columns["received_at"]))
    with database.transaction(), database.cursor() as cursor:
        cursor.executemany(UPDATE, rows)
        cursor.executemany(STATE, [columns for columns in rows if columns["status_rank"] is not None])
        cursor.executemany(OFFSET, [(*p, offset, newest.get(p)) for p, offset in offsets.items()])


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    with psycopg.connect(os.environ["DATABASE"], autocommit=True) as database:

        def on_assign(consumer, partitions):
            query = "SELECT next_offset FROM consumer_offset WHERE topic = %s AND partition = %s"
            for p in partitions:
                stored = database.execute(query, (p.topic, p.partition)).fetchone()
                p.offset = stored[0] if stored else OFFSET_BEGINNING
                log.info("assigned: %s[%d] from %s", p.topic, p.partition, stored[0] if stored else "the beginning")
            consumer.assign(partitions)

        consumer = Consumer({
            "bootstrap.servers": os.environ["KAFKA"],
            "group.id": "message-state",
            "isolation.level": "read_committed",
            # The offsets in Kafka are only for lag monitors; the database has the true ones.
            "enable.auto.commit": True,
            # If retention has removed what was not read yet, end with an error instead of going on in silence.
            "auto.offset.reset": "error",
            # A member that was killed gives its partitions up after this time.
            "session.timeout.ms": 10_000,
        })
        consumer.subscribe(TOPICS, on_assign=on_assign)
        try:
            while not stop:
                messages = consumer.consume(500, timeout=1.0)
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                if messages:
                    store(database, messages)
        finally:
            consumer.close()
    log.info("stopped")


if __name__ == "__main__":
    main()
