//! Destinations of inspections. A sink never blocks on a disk: what can block is a worker behind a bounded channel.

pub mod envelope;
pub mod images;
pub mod latest;
pub mod live;
pub mod ndjson;
pub mod record;
