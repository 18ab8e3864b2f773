//! The commands, a file each.

pub(crate) mod courier;
pub mod samples;
pub mod send;
