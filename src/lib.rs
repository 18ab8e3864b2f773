pub mod callback;
pub mod config;
pub mod metrics;
