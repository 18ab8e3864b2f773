//! From a call to a real Kafka: what is answered 200 is there once, in order, whatever is killed.

mod brokers;
mod check;
mod copies;
mod disk;
mod endurance;
#[cfg(feature = "failpoints")]
mod failpoints;
mod faults;
mod hard_cases;
mod judge;
mod link;
mod load;
mod network;
mod process;
mod refusals;
mod replay;
mod tail;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use base64::Engine;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::json;
use sha2::{Digest, Sha256};

use self::{
    judge::{assert_exactly_once, assert_exactly_once_among, assert_there_or_untold, call_of},
    load::{CallId, Calls, Load},
};
use crate::{
    cluster::{Cluster, Record, Topics, kafka},
    harness::{Caller, Edge, SOURCE, Settings, certificate_files, eventually},
};

fn settings(bootstrap: &str, topics: &Topics) -> Settings {
    Settings {
        bootstrap: bootstrap.to_owned(),
        topics: topics.names.clone(),
        ..Settings::default()
    }
}

/// The same over TLS, with SCRAM, and with the authority that the edge trusts.
fn over_tls(cluster: &Cluster, topics: &Topics, ca_file: &Path) -> Settings {
    Settings {
        properties: vec![
            ("security.protocol", "SASL_SSL".into()),
            ("ssl.ca.location", ca_file.display().to_string()),
            ("sasl.mechanism", "SCRAM-SHA-512".into()),
            ("sasl.username", "edge".into()),
            ("sasl.password", "edge-secret".into()),
        ],
        ..settings(&cluster.sasl_ssl(), topics)
    }
}

/// A callback of the Cloud API with these members of its value.
fn envelope(members: &str) -> String {
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"2155","changes":[{{"field":"messages","value":{{"messaging_product":"whatsapp","metadata":{{"display_phone_number":"558233330000","phone_number_id":"1184"}},{members}}}}}]}}]}}"#
    )
}

fn status(id: &str, timestamp: u64, more: &str) -> String {
    format!(
        r#"{{"id":"{id}","status":"delivered","timestamp":"{timestamp}","recipient_id":"5582999990000"{more}}}"#
    )
}

fn of_role<'a>(records: &'a [Record], role: &str) -> Vec<&'a Record> {
    records.iter().filter(|record| record.role == role).collect()
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_fixed_body_is_in_kafka_as_the_contract_says() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let element = status("wamid.fixed", 1_763_842_385, "");
    let receipt = edge.accept(&envelope(&format!(r#""statuses":[{element}]"#)));
    edge.settle();

    let records = topics.read();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.role, record.key.as_str()), ("message_status", "wamid.fixed"));
    let event = record.event();
    // SHA-256 over the nine parts, worked out by hand.
    let parts: [&[u8]; 9] = [
        b"wcb1",
        b"message_status",
        b"1184",
        b"wamid.fixed",
        b"delivered",
        b"1763842385",
        b"",
        b"",
        b"",
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u32).to_be_bytes());
        hash.update(part);
    }
    let event_id = hex::encode(&hash.finalize()[..16]);
    let expected = json!({
        "schema_version": 1, "event_id": event_id, "event_kind": "message_status",
        "message_id": "wamid.fixed", "source": SOURCE, "receipt": receipt,
        "received_at": event["received_at"], "occurred_at": "2025-11-22T20:13:05Z",
        "format": "cloud", "field": "messages", "element": "/entry/0/changes/0/value/statuses/0",
        "channel": {"waba_id": "2155", "phone_number_id": "1184", "display_phone_number": "558233330000"},
        "user_key": "5582999990000",
        "status": "delivered", "status_known": true, "status_rank": 20,
        "recipient": {"id": "5582999990000", "type": "individual"},
        "raw": serde_json::from_str::<serde_json::Value>(&element).unwrap(),
    });
    assert_eq!(event, expected);
    let headers = [
        ("ce_dataschema", "urn:weni-edge:message-status.v1"),
        ("ce_id", &event_id),
        ("ce_source", "/hooks/loja"),
        ("ce_specversion", "1.0"),
        ("ce_time", "2025-11-22T20:13:05Z"),
        ("ce_type", "ai.weni.message_status.v1"),
        ("content-type", "application/json"),
        ("phone_number_id", "1184"),
        ("receipt", &receipt),
        ("status", "delivered"),
    ];
    let found: Vec<_> = record.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(found, headers);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn every_method_is_accepted_and_what_is_no_callback_is_a_dead_letter_with_its_bytes() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let mut caller = edge.caller();
    let mut receipts = BTreeMap::new();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let body = format!("no JSON, by {method}");
        receipts.insert(caller.call(method, body.as_bytes()).unwrap().receipt(), (method, body));
    }
    edge.settle();
    let records = topics.read();
    assert_eq!(of_role(&records, "dead_letter").len(), records.len());
    assert_eq!(records.len(), receipts.len());
    for record in &records {
        let (method, body) = &receipts[&record.key];
        assert_eq!(String::from_utf8_lossy(&record.value), *body);
        assert_eq!(record.headers["method"], *method);
        assert_eq!(record.headers["reason"], "invalid_json");
    }
}

/// Makes these calls of one caller, one after the other, and remembers them.
fn accept(edge: &Edge, caller: usize, serials: std::ops::Range<u64>) -> Calls {
    let mut connection = edge.caller();
    let call = |serial| {
        let answer = connection.call("POST", Load::body(caller, serial).as_bytes()).unwrap();
        ((caller, serial), Some(answer.receipt()))
    };
    serials.map(call).collect()
}

fn committed(edge: &Edge) -> i64 {
    edge.metrics().total("transactions_total", &["outcome=\"committed\""])
}

/// Every call was answered 200, and is there once.
fn assert_callers_noticed_nothing(edge: &Edge, load: Load, topics: &Topics) {
    let calls = all_answered(edge, load);
    assert_exactly_once(topics, &calls);
}

/// Every call was answered 200, and the edge has settled all.
fn all_answered(edge: &Edge, load: Load) -> Calls {
    let calls = load.finish();
    edge.settle();
    assert!(calls.values().all(Option::is_some), "no call went without an answer");
    let wedged = edge.metrics().total("producer_rebuilds_total", &["wedged"]);
    assert_eq!(wedged, 0, "what brokers do is no defect of the edge");
    calls
}

/// Waits until more than `before` transactions are committed.
fn await_commit(edge: &Edge, before: i64) {
    eventually("a transaction is committed", || (committed(edge) > before).then_some(()));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_was_answered_200_is_there_once_however_often_the_edge_is_killed() {
    let bootstrap = kafka();
    let rounds =
        std::env::var("WENI_EDGE_KILL_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start(&edge);
    for round in 0..rounds {
        // Killed in all its ages: opening, before and after its first commit.
        match round % 4 {
            0 => load.await_accepted(1 + round % 100 * 7),
            1 => await_commit(&edge, 0),
            2 => await_commit(&edge, 3 + round as i64 % 100),
            _ => {}
        }
        edge.kill();
        edge.start_again();
        load.go_on_at(&edge);
    }
    load.await_accepted(100);
    let calls = load.finish();
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_was_answered_200_is_there_once_although_the_broker_is_killed() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for _ in 0..3 {
        await_commit(&edge, committed(&edge));
        cluster.kill();
        load.await_accepted(200);
        cluster.start_again();
        await_commit(&edge, committed(&edge));
    }
    let calls = all_answered(&edge, load);
    assert_as_kafka_kept_it(&edge, &cluster, &topics, &calls);
}

/// A lone broker that restarts may never tell some partitions of a commit that it acknowledged, and
/// says which (RELIABILITY, limits). If the position is one of them, the edge publishes the callbacks
/// again. If it is not, their events stay uncommitted. Otherwise all is there once.
fn assert_as_kafka_kept_it(edge: &Edge, cluster: &Cluster, topics: &Topics, calls: &Calls) {
    let untold = cluster.untold_partitions();
    let is_kept =
        untold.is_empty() && !edge.has_logged("Kafka has lost callbacks that it had acknowledged");
    if is_kept {
        assert_exactly_once(topics, calls);
    } else {
        println!("Kafka has lost the end of a commit, untold are {untold:?}");
        assert_there_or_untold(topics, calls, &untold);
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_was_answered_200_is_there_once_although_edge_and_broker_are_killed() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let mut edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for round in 0..4 {
        await_commit(&edge, 0);
        load.await_accepted(100);
        if round % 2 == 0 {
            cluster.kill();
            edge.kill();
        } else {
            edge.kill();
            cluster.kill();
        }
        edge.start_again();
        load.go_on_at(&edge);
        load.await_accepted(50);
        cluster.start_again();
    }
    await_commit(&edge, 0);
    let calls = load.finish();
    edge.settle();
    assert_as_kafka_kept_it(&edge, &cluster, &topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn kafka_may_come_after_the_first_callbacks() {
    let cluster = Cluster::format();
    let topics = Topics::named(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    assert_eq!(edge.probe("/readyz").0, 200, "Kafka's absence makes nobody unready");
    let receipts: Vec<_> = (0..3).map(|serial| edge.accept(&Load::body(0, serial))).collect();
    edge.await_blocked("no_broker");
    edge.await_logged("Connection refused");
    assert_eq!(edge.metrics().total("journal_pending_callbacks", &[]), 3);

    cluster.start_again();
    topics.create_all();
    edge.settle();
    let calls = (0..).zip(receipts).map(|(serial, receipt)| ((0, serial), Some(receipt)));
    assert_exactly_once(&topics, &calls.collect());
    assert_eq!(edge.metrics().total("publish_blocked", &[]), 0);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_missing_topic_holds_everything_until_it_is_there() {
    let bootstrap = kafka();
    let topics = Topics::named(&bootstrap);
    for role in ["message_status", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let receipt = edge.accept(&Load::body(0, 0));
    edge.await_blocked("unknown_topic");
    assert!(topics.read().is_empty(), "nothing is skipped");

    topics.create_one("inbound_message", &[]);
    edge.settle();
    assert_exactly_once(&topics, &BTreeMap::from([((0, 0), Some(receipt))]));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn only_the_record_that_kafka_refuses_alone_becomes_a_dead_letter() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    edge.accept(&envelope(&format!(r#""statuses":[{}]"#, status("wamid.before", 1, ""))));
    edge.settle();
    // The edge has compared sizes with the old limit by now.
    topics.alter("message_status", "max.message.bytes", "4000");

    let large = large_status("wamid.large");
    let statuses: Vec<_> = (0..40)
        .map(|at| if at == 17 { large.clone() } else { status(&format!("wamid.{at}"), 5, "") })
        .collect();
    let receipt = edge.accept(&envelope(&format!(r#""statuses":[{}]"#, statuses.join(","))));
    let after =
        edge.accept(&envelope(&format!(r#""statuses":[{}]"#, status("wamid.after", 1, ""))));
    edge.settle();

    let records = topics.read();
    assert_eq!(of_role(&records, "message_status").len(), 1 + 39 + 1);
    assert!(records.iter().any(|record| record.headers["receipt"] == after));
    let dead = of_role(&records, "dead_letter");
    let [dead] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!(String::from_utf8_lossy(&dead.value), large);
    assert_eq!(dead.key, receipt);
    assert_eq!(dead.headers["element"], "/entry/0/changes/0/value/statuses/17");
    assert_eq!(dead.headers["stage"], "publish");
    assert_eq!(dead.headers["topic"], "message-status.v1");
    assert!(["refused", "too_large"].contains(&dead.headers["reason"].as_str()));
}

/// A status of about 6,000 bytes that no compression makes small.
fn large_status(id: &str) -> String {
    let noise = (0..128_u32).flat_map(|at| Sha256::digest(at.to_le_bytes())).collect::<Vec<_>>();
    let noise = base64::engine::general_purpose::STANDARD.encode(noise);
    status(id, 5, &format!(r#","biz_opaque_callback_data":"{noise}""#))
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn events_reach_kafka_over_tls_with_scram() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&over_tls(&cluster, &topics, &cluster.ca_file()));
    let receipt = edge.accept(&Load::body(0, 0));
    edge.settle();
    assert_exactly_once(&topics, &BTreeMap::from([((0, 0), Some(receipt))]));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_broker_whose_certificate_nobody_signed_is_told_from_one_that_is_not_there() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let directory = tempfile::TempDir::new().unwrap();
    let (another, _) = certificate_files(directory.path());
    let mut edge = Edge::start(&over_tls(&cluster, &topics, &another));
    let receipt = edge.accept(&Load::body(0, 0));
    edge.await_blocked("tls");
    edge.await_logged("certificate verify failed");
    edge.stop();
    edge.configure(&over_tls(&cluster, &topics, &cluster.ca_file()));
    edge.start_again();
    edge.settle();
    assert_exactly_once(&topics, &BTreeMap::from([((0, 0), Some(receipt))]));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_call_over_https_with_http_2_reaches_kafka() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let directory = tempfile::TempDir::new().unwrap();
    let (certificate_file, key_file) = certificate_files(directory.path());
    let tls = Some((certificate_file.clone(), key_file));
    let edge = Edge::start(&Settings { tls, ..settings(&bootstrap, &topics) });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let certificate = CertificateDer::from_pem_file(&certificate_file).unwrap();
    let status = runtime.block_on(call_over_http_2(&edge, certificate, Load::body(0, 0)));
    assert_eq!(status, 200);
    let sent =
        edge.send(&["--sample", "delivered", "--ca-file", certificate_file.to_str().unwrap()]);
    assert!(sent.status.success(), "{sent:?}");
    edge.settle();
    let records = topics.read();
    assert_eq!(of_role(&records, "message_status").len(), 2);
    assert_eq!(of_role(&records, "inbound_message").len(), 1);
}

async fn call_over_http_2(edge: &Edge, certificate: CertificateDer<'_>, body: String) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.into_owned()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(edge.public()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = edge.request(body);
    let status = sender.send_request(request).await.unwrap().status().as_u16();
    connection.abort();
    status
}

/// The name of the files of the second element of a callback, which Kafka refused even as a dead letter.
fn quarantined(edge: &Edge, receipt: &str) -> String {
    let files = std::fs::read_dir(edge.journal().join("quarantine")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let of_receipt: Vec<_> =
        names.filter(|name| name.ends_with(&format!("-{receipt}-1.value"))).collect();
    let [name] = &of_receipt[..] else { panic!("{of_receipt:?}") };
    name.trim_end_matches(".value").to_owned()
}
