#![doc = include_str!("ARCHITECTURE.md")]

pub mod admin;
pub mod callback;
pub mod cli;
pub mod config;
pub mod event;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod normalize;
pub mod publish;
pub mod serve;
