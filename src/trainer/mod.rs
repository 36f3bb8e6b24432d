//! Training and everything around it.

pub mod commands;
