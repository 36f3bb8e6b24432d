//! The daemon: four stages in a line. Threads and channels live here and nowhere else.
//!
//! | file | what |
//! |---|---|
//! | `pipeline` | the picture: capacities, channels, spawn order, supervision |
//! | `mailbox` | the hand-off that keeps the newest frame |
//! | `stages` | capture, prepare, inspect, publish: a plain function each |
//! | `health` | counters |

pub mod health;
pub mod mailbox;
pub mod pipeline;
pub mod stages;
