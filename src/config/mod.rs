//! What an operator writes, and what it means.
//!
//! | file | what |
//! |---|---|
//! | `file` | exactly the TOML |
//! | `station`, `camera`, `recipe` | the same, validated and resolved |
//! | `http` | the HTTP service |
//! | `gpio` | lines of GPIO chips, both |
//! | `device` | on which device networks run |
//! | `change` | what differs between two configurations, and what of it a running station takes |
//! | `schema` | what may be written, as JSON schemas |
//! | `shipped` | where the files that ship are found |
//! | `problem` | what is wrong: file, key, value and remedy, all at once |

pub mod access;
pub mod camera;
pub mod change;
pub mod device;
pub mod file;
pub mod gpio;
pub mod http;
pub mod problem;
pub mod recipe;
pub mod record;
pub mod schema;
pub mod shipped;
pub mod station;
pub mod telling;
