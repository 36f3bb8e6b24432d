//! What an operator writes, and what it means.
//!
//! | file | what |
//! |---|---|
//! | `file` | exactly the TOML |
//! | `station`, `camera`, `recipe` | the same, validated and resolved |
//! | `http` | the HTTP service |
//! | `gpio` | lines of GPIO chips, both |
//! | `device` | on which device networks run |
//! | `problem` | what is wrong: file, key, value and remedy, all at once |

pub mod access;
pub mod camera;
pub mod device;
pub mod file;
pub mod gpio;
pub mod http;
pub mod problem;
pub mod recipe;
pub mod record;
pub mod station;
pub mod telling;
