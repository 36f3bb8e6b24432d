//! `trainer sign`: the signature of a bundle.

use std::path::PathBuf;

use clap::Args;

use crate::bundle::Bundle;
use crate::bundle::signature::PrivateKey;

/// Signs a bundle after checking every file of it.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The bundle.
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,
    /// The private key that `trainer keygen` made.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// Writes `manifest.sig` and prints who signed what.
///
/// # Errors
/// A key that is not private, or a bundle that would be refused.
pub fn run(args: &SignArgs) -> anyhow::Result<()> {
    let key = PrivateKey::read(&args.key)?;
    let bundle = Bundle::sign(&args.bundle, &key)?;
    println!("signed {} ({}) with key {}", bundle.manifest.id, bundle.model_hash, key.public_hex());
    Ok(())
}
