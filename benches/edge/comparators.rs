//! Simple bridges to compare with the edge: axum and rdkafka with their defaults, which write each
//! body unchanged to one topic. They have no journal, and do not even check the secret.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    routing::{MethodRouter, any},
};
use rdkafka::{
    ClientConfig, ClientContext,
    producer::{
        BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext,
        ThreadedProducer,
    },
};
use tokio::sync::oneshot;

use crate::{
    children::serve,
    topics::{MOCK_PREFIX, STATUSES, topic},
};

/// A producer, and how many records it took.
struct Bridge<C: ProducerContext + 'static> {
    producer: ThreadedProducer<C>,
    topic: String,
    accepted: AtomicU64,
}

/// Answers as soon as librdkafka has the record in memory. A crash loses it.
pub(crate) fn from_memory(bootstrap: &str) -> anyhow::Result<()> {
    // The queue holds some seconds of calls, because none may be answered 503.
    let config = ("queue.buffering.max.messages", "1000000");
    let bridge = Bridge::new(bootstrap, config, DefaultProducerContext)?;
    let handler = async |State(bridge): State<Arc<Bridge<DefaultProducerContext>>>, body: Bytes| {
        if bridge.send(&body, ()) { Ok("accepted\n") } else { Err(StatusCode::SERVICE_UNAVAILABLE) }
    };
    run(&bridge, any(handler))
}

/// Answers when Kafka has acknowledged the record. While Kafka is away, it answers no call.
pub(crate) fn acknowledged(bootstrap: &str) -> anyhow::Result<()> {
    let bridge = Bridge::new(bootstrap, ("linger.ms", "0"), Reports)?;
    let handler = async |State(bridge): State<Arc<Bridge<Reports>>>, body: Bytes| {
        let (report, reported) = oneshot::channel();
        if bridge.send(&body, Box::new(report)) && reported.await == Ok(true) {
            Ok("accepted\n")
        } else {
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    };
    run(&bridge, any(handler))
}

impl<C: ProducerContext> Bridge<C> {
    fn new(bootstrap: &str, (key, value): (&str, &str), context: C) -> anyhow::Result<Arc<Self>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set(key, value);
        let producer = config.create_with_context(context)?;
        let topic = topic(MOCK_PREFIX, STATUSES);
        Ok(Arc::new(Self { producer, topic, accepted: AtomicU64::new(0) }))
    }

    /// Whether librdkafka has taken it.
    fn send(&self, body: &[u8], opaque: C::DeliveryOpaque) -> bool {
        let record: BaseRecord<'_, (), [u8], _> =
            BaseRecord::with_opaque_to(&self.topic, opaque).payload(body);
        let sent = self.producer.send(record).is_ok();
        self.accepted.fetch_add(u64::from(sent), Ordering::Relaxed);
        sent
    }
}

/// Prints, for each line on standard input, how many records have no delivery report yet, and how
/// many were accepted.
fn run<C: ProducerContext + 'static>(
    bridge: &Arc<Bridge<C>>,
    handler: MethodRouter<Arc<Bridge<C>>>,
) -> anyhow::Result<()> {
    let app = Router::new().route("/hooks/bench", handler).with_state(Arc::clone(bridge));
    let bridge = Arc::clone(bridge);
    serve(app, move || {
        format!("{} {}", bridge.producer.in_flight_count(), bridge.accepted.load(Ordering::Relaxed))
    })
}

/// Tells each waiter of its record's delivery.
struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<oneshot::Sender<bool>>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Self::DeliveryOpaque) {
        // The call may have been given up.
        waiter.send(result.is_ok()).ok();
    }
}
