//! Calls webhooks the way Weni does: for `send`, `dev --demo`, `healthcheck` and the benchmarks.

mod bodies;
mod client;
mod outcomes;
mod samples;

pub use bodies::Bodies;
pub use client::{Answer, Failure, Target, WeniClient};
pub use outcomes::{Outcomes, Summary};
pub use samples::{EDGE_TEST, LIFE, MessageId, SAMPLES, Sample, Template};
