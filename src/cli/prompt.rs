//! Asks before something is changed.

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;

/// Whether the person at the terminal wants it.
///
/// # Errors
/// When nobody is there to be asked.
pub(super) fn confirmed() -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("nobody to ask: say --yes if that is what you want");
    }
    print!("Go on? [y/N] ");
    stdout().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
