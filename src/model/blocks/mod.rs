//! Building blocks that the networks share.

pub mod activation;
pub mod attention;
pub mod depthwise;
pub mod edge;
pub mod pointwise;
pub mod resample;
pub mod residual;
pub mod stage;
pub mod timestep;
pub mod transformer;
