//! `dsad accounts`: who may command a station. Works while the daemon runs, which reads the file again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use serde_json::json;

use crate::accounts::Accounts;
use crate::config::station::load;
use crate::inspection::account::Level;
use crate::platform::terminal;

/// Arguments of `dsad accounts`.
#[derive(Debug, clap::Args)]
pub struct AccountsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// All accounts with their levels
    List(ListArgs),
    /// Add one; its password is asked for, or read from standard input
    Add(AddArgs),
    /// Give one another password, which is asked for, or read from standard input
    Passwd(NameArgs),
    /// Remove one
    Remove(NameArgs),
}

/// Arguments of `dsad accounts list`.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
    /// One JSON object an account
    #[arg(long)]
    json: bool,
}

/// Arguments of `dsad accounts passwd` and `remove`.
#[derive(Debug, clap::Args)]
struct NameArgs {
    /// The account
    name: String,
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
}

/// Arguments of `dsad accounts add`.
#[derive(Debug, clap::Args)]
struct AddArgs {
    #[command(flatten)]
    of: NameArgs,
    /// What it may do: operator, technician, engineer or admin
    #[arg(long, value_parser = level)]
    level: Level,
}

fn level(word: &str) -> Result<Level, String> {
    Level::parse(word).ok_or_else(|| {
        let words = Level::ALL.map(Level::word).join(", ");
        format!("no level '{word}'; there are {words}")
    })
}

/// Runs the verb.
///
/// # Errors
/// The configuration is refused, or what is asked for.
pub fn run(args: &AccountsArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::List(ListArgs { config, json: as_json }) => {
            let accounts = Accounts::open(&load(config)?.state)?;
            for known in accounts.list()? {
                if *as_json {
                    let row = json!({"name": known.name, "level": known.level, "must_change": known.must_change});
                    println!("{row}");
                } else {
                    let note = if known.must_change { ", must change its first password" } else { "" };
                    println!("{}: {}{note}", known.name, known.level);
                }
            }
        }
        Verb::Add(AddArgs { of: NameArgs { name, config }, level }) => {
            let accounts = Accounts::open(&load(config)?.state)?;
            accounts.add(name, *level, &password(name)?)?;
        }
        Verb::Passwd(NameArgs { name, config }) => {
            let accounts = Accounts::open(&load(config)?.state)?;
            // Before somebody types for nothing.
            ensure!(accounts.known(name)?.is_some(), "no account '{name}'");
            accounts.set_password(name, &password(name)?)?;
        }
        Verb::Remove(NameArgs { name, config }) => Accounts::open(&load(config)?.state)?.remove(name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A password; twice where somebody types it.
fn password(name: &str) -> anyhow::Result<String> {
    let password = terminal::password(&format!("password of '{name}'"))?;
    if terminal::is_terminal() {
        ensure!(terminal::password("again")? == password, "the two are not the same; nothing was changed");
    }
    Ok(password)
}
