//! What open pages of the inspector cost.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::ensure;

use crate::{
    Effort,
    edge::Edge,
    figures::Row,
    servers::{Server, take_turns},
    side_by_side::{beside, first},
    wrk::{ONE_KB, Wrk},
};

const ROUNDS: u32 = 5;
const CONNECTIONS: u16 = 64;

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut pages = Vec::new();
    let mut server = |name, streams| {
        Server::edge_for(name, ONE_KB, |home| {
            let edge = Edge::start(home)?;
            for _ in 0..streams {
                pages.push(open(edge.admin())?);
            }
            Ok(edge)
        })
    };
    let mut servers = [
        server("0 event streams", 0)?,
        server("1 event stream", 1)?,
        server("8 event streams", 8)?,
    ];
    let wrk = Wrk { connections: CONNECTIONS, time: effort.round };
    let turns = take_turns(&mut servers, wrk, effort.rounds(ROUNDS))?;
    for (page, bytes) in &pages {
        let bytes = bytes.load(Ordering::Relaxed);
        ensure!(!page.is_finished() && bytes > 1024, "a stream ended after {bytes} bytes");
    }
    let figure = |at: usize| format!("inspector, {CONNECTIONS} connections: {}", servers[at].name);
    let mut rows = vec![first(figure(0), &turns[0])];
    rows.extend([1, 2].map(|at| beside(figure(at), &turns[0], &turns[at])));
    Ok(rows)
}

/// Reads events as a browser does, until the edge ends. Also returns the count of their bytes.
fn open(admin: SocketAddr) -> anyhow::Result<(JoinHandle<()>, Arc<AtomicU64>)> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET /inspector/events HTTP/1.1\r\nHost: {admin}\r\n\r\n")?;
    let bytes = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&bytes);
    let page = thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    Ok((page, bytes))
}
