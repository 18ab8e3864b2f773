//! `completions`: what a shell needs to complete the commands and their options.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::{Cli, terminal::print};

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge completions bash > ~/.local/share/bash-completion/completions/weni-edge\n  \
    weni-edge completions fish > ~/.config/fish/completions/weni-edge.fish\n  \
    weni-edge completions zsh > ~/.zfunc/_weni-edge\n\n\
    For zsh, ~/.zshrc needs `fpath+=~/.zfunc` before `compinit`. A new shell knows the commands.")]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // `generate` panics where the reader of standard output has gone.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "weni-edge", &mut script);
    // clap_complete 4.6.11 has two names for a command below one with a hyphen, and bash completes
    // nothing there (clap-rs/clap#6421).
    let script = String::from_utf8(script)?.replace("weni__subcmd__edge", "weni__edge");
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}
