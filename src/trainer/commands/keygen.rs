//! `trainer keygen`: a key pair for signing bundles.

use std::path::PathBuf;

use clap::Args;

use crate::bundle::signature::PrivateKey;

/// Makes a key pair: NAME.key stays with the trainer, NAME.pub goes to the stations.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Directory for both files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Name of the files and comment of the keys.
    #[arg(long, default_value = "dsad")]
    pub name: String,
}

/// Writes the pair and prints where it is.
///
/// # Errors
/// A name that is not a plain file name, or a file that exists: a key is never overwritten.
pub fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    anyhow::ensure!(
        !args.name.is_empty() && !args.name.starts_with('.') && args.name.chars().all(plain),
        "--name '{}': use letters, digits, '.', '_' and '-'",
        args.name
    );
    let key = PrivateKey::generate()?;
    let (private, public) = key.write(&args.out, &args.name)?;
    println!("private key {} (keep it; mode 0600)", private.display());
    println!("public key  {} ({})", public.display(), key.public_hex());
    Ok(())
}
