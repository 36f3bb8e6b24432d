//! Destinations of inspections behind the publish stage. What can block is a worker behind a bounded channel.
//!
//! | file | what |
//! |---|---|
//! | `envelope` | identity of events |
//! | `record` | the worker that makes events, commits them and tells of them |
//! | `store` | the database: events, outbox, index of images, audit trail |
//! | `ndjson` | the file of events that can be followed |
//! | `archive`, `latest`, `drawing` | pictures of inspections |

pub mod archive;
pub mod drawing;
pub mod envelope;
pub mod latest;
pub mod ndjson;
pub mod record;
pub mod store;
