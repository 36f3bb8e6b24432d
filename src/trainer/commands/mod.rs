//! The verbs of `trainer`, one file each.

pub mod keygen;
pub mod sign;
pub mod synth;
