//! Experiments: variants of the training configuration on several sets, each fit and tested by this same program as child
//! processes, and one table of all.
//!
//! ```text
//! DIR/
//! ├── table.md, table.json      written anew after every row
//! ├── lock                      held by the sweep and by what it started
//! └── VARIANT/SET-seedN/        one row
//!     ├── row.json              what was asked for, the commands that ran, the figures or the reason why there are none
//!     ├── config.toml           the whole training configuration
//!     ├── bundle, bundle.report.html, bundle.run
//!     └── fit.json, fit.log, test-2.json, test-2.log, ...   standard output and standard error of each command
//! ```
//!
//! A command is done once the last line of its standard output is there, so a sweep that was killed goes on where it was.

pub mod plan;
pub mod row;
pub mod run;
pub mod table;
