pub mod callback;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod serve;
