//! The paper's own training: an autoencoder finetuned on good pictures, then the guided denoiser, by steps and not by
//! minutes, from public checkpoints.
//!
//! | file | what |
//! |---|---|
//! | `config` | what a run is asked for: `configs/train/finetune-autoencoder.toml`, `configs/train/train.toml` |
//! | `data` | pictures, what is held out of them, and which picture a step sees |
//! | `model` | a model on disk: `model.json` and `weights.safetensors` |
//! | `run` | the step loop of both: accumulate, step, validate, checkpoint, resume |
//! | `autoencoder`, `lpips` | the first task and its perceptual loss |
//! | `diffusion` | the second task |
//! | `validate` | choosing a checkpoint by synthetic defects |
//! | `export` | from a trained model to a bundle |

pub mod autoencoder;
pub mod config;
pub mod data;
pub mod diffusion;
pub mod export;
pub mod lpips;
pub mod model;
pub mod run;
pub mod validate;
