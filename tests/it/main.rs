//! Integration tests: one binary, a file per capability.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod architecture;
mod callers;
mod check;
mod cluster;
mod completions;
mod config;
mod contract;
mod dev;
mod files;
mod fuzzed;
mod harness;
mod healthcheck;
mod http;
mod inspector;
mod kafka;
mod log;
mod normalize;
mod publish;
mod send;
mod signals;
mod tail;
