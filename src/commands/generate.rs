//! `dsad generate`: man pages and shell completions, for the packages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap_complete::Shell;

/// Arguments of `dsad generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// Folder that they are written into
    dir: PathBuf,
}

/// Runs the verb; `command` is the whole program's.
///
/// # Errors
/// The folder cannot be written.
pub fn run(args: &GenerateArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    let failed = || format!("{}: cannot be written", dir.display());
    std::fs::create_dir_all(dir).with_context(failed)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "dsad", dir).with_context(failed)?;
    }
    // One for every verb.
    clap_mangen::generate_to(command, dir).with_context(failed)?;
    Ok(ExitCode::SUCCESS)
}
