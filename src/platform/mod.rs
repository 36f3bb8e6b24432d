//! What the operating system gives: clocks, signals, the service manager, the journal, memory, heat. The only place that asks for it.

pub mod clock;
pub mod logger;
pub mod memory;
pub mod service_manager;
pub mod signals;
pub mod thermal;
