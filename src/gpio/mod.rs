//! GPIO lines by the kernel's character device: edges that trigger, and pulses that tell a machine what to do with a part.
//!
//! `docs/gpio.md` has the wiring. Nothing here is a safety device: a line can float once its program has ended.

pub mod chips;
pub mod input;
pub mod output;
mod schedule;
