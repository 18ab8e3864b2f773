//! Faults of the process under load.
