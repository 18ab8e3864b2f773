"""The scripted incident: faults, and the alerts that must fire.

Each step causes a fault, waits until its alerts fire, and ends it. The rules' windows are scaled, so that
an hour passes in a minute.
"""

import shutil
import signal
import time

import confluent_kafka

from processes import wait_for

SCALE = 60
STATUS_TOPIC, INBOUND_TOPIC = "weni.message-status.v1", "weni.inbound-message.v1"
SAMPLES = [f"--sample={name}" for name in ("sent", "delivered", "read", "text", "reply", "image", "template", "on-premise")]

# What the incident does not cause; `promtool test rules` has cases for them.
NOT_CAUSED = {
    "WeniEdgeNoTraffic": "compares with the week before",
    "WeniEdgeSlowSync": "takes a slow disk",
    "WeniEdgePublisherWedged": "takes a defect of the publisher",
    "WeniEdgeConnectionsNearLimit": "takes thousands of connections",
}


class Incident:
    def __init__(self, edge, kafka, prometheus):
        self.edge, self.kafka, self.prometheus = edge, kafka, prometheus
        self.started, self.senders, self.fired = time.time(), [], {}

    def say(self, what):
        print(f"    {time.time() - self.started:5.0f} s  {what}", flush=True)

    def send(self, *arguments, **more):
        self.senders.append(self.edge.send(*arguments, **more))

    def expect(self, *names, seconds=60):
        """Waits until alerts have fired since it was called, and keeps what they say."""
        seen = set()

        def all_fire():
            for alert in self.prometheus.alerts():
                name, texts = alert["labels"]["alertname"], alert["annotations"]
                if alert["state"] == "firing" and name not in seen:
                    seen.add(name)
                    if name not in self.fired:
                        self.say(f"{name}: {texts['summary']}. {texts['description']}")
                    self.fired[name] = texts
            return seen.issuperset(names)

        try:
            wait_for("alerts fire", all_fire, seconds)
        except TimeoutError:
            self.say(f"SILENT: {', '.join(sorted(set(names) - seen))}")

    def run(self):
        self.say("traffic of two sources")
        self.send("loja", 20, "--duration=600s", *SAMPLES)
        self.send("filial", 10, "--duration=600s", "--sample=sent", "--sample=delivered", "--sample=read")
        self.send("filial", 4, "--duration=600s", "--sample=sent")
        self.expect("WeniEdgeCertificateExpires")
        time.sleep(15)
        for step in (self.callers, self.configuration, self.refused_records, self.fencing, self.failed_messages,
                     self.outage, self.divergence, self.restarts):  # fmt: skip
            step()
        self.say("all is well again: alerts have to resolve")
        try:
            wait_for("alerts resolve", lambda: not self.prometheus.firing(), 120)
        except TimeoutError:
            self.say(f"STILL FIRING: {', '.join(self.prometheus.firing())}")

    def producer(self, identity):
        """A client of somebody else; its first act ends what another of that identity had left open."""
        settings = {"bootstrap.servers": self.kafka.address, "transactional.id": identity, "log_level": 0}
        producer = confluent_kafka.Producer(settings)
        producer.init_transactions(30)
        return producer

    def callers(self):
        self.say("wrong secrets, an unknown source, garbage; a transaction of somebody else stays open")
        self.send("loja", 20, "--duration=30s", secret="not the right secret")
        self.send("nobody", 2, "--duration=10s")
        garbage = self.edge.work / "garbage.json"
        garbage.write_bytes(b'{"entry": [')
        self.send("loja", 2, "--duration=5s", str(garbage))
        novelty = self.edge.work / "novelty.json"
        novelty.write_text('{"object": "whatsapp_business_account", "entry": [{"id": "1", "novelty": 1, "changes": []}]}')
        self.send("loja", 2, "--duration=5s", str(novelty))
        self.send("loja", 2, "--duration=5s", "--sample=read", "--identical")
        held = self.producer("somebody")
        held.begin_transaction()
        held.produce(STATUS_TOPIC, b"never seen", partition=0)
        held.flush(10)
        self.expect("WeniEdgeDeadLetters", "WeniEdgeRemainders", "WeniEdgeSecretsRejected", "WeniEdgeReadersHeld")
        held.abort_transaction(30)

    def configuration(self):
        self.say("a wrong configuration; the certificate is renewed")
        self.edge.configure(more="[kafka\n")
        self.edge.certify(days=365)
        self.expect("WeniEdgeReloadFailed")
        self.edge.configure()

    def refused_records(self):
        self.say("a topic refuses most records")
        self.kafka("topic", "alter", INBOUND_TOPIC, "max.message.bytes=600")
        refused = 'weni_edge_dead_letters_total{reason="too_large",stage="publish"}'
        wait_for("records are refused", lambda: self.edge.metric(refused) > 0, 30)
        self.kafka("topic", "alter", INBOUND_TOPIC, "max.message.bytes=1048588")

    def fencing(self):
        self.say("somebody else takes the edge's transactional id, again and again")
        identity = "weni-edge." + self.edge.command("journal", "show").split()[1]
        until = time.monotonic() + 60
        while "WeniEdgePublishErrors" not in self.prometheus.firing() and time.monotonic() < until:
            self.producer(identity)
            time.sleep(0.5)
        self.expect("WeniEdgePublishErrors", seconds=1)

    def failed_messages(self):
        self.say("many messages fail; all calls of one source are refused")
        self.send("calada", 2, "--duration=20s", secret="not the right secret")
        self.send("loja", 20, "--duration=25s", "--sample=failed")
        self.expect("WeniEdgeFailedShareHigh", "WeniEdgeSourceRefused")

    def outage(self):
        self.say("Kafka is killed, and large bodies fill the journal")
        self.kafka("kill9", "1")
        self.send("loja", 40, "--duration=40s", "--sample=text", "--size=200000")
        self.expect("WeniEdgeNoBroker", "WeniEdgePublishingStalled", "WeniEdgeCallbacksAging", "WeniEdgeJournalFilling",
                    "WeniEdgeJournalFull", "WeniEdgeAcceptanceBurnFast", "WeniEdgeAcceptanceBurnSlow")  # fmt: skip
        self.lost_pods()
        self.say("the edge is killed, and a bit of its journal turns")
        self.edge.stop(signal.SIGKILL)
        self.damage_journal()
        self.expect("WeniEdgeDown")
        self.edge.start()
        self.expect("WeniEdgeJournalFault")
        self.say("Kafka is back")
        self.kafka.start()
        self.drain()

    def lost_pods(self):
        self.say("Kubernetes has no pod any more: neither the edge's nor that of one that held nothing")
        targets = self.prometheus.targets.read_text()
        self.prometheus.discover()
        self.expect("WeniEdgeInstanceLost", "WeniEdgeInstanceGone")
        self.prometheus.targets.write_text(targets)

    def damage_journal(self):
        """In the middle of what is written: an intact record behind it tells damage from a torn end."""
        segment = max((self.edge.journal / "segments").glob("*.segment"))
        with open(segment, "r+b") as file:
            file.seek(5_000_000)
            byte = file.read(1)
            file.seek(5_000_000)
            file.write(bytes([byte[0] ^ 0xFF]))

    def divergence(self):
        self.say("an old copy of the journal is put in its place; then it is forked, as the runbook says")
        copy = self.edge.work / "copy"
        self.edge.stop()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.edge.journal, copy)
        self.edge.start()
        self.drain()
        before = self.edge.metric("weni_edge_callbacks_settled_total")
        wait_for("callbacks are settled", lambda: self.edge.metric("weni_edge_callbacks_settled_total") > before + 50, 60)
        self.edge.stop()
        shutil.rmtree(self.edge.journal)
        copy.rename(self.edge.journal)
        self.edge.start()
        self.expect("WeniEdgeJournalDiverged")
        self.edge.command("journal", "fork", "--from", "checkpoint", "--yes")
        # Only a start takes a fork up.
        self.edge.stop()
        self.edge.start()
        self.drain()

    def restarts(self):
        self.say("the edge dies again and again")
        until = time.monotonic() + 60
        while "WeniEdgeRestarting" not in self.prometheus.firing() and time.monotonic() < until:
            self.edge.stop(signal.SIGKILL)
            self.edge.start()
            time.sleep(1)
        self.expect("WeniEdgeRestarting", seconds=1)
        self.drain()

    def drain(self):
        age = "weni_edge_journal_oldest_pending_age_seconds"
        wait_for("the journal drains", lambda: self.edge.metric(age) < 1, 90)
