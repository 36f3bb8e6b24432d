//! Visual inspection of parts on a factory line with a guided diffusion model.

pub mod bundle;
pub mod config;
pub mod detector;
pub mod device;
pub mod inspection;
pub mod model;
pub mod preprocess;
pub mod render;
pub mod synthetic;
#[cfg(feature = "train")]
pub mod trainer;
