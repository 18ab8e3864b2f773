//! Calls a running edge as Weni does, and follows the receipts into Kafka.
//!
//! The body's `field` is `edge_test`: each call becomes one channel event and no status of any message.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use jiff::Timestamp;
use rustls::RootCertStore;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Aspect, Finding, Report, Severity, Subject, Webhook, block_on, kafka, machine::compare_clocks,
};
use crate::{
    caller::{
        Answer, CallError, CallFailure, EDGE_TEST, MessageId, Target, Template, WeniClient,
        without_secrets,
    },
    event::{Topic, header},
    kafka::{
        Blocked, Cluster as _, Obstacle, View,
        follow::{Follower, Point},
        librdkafka::Cluster,
    },
};

/// An edge answers in milliseconds. Weni waits longer, and slows down.
const CALL: Duration = Duration::from_secs(10);
/// From the last answer until its event has to be in Kafka. An edge publishes within a second.
const IN_KAFKA: Duration = Duration::from_secs(10);
const ASPECT: Aspect = Aspect::Call;

/// Sent instead of the secret, to be refused.
const WRONG: HeaderValue = HeaderValue::from_static("weni-edge check: not the secret");

/// One way to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Post,
    /// Weni sends a body with a GET, too.
    Get,
    /// Weni stores the secret as it was pasted.
    Blanks,
    WrongSecret,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Post => "POST, chunked",
            Self::Get => "GET with a body",
            Self::Blanks => "POST, blanks around the secret",
            Self::WrongSecret => "POST with a wrong secret",
        }
    }
}

pub(super) fn probe(subject: &Subject, report: &Report) {
    let Some(webhook) = &subject.webhook else { return };
    // It has to read from before the first call.
    let follower = follow(subject);
    let kept_for_kafka = if follower.is_ok() { IN_KAFKA } else { Duration::ZERO };
    let mut calls = Calls { report, receipts: BTreeMap::new(), clock: None };
    let called = block_on(ASPECT, calls.call_all(webhook, &subject.roots, kept_for_kafka));
    report.all(called.err());
    let Calls { receipts, clock, .. } = calls;
    report.all(clock);
    if !receipts.is_empty() {
        let within = report.time_left().min(IN_KAFKA);
        let judged = follower.and_then(|follower| judge_arrivals(follower, receipts, within));
        report.add(judged.unwrap_or_else(|obstacle| {
            let found = format!("the receipts were not looked for in Kafka: {}", obstacle.detail);
            match subject.config.kafka.bootstrap_servers.is_empty() {
                // Nobody has asked for it.
                true => ASPECT.warning(found, "give the edge's --config to have them looked for"),
                false => ASPECT.problem(found, kafka::remedy(obstacle.blocked)),
            }
        }));
    }
}

impl Webhook {
    /// How it is called. An error says what is wrong with its URL or header.
    pub(super) fn target(&self, way: Way, roots: &RootCertStore) -> anyhow::Result<Target> {
        let mut header = self.secret.clone();
        if let Some((_, value)) = &mut header {
            match way {
                Way::Post | Way::Get => {}
                Way::Blanks => {
                    *value = HeaderValue::from_bytes(&[b" ", value.as_bytes(), b" "].concat())?;
                }
                Way::WrongSecret => *value = WRONG,
            }
        }
        let method = if way == Way::Get { Method::GET } else { Method::POST };
        Target::new(&self.url, method, header.as_slice(), Some(roots))
    }
}

async fn call(target: Target, is_http1: bool, within: Duration) -> anyhow::Result<Answer> {
    let target = if is_http1 { target.over_http1() } else { target };
    let body = Template::new(&EDGE_TEST, 0).fill(&MessageId::fresh());
    let mut client = WeniClient::new(target.into());
    match timeout(within, client.call(Bytes::from(body))).await {
        Ok(answer) => Ok(answer?),
        Err(_) => anyhow::bail!("no answer within {:.0} s", within.as_secs_f64()),
    }
}

/// What calls brought.
struct Calls<'a> {
    report: &'a Report,
    /// With the name of the call.
    receipts: BTreeMap<Uuid, String>,
    clock: Option<Finding>,
}

impl Calls<'_> {
    /// Calls in every way, over HTTP/1.1 and over what TLS offers. An error is the last finding,
    /// which need not be a problem.
    async fn call_all(
        &mut self,
        webhook: &Webhook,
        roots: &RootCertStore,
        kept_for_kafka: Duration,
    ) -> Result<(), Finding> {
        let ways: &[Way] = match webhook.secret {
            Some(_) => &[Way::Post, Way::Get, Way::Blanks, Way::WrongSecret],
            None => &[Way::Post, Way::Get],
        };
        // Go's client speaks HTTP/2 only over TLS.
        let versions: &[bool] =
            if webhook.url.starts_with("https://") { &[true, false] } else { &[true] };
        for &is_http1 in versions {
            for &way in ways {
                let within = self.report.time_left().saturating_sub(kept_for_kafka).min(CALL);
                if within.is_zero() {
                    let found =
                        format!("{} and what follows was not tried: time is over", way.name());
                    let remedy = "find out why answers take seconds: Weni slows down, too";
                    return Err(ASPECT.warning(found, remedy));
                }
                let called = async { call(webhook.target(way, roots)?, is_http1, within).await };
                let answer = called.await.map_err(|error| unanswered(webhook, way, &error))?;
                self.take(way, &answer)?;
                if !is_http1 && answer.version() != Version::HTTP_2 {
                    let found = "HTTP/2 is not offered, so Weni uses HTTP/1.1";
                    return Err(ASPECT.ok(found));
                }
            }
        }
        Ok(())
    }

    /// An error is a problem.
    fn take(&mut self, way: Way, answer: &Answer) -> Result<(), Finding> {
        let protocol = format!("{:?}", answer.version()).replace("HTTP/2.0", "HTTP/2");
        let name = format!("{protocol} {}", way.name());
        let receipt = receipt(answer);
        let judged = judge(way, &name, answer.status(), receipt.is_some());
        self.receipts.extend(receipt.map(|receipt| (receipt, name)));
        if let Some(date) = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok()) {
            let compared = compare_clocks(Some(date), Timestamp::now());
            if self.clock.as_ref().is_none_or(|clock| clock.severity <= compared.severity) {
                self.clock = Some(compared);
            }
        }
        if judged.severity == Severity::Problem {
            return Err(judged);
        }
        self.report.add(judged);
        Ok(())
    }
}

/// An edge's answer names the callback's receipt.
fn receipt(answer: &Answer) -> Option<Uuid> {
    let body: Value = serde_json::from_slice(answer.body()).ok()?;
    body["receipt"].as_str()?.parse().ok()
}

fn judge(way: Way, name: &str, status: StatusCode, has_receipt: bool) -> Finding {
    let code = status.as_u16();
    let answered = format!("{name}: answered {code}");
    match (way, code) {
        (Way::WrongSecret, 401 | 403) => ASPECT.ok(format!("{name}: refused with {code}")),
        (Way::WrongSecret, 200..300) => ASPECT.problem(
            format!("{name}: accepted with {code}"),
            "anyone can publish events: point the URL at the edge itself, and give its source a \
             secret",
        ),
        (Way::WrongSecret, _) => ASPECT.warning(
            format!("the wrong secret was answered {code}, and an edge answers 401"),
            "find out what in front of the edge answers so",
        ),
        (_, 200..300) if has_receipt => ASPECT.ok(answered),
        (_, 200..300) => ASPECT.problem(
            format!("{answered} without a receipt, so something else than an edge answers"),
            "point the URL, the balancer or the ingress at the edge's http.listen",
        ),
        (Way::Get, _) => ASPECT.warning(
            answered,
            "something in front of the edge does not take it: choose POST as Método in Weni",
        ),
        (Way::Blanks, _) => ASPECT.warning(
            answered,
            "something in front of the edge compares the secret: paste the Valor in Weni without \
             blanks",
        ),
        (_, 300..=399) => ASPECT.problem(
            format!(
                "{answered}, which leads elsewhere; Weni's client loses the body or does not follow"
            ),
            "enter the URL that it leads to, or take the redirect away",
        ),
        (_, 401 | 403) => ASPECT.problem(
            format!("{answered}: the secret or the header's name is not the edge's"),
            "compare header and secret of the source with what is given here and in Weni",
        ),
        (_, 404) => ASPECT.problem(
            format!("{answered}: there is no such source, or the path does not lead to the edge"),
            "the URL is the public address, /hooks/ and the source's name",
        ),
        (_, 503) => ASPECT.problem(
            format!("{answered}: the edge cannot take calls now"),
            "ask /readyz of its admin.listen, which says why (weni-edge healthcheck)",
        ),
        _ => ASPECT.problem(answered, "read the log of the edge and of what stands in front of it"),
    }
}

fn unanswered(webhook: &Webhook, way: Way, error: &anyhow::Error) -> Finding {
    let found = format!("{}: {}: {error:#}", without_secrets(&webhook.url), way.name());
    let remedy = match error.downcast_ref::<CallError>().map(|error| error.failure) {
        Some(CallFailure::Connect) => "start the edge, and let the port through to http.listen",
        Some(CallFailure::Tls) => {
            "an edge without [http.tls] is called by http://, or by the URL of what ends TLS in front of \
             it; else the certificate has to name the URL's host and to be of a public authority (or give \
             --ca-file)"
        }
        Some(CallFailure::Closed | CallFailure::Malformed) => {
            "point the URL at an edge's http.listen; http:// and https:// have to fit its [http.tls]"
        }
        _ => "read the log of the edge and of what stands in front of it",
    };
    ASPECT.problem(found, remedy)
}

/// Begins to read what comes into the topic of channel events.
fn follow(subject: &Subject) -> Result<Follower, Obstacle> {
    let config = &subject.config;
    if config.kafka.bootstrap_servers.is_empty() {
        let detail = "kafka.bootstrap_servers is not known";
        return Err(Obstacle::new(Blocked::NoBroker, detail));
    }
    let cluster = Cluster::new(config.clone(), kafka::group(config), <_>::default())?;
    let topic = config.topics.name(Topic::ChannelEvent);
    let partitions = cluster.partitions(topic)?.into_iter();
    let partitions: Vec<_> = partitions.map(|partition| (topic.to_owned(), partition)).collect();
    let ends = cluster.offsets(View::Stable, &partitions, Point::End)?;
    cluster.follow(&ends, ends.clone(), true)
}

/// Waits until each of the receipts, which have the name of their call, is in Kafka.
fn judge_arrivals(
    mut follower: Follower,
    receipts: BTreeMap<Uuid, String>,
    within: Duration,
) -> Result<Finding, Obstacle> {
    let start = Instant::now();
    let count = receipts.len();
    let (mut missing, mut last) = (receipts, String::new());
    while !missing.is_empty() && start.elapsed() < within {
        let Some(record) = follower.poll()? else { continue };
        let receipt = header(&record.headers, "receipt").and_then(|receipt| receipt.parse().ok());
        let Some(receipt) = receipt else { continue };
        if missing.remove(&receipt).is_some() {
            let (topic, partition, offset) = (record.topic, record.partition, record.offset);
            last = format!("{receipt} is at {topic}[{partition}]@{offset}");
        }
    }
    let took = start.elapsed().as_millis();
    if let Some((receipt, name)) = missing.first_key_value() {
        let found = format!(
            "{} of {count} accepted calls are not in Kafka after {} s: the first is {receipt} ({name})",
            missing.len(),
            IN_KAFKA.as_secs()
        );
        let remedy = "they are safe in the edge's journal; its metric publish_blocked and its log say \
                      why they wait. Or the edge publishes to another cluster or other topics than this \
                      configuration names";
        return Ok(ASPECT.problem(found, remedy));
    }
    let found =
        format!("all {count} accepted calls are in Kafka, {took} ms after the last answer; {last}");
    Ok(ASPECT.ok(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_what_the_call_was() {
        use Severity::{Ok, Problem, Warning};
        for (way, status, has_receipt, severity) in [
            (Way::Post, 200, true, Ok),
            (Way::Post, 200, false, Problem),
            (Way::Post, 301, false, Problem),
            (Way::Post, 401, false, Problem),
            (Way::Post, 404, false, Problem),
            (Way::Post, 503, false, Problem),
            (Way::Post, 502, false, Problem),
            (Way::Get, 200, true, Ok),
            (Way::Get, 400, false, Warning),
            (Way::Blanks, 200, true, Ok),
            (Way::Blanks, 401, false, Warning),
            (Way::WrongSecret, 401, false, Ok),
            (Way::WrongSecret, 200, true, Problem),
            (Way::WrongSecret, 200, false, Problem),
            (Way::WrongSecret, 403, false, Ok),
            (Way::WrongSecret, 502, false, Warning),
        ] {
            let judged = judge(way, "it", StatusCode::from_u16(status).unwrap(), has_receipt);
            assert_eq!(judged.severity, severity, "{way:?} {status}: {judged:?}");
            assert_eq!(judged.remedy.is_none(), severity == Ok, "{judged:?}");
        }
    }
}
