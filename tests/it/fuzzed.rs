//! What must hold for any bytes that the program reads. The fuzz targets (`fuzz/fuzz_targets`) call these
//! functions, and the tests replay the inputs that fuzzing kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus::IntCounter;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use tempfile::TempDir;
use weni_edge::{
    callback::Callback,
    config::{Config, EffectiveValue, to_toml},
    event::{
        Event, Item, KeptLetter, Reason, Settings, Topic,
        form::{Details, Form, Message, Status},
    },
    journal::{Checkpoint, Inspection, Journal, Options, Position, disk, inspect},
    metrics::Metrics,
    normalize,
};

/// A record is refused, or reads back as it is written.
pub(crate) fn callback(record: &[u8]) {
    let Ok(callback) = Callback::decode(record) else { return };
    let mut again = Vec::new();
    callback.encode(&mut again);
    assert_eq!(Callback::decode(&again), Ok(callback));
}

/// Every event carries them.
const SETTINGS: Settings<'static> =
    Settings { labels: br#"{"team":"crm"}"#, key_by_conversation: true };

/// What fuzzing and the tests demand of any body: its items can be written, each event is JSON with a
/// key and its bytes, the same body gives the same items again, and an event that was a dead letter
/// is the same event again. What serde_json reads as a status is an event of its own.
///
/// # Panics
/// When the contract is broken.
pub(crate) fn normalize(body: &[u8]) {
    let callback = Callback {
        receipt: uuid::Uuid::from_u128(1),
        received_at_ms: 1_763_842_387_482,
        source: "fuzz",
        raw: true,
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        body,
    };
    let read = serde_json::from_slice(body).unwrap_or(Json::Null);
    let mut statuses = statuses(&read);
    let mut written = || {
        let mut all = Vec::new();
        let decoded = normalize::decode(&callback, 1_000_000);
        let document = normalize::parse(&decoded);
        for item in normalize::items(&callback, SETTINGS, &document) {
            let mut out = Vec::new();
            match item {
                Item::Event(event) => {
                    assert!(!event.key().is_empty());
                    event.headers(&mut |_, value| out.extend_from_slice(value));
                    let start = out.len();
                    event.write_json(&mut out);
                    let json: Json = match serde_json::from_slice(&out[start..]) {
                        Ok(json) => json,
                        Err(error) => panic!("an event is no JSON: {error}"),
                    };
                    assert!(json.get("raw").is_some() != json.get("raw_base64").is_some());
                    has_its_form(event.topic(), &json);
                    statuses.retain(|status| *status != json["raw"]);
                    assert_comes_back(event);
                }
                Item::DeadLetter(letter) => {
                    letter.headers(&mut |_, value| out.extend_from_slice(value));
                    out.extend_from_slice(&letter.value);
                    if letter.reason == Reason::Amplification {
                        statuses.clear();
                    }
                }
            }
            all.push(out);
        }
        let bytes: usize = all.iter().map(Vec::len).sum();
        assert!(bytes <= 32 * body.len() + (1 << 20) + 1024, "{bytes} bytes of {}", body.len());
        all
    };
    assert_eq!(written(), written());
    leaves_out_only_what_is_typed(&callback);
    assert_eq!(statuses, [Json::Null; 0], "statuses that were not read");
}

/// With `raw = "untyped"` an event is the same, or lacks `raw` alone.
fn leaves_out_only_what_is_typed(callback: &Callback<'_>) {
    let events = |raw| -> Vec<Json> {
        let callback = Callback { raw, ..*callback };
        let decoded = normalize::decode(&callback, 1_000_000);
        let document = normalize::parse(&decoded);
        let json = |item: &Item<'_>| match item {
            Item::Event(event) => {
                let mut out = Vec::new();
                event.write_json(&mut out);
                serde_json::from_slice(&out).unwrap()
            }
            Item::DeadLetter(_) => Json::Null,
        };
        normalize::items(&callback, SETTINGS, &document).iter().map(json).collect()
    };
    let (all, untyped) = (events(true), events(false));
    assert_eq!(all.len(), untyped.len());
    for (mut whole, event) in all.into_iter().zip(untyped) {
        if event.get("raw").is_none()
            && let Some(whole) = whole.as_object_mut()
        {
            whole.remove("raw");
        }
        assert_eq!(event, whole);
    }
}

/// Its topic's form reads all of an event, and an event of any topic too.
///
/// # Panics
/// If it does not.
pub(crate) fn has_its_form(topic: Topic, event: &Json) {
    fn again<D: DeserializeOwned + Serialize>(event: &Json) -> serde_json::Result<Json> {
        serde_json::to_value(Form::<D>::deserialize(event)?)
    }
    let own = match topic {
        Topic::MessageStatus => again::<Status>(event),
        Topic::InboundMessage => again::<Message>(event),
        Topic::ChannelEvent | Topic::DeadLetter => again::<Details>(event),
    };
    for read in [own, again::<Details>(event)] {
        let read = read.unwrap_or_else(|error| panic!("{error}: {event}"));
        assert!(is_all_of(&read, event), "{event} was read as {read}");
    }
}

/// Whether what was read is the event. Members that the event leaves out were read as null.
fn is_all_of(read: &Json, event: &Json) -> bool {
    match (read, event) {
        (Json::Object(read), Json::Object(event)) => {
            event.keys().all(|name| read.contains_key(name))
                && read.iter().all(|(name, read)| match event.get(name) {
                    Some(member) => is_all_of(read, member),
                    None => read.is_null(),
                })
        }
        (Json::Array(read), Json::Array(event)) => {
            read.len() == event.len()
                && read.iter().zip(event).all(|(read, event)| is_all_of(read, event))
        }
        (read, event) => read == event,
    }
}

/// The statuses with an id in a callback of either shape, by another reading than ours.
fn statuses(body: &Json) -> Vec<Json> {
    let array = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let mut found = array(&body["statuses"]);
    for change in array(&body["entry"]).iter().flat_map(|entry| array(&entry["changes"])) {
        if change["field"] == "messages" {
            found.extend(array(&change["value"]["statuses"]));
        }
    }
    let text = |value: &Json| value.as_str().is_some_and(|text| !text.trim().is_empty());
    found.retain(|status| text(&status["id"]) && text(&status["status"]));
    found
}

fn assert_comes_back(event: Event<'_>) {
    let written = written(&event);
    let letter = event.into_dead_letter(Reason::Refused, String::new());
    let mut headers = Vec::new();
    letter.headers(&mut |name, value| headers.push((name.to_owned(), value.to_vec())));
    let letter = KeptLetter::read(&headers, &letter.value).expect("a letter");
    let body = normalize::decode_letter(&letter, 1_000_000);
    let document = normalize::parse(&body);
    let again: Vec<_> = normalize::items_of_letter(&letter, SETTINGS, &document)
        .iter()
        .map(|item| match item {
            Item::Event(event) => self::written(event),
            Item::DeadLetter(letter) => panic!("dead again: {:?}", letter.reason),
        })
        .collect();
    assert_eq!(again, [written]);
}

/// Headers and JSON.
fn written(event: &Event<'_>) -> Vec<String> {
    let mut all = Vec::new();
    event.headers(&mut |name, value| {
        all.push(format!("{name}: {}", String::from_utf8_lossy(value)));
    });
    let mut json = Vec::new();
    event.write_json(&mut json);
    all.push(String::from_utf8_lossy(&json).into_owned());
    all
}

/// A file is a configuration, which says of itself what makes the same one, or refused with words.
pub(crate) fn config(text: &[u8]) {
    let directory = memory_directory();
    let path = directory.path().join("weni-edge.toml");
    fs::write(&path, text).unwrap();
    let values = match Config::load_effective(Some(&path)) {
        Err(error) => return assert!(!error.to_string().is_empty()),
        Ok((_, values)) => values,
    };
    let printed = to_toml(&values);
    fs::write(&path, printed.replace("\"(secret)\"", "\"secret of some length\"")).unwrap();
    let without_origin = |values: Vec<EffectiveValue>| -> Vec<_> {
        values.into_iter().map(|value| (value.section, value.key, value.value)).collect()
    };
    match Config::load_effective(Some(&path)) {
        Ok((_, again)) => assert_eq!(without_origin(again), without_origin(values)),
        // What stands for a key in PEM is none.
        Err(error) => assert!(printed.contains(".pem\" = \"(secret)\""), "{error}\n{printed}"),
    }
}

/// A journal with bytes changed ([`damage`]) is refused, or opens, gives only records that were
/// appended, in their order, and takes a new one.
pub(crate) fn journal(changes: &[u8]) {
    let directory = memory_directory();
    let files = copy_template(directory.path());
    damage(&files, changes);
    let opened = Journal::open(options(directory.path()), Arc::new(Metrics::default()));
    assert!(opened.is_ok() || !changes.is_empty(), "{opened:?}");
    let Ok(journal) = opened else { return };
    append(&journal, b"new");
    let mut reader = journal.reader(Default::default());
    let (mut read, mut next) = (Vec::new(), 0);
    while let Some(record) = reader.next().unwrap() {
        read.push(record.payload.to_vec());
    }
    assert_eq!(read.pop().as_deref(), Some(&b"new"[..]));
    for record in read {
        let found = (next..2 * RECORDS).find(|number| payload(*number) == record);
        next = found.expect("a record that was appended, behind those before it") + 1;
    }
}

/// Looking into the same journal changes nothing, and finds no more than was appended and the
/// checkpoint that was written. Much faster, for it opens nothing.
pub(crate) fn inspection(changes: &[u8]) {
    thread_local! {
        static COPY: (TempDir, Vec<PathBuf>, Inspection) = {
            let directory = memory_directory();
            let files = copy_template(directory.path());
            let whole = inspect(disk::Directory { disk: &disk::Real, path: directory.path() }).unwrap();
            assert!(whole.count(whole.oldest, whole.end) > 0 && whole.checkpoint.is_some());
            (directory, files, whole)
        };
    }
    COPY.with(|(directory, files, whole)| {
        let before = damage(files, changes);
        if let Ok(found) = inspect(disk::Directory { disk: &disk::Real, path: directory.path() }) {
            let records = |of: &Inspection| of.count(whole.oldest, whole.end);
            assert!(records(&found) <= records(whole) && found.end <= whole.end);
            assert!(found.checkpoint.is_none() || found.checkpoint == whole.checkpoint);
        }
        before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    });
}

/// Copies a journal of two runs, of more than one segment, and with a checkpoint. Returns its files.
fn copy_template(to: &Path) -> Vec<PathBuf> {
    thread_local!(static TEMPLATE: TempDir = template());
    TEMPLATE.with(|template| copy(template.path(), to))
}

fn template() -> TempDir {
    let directory = memory_directory();
    for run in 0..2 {
        let journal = Journal::open(options(directory.path()), Arc::default()).unwrap();
        let appended = (0..RECORDS).map(|at| append(&journal, &payload(run * RECORDS + at)));
        let positions: Vec<_> = appended.collect();
        let run_id = journal.run_id(journal.durable().run()).unwrap();
        let (position, receipt, cluster_id) = (positions[3], run_id, "cluster".to_owned());
        journal.advance_committed(Checkpoint { position, run_id, receipt, cluster_id });
        journal.close();
    }
    directory
}

/// Changes bytes of these files, five bytes a change: file, offset, what is added. Returns what the
/// changed files were before.
fn damage<'a>(files: &'a [PathBuf], changes: &[u8]) -> BTreeMap<&'a Path, Vec<u8>> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    for change in changes.as_chunks::<5>().0 {
        let [file, high, middle, low, add] = *change;
        let path = files[usize::from(file) % files.len()].as_path();
        let bytes = after.entry(path).or_insert_with(|| {
            let whole = fs::read(path).unwrap();
            before.insert(path, whole.clone());
            whole
        });
        let offset = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if let Some(offset) = offset.checked_rem(bytes.len()) {
            bytes[offset] = bytes[offset].wrapping_add(add);
        }
    }
    after.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    before
}

const RECORDS: usize = 40;

fn payload(number: usize) -> Vec<u8> {
    vec![number as u8; 1 + number * 37 % 900]
}

fn options(directory: &Path) -> Options {
    Options {
        min_free_bytes: 0,
        allow_volatile: true,
        segment_bytes: 16 << 10,
        ..Options::new(directory)
    }
}

fn append(journal: &Journal, payload: &[u8]) -> Position {
    let accepted = IntCounter::new("accepted", "for the account").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let write = |out: &mut Vec<u8>| out.extend_from_slice(payload);
    runtime.block_on(journal.append(payload.len(), &accepted, write)).unwrap()
}

/// Where a sync costs nothing, if there is such a place.
fn memory_directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// Copies a directory's files, and gives back where they are, in order.
fn copy(from: &Path, to: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            files.extend(copy(&entry.path(), &target));
        } else {
            fs::copy(entry.path(), &target).unwrap();
            files.push(target);
        }
    }
    files.sort();
    files
}

fn replay(corpus: &str, hold: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "no corpus {corpus}");
    for file in files {
        println!("{}", file.display());
        hold(&fs::read(file).unwrap());
    }
}

#[test]
fn callbacks_that_fuzzing_kept() {
    replay("callback", callback);
}

#[test]
fn configurations_that_fuzzing_kept() {
    replay("config", config);
    config(&fs::read("deploy/weni-edge.toml").unwrap());
}

#[test]
fn journals_that_fuzzing_kept() {
    replay("journal", journal);
    replay("journal", inspection);
}

#[test]
fn each_file_of_a_journal_may_be_damaged_anywhere() {
    journal(&[]);
    for file in 0..12 {
        for part in 0..8 {
            let change = [file, 0, part * 8, part, 1];
            journal(&change);
            inspection(&change);
        }
    }
}
