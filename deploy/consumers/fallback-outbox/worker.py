#!/usr/bin/env python3
"""Sends an SMS where WhatsApp did not deliver. Environment: DATABASE=postgresql://… SMS_URL=https://…

TIMEOUT_MINUTES (5): without a delivery for so long, a message gets an SMS. GRACE_MINUTES (2): so long an SMS
waits for a late delivery. Both have to be below 60. Several workers can run.
"""

import json
import logging
import os
import signal
import sys
import threading
import urllib.request

import psycopg

TIMEOUT, GRACE = float(os.environ.get("TIMEOUT_MINUTES", "5")), float(os.environ.get("GRACE_MINUTES", "2"))

# The time limit is over when each partition had an update that is newer than it. So nothing is decided while one
# lags, and an outage of Kafka or of the consumer causes no SMS. The hour keeps a rebuild from texting about last week.
PLAN = """
INSERT INTO sms_outbox (message_id, reason)
SELECT o.message_id, CASE WHEN f.failed THEN 'failed' ELSE 'timeout' END
FROM outgoing AS o
LEFT JOIN message_state AS s ON s.message_id = o.message_id AND s.participant = ''
LEFT JOIN message_update AS u USING (event_id)
CROSS JOIN LATERAL (SELECT coalesce(s.status = 'failed' AND u.errors @> '[{"fault": "recipient"}]', false) AS failed) AS f
WHERE o.sent_at > now() - interval '1 hour'
  AND coalesce(s.status_rank, 0) < 20
  -- This user stopped marketing messages.
  AND NOT EXISTS (SELECT FROM message_update WHERE message_id = o.message_id AND errors @> '[{"code": 131050}]')
  AND (f.failed OR o.sent_at + %s * interval '1 minute' <
    (SELECT min(coalesce(received_at, '-infinity')) FROM consumer_offset WHERE topic = 'weni.message-status.v1'))
ON CONFLICT DO NOTHING
"""
WITHDRAW = """
UPDATE sms_outbox AS x SET withdrawn_at = now() FROM message_update AS u
WHERE u.message_id = x.message_id AND u.participant = ''
  AND (u.status_rank >= 20 OR u.errors @> '[{"code": 131050}]')
  AND x.sent_at IS NULL AND x.withdrawn_at IS NULL
"""
# The row stays locked until it is marked as sent, and other workers skip it. The pauses between attempts grow.
TAKE = """
SELECT x.message_id, o.phone, o.sms_text FROM sms_outbox AS x JOIN outgoing AS o USING (message_id)
WHERE x.sent_at IS NULL AND x.withdrawn_at IS NULL AND x.attempts < 10
  AND x.planned_at + (%s + x.attempts * x.attempts) * interval '1 minute' <= now()
  AND o.sent_at > now() - interval '2 hours'
ORDER BY x.attempts, x.planned_at LIMIT 1 FOR UPDATE OF x SKIP LOCKED
"""
SENT = "UPDATE sms_outbox SET sent_at = now() WHERE message_id = %s"
NOT_SENT = "UPDATE sms_outbox SET attempts = attempts + 1 WHERE message_id = %s"

log = logging.getLogger("worker")


def send_sms(message_id, phone, text):
    """Yours to replace. A worker that dies after this sends again: the provider has to know the key."""
    body = json.dumps({"to": phone, "text": text}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": message_id}
    urllib.request.urlopen(urllib.request.Request(os.environ["SMS_URL"], body, headers), timeout=10).close()


def send_next(database):
    """Whether an SMS was sent."""
    database.execute(WITHDRAW)
    with database.transaction():
        taken = database.execute(TAKE, (GRACE,)).fetchone()
        if not taken:
            return False
        try:
            send_sms(*taken)
        except Exception as error:  # whatever your provider's client raises
            log.warning("an SMS was not sent, and is tried again: %r", error)
            database.execute(NOT_SENT, taken[:1])
            return False
        database.execute(SENT, taken[:1])
        return True


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if TIMEOUT >= 60 or GRACE >= 60:
        sys.exit("TIMEOUT_MINUTES and GRACE_MINUTES have to be below 60: no SMS is planned for a message older than an hour")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with psycopg.connect(os.environ["DATABASE"], autocommit=True) as database:
        log.info("timeout after %g min, grace of %g min", TIMEOUT, GRACE)
        while not stop.is_set():
            planned = database.execute(PLAN, (TIMEOUT,)).rowcount
            if planned:
                log.info("planned: %d", planned)
            while not stop.is_set() and send_next(database):
                pass
            stop.wait(1)
    log.info("stopped")


if __name__ == "__main__":
    main()
