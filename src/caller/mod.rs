//! Calls webhooks the way Weni does: for `send`, `dev --demo`, `check`, the inspector, `healthcheck` and
//! the benchmarks.

mod bodies;
mod client;
mod outcomes;

pub use bodies::{Bodies, EDGE_TEST, LIFE, MessageId, SAMPLES, Sample, Template};
pub use client::{
    Answer, CallError, CallFailure, Target, WeniClient, is_public, on_this_machine, probe,
    trusted_roots, without_secrets,
};
pub use outcomes::{Outcomes, Summary};
