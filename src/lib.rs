pub mod callback;
pub mod metrics;
pub mod config;
