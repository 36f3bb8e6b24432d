//! The integration tests: one program, one module per concern.

/// Dependency rules, file sizes, tracked assets, shipped configurations.
mod architecture;
/// The bundle refuses what is not whole.
mod bundle;
/// Both programs from the outside: exit codes, messages, JSON.
mod cli;
/// Networks against PyTorch.
mod golden_model;
/// The whole daemon with scripted parts.
mod pipeline;
/// Scripted cameras, detectors and clocks.
mod support;
