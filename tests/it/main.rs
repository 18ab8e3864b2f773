//! Integration tests: one binary, a file per capability.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod architecture;
mod cluster;
mod harness;
mod kafka;
mod send;
