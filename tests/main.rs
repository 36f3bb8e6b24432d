//! One integration target: each module below is one subject.
#![allow(clippy::unwrap_used)]

/// Bundles: what is refused, and by which message.
mod bundle;
/// Networks, schedules and samplers against PyTorch.
mod golden_model;
