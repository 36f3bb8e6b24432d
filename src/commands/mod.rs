//! The verbs of `dsad`, one file each.

pub mod accounts;
pub mod bundle;
pub mod calibrate;
pub mod cameras;
pub mod check;
pub mod config_schema;
pub mod demo;
pub mod events;
pub mod generate;
pub mod gpio;
pub mod inspect;
pub mod kernels;
pub mod load;
pub mod preflight;
pub mod problems;
pub mod record;
pub mod run;
pub mod safe_mode;
pub mod serve;
pub mod swap;
pub mod telling;
pub mod upkeep;
pub mod version;
pub mod warm_up;
