#![allow(clippy::unwrap_used, reason = "in a test a failed unwrap is a failed test")]

mod send;
