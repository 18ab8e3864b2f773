//! Faults that the simulator must find, each switched on by name.

#[cfg(feature = "simulation")]
thread_local! {
    static MUTANT: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Switches one on for this thread; the empty name switches all off.
#[cfg(feature = "simulation")]
pub fn set(name: &'static str) {
    MUTANT.set(name);
}

/// Whether the program misbehaves in this way.
#[cfg(feature = "simulation")]
pub fn is(name: &str) -> bool {
    MUTANT.get() == name
}

/// Whether the program misbehaves in this way. Only in the simulator can it.
#[cfg(not(feature = "simulation"))]
pub(crate) const fn is(_: &str) -> bool {
    false
}
