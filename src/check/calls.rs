//! Calls a running edge as Weni does, and follows the receipts into Kafka.
//!
//! The body's `field` is `edge_test`: each call becomes one channel event and no status of any message.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Aspect, Finding, Report, Severity, Subject, Webhook, block_on, kafka, machine::compare_clocks,
};
use crate::{
    caller::{
        Answer, EDGE_TEST, Failure, MessageId, Target, Template, WeniClient, without_secrets,
    },
    event::Topic,
    kafka::{
        Blocked, Obstacle, View,
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
    // From before the first call on.
    let follower = follow(subject);
    let mut calls = Calls { report, receipts: BTreeMap::new(), clock: None };
    if let Err(refused) = block_on(ASPECT, calls.call_all(webhook, subject, follower.is_ok())) {
        return report.add(refused);
    }
    let Calls { receipts, clock, .. } = calls;
    report.add(clock.unwrap_or_else(|| compare_clocks(None, Timestamp::now())));
    if !receipts.is_empty() {
        let within = report.time_left().min(IN_KAFKA);
        let arrived = follower.and_then(|follower| arrivals(follower, &receipts, within));
        report.add(judge_arrivals(&receipts, arrived));
    }
}

/// How the webhook is called.
///
/// # Errors
/// Says what is wrong with its URL or header.
pub(super) fn target(subject: &Subject, way: Way) -> anyhow::Result<Option<Target>> {
    let Some(webhook) = &subject.webhook else { return Ok(None) };
    let header = webhook.secret.clone().map(|(name, value)| {
        let value = match way {
            Way::Post | Way::Get => Ok(value),
            Way::Blanks => HeaderValue::from_bytes(&[b" ", value.as_bytes(), b" "].concat()),
            Way::WrongSecret => Ok(WRONG),
        };
        value.map(|value| (name, value))
    });
    let method = if way == Way::Get { Method::GET } else { Method::POST };
    let header: Vec<_> = header.transpose()?.into_iter().collect();
    Target::new(&webhook.url, method, &header, Some(&subject.roots)).map(Some)
}

async fn call(
    subject: &Subject,
    way: Way,
    is_http1: bool,
    within: Duration,
) -> anyhow::Result<Answer> {
    let target = target(subject, way)?.context("there is no webhook")?;
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
    receipts: BTreeMap<String, String>,
    clock: Option<Finding>,
}

impl Calls<'_> {
    /// Calls in every way, over HTTP/1.1 and over what TLS offers. Ends at the first problem.
    async fn call_all(&mut self, webhook: &Webhook, subject: &Subject, is_followed: bool) {
        let ways: &[Way] = match webhook.secret {
            Some(_) => &[Way::Post, Way::Get, Way::Blanks, Way::WrongSecret],
            None => &[Way::Post, Way::Get],
        };
        // Go's client speaks HTTP/2 only over TLS.
        let versions: &[bool] =
            if webhook.url.starts_with("https://") { &[true, false] } else { &[true] };
        let kept = if is_followed { IN_KAFKA } else { Duration::ZERO };
        for is_http1 in versions {
            for way in ways {
                let within = self.report.time_left().saturating_sub(kept).min(CALL);
                if within.is_zero() {
                    let found =
                        format!("{} and what follows was not tried: time is over", way.name());
                    let remedy = "find out why answers take seconds: Weni slows down, too";
                    return self.report.add(Finding::warning(ASPECT, found, remedy));
                }
                let judged = match call(subject, *way, *is_http1, within).await {
                    Ok(answer) => self.take(*way, *is_http1, &answer),
                    Err(error) => {
                        self.report.add(unanswered(webhook, *way, &error));
                        false
                    }
                };
                // The other ways would only say the same.
                if !judged {
                    return;
                }
            }
        }
    }

    /// Whether it is worth going on.
    fn take(&mut self, way: Way, is_http1: bool, answer: &Answer) -> bool {
        let protocol = format!("{:?}", answer.version).replace("HTTP/2.0", "HTTP/2");
        let name = format!("{protocol} {}", way.name());
        let receipt = receipt(answer);
        let judged = judge(way, &name, answer.status, receipt.is_some());
        let is_refused = judged.severity == Severity::Problem;
        self.report.add(judged);
        self.receipts.extend(receipt.map(|receipt| (receipt, name)));
        if let Some(date) = answer.date.as_ref().and_then(|date| date.to_str().ok()) {
            let compared = compare_clocks(Some(date), Timestamp::now());
            if self.clock.as_ref().is_none_or(|clock| clock.severity <= compared.severity) {
                self.clock = Some(compared);
            }
        }
        let is_other = !is_http1 && answer.version != Version::HTTP_2;
        if is_other {
            let found = "HTTP/2 is not offered, so Weni uses HTTP/1.1";
            self.report.add(Finding::ok(ASPECT, found));
        }
        !is_refused && !is_other
    }
}

/// An edge's answer names the callback's receipt, which is a UUID.
fn receipt(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let receipt = body.get("receipt")?.as_str()?;
    receipt.parse::<Uuid>().is_ok().then(|| receipt.to_owned())
}

fn judge(way: Way, name: &str, status: StatusCode, has_receipt: bool) -> Finding {
    let code = status.as_u16();
    let problem = |found: String, remedy: &str| Finding::problem(ASPECT, found, remedy);
    let refused = format!("{name}: answered {code}");
    match (way, code) {
        (Way::WrongSecret, 401 | 403) => {
            Finding::ok(ASPECT, format!("{name}: refused with {code}"))
        }
        (Way::WrongSecret, 200..300) => problem(
            format!("{name}: accepted with {code}"),
            "anyone can publish events: point the URL at the edge itself, and give its source a secret",
        ),
        (Way::WrongSecret, _) => Finding::warning(
            ASPECT,
            format!("the wrong secret was answered {code}, and an edge answers 401"),
            "find out what in front of the edge answers so",
        ),
        (_, 200..300) if has_receipt => Finding::ok(ASPECT, format!("{name}: answered {code}")),
        (_, 200..300) => problem(
            format!(
                "{name}: answered {code} without a receipt, so something else than an edge answers"
            ),
            "point the URL, the balancer or the ingress at the edge's http.listen",
        ),
        (Way::Get, _) => Finding::warning(
            ASPECT,
            refused,
            "something in front of the edge does not take it: choose POST as Método in Weni",
        ),
        (Way::Blanks, _) => Finding::warning(
            ASPECT,
            refused,
            "something in front of the edge compares the secret: paste the Valor in Weni without blanks",
        ),
        (_, 300..=399) => problem(
            format!(
                "{refused}, which leads elsewhere; Weni's client loses the body or does not follow"
            ),
            "enter the URL that it leads to, or take the redirect away",
        ),
        (_, 401 | 403) => problem(
            format!("{refused}: the secret or the header's name is not the edge's"),
            "compare header and secret of the source with what is given here and in Weni",
        ),
        (_, 404) => problem(
            format!("{refused}: there is no such source, or the path does not lead to the edge"),
            "the URL is the public address, /hooks/ and the source's name",
        ),
        (_, 503) => problem(
            format!("{refused}: the edge cannot take calls now"),
            "ask /readyz of its admin.listen, which says why (weni-edge healthcheck)",
        ),
        _ => problem(refused, "read the log of the edge and of what stands in front of it"),
    }
}

fn unanswered(webhook: &Webhook, way: Way, error: &anyhow::Error) -> Finding {
    let found = format!("{}: {}: {error:#}", without_secrets(&webhook.url), way.name());
    let remedy = match error.downcast_ref::<Failure>() {
        Some(Failure::Connect) => "start the edge, and let the port through to http.listen",
        Some(Failure::Tls) => {
            "an edge without [http.tls] is called by http://, or by the URL of what ends TLS in front of it; \
             else the certificate has to name the URL's host and to be of a public authority (or give --ca-file)"
        }
        Some(Failure::Closed | Failure::Malformed) => {
            "point the URL at an edge's http.listen; http:// \
                                                       and https:// have to fit its [http.tls]"
        }
        Some(Failure::Timeout) | None => {
            "read the log of the edge and of what stands in front of it"
        }
    };
    Finding::problem(ASPECT, found, remedy)
}

/// Begins to read what comes into the topic of channel events.
fn follow(subject: &Subject) -> Result<Follower, Obstacle> {
    if subject.config.kafka.bootstrap_servers.is_empty() {
        let detail = "there is no kafka.bootstrap_servers: give the edge's configuration";
        return Err(Obstacle::new(Blocked::NoBroker, detail));
    }
    let cluster =
        Cluster::new(subject.config.clone(), kafka::group(&subject.config), <_>::default())?;
    let topic = subject.config.topics.name(Topic::ChannelEvent);
    let partitions = crate::kafka::Cluster::partitions(&cluster, topic)?;
    let partitions: Vec<_> =
        partitions.into_iter().map(|partition| (topic.to_owned(), partition)).collect();
    let ends = cluster.offsets(View::Stable, &partitions, Point::End)?;
    cluster.follow(&ends, ends.clone(), true)
}

/// The time from the last answer to the last of the receipts that arrived, and where each is.
type Arrivals = (Duration, BTreeMap<String, String>);

fn arrivals(
    mut follower: Follower,
    receipts: &BTreeMap<String, String>,
    within: Duration,
) -> Result<Arrivals, Obstacle> {
    let start = Instant::now();
    let mut arrived = BTreeMap::new();
    let mut last = Duration::ZERO;
    while arrived.len() < receipts.len() && start.elapsed() < within {
        let Some(record) = follower.poll()? else { continue };
        let receipt = record.headers.iter().find(|(name, _)| name == "receipt");
        let Some(receipt) = receipt.and_then(|(_, id)| str::from_utf8(id).ok()) else { continue };
        if receipts.contains_key(receipt) {
            let place = format!("{}[{}]@{}", record.topic, record.partition, record.offset);
            arrived.insert(receipt.to_owned(), place);
            last = start.elapsed();
        }
    }
    Ok((last, arrived))
}

fn judge_arrivals(
    receipts: &BTreeMap<String, String>,
    arrived: Result<Arrivals, Obstacle>,
) -> Finding {
    let (last, arrived) = match arrived {
        Ok(arrived) => arrived,
        Err(obstacle) => {
            let found = format!("the receipts were not looked for in Kafka: {}", obstacle.detail);
            return Finding::warning(ASPECT, found, kafka::remedy(obstacle.blocked));
        }
    };
    let missing = receipts.iter().find(|(receipt, _)| !arrived.contains_key(*receipt));
    if let Some((receipt, name)) = missing {
        let found = format!(
            "{} of {} accepted calls are not in Kafka after {} s: the first is {receipt} ({name})",
            receipts.len() - arrived.len(),
            receipts.len(),
            IN_KAFKA.as_secs()
        );
        let remedy = "they are safe in the edge's journal; its metric publish_blocked and its log say \
                      why they wait. Or the edge publishes to another cluster or other topics than this \
                      configuration names";
        return Finding::problem(ASPECT, found, remedy);
    }
    let (receipt, place) = arrived.first_key_value().map_or(("", ""), |(id, at)| (id, at));
    let found = format!(
        "all {} accepted calls are in Kafka, {} ms after the last answer; {receipt} is at {place}",
        receipts.len(),
        last.as_millis()
    );
    Finding::ok(ASPECT, found)
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
