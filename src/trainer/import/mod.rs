//! Public checkpoints in: files are parsed, never executed, and every tensor is accounted for.
//!
//! `checkpoint` opens a file of any known format and lists its tensors, `keys` says what they are called in each layout,
//! `fill` puts them into a network and reports, `build` assembles the model that training starts from, `release` writes it
//! in DiAD's layout.

pub mod build;
pub mod checkpoint;
pub mod fill;
pub mod keys;
pub mod release;
