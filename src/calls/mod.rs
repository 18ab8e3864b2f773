//! The last calls of each source in memory, for people who look at them.
//!
//! A ring holds the last [`CALLS_KEPT`] calls of a source. Its memory is allocated at the source's
//! first call. Recording an accepted call is one copy into the ring. What the call was is read from
//! the journal when somebody looks. Why a call was refused is put into words at once.
//!
//! **Invariant:** no body and no value of a header is kept. The words say lengths and names.
//! **Invariant:** all rings together hold at most [`BYTES_MAX`].

pub(crate) mod explain;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use uuid::Uuid;

pub use self::explain::{Words, explain};
use crate::journal::Position;

/// Calls that are kept of each source.
pub const CALLS_KEPT: usize = 200;
/// Of them so many may be refused ones. So a flood of those does not push out the others.
const REFUSED_KEPT: usize = CALLS_KEPT / 2;
/// Refused calls of a source that are explained in a second.
const EXPLAINED_PER_SECOND: u32 = 20;
/// How many numbers a ring has for its calls. JavaScript tells numbers below 2^53 apart.
const NUMBERS: u64 = 1 << 36;
/// Memory of all rings, in bytes. A source whose ring would exceed it has none.
pub const BYTES_MAX: usize = 16 << 20;

const RING_BYTES: usize = CALLS_KEPT * size_of::<RecentCall>();
/// Of a path or a host.
const TEXT_BYTES_MAX: usize = 120;

/// The rings by source. Calls that name no source have one, too.
#[derive(Debug, Default)]
pub struct RecentCalls {
    rings: Mutex<BTreeMap<String, Arc<CallRing>>>,
    /// Rings that were ever made. A source that comes back gets numbers that no page has seen.
    made: AtomicU64,
    bytes: Arc<AtomicUsize>,
}

/// The last calls of one source.
#[derive(Debug)]
pub struct CallRing {
    state: Mutex<RingState>,
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct RingState {
    calls: VecDeque<RecentCall>,
    next: u64,
    /// A second since 1970, and how many calls were explained in it.
    explained: (u64, u32),
    host: Option<CallerHost>,
    /// The second since 1970 in which the host was last looked at.
    host_at: u64,
    last_arrival_ms: Option<u64>,
}

/// One call.
#[derive(Debug, Clone)]
pub struct RecentCall {
    /// Grows by one from call to call of a source. No other call of the source has it in this process.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `GET`, or `other`.
    pub method: &'static str,
    /// What became of it.
    pub outcome: Result<AcceptedCall, RefusedCall>,
}

/// A call that was answered 200 and is in the journal.
#[derive(Debug, Clone, Copy)]
pub struct AcceptedCall {
    /// Its receipt.
    pub receipt: Uuid,
    /// Its record in the journal.
    pub position: Position,
    /// Length of its body.
    pub body_bytes: u32,
    /// This program called, and not Weni.
    pub is_own: bool,
}

/// A call that was answered otherwise and is kept nowhere.
#[derive(Debug, Clone)]
pub struct RefusedCall {
    /// The status of its answer.
    pub status: u16,
    /// The reason in its answer.
    pub reason: &'static str,
    /// What the caller did wrong, where more than the reason is known.
    pub why: Option<Box<Words>>,
}

/// The address that callers used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerHost {
    /// Host and port, as in the header `Host`.
    pub authority: String,
    /// None: a proxy in front of the edge may have ended TLS.
    pub scheme: Option<&'static str>,
}

impl RecentCalls {
    /// The ring of a source, or of `unknown`.
    pub fn ring(&self, source: &str) -> Arc<CallRing> {
        let mut rings = self.rings.lock();
        let ring = rings.entry(source.to_owned()).or_insert_with(|| {
            let next = NUMBERS * self.made.fetch_add(1, Ordering::Relaxed);
            let state = Mutex::new(RingState { next, ..RingState::default() });
            Arc::new(CallRing { state, bytes: Arc::clone(&self.bytes) })
        });
        Arc::clone(ring)
    }

    /// Forgets the rings of sources that are configured no more.
    pub fn retain(&self, is_configured: impl Fn(&str) -> bool) {
        self.rings.lock().retain(|source, _| is_configured(source));
    }

    /// When the last call of Weni's arrived, by source: milliseconds since 1970.
    pub fn last_arrivals(&self) -> BTreeMap<String, u64> {
        let rings = self.rings.lock();
        let last = rings.iter().map(|(source, ring)| (source, ring.last_arrival_ms()));
        last.filter_map(|(source, last)| Some((source.clone(), last?))).collect()
    }

    /// Takes up what [`last_arrivals`](Self::last_arrivals) said before a restart.
    pub fn restore(&self, arrivals: BTreeMap<String, u64>) {
        for (source, at_ms) in arrivals {
            self.ring(&source).state.lock().last_arrival_ms.get_or_insert(at_ms);
        }
    }
}

impl CallRing {
    /// Records an accepted call. `host` is what the caller calls the edge. Once it has given one, it
    /// is not asked again within a second.
    pub fn accept(
        &self,
        at_ms: u64,
        method: &'static str,
        accepted: AcceptedCall,
        host: impl FnOnce() -> Option<CallerHost>,
    ) {
        let mut state = self.state.lock();
        if !accepted.is_own {
            state.last_arrival_ms = Some(at_ms);
        }
        let second = at_ms / 1000;
        let host = if state.host_at == second { None } else { host() };
        if let Some(host) = host {
            state.host_at = second;
            if host.authority.len() <= TEXT_BYTES_MAX && !is_loopback(&host.authority) {
                state.host = Some(host);
            }
        }
        self.push(&mut state, at_ms, method, Ok(accepted));
    }

    /// Whether the next refused call is to be explained. That costs more than the refusal, so only some
    /// of a flood are.
    pub fn explains(&self, at_ms: u64) -> bool {
        let (second, mut state) = (at_ms / 1000, self.state.lock());
        if state.explained.0 != second {
            state.explained = (second, 0);
        }
        state.explained.1 += 1;
        state.explained.1 <= EXPLAINED_PER_SECOND
    }

    /// Records a refused call.
    pub fn refuse(&self, at_ms: u64, method: &'static str, mut refused: RefusedCall) {
        if !self.take(refused.bytes()) {
            refused.why = None;
        }
        self.push(&mut self.state.lock(), at_ms, method, Err(refused));
    }

    fn push(
        &self,
        state: &mut RingState,
        at_ms: u64,
        method: &'static str,
        outcome: Result<AcceptedCall, RefusedCall>,
    ) {
        let call = RecentCall { number: state.next, at_ms, method, outcome };
        state.next += 1;
        if state.calls.capacity() == 0 {
            if !self.take(RING_BYTES) {
                return self.give_back(bytes_of(&call));
            }
            state.calls.reserve_exact(CALLS_KEPT);
        }
        let is_refused = |call: &RecentCall| call.outcome.is_err();
        let refused = state.calls.iter().filter(|call| is_refused(call));
        let goes = match is_refused(&call) && refused.count() == REFUSED_KEPT {
            true => state.calls.iter().position(is_refused),
            false => (state.calls.len() == CALLS_KEPT).then_some(0),
        };
        if let Some(oldest) = goes.and_then(|at| state.calls.remove(at)) {
            self.give_back(bytes_of(&oldest));
        }
        state.calls.push_back(call);
    }

    /// The newest calls from number `from` on, at most `max`, oldest first.
    pub fn since(&self, from: u64, max: usize) -> Vec<RecentCall> {
        let state = self.state.lock();
        let first = state.calls.partition_point(|call| call.number < from);
        let first = first.max(state.calls.len().saturating_sub(max));
        state.calls.range(first..).cloned().collect()
    }

    /// The call of that number, if it is kept.
    pub fn call(&self, number: u64) -> Option<RecentCall> {
        let state = self.state.lock();
        let at = state.calls.binary_search_by_key(&number, |call| call.number).ok()?;
        Some(state.calls[at].clone())
    }

    /// The address that the last accepted caller used. One on this machine does not count: it does not
    /// say where Weni reaches it.
    pub fn host(&self) -> Option<CallerHost> {
        self.state.lock().host.clone()
    }

    /// When the last call of Weni's arrived: milliseconds since 1970.
    pub fn last_arrival_ms(&self) -> Option<u64> {
        self.state.lock().last_arrival_ms
    }

    /// Takes bytes of what all rings may hold.
    fn take(&self, bytes: usize) -> bool {
        let take = |held: usize| held.checked_add(bytes).filter(|held| *held <= BYTES_MAX);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        // Accepted calls hold nothing. Without a write their threads do not wait for each other's.
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for CallRing {
    fn drop(&mut self) {
        let calls = &self.state.get_mut().calls;
        let ring = if calls.capacity() == 0 { 0 } else { RING_BYTES };
        let bytes = ring + calls.iter().map(bytes_of).sum::<usize>();
        self.give_back(bytes);
    }
}

impl RefusedCall {
    /// What it holds beside its place in the ring.
    fn bytes(&self) -> usize {
        let texts = |why: &Words| why.pt.capacity() + why.en.capacity();
        self.why.as_deref().map_or(0, |why| size_of::<Words>() + texts(why))
    }
}

/// Whether this `Host` can only be the machine itself.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// What a call holds beside its place in the ring.
fn bytes_of(call: &RecentCall) -> usize {
    call.outcome.as_ref().err().map_or(0, RefusedCall::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(index: u64) -> AcceptedCall {
        let position = Position::new(1, index);
        AcceptedCall { receipt: Uuid::nil(), position, body_bytes: 7, is_own: false }
    }

    fn host(authority: &str, scheme: Option<&'static str>) -> Option<CallerHost> {
        Some(CallerHost { authority: authority.to_owned(), scheme })
    }

    fn refused(path: &str) -> RefusedCall {
        let why = Some(Box::new(explain::wrong_path(path, ["loja"].into_iter())));
        RefusedCall { status: 404, reason: "unknown_source", why }
    }

    fn held(calls: &RecentCalls) -> usize {
        calls.bytes.load(Ordering::Relaxed)
    }

    #[test]
    fn a_ring_keeps_the_last_calls_and_takes_no_memory_before_the_first() {
        let calls = RecentCalls::default();
        let ring = calls.ring("loja");
        assert_eq!(held(&calls), 0);
        for index in 0..500 {
            ring.accept(1000 + index, "POST", accepted(index), || None);
        }
        assert_eq!(held(&calls), RING_BYTES);
        let kept = ring.since(0, usize::MAX);
        let numbers: Vec<_> = kept.iter().map(|call| call.number).collect();
        assert_eq!(numbers, (300..500).collect::<Vec<_>>());
        let newest: Vec<_> = ring.since(450, 3).iter().map(|call| call.number).collect();
        assert_eq!(newest, [497, 498, 499]);
        assert!(ring.call(299).is_none() && ring.call(500).is_none());
        assert_eq!(ring.call(300).map(|call| call.at_ms), Some(1300));
        assert_eq!(calls.last_arrivals(), BTreeMap::from([("loja".to_owned(), 1499)]));
    }

    #[test]
    fn a_flood_of_refused_calls_pushes_out_no_accepted_one_and_is_explained_in_part() {
        let ring = RecentCalls::default().ring("loja");
        for index in 0..150 {
            ring.accept(1, "POST", accepted(index), || None);
        }
        for _ in 0..1000 {
            ring.refuse(2, "POST", refused("/hooks/loga"));
        }
        let kept = ring.since(0, usize::MAX);
        assert_eq!(kept.iter().filter(|call| call.outcome.is_err()).count(), REFUSED_KEPT);
        assert_eq!(kept.len(), CALLS_KEPT);
        assert_eq!(kept.last().unwrap().number, 1149, "the newest is there");
        assert_eq!((0..50).filter(|_| ring.explains(5_999)).count(), 20);
        assert!(ring.explains(6_000), "the next second");
    }

    #[test]
    fn a_source_that_comes_back_has_numbers_that_no_page_has_seen() {
        let calls = RecentCalls::default();
        let number = || {
            let ring = calls.ring("loja");
            ring.accept(1, "POST", accepted(0), || None);
            ring.since(0, usize::MAX).last().unwrap().number
        };
        let (first, second) = (number(), number());
        calls.retain(|_| false);
        assert!(first < second && second < number());
    }

    #[test]
    fn all_rings_together_stay_within_their_memory_and_give_it_back() {
        let calls = RecentCalls::default();
        let path = "/".repeat(10_000);
        for source in 0..2000 {
            let ring = calls.ring(&source.to_string());
            for _ in 0..300 {
                ring.refuse(1, "POST", refused(&path));
            }
            assert!(held(&calls) <= BYTES_MAX);
        }
        assert!(held(&calls) > BYTES_MAX - RING_BYTES);
        assert!(calls.ring("1999").since(0, 9).is_empty(), "there was no room for it");
        calls.retain(|source| source == "0");
        let slips: usize = calls.ring("0").since(0, CALLS_KEPT).iter().map(bytes_of).sum();
        assert_eq!(held(&calls), RING_BYTES + slips);
    }

    #[test]
    fn own_calls_are_no_arrival_and_what_was_known_before_a_restart_is_not_newer() {
        let calls = RecentCalls::default();
        let ring = calls.ring("loja");
        ring.accept(5_000, "POST", AcceptedCall { is_own: true, ..accepted(0) }, || {
            host("edge:80", None)
        });
        assert_eq!(ring.last_arrival_ms(), None);
        calls.restore(BTreeMap::from([("loja".to_owned(), 3)]));
        assert_eq!(ring.last_arrival_ms(), Some(3));
        ring.accept(9_000, "POST", accepted(1), || host("edge.example.com", Some("https")));
        calls.restore(BTreeMap::from([("loja".to_owned(), 4)]));
        assert_eq!(ring.last_arrival_ms(), Some(9_000));
        assert_eq!(ring.host(), host("edge.example.com", Some("https")));
        for (authority, is_own, at_ms) in
            [("localhost:8080", false, 10_000), ("10.0.0.1", true, 20_000)]
        {
            let called = || host(authority, None).filter(|_| !is_own);
            ring.accept(at_ms, "POST", AcceptedCall { is_own, ..accepted(1) }, called);
            assert_eq!(ring.host().unwrap().authority, "edge.example.com");
        }
        let long = "h".repeat(TEXT_BYTES_MAX + 1);
        ring.accept(30_000, "POST", accepted(1), || host(&long, None));
        assert_eq!(ring.host().unwrap().authority, "edge.example.com");
    }
}
