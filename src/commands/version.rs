//! What this program was built from, and for.

/// Version, revision, features and CUDA binding, for `--version`.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nrevision: ",
    env!("DSAD_REVISION"),
    "\nfeatures: ",
    env!("DSAD_FEATURES"),
    "\nCUDA binding: ",
    env!("DSAD_CUDA_BINDING"),
);

/// The CUDA version that the bindings are for, as 12060 for 12.6; nothing where nobody chose one when this was built.
pub fn cuda_binding() -> Option<u32> {
    env!("DSAD_CUDA_BINDING").parse().ok()
}

/// Whether a feature is built in.
pub fn has(feature: &str) -> bool {
    env!("DSAD_FEATURES").split(',').any(|name| name == feature)
}
