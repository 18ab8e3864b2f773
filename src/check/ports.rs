//! The addresses to listen on: free, or an edge's that runs here.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use http::StatusCode;
use tokio::{net::TcpStream, time::timeout};

use super::{Aspect, Finding, Report, Subject, block_on};
use crate::{
    caller::{self, on_this_machine},
    serve::bind,
};

/// A healthy edge answers at once.
const STEP: Duration = Duration::from_secs(3);

pub(super) fn probe(subject: &Subject, report: &Report) {
    let (http, admin) = (subject.config.http.listen, subject.config.admin.listen);
    let is_running = subject.running().is_some();
    let asked = |aspect, address| {
        // For a moment, and without listening: no caller is answered.
        let bound = bind(address);
        let is_taken = matches!(&bound, Err(error) if error.kind() == ErrorKind::AddrInUse);
        if !(is_taken && is_running) {
            return judge(aspect, address, bound.as_ref().err(), is_running);
        }
        let asked = match aspect {
            Aspect::AdminListen => block_on(aspect, ask_admin(address)),
            _ => block_on(aspect, knock(aspect, address)),
        };
        asked.unwrap_or_else(|refused| refused)
    };
    report.add(asked(Aspect::HttpListen, http));
    report.add(asked(Aspect::AdminListen, admin));
}

fn judge(
    aspect: Aspect,
    address: SocketAddr,
    error: Option<&io::Error>,
    is_running: bool,
) -> Finding {
    let Some(error) = error else {
        if address.port() == 0 {
            return Finding::ok(
                aspect,
                format!("{address}: the system chooses a port at each start"),
            );
        }
        if is_running {
            let found = format!("an edge has the journal open and does not listen on {address}");
            let remedy = "it was started with another address: restart it, or give its --config";
            return Finding::warning(aspect, found, remedy);
        }
        return Finding::ok(aspect, format!("{address} is free"));
    };
    let (found, remedy) = match error.kind() {
        ErrorKind::AddrInUse => (
            format!("another program listens on {address}"),
            "end it (ss -ltnp shows it), or choose another port; if it is this edge, run check as the \
             edge's user",
        ),
        kind => (
            format!("the edge cannot listen on {address}: {error}"),
            match kind {
                ErrorKind::PermissionDenied => {
                    "use a port from 1024 on, or give the edge CAP_NET_BIND_SERVICE"
                }
                ErrorKind::AddrNotAvailable => {
                    "use an address of this machine, or 0.0.0.0 for all of them"
                }
                _ => "choose an address that this machine can listen on",
            },
        ),
    };
    Finding::problem(aspect, found, remedy)
}

/// Whether an edge that runs here is ready.
async fn ask_admin(address: SocketAddr) -> Finding {
    const ASPECT: Aspect = Aspect::AdminListen;
    let near = on_this_machine(address);
    let problem = |why: String| {
        let remedy = "read the edge's log; `weni-edge healthcheck` asks again";
        Finding::problem(ASPECT, why, remedy)
    };
    match caller::probe(&near.to_string(), "/readyz").await {
        Ok((StatusCode::OK, _)) => {
            Finding::ok(ASPECT, format!("an edge runs here, and is ready on {near}"))
        }
        Ok((StatusCode::SERVICE_UNAVAILABLE, first)) => {
            problem(format!("an edge runs here, and is not ready: 503 {first}"))
        }
        Ok((status, _)) => {
            let found = format!("{near} answers /readyz with {status}, as no edge does");
            let remedy =
                "end the other program (ss -ltnp shows it), or choose another admin.listen";
            Finding::problem(ASPECT, found, remedy)
        }
        Err(error) => problem(format!("{error:#}")),
    }
}

/// Whether a connection to an edge that runs here can be opened. No call is made.
async fn knock(aspect: Aspect, address: SocketAddr) -> Finding {
    let near = on_this_machine(address);
    let why = match timeout(STEP, TcpStream::connect(near)).await {
        Ok(Ok(_)) => {
            return Finding::ok(aspect, format!("an edge runs here, and listens on {address}"));
        }
        Ok(Err(error)) => format!(": {error}"),
        Err(_) => format!(" within {} s", STEP.as_secs()),
    };
    let found = format!("{near} takes no connection{why}");
    Finding::problem(aspect, found, "read the edge's log, and restart it")
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
