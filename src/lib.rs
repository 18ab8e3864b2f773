pub mod callback;
pub mod config;
pub mod metrics;
pub mod publish;
