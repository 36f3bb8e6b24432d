//! What the operating system gives: clocks, signals, the service manager, memory, what the machine has. The only place that asks for it.

pub mod clock;
pub mod memory;
pub mod preflight;
pub mod service_manager;
pub mod signals;
