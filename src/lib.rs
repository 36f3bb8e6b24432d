//! Visual inspection of parts on a factory line with a guided diffusion model.

pub mod inspection;
pub mod model;
