//! `dsad config-schema`: what may be written in the configuration, for editors that read JSON schemas.

use std::process::ExitCode;

use crate::config::schema::{of_recipe, of_station};

/// Arguments of `dsad config-schema`.
#[derive(Debug, clap::Args)]
pub struct ConfigSchemaArgs {
    /// Of recipes; without it, of dsad.toml
    #[arg(long)]
    recipe: bool,
}

/// Runs the verb.
///
/// # Errors
/// A schema that is no JSON.
pub fn run(args: &ConfigSchemaArgs) -> anyhow::Result<ExitCode> {
    let schema = if args.recipe { of_recipe() } else { of_station() };
    println!("{}", serde_json::to_string_pretty(&schema)?);
    Ok(ExitCode::SUCCESS)
}
