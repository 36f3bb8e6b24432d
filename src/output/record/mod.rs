//! Where every inspection is kept: a worker makes its event, commits it, and only then tells of it.
//!
//! ```text
//!  publish ─► queue ─► worker ─► database ─► lines of events.ndjson
//!  commands, deeds ┘       │                 └► archive worker
//!                          └ a disk that refuses: what came waits here, and is tried again
//! ```
//!
//! Nothing on the way of a verdict waits for this. If the worker does not keep up, pictures are given up first, then passes; failures, faults and
//! deeds have room that passes may not take. If even that is full, the station must not go on: a reject without a record is not allowed.

mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

pub use self::worker::RecordWorker;
use super::archive::Archive;
use super::ndjson::Lines;
use super::store::read::Reader;
use super::store::{Row, Store};
use crate::inspection::audit::{Audit, Deed};
use crate::inspection::event::{Envelope, Event};
use crate::inspection::time::Clock;
use crate::inspection::verdict::{Inspection, Record, SinkError, Verdict};

/// What waits for the worker: five seconds at 100 parts a second.
const QUEUE: usize = 512;
/// Places of these that passes may not take.
const RESERVED: usize = 128;
/// Inspections that wait with their pictures, 2 MiB each; what comes behind them loses its own.
const PICTURES: usize = 8;

/// What the record reports.
#[derive(Debug, Default)]
pub struct RecordHealth {
    /// Events that are committed; without a database, written.
    pub kept: AtomicU64,
    /// Passes whose events were given up.
    pub lost_passes: AtomicU64,
    /// Failures and faults whose events were given up: the station must not go on.
    pub lost: AtomicU64,
    /// Events that lost their pictures because the worker did not keep up.
    pub lost_pictures: AtomicU64,
    /// Messages that were given up because a destination did not take them in time.
    pub given_up: AtomicU64,
    /// Bytes that destinations have not acknowledged.
    pub outbox: AtomicU64,
    /// Rows that wait for a disk that refuses.
    pub backlog: AtomicU64,
    /// Whether the last commit failed.
    pub failing: AtomicBool,
    /// Commits, for those who look for what is new.
    commits: AtomicU64,
    /// Destinations and the archive, that still say what they have done.
    listeners: AtomicU64,
    /// Set when every event is committed.
    closed: AtomicBool,
}

impl RecordHealth {
    /// How often something was committed: until it changes the outbox is as it was.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// Whether every event is committed and no more will come.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A destination, or the archive, will say what it has done, until it has [`left`](Self::left).
    pub fn listens(&self) {
        self.listeners.fetch_add(1, Ordering::AcqRel);
    }

    /// It has said everything.
    pub fn left(&self) {
        self.listeners.fetch_sub(1, Ordering::AcqRel);
    }

    /// Events that were given up.
    pub fn all_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed) + self.lost_passes.load(Ordering::Relaxed)
    }
}

enum Entry {
    Inspection(Envelope, Box<Inspection>),
    Late(Envelope, Box<Inspection>),
    Row(Row),
    End,
}

/// Tells the record what is no inspection.
#[derive(Clone)]
pub struct Clerk {
    entries: Sender<Entry>,
    clock: Arc<dyn Clock>,
    health: Arc<RecordHealth>,
}

impl Clerk {
    /// What the record reports.
    pub fn record(&self) -> &Arc<RecordHealth> {
        &self.health
    }

    /// Puts a message of the station out to all destinations.
    ///
    /// # Errors
    /// The record does not keep up, or has ended.
    pub fn message(&self, topic: &'static str, body: String) -> Result<(), SinkError> {
        self.tell(Row::Message(topic, body, self.clock.wall_nanos()))
    }

    /// Takes deeds into the audit trail.
    pub fn audit(&self) -> Audit {
        let clerk = self.clone();
        Arc::new(move |deed: Deed| clerk.tell(Row::Deed(deed, clerk.clock.wall_nanos())))
    }

    /// Says what a destination has acknowledged, rows of the outbox.
    ///
    /// # Errors
    /// The record has no room just now, or has ended.
    pub fn sent(&self, rows: Vec<i64>) -> Result<(), SinkError> {
        self.tell(Row::Sent(rows))
    }

    /// Hands a row over, and waits for room: for workers, never for a stage.
    ///
    /// # Errors
    /// The record has ended.
    pub fn wait_for(&self, row: Row) -> Result<(), SinkError> {
        self.entries.send(Entry::Row(row)).map_err(|_| ended())
    }

    fn tell(&self, row: Row) -> Result<(), SinkError> {
        // Whoever commands without end must not take the room of failures.
        if self.entries.len() >= QUEUE - RESERVED {
            return Err(full());
        }
        self.entries.try_send(Entry::Row(row)).map_err(|error| if error.is_full() { full() } else { ended() })
    }
}

fn full() -> SinkError {
    SinkError("the record does not keep up: the disk is too slow".into())
}

fn ended() -> SinkError {
    SinkError("the record has ended".into())
}

/// Hands inspections to the worker.
pub struct Recording {
    entries: Sender<Entry>,
    health: Arc<RecordHealth>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Others hold ends of the queue, too. If it is full the worker takes this as soon as there is room.
        let _ = self.entries.send(Entry::End);
    }
}

impl Record for Recording {
    fn keep(&mut self, envelope: Envelope, mut inspection: Box<Inspection>) -> Result<(), SinkError> {
        let waiting = self.entries.len();
        if waiting >= PICTURES && inspection.let_go() {
            self.health.lost_pictures.fetch_add(1, Ordering::Relaxed);
        }
        let pass = inspection.decision.verdict == Verdict::Pass;
        let lost = if pass { &self.health.lost_passes } else { &self.health.lost };
        if pass && waiting >= QUEUE - RESERVED {
            lost.fetch_add(1, Ordering::Relaxed);
            return Err(full());
        }
        self.entries.try_send(Entry::Inspection(envelope, inspection)).map_err(|error| {
            lost.fetch_add(1, Ordering::Relaxed);
            if error.is_full() { full() } else { ended() }
        })
    }

    fn amend(&mut self, envelope: Envelope, mut late: Box<Inspection>) -> Result<(), SinkError> {
        late.let_go();
        self.entries
            .try_send(Entry::Late(envelope, late))
            .map_err(|error| if error.is_full() { full() } else { ended() })
    }
}

/// What the record writes to.
pub struct Places {
    /// The database; without one the lines are the record.
    pub store: Option<(Store, Reader)>,
    /// The file of events.
    pub lines: Lines,
    /// The pictures.
    pub archive: Option<Archive>,
    /// Whoever is shown every event once it is kept.
    pub shown: Option<Sender<Event>>,
}

/// The way to the worker.
pub struct Queue {
    entries: Receiver<Entry>,
    clock: Arc<dyn Clock>,
    health: Arc<RecordHealth>,
}

/// Where inspections are handed over, what else can be told, and the way from there to the worker.
pub fn queue(clock: Arc<dyn Clock>) -> (Recording, Clerk, Queue) {
    let (sender, entries) = bounded(QUEUE);
    let health = Arc::new(RecordHealth::default());
    let recording = Recording { entries: sender.clone(), health: Arc::clone(&health) };
    let clerk = Clerk { entries: sender, clock: Arc::clone(&clock), health: Arc::clone(&health) };
    (recording, clerk, Queue { entries, clock, health })
}
