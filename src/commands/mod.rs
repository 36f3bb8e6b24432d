//! The verbs of `dsad`, one file each.

pub mod bundle;
pub mod calibrate;
pub mod cameras;
pub mod check;
pub mod demo;
pub mod generate;
pub mod gpio;
pub mod inspect;
pub mod load;
pub mod preflight;
pub mod problems;
pub mod run;
pub mod safe_mode;
pub mod version;
