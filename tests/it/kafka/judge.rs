//! Judges a run: compares the calls answered 200 with what a `read_committed` consumer finds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use super::load::{CallId, Calls, Load};
use crate::cluster::{Record, Topics};

/// The call that a record comes from.
pub(super) fn call_of(record: &Record) -> CallId {
    let event = record.event();
    let second = event["raw"]["timestamp"].as_str().unwrap().parse::<u64>().unwrap();
    let caller = record.key.split('.').nth(1).unwrap().parse().unwrap();
    (caller, second - Load::FIRST_SECOND)
}

/// Of all that is in these topics, record by record: there may be millions.
pub(super) fn assert_exactly_once(topics: &Topics, calls: &Calls) {
    let mut judge = Judge::new(calls);
    topics.each(|record| judge.hear(&record).unwrap());
    judge.verdict().unwrap();
}

/// Nothing is missing but what was sent to `untold` partitions (`TOPIC-NUMBER`), which were never told
/// that it is committed. Some may be there more often.
pub(super) fn assert_there_or_untold(topics: &Topics, calls: &Calls, untold: &BTreeSet<String>) {
    let mut missing = answered(calls);
    topics.each(|record| {
        missing.remove(&(call_of(&record), record.role));
    });
    topics.each_sent(|record| {
        let partition = format!("{}-{}", topics.names[record.role], record.at.0);
        if untold.contains(&partition) {
            missing.remove(&(call_of(&record), record.role));
        }
    });
    assert!(missing.is_empty(), "{} records are missing: {missing:?}; {untold:?}", missing.len());
}

/// The records that calls with an answer leave.
fn answered(calls: &Calls) -> BTreeSet<(CallId, &'static str)> {
    let answered = calls.iter().filter(|(_, receipt)| receipt.is_some());
    let records =
        answered.map(|(call, _)| ["message_status", "inbound_message"].map(|role| (*call, role)));
    records.flatten().collect()
}

pub(super) fn assert_exactly_once_among(records: &[Record], calls: &Calls) {
    judge(records, calls).unwrap();
}

fn judge(records: &[Record], calls: &Calls) -> anyhow::Result<()> {
    let mut judge = Judge::new(calls);
    records.iter().try_for_each(|record| judge.hear(record))?;
    judge.verdict()
}

/// Every answered call is there once, as a status and a message, byte for byte; one without an answer
/// at most once, and then wholly; nothing else is there; and each key is in order.
pub(super) struct Judge<'c> {
    calls: &'c Calls,
    /// Role and receipt of the records of each call.
    found: BTreeMap<CallId, Vec<(&'static str, String)>>,
    /// The last serial number of each key.
    last: BTreeMap<(&'static str, String), u64>,
}

impl<'c> Judge<'c> {
    pub(super) fn new(calls: &'c Calls) -> Self {
        Self { calls, found: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Takes the records in the order in which they are read.
    pub(super) fn hear(&mut self, record: &Record) -> anyhow::Result<()> {
        let call = call_of(record);
        ensure!(self.calls.contains_key(&call), "nobody called {call:?}");
        let [status, message] = Load::elements(call.0, call.1);
        let element = if record.role == "message_status" { status } else { message };
        let raw = format!("\"raw\":{element}}}");
        ensure!(record.value.ends_with(raw.as_bytes()), "{call:?} is not what was sent");
        let receipt = record.headers["receipt"].clone();
        self.found.entry(call).or_default().push((record.role, receipt));
        let before = self.last.insert((record.role, record.key.clone()), call.1);
        ensure!(
            before.is_none_or(|before| before < call.1),
            "{} is out of order: {before:?}, then {} ({} {:?})",
            record.key,
            call.1,
            record.role,
            record.at
        );
        Ok(())
    }

    pub(super) fn verdict(mut self) -> anyhow::Result<()> {
        let (heard, calls) = (self.found.len(), self.calls.len());
        for (call, receipt) in self.calls {
            let found = self.found.remove(call).unwrap_or_default();
            if receipt.is_none() && found.is_empty() {
                continue;
            }
            let roles: Vec<_> = found.iter().map(|(role, _)| *role).collect();
            let receipts: BTreeSet<_> = found.into_iter().map(|(_, receipt)| receipt).collect();
            ensure!(
                roles == ["message_status", "inbound_message"],
                "{call:?} is there as {roles:?}; {heard} of {calls} calls were found"
            );
            ensure!(receipts.len() == 1, "{call:?} has receipts {receipts:?}");
            let is_its = receipt.as_ref().is_none_or(|receipt| receipts.contains(receipt));
            ensure!(is_its, "{call:?} has the receipt of another");
        }
        Ok(())
    }
}

/// What three calls of a caller leave when all is well; the last one had no answer.
fn run() -> (Vec<Record>, Calls) {
    let calls = (0..3).map(|serial| ((0, serial), (serial < 2).then(|| serial.to_string())));
    let records = (0..3).flat_map(|serial| {
        let [status, message] = Load::elements(0, serial);
        let keys = [("message_status", "wamid.0".to_owned(), status)];
        let keys =
            keys.into_iter().chain([("inbound_message", format!("wamid.0.{serial}"), message)]);
        keys.map(move |(role, key, element)| Record {
            role,
            at: (0, 0),
            key,
            headers: BTreeMap::from([("receipt".to_owned(), serial.to_string())]),
            timestamp_ms: 0,
            value: format!("{{\"raw\":{element}}}").into_bytes(),
        })
    });
    let mut records: Vec<_> = records.collect();
    records.sort_by_key(|record| record.role != "message_status");
    (records, calls.collect())
}

/// What the judge says of a run in which this was done to the records.
fn verdict(spoil: impl FnOnce(&mut Vec<Record>)) -> Result<(), String> {
    let (mut records, calls) = run();
    spoil(&mut records);
    judge(&records, &calls).map_err(|error| error.to_string())
}

#[test]
fn the_judge_passes_a_good_run_also_without_what_had_no_answer() {
    assert_eq!(verdict(|_| {}), Ok(()));
    let unanswered = |record: &Record| call_of(record) == (0, 2);
    assert_eq!(verdict(|records| records.retain(|record| !unanswered(record))), Ok(()));
}

#[test]
fn the_judge_fails_a_run_that_drops_doubles_swaps_or_alters_a_record() {
    let (records, _) = run();
    for at in 0..records.len() {
        assert!(verdict(|records| drop(records.remove(at))).is_err(), "dropped {at}");
        let double = |records: &mut Vec<Record>| {
            let [record] = run().0.drain(at..=at).collect::<Vec<_>>().try_into().unwrap();
            records.push(record);
        };
        assert!(verdict(double).is_err(), "doubled {at}");
        let alter = |records: &mut Vec<Record>| {
            let value = String::from_utf8(records[at].value.clone()).unwrap();
            records[at].value = value.replace("5582999990000", "5582999990001").into_bytes();
        };
        assert!(verdict(alter).is_err(), "altered {at}");
        let rename = |records: &mut Vec<Record>| {
            records[at].headers.insert("receipt".to_owned(), "another".to_owned());
        };
        assert!(verdict(rename).is_err(), "receipt of {at}");
    }
    assert!(verdict(|records| records.swap(0, 1)).is_err(), "swapped");
}
