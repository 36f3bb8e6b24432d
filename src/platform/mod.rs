//! What the operating system gives: clocks, signals, the service manager, the journal, memory, heat, what the machine has. The only place
//! that asks for it.

pub mod attempts;
pub mod certificate;
pub mod clock;
pub mod logger;
pub mod memory;
pub mod preflight;
pub mod private_file;
pub mod service_manager;
pub mod signals;
pub mod terminal;
pub mod thermal;
