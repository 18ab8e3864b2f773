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

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Send(args) => send::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
