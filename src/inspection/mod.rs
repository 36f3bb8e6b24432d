//! The domain: frames, recipes, detections, calibrations and verdicts.
//!
//! Pure. No burn, no files, no threads, no clock reads; everything here can be tested with plain values.

pub mod account;
pub mod anomaly;
pub mod audit;
pub mod calibration;
pub mod command;
pub mod conditions;
pub mod decide;
pub mod detect;
pub mod drift;
pub mod event;
pub mod frame;
pub mod golden;
pub mod layout;
pub mod line;
pub mod mask;
pub mod metrics;
pub mod polygon;
pub mod pool;
pub mod recipe;
pub mod roi;
pub mod station_state;
pub mod tiles;
pub mod time;
pub mod trigger;
pub mod verdict;
pub mod words;
