//! New calls as server-sent events, for as long as a page is open.
//!
//! A stream looks at the rings five times a second and sends what is new. It makes the next event
//! after the browser took the last one, and then skips to the newest calls. So a browser that stands
//! still costs nothing, and `http::activity` ends its connection.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{Either, channel::Channel};
use serde::Serialize;
use serde_json::{Value as Json, json};
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    BUILD, Body, Inspector, Problem,
    access::Pass,
    describe::{KafkaState, kafka_state, listed, shown, undescribed},
};
use crate::{
    calls::{CALLS_KEPT, RecentCall},
    clock,
    config::Config,
    http::{RequestGuard, answer},
    journal::Position,
    metrics::UNKNOWN_SOURCE,
};

/// Between two looks.
const TICK: Duration = Duration::from_millis(200);
/// After this time without an event a comment is sent. A connection that broke is noticed so.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// New calls of one source that a look shows after the first look.
const SHOWN_MAX: usize = 20;
/// A look that has made so many bytes leaves the other sources to the next look.
const EVENTS_BYTES: usize = 256 << 10;
/// Bytes of bodies that one look reads, without their compression: only the last body that is read may go
/// beyond. Other bodies are read when a person asks for one.
const READ_BYTES_MAX: i64 = 512 << 10;

/// What one page has seen.
struct CallFollower {
    inspector: Arc<Inspector>,
    config: Arc<Config>,
    /// The number of the next call, by source.
    next: HashMap<String, u64>,
    /// Shown calls that are not in Kafka yet.
    pending: Vec<(Position, String, u64)>,
    /// The source that comes first in the next look; none before the first look.
    turn: Option<usize>,
    /// Why nothing is published.
    blocked: Option<String>,
    /// What the present look found.
    events: String,
}

/// Calls of a source that Kafka has now.
#[derive(Default, Serialize)]
struct Settled {
    committed: Vec<u64>,
    aside: Vec<u64>,
}

impl Inspector {
    /// Answers with new calls until the browser goes, or the login ends.
    pub(super) fn follow(
        self: Arc<Self>,
        pass: Pass,
        guard: RequestGuard,
    ) -> Result<Response<Body>, Problem> {
        let place = Arc::clone(&self.streams).try_acquire_owned();
        let place = place.map_err(|_| Problem::TOO_MANY_STREAMS)?;
        let (mut sender, stream) = Channel::new(1);
        let config = self.state.config.load_full();
        let (next, pending) = Default::default();
        let (turn, blocked, events) = Default::default();
        let mut follower =
            CallFollower { inspector: self, config, next, pending, turn, blocked, events };
        tokio::spawn(async move {
            let _held = (guard, place);
            let mut sent = Instant::now();
            while follower.inspector.access.is_valid(pass) {
                let look = spawn_blocking(move || (follower.look(), follower));
                let Ok((mut events, back)) = look.await else { return };
                follower = back;
                if events.is_empty() && sent.elapsed() >= HEARTBEAT {
                    events.push_str(":\n\n");
                }
                if !events.is_empty() {
                    sent = Instant::now();
                    if sender.send_data(Bytes::from(events)).await.is_err() {
                        return;
                    }
                }
                sleep(TICK).await;
            }
        });
        Ok(answer(StatusCode::OK, "text/event-stream", Either::Right(stream)))
    }
}

impl CallFollower {
    /// What is new since the last look, as events.
    fn look(&mut self) -> String {
        let config = self.inspector.state.config.load_full();
        if self.turn.is_none() {
            let hello = json!({"build": *BUILD, "run": self.inspector.run.to_string()});
            write_event(&mut self.events, "hello", hello);
        } else if !Arc::ptr_eq(&config, &self.config) {
            write_event(&mut self.events, "changed", json!({}));
            // One that comes back has other calls.
            let is_left = |source: &String| config.sources.contains_key(source);
            self.next.retain(|source, _| source == UNKNOWN_SOURCE || is_left(source));
        }
        self.config = Arc::clone(&config);
        let blocked = self.inspector.state.metrics.why_blocked();
        if self.turn.is_none() || blocked != self.blocked {
            write_event(&mut self.events, "publishing", json!({"blocked": blocked}));
        }
        self.blocked = blocked;
        // Before the calls, so that a call that is committed meanwhile is told later.
        let committed = self.inspector.state.journal.committed();
        self.write_settled(committed);
        let mut bytes_left = READ_BYTES_MAX;
        let names = config.sources.keys().map(String::as_str).chain([UNKNOWN_SOURCE]);
        let names: Vec<_> = names.collect();
        let mut turn = self.turn.unwrap_or_default();
        for at in (0..names.len()).map(|at| (turn + at) % names.len()) {
            self.write_calls(names[at], committed, &mut bytes_left);
            if self.events.len() > EVENTS_BYTES {
                turn = at + 1;
                break;
            }
        }
        self.turn = Some(turn);
        mem::take(&mut self.events)
    }

    fn write_calls(&mut self, source: &str, committed: Position, bytes_left: &mut i64) {
        let state = &self.inspector.state;
        let initial = !self.next.contains_key(source);
        let next = self.next.entry(source.to_owned()).or_default();
        let most = if initial { CALLS_KEPT } else { SHOWN_MAX };
        let new = state.calls.ring(source).since(*next, most);
        let Some(last) = new.last() else { return };
        // 0: nothing of this source was there so far. Its numbers may begin anywhere.
        let since = last.number + 1 - *next;
        let skipped = if initial || *next == 0 { 0 } else { since - new.len() as u64 };
        *next = last.number + 1;
        let mut reader = state.journal.reader(committed);
        // The newest calls are described if not all can be. Reading goes up, as the journal does.
        let unread = new.iter().rposition(|call| !take_bytes(call, bytes_left));
        let calls = new.iter().enumerate().map(|(at, call)| {
            shown(call, |accepted| {
                let kafka = kafka_state(&state.journal, committed, accepted.position);
                let is_busy = *bytes_left < 0 || unread.is_some_and(|unread| at <= unread);
                let (what, body_bytes) = match is_busy {
                    true => undescribed("busy"),
                    false => listed(&mut reader, accepted.position, &self.config),
                };
                // How much a compressed body holds is known when it has been read.
                *bytes_left -= (body_bytes as i64 - i64::from(accepted.body_bytes)).max(0);
                (kafka, what)
            })
        });
        let calls: Vec<_> = calls.collect();
        let new_calls = json!({
            "source": source,
            // Calls since the last look that are not shown.
            "skipped": skipped,
            // The page was opened after these calls.
            "initial": initial,
            // Now. Calls that are in Kafka came there before.
            "seen_ms": clock::wall_ms(),
            "calls": calls,
        });
        write_event(&mut self.events, "calls", new_calls);
        let accepted = new.iter().filter_map(|call| {
            let position = call.outcome.as_ref().ok()?.position;
            Some((position, source.to_owned(), call.number))
        });
        self.pending.extend(accepted.filter(|(position, ..)| *position >= committed));
        // A page shows no more of a source than the ring keeps.
        let most = CALLS_KEPT * self.next.len();
        let forgotten = self.pending.len().saturating_sub(most);
        self.pending.drain(..forgotten);
    }

    /// Tells which shown calls are settled by now.
    fn write_settled(&mut self, committed: Position) {
        let mut settled = BTreeMap::<String, Settled>::new();
        let journal = &self.inspector.state.journal;
        self.pending.retain(|(position, source, number)| {
            let state = kafka_state(journal, committed, *position);
            if state != KafkaState::Pending {
                let Settled { committed, aside } = settled.entry(source.clone()).or_default();
                if state == KafkaState::Aside { aside } else { committed }.push(*number);
            }
            state == KafkaState::Pending
        });
        if !settled.is_empty() {
            let settled = json!({"at_ms": clock::wall_ms(), "sources": settled});
            write_event(&mut self.events, "settled", settled);
        }
    }
}

/// Takes what reading a call takes at least of `bytes_left`, if there is as much.
fn take_bytes(call: &RecentCall, bytes_left: &mut i64) -> bool {
    let Ok(accepted) = &call.outcome else { return true };
    let bytes = i64::from(accepted.body_bytes);
    let is_enough = *bytes_left >= bytes;
    if is_enough {
        *bytes_left -= bytes;
    }
    is_enough
}

fn write_event(events: &mut String, name: &str, data: Json) {
    // JSON has no line breaks outside strings. Writing to a string does not fail.
    write!(events, "event: {name}\ndata: {data}\n\n").ok();
}
