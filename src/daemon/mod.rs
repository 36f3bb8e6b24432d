//! The daemon: four stages in a line. Their threads and channels live here and nowhere else.
//!
//! | file | what |
//! |---|---|
//! | `pipeline` | the picture: capacities, channels, spawn order, supervision |
//! | `mailbox` | the hand-off that keeps the newest frame |
//! | `gate` | where what is owed begins |
//! | `trigger` | the way in of triggers, and the frames they find |
//! | `stages` | capture, prepare, inspect |
//! | `publish` | the last stage: deadlines, what the line does, the sinks |
//! | `ledger` | the books that the last stage keeps: what is owed, and until when |
//! | `job` | a recipe in force, and the path from prepared pixels to an inspection |
//! | `challenge` | golden parts, judged in between |
//! | `state` | the state of the station, and the faults that stand |
//! | `control` | what clients ask of a station that runs |
//! | `health` | counters |
//! | `watch` | what drifts |
//! | `upkeep` | what is done beside the stages |

pub mod challenge;
pub mod control;
pub mod exchange;
pub mod gate;
pub mod health;
pub mod job;
pub mod ledger;
pub mod mailbox;
pub mod pipeline;
pub mod publish;
pub mod stages;
pub mod state;
pub mod trigger;
pub mod upkeep;
pub mod watch;
