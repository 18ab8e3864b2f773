//! Integration tests: one binary, a file per capability.

mod architecture;
mod send;
