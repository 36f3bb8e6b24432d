//! The integration tests: one program, one module per concern.
#![allow(clippy::unwrap_used)]

/// Dependency rules, file sizes, tracked assets, shipped configurations.
mod architecture;
/// The bundle refuses what is not whole.
mod bundle;
/// The stated false-reject rate on parts that a calibration has not seen.
mod calibration;
/// Golden parts that are judged between frames.
mod challenge;
/// Both programs from the outside: exit codes, messages, JSON.
mod cli;
/// A wall clock that jumps.
mod clock;
/// What is written in configuration files: the schema, typing errors, anything at all.
mod configuration;
/// Processes that are killed.
mod crash;
/// Bundles with anything wrong in them, while a station judges.
mod damaged;
/// Any bytes over HTTP, while parts are judged.
mod fuzz;
/// Networks against PyTorch.
mod golden_model;
/// The paper's networks against Stable Diffusion's and ControlNet's published modules.
mod golden_paper;
/// GPIO lines of a simulated chip.
mod gpio;
/// Who may do what over HTTP.
mod http;
/// Public checkpoints in.
mod import;
/// Registers and coils, by a client of the field.
mod modbus;
/// The broker and the webhook, real ones, that come and go.
mod mqtt;
/// The trainer's map is the daemon's map.
mod parity;
/// The whole daemon with scripted parts.
mod pipeline;
/// Bases: made of procedural pictures, and what `fit` starts from.
mod pretraining;
/// A configuration that is read again while the station runs.
mod reload;
/// ROIs: what counts of a frame.
mod rois;
/// The HTTP service of a whole daemon.
mod service;
/// Bundles in two places.
mod slots;
/// What the log and systemd hear on the way to ready.
mod startup;
/// The state of a station, what commands it obeys, and what faults do.
mod states;
/// What the station keeps: database, lines, pictures, audit trail.
mod store;
/// Scripted cameras, detectors and clocks.
mod support;
/// Experiments: variants side by side, killed, repeated, failed.
mod sweep;
/// What ships for systemd; safe mode, watchdog, preflight.
mod systemd;
/// Parts that are larger than the model's input.
mod tight;
mod tiles;
/// The paper's sampling and training against PyTorch.
mod training;
/// Triggers, deadlines, recipes, what the line does.
mod triggers;
/// Kernels that are compiled before the first part, and travel.
mod warm_up;
/// The paper's way through the programs, from public checkpoints to verdicts.
mod workflow;
