//! Visual inspection of parts on a factory line with a guided diffusion model.

pub mod bundle;
pub mod inspection;
pub mod model;
#[cfg(feature = "train")]
pub mod trainer;
