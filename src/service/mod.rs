//! What a station tells over HTTP: whether it lives, whether it is ready, and its counters. One worker thread, spawned by
//! the daemon; it only reads, so nothing that a client does reaches the inspection.
//!
//! | file | what |
//! |---|---|
//! | `http` | listener, limits, routes |
//! | `metrics` | a reading of the counters, and its Prometheus text |

pub mod http;
pub mod metrics;
