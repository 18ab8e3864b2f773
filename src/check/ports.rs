//! The addresses to listen on: free, or an edge's that runs here.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use http::StatusCode;

use super::{Aspect, Finding, Report, Subject, block_on};
use crate::{
    caller::{self, on_this_machine},
    serve::bind,
};

/// A healthy edge answers at once.
const STEP: Duration = Duration::from_secs(3);

pub(super) fn probe(subject: &Subject, report: &Report) {
    let is_running = matches!(subject.running(), Ok(Some(_)));
    let asked = |aspect: Aspect, address: SocketAddr| {
        // For a moment, and without listening: no caller is answered.
        let error = bind(address).err();
        let is_taken = error.as_ref().is_some_and(|error| error.kind() == ErrorKind::AddrInUse);
        if !(is_taken && is_running) {
            judge(aspect, address, error.as_ref(), is_running)
        } else if aspect == Aspect::AdminListen {
            block_on(aspect, ask_admin(address)).unwrap_or_else(|problem| problem)
        } else {
            knock(aspect, address)
        }
    };
    report.add(asked(Aspect::HttpListen, subject.config.http.listen));
    report.add(asked(Aspect::AdminListen, subject.config.admin.listen));
}

fn judge(
    aspect: Aspect,
    address: SocketAddr,
    error: Option<&io::Error>,
    is_running: bool,
) -> Finding {
    let Some(error) = error else {
        if address.port() == 0 {
            return aspect.ok(format!("{address}: the system chooses a port at each start"));
        }
        if is_running {
            let found = format!("an edge has the journal open and does not listen on {address}");
            let remedy = "it was started with another address: restart it, or give its --config";
            return aspect.warning(found, remedy);
        }
        return aspect.ok(format!("{address} is free"));
    };
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => {
            let remedy = "end it (ss -tanp shows it), or choose another port; if it is this edge, run check \
                          as the edge's user";
            return aspect.problem(format!("another program listens on {address}"), remedy);
        }
        ErrorKind::PermissionDenied => {
            "use a port from 1024 on, or give the edge CAP_NET_BIND_SERVICE"
        }
        ErrorKind::AddrNotAvailable => "use an address of this machine, or 0.0.0.0 for all of them",
        _ => "choose an address that this machine can listen on",
    };
    aspect.problem(format!("the edge cannot listen on {address}: {error}"), remedy)
}

/// Whether an edge that runs here is ready. An error is a problem.
async fn ask_admin(address: SocketAddr) -> Result<Finding, Finding> {
    const ASPECT: Aspect = Aspect::AdminListen;
    let near = on_this_machine(address);
    let problem = |why: String| {
        ASPECT.problem(why, "read the edge's log; `weni-edge healthcheck` asks again")
    };
    let asked = caller::probe(&near.to_string(), "/readyz").await;
    match asked.map_err(|error| problem(format!("{error:#}")))? {
        (StatusCode::OK, _) => Ok(ASPECT.ok(format!("an edge runs here, and is ready on {near}"))),
        (StatusCode::SERVICE_UNAVAILABLE, first) => {
            Err(problem(format!("an edge runs here, and is not ready: 503 {first}")))
        }
        (status, _) => {
            let found = format!("{near} answers /readyz with {status}, as no edge does");
            let remedy =
                "end the other program (ss -tanp shows it), or choose another admin.listen";
            Err(ASPECT.problem(found, remedy))
        }
    }
}

/// Whether a connection to an edge that runs here can be opened. No call is made.
fn knock(aspect: Aspect, address: SocketAddr) -> Finding {
    let near = on_this_machine(address);
    match TcpStream::connect_timeout(&near, STEP) {
        Ok(_) => aspect.ok(format!("an edge runs here, and listens on {address}")),
        Err(error) => {
            let found = format!("{near} takes no connection: {error}");
            aspect.problem(found, "read the edge's log, and restart it")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::check::Severity;

    #[test]
    fn an_address_is_free_or_taken_or_cannot_be_had() {
        let judged = |address: &str, is_running| {
            let address: SocketAddr = address.parse().unwrap();
            let bound = bind(address);
            judge(Aspect::HttpListen, address, bound.as_ref().err(), is_running)
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().to_string();
        let found = judged(&taken, false);
        assert_eq!(found.severity, Severity::Problem);
        assert!(found.found.contains("another program listens"), "{found:?}");
        // Bound without listening, it is nobody else's.
        let held = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let free = held.local_addr().unwrap().to_string();
        assert_eq!(judged(&free, false).found, format!("{free} is free"));
        assert_eq!(judged(&free, true).severity, Severity::Warning);
        // TEST-NET-1 is no machine's.
        let strange = judged("192.0.2.1:8080", false);
        assert_eq!(strange.severity, Severity::Problem);
        assert!(strange.remedy.unwrap().contains("address of this machine"));
    }
}
