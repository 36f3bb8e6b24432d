//! From a folder of good pictures to a bundle (feature `train`).
//!
//! | file | what |
//! |---|---|
//! | `config` | how a profile is trained |
//! | `dataset`, `pictures`, `batches` | what it is trained on |
//! | `objective`, `stage`, `ema`, `checkpoint` | the three stages and their step loop |

pub mod batches;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod dataset;
pub mod ema;
pub mod judge;
pub mod objective;
pub mod pictures;
pub mod stage;
