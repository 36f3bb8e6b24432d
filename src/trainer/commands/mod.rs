//! The verbs of `trainer`, one file each.

pub mod backbone;
pub mod baseline;
pub mod bench;
pub mod build_model;
pub mod calibrate;
pub mod describe;
pub mod export;
pub mod finetune_autoencoder;
pub mod fit;
pub mod keygen;
pub mod pretrain;
pub mod sign;
pub mod sweep;
pub mod synth;
pub mod test;
pub mod train;
