//! `weni-edge`: Weni's webhook callbacks into Kafka, exactly once.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weni_edge::serve::signals::end_on_terminate();
    let _failpoints = fail::FailScenario::setup();
    weni_edge::cli::main()
}
