//! Visual inspection of parts on a factory line with a guided diffusion model.
//!
//! A picture goes in, a verdict comes out. `trainer` makes a *bundle* from pictures of good parts; `dsad` loads it and
//! judges frames. Both go through the same [`preprocess::prepare`], the same [`detector::DiffusionDetector`] and the same
//! [`inspection::decide::decide`], so what was tested is what runs.
//!
//! | module | what | may use |
//! |---|---|---|
//! | [`inspection`] | the domain: frames, detections, calibrations, verdicts | nothing |
//! | [`preprocess`] | sensor bytes to model input | `inspection` |
//! | [`kernels`] | operations that burn lacks, on the CPU and on CUDA | burn |
//! | [`model`] | networks and diffusion mathematics | `kernels`, burn |
//! | [`bundle`] | the artifact that travels from `trainer` to `dsad` | `model`, `preprocess`, `inspection` |
//! | [`detector`] | a bundle on a device: the only place where tensors meet frames | `bundle`, `model`, `preprocess`, `device` |
//! | [`device`] | the backends that are built in | burn, `config` |
//! | [`synthetic`], [`render`] | procedural parts; drawings | `inspection` |
//! | [`config`] | what an operator writes | `inspection`, `synthetic` |
//! | `camera`, `gpio`, `output`, `platform` | the edges | `inspection`, `config`, ... |
//! | `accounts` | who may command a station | `inspection`, `platform` |
//! | `service` | what a station tells over HTTP, and the commands that it takes there and by TCP | `inspection`, `config`, `output`, `accounts` |
//! | `daemon` | threads and channels | everything but `trainer`, `commands`, burn |
//! | `commands` | the verbs of `dsad` | everything but `trainer`, burn |
//! | `trainer` | the verbs of `trainer` | everything but the station |
//!
//! Invariants, checked by `tests/architecture.rs` where a test can: no file, thread or clock in the domain; burn only in
//! `kernels`, `model`, `bundle`, `detector`, `device` and `trainer`; clocks are read in `platform` and `trainer` alone.
//! Every frame of a camera that runs free, and every trigger that was accepted, ends as exactly one
//! [`inspection::verdict::Inspection`], and nothing but a completed, calibrated detection in time is a Pass.

#[cfg(feature = "station")]
pub mod accounts;
pub mod bundle;
#[cfg(feature = "station")]
pub mod camera;
#[cfg(feature = "station")]
pub mod commands;
pub mod config;
#[cfg(feature = "station")]
pub mod daemon;
pub mod detector;
pub mod device;
#[cfg(feature = "station")]
pub mod gpio;
pub mod inspection;
pub mod kernels;
pub mod model;
#[cfg(feature = "station")]
pub mod output;
#[cfg(feature = "station")]
pub mod platform;
pub mod preprocess;
pub mod render;
#[cfg(feature = "station")]
pub mod service;
pub mod synthetic;
#[cfg(feature = "train")]
pub mod trainer;
