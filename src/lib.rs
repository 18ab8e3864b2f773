#![doc = include_str!("ARCHITECTURE.md")]

pub mod admin;
pub mod callback;
pub mod caller;
pub mod calls;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod http;
pub mod journal;
pub mod kafka;
pub mod metrics;
pub mod mutant;
pub mod normalize;
pub mod publish;
mod quarantine;
pub mod replay;
pub mod serve;
mod tail;
