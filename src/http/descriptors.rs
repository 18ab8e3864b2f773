//! Connections must not take the file descriptors that the journal and Kafka need: without one a
//! segment cannot be begun, and the process would have to end.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Left for everything but connections.
const KEPT: u64 = 128;
/// A limit of descriptors that leaves less than this is not obeyed.
const CONNECTIONS_MIN: u64 = 16;

/// How many connections there may be, of as many as are wanted. Takes as many descriptors as the
/// process may have: the limit that programs start with is often 1,024, for the sake of select().
pub(super) fn affordable_connections(wanted: usize) -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let affordable =
        current.map_or(u64::MAX, |limit| limit.saturating_sub(KEPT).max(CONNECTIONS_MIN));
    if affordable < wanted as u64 {
        tracing::warn!(
            wanted,
            affordable,
            "fewer connections than http.max_connections: raise the limit of open files"
        );
    }
    affordable.min(wanted as u64).min(u32::MAX.into()) as u32
}
