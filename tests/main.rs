//! The integration tests: one program, one module per concern.
#![allow(clippy::unwrap_used)]

/// Dependency rules, file sizes, tracked assets, shipped configurations.
mod architecture;
/// The bundle refuses what is not whole.
mod bundle;
/// The stated false-reject rate on parts that a calibration has not seen.
mod calibration;
/// Both programs from the outside: exit codes, messages, JSON.
mod cli;
/// Networks against PyTorch.
mod golden_model;
/// The paper's networks against Stable Diffusion's and ControlNet's published modules.
mod golden_paper;
/// GPIO lines of a simulated chip.
mod gpio;
/// Public checkpoints in.
mod import;
/// The trainer's map is the daemon's map.
mod parity;
/// The whole daemon with scripted parts.
mod pipeline;
/// Bases: made of procedural pictures, and what `fit` starts from.
mod pretraining;
/// ROIs: what counts of a frame.
mod rois;
/// The HTTP service of a whole daemon.
mod service;
/// What the log and systemd hear on the way to ready.
mod startup;
/// Scripted cameras, detectors and clocks.
mod support;
/// Experiments: variants side by side, killed, repeated, failed.
mod sweep;
/// What ships for systemd; safe mode, watchdog, preflight.
mod systemd;
/// Parts that are larger than the model's input.
mod tiles;
/// The paper's sampling and training against PyTorch.
mod training;
/// Triggers, deadlines, recipes, what the line does.
mod triggers;
/// The paper's way through the programs, from public checkpoints to verdicts.
mod workflow;
