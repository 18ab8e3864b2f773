"""Sends the stream through an edge, kills consumers meanwhile, and compares their end with the expected one."""

import argparse
import contextlib
import glob
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from datetime import datetime
from pathlib import Path

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import stream
from processes import ROOT, SECRET, Edge, Kafka, end, wait_for
from report import Report

CONSUMERS = ROOT / "deploy/consumers"
STATUSES, DEAD_LETTERS = "weni.message-status.v1", "weni.dead-letter.v1"
# `orders` has another number of partitions than the edge's topics, which have three.
TOPICS = {"orders": (4, {}), "message-state": (3, {"cleanup.policy": "compact"}),
          "order-message-state": (4, {"cleanup.policy": "compact"})}  # fmt: skip
PATIENCE = float(os.environ.get("PATIENCE", 90))  # seconds for a condition; a killed member's partitions move after 10


class Process:
    def __init__(self, work, name, command, **environment):
        self.path = work / f"{name}.log"
        with open(self.path, "w") as log:
            self.process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)

    def log(self):
        return self.path.read_text()

    def end(self, sign=signal.SIGKILL):
        end(self.process, sign)
        return self.process.returncode

    def alive(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.path.stem} ended: {self.log()[-2000:]}")
        return True


@contextlib.contextmanager
def postgres(work):
    """Debian's PostgreSQL with a directory and a socket of its own; it refuses to run as root."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))[-1]
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    directory = tempfile.mkdtemp(prefix="weni-edge-consumers.")  # every user can get there
    if user:
        shutil.chown(directory, "postgres", "postgres")
    with open(work / "postgres.log", "w") as log:
        options = {"stdout": log, "stderr": log, "cwd": directory, **user}
        subprocess.run([f"{found}/initdb", "-D", f"{directory}/data", "-A", "trust", "-U", "postgres"], check=True, **options)
        process = subprocess.Popen([f"{found}/postgres", "-D", f"{directory}/data", "-k", directory, "-c", "listen_addresses=",
                                    "-c", "timezone=UTC", "-c", "fsync=off"], **options)  # fmt: skip
    try:
        dsn = f"host={directory} user=postgres dbname=postgres"

        def connects():
            with contextlib.suppress(psycopg.OperationalError):
                return psycopg.connect(dsn, autocommit=True)

        yield dsn, wait_for("PostgreSQL accepts connections", connects, 30)
    finally:
        end(process, signal.SIGQUIT)
        shutil.rmtree(directory)


@contextlib.contextmanager
def sms_provider():
    """Accepts SMS, and remembers their keys. Until `repaired` is set it answers with nonsense, and until `release` is set
    it leaves senders without an answer."""
    refused, received, repaired, release = [], [], threading.Event(), threading.Event()

    class Provider(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            if not repaired.is_set():
                refused.append(self.headers["Idempotency-Key"])
                self.rfile.read(int(self.headers["Content-Length"]))  # otherwise the sender may see a reset connection
                self.wfile.write(b"nonsense\r\n\r\n")
                return
            received.append(self.headers["Idempotency-Key"])
            release.wait()
            with contextlib.suppress(OSError):  # the sender was killed
                self.send_response(200)
                self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", refused, received, repaired, release
    finally:
        release.set()
        server.shutdown()


class Table:
    """A compacted topic, as a reader with `read_committed` sees it."""

    def __init__(self, kafka, topic):
        self.consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": "reader", "enable.auto.commit": False})
        partitions = self.consumer.list_topics(topic).topics[topic].partitions
        self.consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        self.rows = {}

    def read(self):
        while messages := self.consumer.consume(1000, timeout=0.5):
            self.rows |= {m.key().decode(): json.loads(m.value()) for m in messages if not m.error()}
        return self.rows


class Test:
    def __init__(self, work, edge, kafka, dsn, database, report):
        self.work, self.edge, self.kafka, self.dsn, self.database, self.report = work, edge, kafka, dsn, database, report
        self.processes, self.started = [], time.monotonic()

    def say(self, what):
        print(f"    {time.monotonic() - self.started:5.0f} s  {what}", flush=True)

    def rows(self, query, *arguments):
        return self.database.execute(query, arguments or None).fetchall()

    def run(self, name, *command, **environment):
        process = Process(self.work, name, [str(word) for word in command], KAFKA=self.kafka.address, DATABASE=self.dsn, **environment)
        self.processes.append(process)
        return process

    def consumer(self, name):
        return self.run(name, sys.executable, CONSUMERS / "python-postgres/consumer.py")

    def streams(self, name):
        folder = CONSUMERS / "kafka-streams/target"
        return self.run(name, "java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
                        f"{folder}/classes:{folder}/lib/*", "MessageState", STATE_DIR=str(self.work / "streams"))  # fmt: skip

    def worker(self, name, url, grace, timeout="30"):
        return self.run(name, sys.executable, CONSUMERS / "fallback-outbox/worker.py",
                        SMS_URL=url, TIMEOUT_MINUTES=timeout, GRACE_MINUTES=grace)  # fmt: skip

    def until(self, what, condition, *processes):
        """Waits for a condition, and that the processes live."""
        wait_for(what, lambda: all(process.alive() for process in processes) and condition(), PATIENCE)
        self.say(what)

    # --- what goes in --------------------------------------------------------------------------------

    def send(self, number):
        context = ssl.create_default_context(cafile=self.edge.ca)
        for body in stream.bodies(number):
            request = urllib.request.Request(f"https://{self.edge.public}/hooks/loja", body, {"X-Token": SECRET})
            urllib.request.urlopen(request, timeout=10, context=context).close()
        self.say(f"round {number} is sent")

    def produce(self):
        """What no edge produces: a newer schema_version, what cannot be read, and what was aborted.

        Returns the partition, and the offset after its last committed record."""
        common = {"event_kind": "message_status", "source": "loja", "receipt": "r", "received_at": "2025-06-15T15:06:42.000Z",
                  "occurred_at": "2025-06-15T15:06:42Z", "status": "delivered", "status_known": True, "status_rank": 20,
                  "recipient": {"id": "5582991111111", "type": "individual"}}  # fmt: skip
        newer = common | {"schema_version": 2, "event_id": "newer", "message_id": "wamid.newer", "nobody": ["knows", "this"],
                          "channel": {"phone_number_id": stream.NUMBER}}  # fmt: skip
        unreadable = common | {"schema_version": 3, "event_id": "unreadable"}
        aborted = newer | {"event_id": "aborted", "message_id": "wamid.in-order", "status": "played", "status_rank": 40}
        producer = Producer({"bootstrap.servers": self.kafka.address, "transactional.id": "by-hand"})
        producer.init_transactions()
        last = self.transaction(producer, json.dumps(newer), json.dumps(unreadable), None, "{")
        producer.commit_transaction()
        self.transaction(producer, json.dumps(aborted))
        producer.abort_transaction()
        return last.partition(), last.offset() + 1

    def transaction(self, producer, *values):
        """Begins one with these values. Returns its last record."""
        delivered = []
        producer.begin_transaction()
        for value in values:
            producer.produce(STATUSES, value, "wamid.by-hand", headers={"ce_type": "ai.weni.message_status.v1"},
                             on_delivery=lambda _, message: delivered.append(message))  # fmt: skip
        producer.flush()
        return delivered[-1]

    def order(self, orders):
        producer = Producer({"bootstrap.servers": self.kafka.address})
        producer.produce("orders", None, "deleted", partition=0)
        for number, (hours, name) in orders.items():
            producer.produce("orders", json.dumps({"order_id": number, "phone": stream.spelt(name, number)}),
                             timestamp=int((time.time() - hours * 3600) * 1000))  # fmt: skip
        producer.flush()

    # --- what is seen --------------------------------------------------------------------------------

    def updates(self):
        return self.rows("SELECT count(*) FROM message_update")[0][0]

    def stored(self, number):
        """Whether the updates of the rounds up to this one are in the database."""
        updates = {(name, *update.split("!")[0].split("$")) [:2] for name, rounds in stream.ROWS.items()
                   for cell in rounds[: number + 1] for update in cell.split()}  # fmt: skip
        return self.updates() >= len(updates) + stream.FILLER * (number + 1)

    def offsets(self):
        return dict(self.rows("SELECT partition, next_offset FROM consumer_offset WHERE topic = %s", STATUSES))

    def kafka_is_ahead(self):
        """Whether the offsets in Kafka are beyond those of the database: going on from them would lose updates."""
        reader = Consumer({"bootstrap.servers": self.kafka.address, "group.id": "message-state"})
        try:
            found = reader.committed([TopicPartition(STATUSES, p) for p in range(3)], timeout=10)
        finally:
            reader.close()
        # A transaction's end takes an offset, too: more than one.
        return any(p.offset > self.offsets().get(p.partition, 0) + 10 for p in found)

    def kill_within_a_transaction(self, locked, number, victim, *others):
        """Stops the consumers at a lock on `locked`, in the middle of their transactions, and kills one there."""
        before = self.updates(), self.offsets()
        with psycopg.connect(self.dsn) as lock:
            lock.execute(f"LOCK TABLE {locked} IN EXCLUSIVE MODE")
            self.send(number)
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            self.until(f"consumers wait for {locked}", lambda: len(self.rows(waiting)) > len(others), victim, *others)
            self.until("Kafka's offsets are ahead", self.kafka_is_ahead, victim, *others)
            self.report.same(f"neither updates nor offsets are stored before {locked}", (self.updates(), self.offsets()), before)
            victim.end(signal.SIGKILL)
            self.say(f"{victim.path.stem} is killed")
            lock.rollback()
        self.until(f"round {number} is stored", lambda: self.stored(number), *others)

    # --- the test ------------------------------------------------------------------------------------

    def prepare(self):
        admin = AdminClient({"bootstrap.servers": self.kafka.address})
        topics = [NewTopic(name, count, 1, config=config) for name, (count, config) in TOPICS.items()]
        for future in admin.create_topics(topics).values():
            future.result()
        for folder in ("python-postgres", "fallback-outbox"):
            self.database.execute((CONSUMERS / folder / "schema.sql").read_text())
        self.database.execute("INSERT INTO price VALUES ('utility', 0.01), ('marketing', 0.06)")
        for name, (minutes, *_) in stream.OUTGOING.items():
            self.database.execute("INSERT INTO outgoing VALUES (%s, %s, 'Oi', now() - %s * interval '1 minute')",
                                  (f"wamid.{name}", stream.phone(name), minutes))  # fmt: skip
        self.until("the edge has made its topics", lambda: {STATUSES, DEAD_LETTERS} <= admin.list_topics().topics.keys())

    def go(self):
        self.prepare()
        self.order(stream.ORDERS)
        message_state, order_state = Table(self.kafka, "message-state"), Table(self.kafka, "order-message-state")
        first, streams = self.consumer("consumer-1"), self.streams("streams-1")
        self.send(0)
        self.until("round 0 is stored", lambda: self.stored(0), first)
        self.until("Kafka Streams has states", message_state.read, streams)

        second = self.consumer("consumer-2")
        self.until("a second consumer has partitions", lambda: "assigned: weni.message-status" in second.log(), first, second)
        self.kill_within_a_transaction("consumer_offset", 1, first, second)
        self.until("Kafka Streams is in round 1",
                   lambda: any(row["status"] == "delivered" for row in message_state.read().values()), streams)  # fmt: skip
        streams.end(signal.SIGKILL)
        self.say("Kafka Streams is killed")

        third = self.consumer("consumer-3")
        self.until("a third consumer has partitions", lambda: "assigned: weni.message-status" in third.log(), second, third)
        partition, end = self.produce()
        self.until("what no edge produces is read", lambda: self.offsets()[partition] >= end, second, third)
        self.kill_within_a_transaction("message_state", 2, second, third)
        streams = self.streams("streams-2")
        self.fall_back(third)
        self.check_database()
        self.check_streams(streams, message_state, order_state)
        for process, codes in ((third, [0]), (streams, [0, 128 + signal.SIGTERM])):
            self.report.that(f"{process.path.stem} ends at SIGTERM", process.end(signal.SIGTERM) in codes, process.log()[-2000:])
        self.check_logs()

    def fall_back(self, consumer):
        wanted = {f"wamid.{name}": reason for name, (_, reason, _) in stream.OUTGOING.items() if reason}
        sent = sorted(f"wamid.{name}" for name, (*_, sent) in stream.OUTGOING.items() if sent)
        lag = "UPDATE consumer_offset SET received_at = received_at + %s * interval '1 hour' WHERE topic = %s AND partition = 0"
        with sms_provider() as (url, refused, received, repaired, release):
            worker = self.worker("worker-0", url, "0", timeout="60")
            self.report.same("a time limit of an hour is refused", (worker.process.wait(PATIENCE), "below 60" in worker.log()), (1, True))
            self.database.execute(lag, (-1, STATUSES))
            worker = self.worker("worker-1", url, "59")
            self.until("a worker has planned", lambda: "planned: " in worker.log(), worker)
            found = dict(self.rows("SELECT message_id, reason FROM sms_outbox"))
            self.report.same("nothing is late while a partition lags", found, {k: v for k, v in wanted.items() if v == "failed"})
            self.database.execute(lag, (1, STATUSES))
            self.until("SMS are planned", lambda: len(self.rows("SELECT 1 FROM sms_outbox")) >= len(wanted), worker)
            self.order(stream.ORDERS_LATER)
            self.send(3)
            self.until("round 3 is stored", lambda: self.stored(3), consumer)
            withdrawn = "SELECT 1 FROM sms_outbox WHERE withdrawn_at IS NOT NULL"
            self.until("late deliveries withdraw", lambda: len(self.rows(withdrawn)) >= len(wanted) - len(sent), worker)
            self.report.same("a worker ends at SIGTERM", worker.end(signal.SIGTERM), 0)
            self.report.same("no SMS is sent before its time", refused, [])
            # This one is too old to be sent.
            self.database.execute("INSERT INTO sms_outbox VALUES ('wamid.forgotten', 'timeout', now() - interval '1 hour')")
            worker = self.worker("worker-2", url, "0")
            self.until("each SMS is refused", lambda: {*refused} >= {*sent}, worker)
            time.sleep(3)
            self.report.same("a refused SMS waits for its next attempt", sorted(refused), sent)
            repaired.set()
            self.database.execute("UPDATE sms_outbox SET planned_at = planned_at - interval '1 minute'")
            self.until("an SMS is under way", lambda: received, worker)
            worker.end(signal.SIGKILL)
            release.set()
            workers = [self.worker(f"worker-{n}", url, "0") for n in (3, 4)]
            for worker in workers:
                self.until(f"{worker.path.stem} works", lambda: "timeout" in worker.log(), worker)
            unsent = "SELECT message_id FROM sms_outbox WHERE sent_at IS NULL AND withdrawn_at IS NULL"
            self.until("all SMS are sent", lambda: self.rows(unsent) == [("wamid.forgotten",)], *workers)
            self.report.same("the killed worker's SMS comes again with its key, and no other", sorted(received), sorted(sent + received[:1]))
            for worker in workers:
                self.report.same(f"{worker.path.stem} ends at SIGTERM", worker.end(signal.SIGTERM), 0)
        self.report.same("SMS by reason", dict(self.rows("SELECT message_id, reason FROM sms_outbox")), wanted | {"wamid.forgotten": "timeout"})
        rows = self.rows("SELECT message_id FROM sms_outbox WHERE sent_at IS NOT NULL AND withdrawn_at IS NULL ORDER BY 1")
        self.report.same("SMS sent", [row[0] for row in rows], sent)
        self.database.execute("UPDATE outgoing SET message_id = 'wamid.again', sent_at = now() WHERE message_id = 'wamid.failed'")
        self.report.same("an SMS moves with its message", len(self.rows("SELECT 1 FROM sms_outbox WHERE message_id = 'wamid.again'")), 1)

    def check_database(self):
        wanted = stream.states()
        found = {(name.removeprefix("wamid."), who): (status, int(second) - stream.BASE) for name, who, status, second in self.rows(
            "SELECT message_id, participant, status, extract(epoch FROM happened_at) FROM message_state")}  # fmt: skip
        self.compare("PostgreSQL's states", found, {key: value[:2] for key, value in wanted.items()})
        found = {(name.removeprefix("wamid."), who): (status, category) for name, who, status, category in self.rows(
            "SELECT message_id, participant, status, pricing_category FROM message")}  # fmt: skip
        self.compare("the view message", found, {k: (v[0], v[2]) for k, v in wanted.items() if k != ("group", "")})
        found = {name.removeprefix("wamid."): status for name, status in self.rows(
            "SELECT message_id, w.status FROM message_as_weni AS w JOIN message_state AS s USING (message_id, participant)"
            " WHERE w.status <> s.status")}  # fmt: skip
        self.compare("the view message_as_weni", found, stream.AS_WENI)
        found = {category: tuple(map(int, counts)) for category, *counts in self.rows(
            "SELECT pricing_category, sum(messages), sum(delivered), sum(read), sum(failed) FROM funnel GROUP BY 1")}  # fmt: skip
        self.compare("the view funnel", found, stream.FUNNEL)
        found = {category: (int(messages), float(cost)) for category, messages, cost in self.rows(
            "SELECT pricing_category, sum(messages), sum(cost) FROM cost GROUP BY 1")}  # fmt: skip
        self.compare("the view cost", found, stream.COST)

    def check_streams(self, streams, message_state, order_state):
        wanted = {f"wamid.{name} {who}".strip(): value[:2] for (name, who), value in stream.states().items()}

        def states():
            return {key: (row["status"], second(row["happened_at"])) for key, row in message_state.read().items()}

        with contextlib.suppress(TimeoutError):
            self.until("Kafka Streams is done", lambda: states() == wanted, streams)
        self.compare("the topic message-state", states(), wanted)
        joined = {f"{order} wamid.{name}": status for (order, name), status in stream.JOINED.items()}

        def orders():
            return {key: row["message"]["status"] for key, row in order_state.read().items()}

        with contextlib.suppress(TimeoutError):
            self.until("orders are joined", lambda: orders() == joined, streams)
        self.compare("the topic order-message-state", orders(), joined)
        topics = order_state.consumer.list_topics().topics
        found = {name: len(topics[f"message-state-streams-{name}-repartition"].partitions)
                 for name in ("by-message", "by-phone-left", "by-phone-right")}  # fmt: skip
        self.report.same("both sides of the join have as many partitions", found, {"by-message": 3, "by-phone-left": 4, "by-phone-right": 4})

    def check_logs(self):
        words = {
            "consumer": ["is a dead letter: invalid_json", "is a dead letter: missing_id", "status 'snoozed' is unknown",
                         "schema_version 2 is newer", "cannot be read, and is left out: KeyError",
                         "cannot be read, and is left out: JSONDecodeError",
                         "cannot be read, and is left out: TypeError"],
            "streams": ["dead letter", "status \"snoozed\" is unknown", "schema_version 2 is newer", "cannot be read, and is left out",
                        "Exception caught during Deserialization"],
        }  # fmt: skip
        for kind, texts in words.items():
            log = "".join(p.log() for p in self.processes if p.path.stem.startswith(kind))
            for text in texts:
                self.report.that(f"the log of {kind} has: {text}", text in log, log[-1000:])
            counts = [p.log().count("snoozed") for p in self.processes if p.path.stem.startswith(kind)]
            self.report.that(f"{kind} says once what it does not know", max(counts) == 1, counts)

    def compare(self, what, found, wanted):
        different = {key: f"{found.get(key)}, not {wanted.get(key)}" for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
        self.report.same(what, dict(list(different.items())[:10]), {})


def second(time):
    return int(datetime.fromisoformat(time).timestamp()) - stream.BASE


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--edge", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    work, report = arguments.work, Report()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    for old in ("journal", "streams", "key.pem"):
        subprocess.run(["rm", "-rf", work / old], check=True)
    kafka = Kafka(work, arguments.port)
    edge = Edge(arguments.edge, work, arguments.port + 80, kafka)
    test = None
    try:
        with postgres(work) as (dsn, database):
            print("==> Kafka and edge", flush=True)
            kafka("format", "1")
            kafka.start()
            edge.start()
            print("==> Consumers", flush=True)
            test = Test(work, edge, kafka, dsn, database, report)
            try:
                test.go()
            finally:
                for process in test.processes:
                    process.end()
    except Exception as error:
        report.that("the test goes through", False, f"{error}\n{traceback.format_exc()}")
    finally:
        edge.stop(signal.SIGKILL)
        kafka("kill9", "1")
    (work / "counts").write_text(f"{report}\n")


if __name__ == "__main__":
    main()
