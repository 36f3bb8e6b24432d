//! What an operator writes, and what it means.
//!
//! `file` is exactly the TOML; `station` is validated and resolved. Errors name file, key, value and remedy, all at once.

pub mod device;
pub mod file;
pub mod gpio;
pub mod station;
