//! Callers that call as Weni does, and remember what they were answered.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{envelope, status};
use crate::harness::{Caller, Edge, eventually};

/// A caller's number and the serial number of its call.
pub(super) type CallId = (usize, u64);

/// So many calls are accepted within the time limit of any test.
const STEP: usize = 1000;

/// Calls and the receipts of those that were answered.
pub(super) type Calls = BTreeMap<CallId, Option<String>>;

/// Callers on a connection each, until they are told to finish.
pub(super) struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<Calls>>,
}

struct Shared {
    edge: Mutex<SocketAddr>,
    ended: AtomicBool,
    accepted: AtomicUsize,
    /// How long the answers took that nobody has asked for yet; of paced callers only.
    latencies: Mutex<Vec<Duration>>,
    /// Whether answers are lost on their way.
    deaf: AtomicBool,
    /// Whether the edge may refuse calls: one that was frozen finds that their time is over.
    may_refuse: bool,
    /// From one call of a caller to its next; without one it calls as fast as it is answered.
    period: Option<Duration>,
}

impl Load {
    pub(super) const CALLERS: usize = 4;
    const PACED_CALLERS: usize = 32;
    /// Of the first call; each further one is a second later.
    pub(super) const FIRST_SECOND: u64 = 1_700_000_000;

    /// A few callers without a pause.
    pub(super) fn start(edge: &Edge) -> Self {
        Self::begin(edge, Self::CALLERS, None, false)
    }

    /// The same where the edge may refuse calls.
    pub(super) fn start_refusable(edge: &Edge) -> Self {
        Self::begin(edge, Self::CALLERS, None, true)
    }

    /// So many calls a second in all.
    pub(super) fn start_paced(edge: &Edge, per_second: u32) -> Self {
        let callers = Self::PACED_CALLERS;
        let period = Duration::from_secs(callers as u64) / per_second;
        Self::begin(edge, callers, Some(period), false)
    }

    fn begin(edge: &Edge, callers: usize, period: Option<Duration>, may_refuse: bool) -> Self {
        let shared = Arc::new(Shared {
            edge: Mutex::new(edge.public()),
            ended: AtomicBool::default(),
            accepted: AtomicUsize::default(),
            latencies: Mutex::default(),
            deaf: AtomicBool::default(),
            may_refuse,
            period,
        });
        let caller = |number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.call(number))
        };
        let callers = (0..callers).map(caller).collect();
        Self { shared, callers }
    }

    /// One status of the caller's one message, and one message of its own: two topics.
    pub(super) fn elements(caller: usize, serial: u64) -> [String; 2] {
        let second = Self::FIRST_SECOND + serial;
        let status = status(&format!("wamid.{caller}"), second, "");
        let message = format!(
            r#"{{"from":"5582999990000","id":"wamid.{caller}.{serial}","timestamp":"{second}","type":"text","text":{{"body":"Oi"}}}}"#
        );
        [status, message]
    }

    pub(super) fn body(caller: usize, serial: u64) -> String {
        let [status, message] = Self::elements(caller, serial);
        envelope(&format!(r#""statuses":[{status}],"messages":[{message}]"#))
    }

    /// Waits until `more` calls have been accepted from now on: as long as it takes, if they come.
    pub(super) fn await_accepted(&self, more: usize) {
        let due = self.accepted() + more;
        while self.accepted() < due {
            let next = due.min(self.accepted() + STEP);
            eventually("calls are accepted", || {
                assert!(!self.callers.iter().any(JoinHandle::is_finished), "a caller has failed");
                (self.accepted() >= next).then_some(())
            });
        }
    }

    pub(super) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How long the answers took since it was last asked.
    pub(super) fn latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.shared.latencies.lock().unwrap())
    }

    /// A power cut takes the network too: answers that are given from now on reach nobody.
    pub(super) fn hear_nothing(&self) {
        self.shared.deaf.store(true, Ordering::SeqCst);
    }

    pub(super) fn go_on_at(&self, edge: &Edge) {
        self.shared.deaf.store(false, Ordering::SeqCst);
        *self.shared.edge.lock().unwrap() = edge.public();
    }

    /// Stops calling; gives back each call and its receipt, if it was answered.
    pub(super) fn finish(self) -> Calls {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    }
}

impl Shared {
    /// One caller's calls, to the end of the load.
    fn call(&self, number: usize) -> Calls {
        let (mut calls, mut connection) = (BTreeMap::new(), None);
        let mut due = Instant::now();
        for serial in 0.. {
            while connection.is_none() && !self.ended() {
                let address = *self.edge.lock().unwrap();
                connection = Caller::connect(address).ok();
                thread::sleep(Duration::from_millis(2));
            }
            if let Some(period) = self.period {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due += period;
            }
            if self.ended() {
                break;
            }
            let caller = connection.as_mut().expect("a connection");
            let receipt = self.call_once(caller, &Load::body(number, serial));
            if receipt.is_none() {
                connection = None;
            }
            calls.insert((number, serial), receipt);
        }
        calls
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Calls, and gives back the receipt. Without an answer it may have been accepted or not. A
    /// refusal would be a mistake, unless the test says otherwise; then it is one that asks to come
    /// back.
    fn call_once(&self, caller: &mut Caller, body: &str) -> Option<String> {
        let called = Instant::now();
        let answer = caller.call("POST", body.as_bytes()).ok()?;
        let refused = self.may_refuse && answer.status == 503;
        assert_eq!(answer.retry_after.is_some(), refused, "{}", answer.body);
        if refused || self.deaf.load(Ordering::SeqCst) {
            return None;
        }
        let receipt = answer.receipt();
        if self.period.is_some() {
            self.latencies.lock().unwrap().push(called.elapsed());
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(receipt)
    }
}
