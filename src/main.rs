use std::process::ExitCode;

use clap::Parser;
use weni_edge::cli::send;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A webhook edge: Weni's WhatsApp callbacks into Kafka, exactly once
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    Send(send::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Send(args) => send::run(&args),
    }
}
